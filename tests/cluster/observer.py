"""What ABLATION_OBSERVER names in the cluster tests: writes down every step and checkpoint, and slows steps down."""

from __future__ import annotations

import os
import time


def record(run: str, attempt: int, step: int, event: str) -> None:
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID"))
    line = f"{time.time():.3f} {run} {attempt} {step} {event} {job} {os.environ.get('SLURMD_NODENAME')}\n"
    descriptor = os.open(os.environ["TRACE_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(descriptor, line.encode())
    os.close(descriptor)
    if event == "step":
        time.sleep(float(os.environ["TRACE_SLEEP"]))
