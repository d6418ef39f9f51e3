"""A job of two minutes that finds out what a cluster does with this program's jobs: `cluster check`."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.local.pool import signals_held_back
from experiments.runs import slurm_environment
from experiments.runs.folder import Json, read_json, write_json
from experiments.slurm import commands, mps
from experiments.slurm.commands import SlurmError
from experiments.slurm.launch import FOLDER, Launch, copy_code, shared_folders
from experiments.slurm.profile import Cluster
from simsiam.machine import num_cores

CONFIG = ("JobRequeue", "PreemptMode", "PreemptType", "KillWait", "MaxArraySize", "AccountingStorageType")
PARTITION = ("PartitionName", "State", "MaxTime", "GraceTime", "PreemptMode", "DefMemPerCPU", "DefMemPerNode")
MINUTES = 2  # SLURM may send a signal a minute early, and the probe has to have begun by then
WARNING_SECONDS = 30  # before the end, the signal is asked for


def probe(folder: str, data: str) -> None:
    """On the node: report what is there, then wait for the end and write down how it comes."""
    path = Path(folder)
    signals: list[Json] = []
    began = time.monotonic()

    def on_signal(number: int, frame: object) -> None:
        signals.append({"signal": signal.Signals(number).name, "after": round(time.monotonic() - began, 1)})

    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, on_signal)
    report: Json = {"node": slurm_environment.node(), "python": sys.executable}
    report["submitters_file"] = (path / "from-login").exists()
    report["cpus"] = num_cores()
    report["mps"] = mps.is_there()
    report["scontrol"] = shutil.which("scontrol") is not None
    report["visible_gpus"] = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = sorted(os.listdir(data)) if os.path.isdir(data) else None
    report["data"] = names
    write_json(path / "probe.json", report, "probe")
    code = "import time; t = time.monotonic(); import torch; print(time.monotonic() - t, torch.cuda.device_count())"
    with signals_held_back():  # they reach it, too
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode == 0:
        seconds, gpus = done.stdout.split()
        report |= {"torch_seconds": round(float(seconds), 1), "torch_gpus": int(gpus)}
    else:
        report["torch_error"] = (done.stderr.splitlines() or ["?"])[-1]
    while True:
        report |= {"signals": signals, "alive": round(time.monotonic() - began, 1)}
        write_json(path / "probe.json", report, "probe")
        time.sleep(0.2)


def check(cluster: Cluster, runs: Path, data: Path, tell: Callable[[str], None], *, patience: float = 600) -> bool:
    """Submit the probe, wait for it, tell what it found; whether all is well. Raises SlurmError."""
    from experiments.slurm.submit import submit_probe

    config, partition = commands.settings(), commands.partition(cluster.profile.partition)
    tell("SLURM: " + ", ".join(f"{key} {config.get(key, '?')}" for key in CONFIG))
    tell("Partition: " + ", ".join(f"{key} {partition[key]}" for key in PARTITION if key in partition))
    path, launch = _folder(cluster, runs, "check", data)
    (path / "from-login").touch()
    job = submit_probe(launch, probe, str(path), str(data), tasks=1, minutes=MINUTES, warning=WARNING_SECONDS)
    tell(f"Job {job} submitted; it runs for {MINUTES} minutes.")
    begun = _wait(job, tell, patience)
    report = read_json(path / "probe.json")
    if report is None:
        if begun:
            log = path / "jobs" / f"{job}_0_log.out"
            tell(f"problem: the job ran, but wrote nothing into {path}: `setup` failed, or the nodes do not see it")
            tell("Its log: " + (log.read_text(errors="replace").strip() if log.exists() else f"{log} is not there"))
        else:
            tell(f"problem: the job did not start within {patience:.0f} s; it was cancelled")
        return False
    problems = list(_judge(report, cluster, data))
    for key in ("node", "python", "cpus", "visible_gpus", "torch_seconds", "torch_gpus"):
        tell(f"{key.replace('_', ' ')}: {report.get(key)}")
    tell("shared folder: written and seen from both sides")
    if not report["scontrol"]:
        tell("scontrol is not there: a job that is to stop is not queued again; the follow-up submits what it leaves")
    for item in report["signals"]:
        tell(f"{item['signal']} after {item['after']:.0f} s, {report['alive'] - item['after']:.0f} s before the kill")
    for problem in problems:
        tell(f"problem: {problem}")
    tell("All is well." if not problems else f"What it found lies in {path}.")
    return not problems


def try_out(cluster: Cluster, runs: Path, data: Path, tell: Callable[[str], None], *, patience: float = 600) -> bool:
    """Submit the tests of :mod:`experiments.slurm.check`, wait, tell their outcomes; whether all went well."""
    from experiments.slurm.submit import submit_probe

    path, launch = _folder(cluster, runs, "selftest", data)
    job = submit_probe(launch, selftest, str(path), tasks=2, minutes=10, warning=WARNING_SECONDS)
    tell(f"Job {job} submitted: two tasks on one node.")
    _wait(job, tell, patience)
    logs = [log.read_text(errors="replace") for log in sorted((path / "jobs").glob(f"{job}_*_log.out"))]
    outcomes = [line for log in logs for line in log.splitlines() if line.startswith("task ")]
    for line in outcomes:
        tell(line)
    if len(outcomes) < 5:
        tell(f"FAILED: only {len(outcomes)} of 5 outcomes came; see {path / 'jobs'}")
    return len(outcomes) == 5 and not any("FAILED" in line for line in outcomes)


def _folder(cluster: Cluster, runs: Path, kind: str, data: Path) -> tuple[Path, Launch]:
    path = runs / FOLDER / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    path.mkdir(parents=True, mode=0o700)
    (path / "jobs").mkdir()
    copy_code(path / "code")
    launch = Launch(path)
    launch.cluster, launch.folders = cluster, shared_folders(runs, data)
    return path, launch


def _wait(job: str, tell: Callable[[str], None], patience: float) -> bool:
    """Until a job is gone; whether it ever ran. One that does not come to an end is cancelled."""
    deadline, begun, told = time.monotonic() + patience, False, ""
    while time.monotonic() < deadline:
        time.sleep(5)
        try:
            mine = [item for item in commands.my_jobs() if item.id == job]
        except SlurmError as error:
            tell(str(error))
            continue
        if not mine:
            return True
        begun = begun or not mine[0].is_pending
        now = str(mine[0])
        if now != told:
            told = now
            tell(f"job {job}: {now}")
    commands.scancel([job])
    return begun


def _judge(report: Json, cluster: Cluster, data: Path) -> Any:
    profile = cluster.profile
    if "torch_error" in report:
        yield f"torch cannot be imported there: {report['torch_error']}"
    if not report["submitters_file"]:
        yield "the node does not see what this machine writes into the folder of runs"
    if report["cpus"] < profile.cpus_per_task:
        place = cluster.at("cpus_per_task")
        yield f"cpus_per_task: {profile.cpus_per_task} asked for, {report['cpus']} given  [{place}]"
    if profile.on_gpu and report.get("torch_gpus", 0) < profile.gpus_per_task:
        gpus = report.get("torch_gpus", 0)
        yield f"gpus_per_task: {profile.gpus_per_task} asked for, torch sees {gpus}  [{cluster.at('gpus_per_task')}]"
    if profile.mps and not report["mps"]:
        yield f"mps: {mps.COMMAND} is not there on the node  [{cluster.at('mps')}]"
    if report["data"] is None and data.exists():
        yield f"{data}: is not there on the node; generated images alone can be used  [{cluster.at('data')}]"
    if not report["signals"]:
        yield "no signal came before the end: only checkpoints by the clock will save work"


def exclusive_gpus() -> str:
    """Each task must see GPUs of its own, or share them knowingly: their UUIDs."""
    import torch

    if not torch.cuda.is_available():
        return f"FAILED: torch sees no GPU (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')})"
    found = [str(torch.cuda.get_device_properties(n).uuid) for n in range(torch.cuda.device_count())]
    return f"sees {len(found)}: {', '.join(found)}"


def nccl(folder: str) -> str:
    """An all-reduce over all tasks; its sum is known."""
    import torch
    import torch.distributed as dist

    rank, world = slurm_environment.rank(), slurm_environment.num_tasks()
    device = torch.device("cuda", slurm_environment.local_rank() % torch.cuda.device_count())
    dist.init_process_group("nccl", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    value = torch.full((1,), float(rank + 1), device=device)
    dist.all_reduce(value)
    dist.destroy_process_group()
    return "ok" if value.item() == world * (world + 1) / 2 else f"FAILED: the sum is {value.item()}"


def out_of_memory() -> str:
    """A child that takes more than the job may have must die alone, and of signal 9."""
    limit = slurm_environment.memory_bytes()
    if not limit:
        return "not tested: the profile sets no `memory`"
    code = f"block = bytearray({limit * 5 // 4})\nfor at in range(0, len(block), 4096): block[at] = 1"
    done = subprocess.run([sys.executable, "-c", code])
    if done.returncode == -9:
        return "ok: killed by signal 9, and this process lives"
    return f"FAILED: exit code {done.returncode}; memory is not limited by a cgroup"


def selftest(folder: str) -> None:
    """All tests, in each task of the job; the outcomes go to its log."""
    rank = slurm_environment.rank()
    tests: dict[str, Callable[[], str]] = {"exclusive GPUs": exclusive_gpus, "NCCL": lambda: nccl(folder)}
    if rank == 0:
        tests["out of memory"] = out_of_memory
    for name, test in tests.items():
        try:
            outcome = test()
        except Exception as error:  # the other tests go on
            outcome = f"FAILED: {type(error).__name__}: {error}"
        print(f"task {rank}: {name}: {outcome}", flush=True)
