"""The machine that this process runs on. This module imports no torch."""

from __future__ import annotations

import contextlib
import socket
from functools import cache
from pathlib import Path


@cache
def machine_identity() -> str:
    """This host since its last boot; on a system that is not Linux, its name alone."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    return " ".join(parts)
