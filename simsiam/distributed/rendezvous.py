"""How the ranks of a run find each other: over a file in a folder that all of them see.

Rank 0 takes a free port and writes it into the file, with every address of its machine and a random token. The others
read it and try one address after another, since a node's name need not resolve and not every address is reachable from
everywhere. The token tells them whether it is the right one: what a killed job left behind, or a port that
something else has taken since, is passed over, and the file read again. Once all have come, the file is removed.

Ranks on GPUs speak NCCL, and gloo for what is on the CPU; ranks on CPUs speak gloo.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore  # where their types are declared

from simsiam.distributed.ranks import ONE_RANK, RankLostError, Ranks, brief
from simsiam.machine import machine_identity
from simsiam.record.atomic_files import write_atomically

# How long a rank waits for another. Longer than what one of them does alone: an evaluation, and a checkpoint on a slow
# disk. A rank whose process ends is noticed at once, since its connections close; this is for a machine that is gone.
TIMEOUT_SECONDS = 1800.0
CONNECT_SECONDS = 5.0
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Rendezvous:
    """Which of the ranks of a run this process is, and how they find each other.

    file: in a folder that all of them see; no two runs use the same one at once.
    """

    rank: int
    world_size: int
    file: Path


@dataclass(frozen=True)
class RankGroup:
    """The ranks of a run, and what is passed on when one of them fails."""

    ranks: Ranks
    _store: Store | None = None

    def report(self, reason: str, traceback: str) -> None:
        """Say why this rank fails, in a line and in full, before it leaves; the first to say so is believed."""
        if self._store is not None:
            text = f"rank {self.ranks.rank} on {socket.gethostname()}: {reason}\n{traceback}"
            with contextlib.suppress(RuntimeError):  # rank 0 is gone, and its store with it
                self._store.compare_set("failure", "", text)

    def first_failure(self) -> str | None:
        """What the rank that failed first has reported; None if none has. Asked by rank 0."""
        if self._store is None or not self._store.check(["failure"]):
            return None
        text: str = self._store.get("failure").decode()
        return text


ALONE = RankGroup(ONE_RANK)


def device_of(device_type: str, local_rank: int) -> torch.device:
    """The device of the ``local_rank``-th process on this machine, among those that are visible to it.

    A launcher may show each process all GPUs of the machine or only its own: CUDA_VISIBLE_DEVICES stays as it is.
    """
    if device_type == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


@contextlib.contextmanager
def join(
    rendezvous: Rendezvous,
    device: torch.device,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
    while_waiting: Callable[[], None] = lambda: None,
) -> Iterator[RankGroup]:
    """Wait until all ranks have come, and be one of them within the context. One rank alone waits for nobody.

    timeout_seconds: for the ranks to come, and then for each time that they wait for each other. while_waiting: called
    now and then by rank 0 until all have come; may raise. Raises RankLostError if not all ranks come. A process is in
    one group at a time, and should end after a RankLostError.
    """
    if rendezvous.world_size == 1:
        yield ALONE
        return
    deadline = time.monotonic() + timeout_seconds
    store, address = _host(rendezvous, deadline, while_waiting) if rendezvous.rank == 0 else _find(rendezvous, deadline)
    store.set_timeout(timedelta(seconds=timeout_seconds))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        with _gloo_towards(address), _stdout_to_stderr():
            dist.init_process_group(
                "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
                store=PrefixStore("group", store),
                rank=rendezvous.rank,
                world_size=rendezvous.world_size,
                timeout=timedelta(seconds=timeout_seconds),
            )
    except RuntimeError as error:
        raise RankLostError(f"the ranks found rank 0, but cannot reach each other ({brief(error)})") from error
    try:
        yield RankGroup(Ranks(rendezvous.rank, rendezvous.world_size), store)
    finally:
        # On GPUs, leaving a group whose other ranks are gone may never return.
        leaving = threading.Thread(target=dist.destroy_process_group, daemon=True, name="leave the ranks")
        leaving.start()
        leaving.join(CONNECT_SECONDS)


def _host(rendezvous: Rendezvous, deadline: float, while_waiting: Callable[[], None]) -> tuple[Store, str]:
    """Rank 0: the store, and the address of this machine by which the ranks reach each other."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    token = secrets.token_hex(16)
    store.set("token", token)
    endpoint = {"token": token, "addresses": _addresses(), "port": store.port}
    write_atomically(rendezvous.file, lambda file: json.dump(endpoint, file), aside=token, mode="w")
    try:
        joined = [f"joined/{rank}" for rank in range(1, rendezvous.world_size)]
        while not store.check(joined):
            while_waiting()
            if time.monotonic() > deadline:
                missing = ", ".join(name.partition("/")[2] for name in joined if not store.check([name]))
                raise RankLostError(f"not all {rendezvous.world_size} ranks have come in time; missing: {missing}")
            time.sleep(POLL_SECONDS)
    finally:
        rendezvous.file.unlink(missing_ok=True)
    others = [json.loads(store.get(name)) for name in joined]
    remote = [other["address"] for other in others if other["machine"] != machine_identity()]
    address = str(remote[0]) if remote else "127.0.0.1"
    store.set("address", address)
    return store, address


def _find(rendezvous: Rendezvous, deadline: float) -> tuple[Store, str]:
    """The other ranks: the store of rank 0, and the address by which to reach it."""
    while True:
        with contextlib.suppress(OSError, ValueError, KeyError, RuntimeError):  # not there yet, or of an earlier job
            endpoint = json.loads(rendezvous.file.read_text(encoding="utf-8"))
            store = _connect_to_any(endpoint, rendezvous.rank)
            if store is not None:
                store.set_timeout(timedelta(seconds=max(1.0, deadline - time.monotonic())))
                return store, store.get("address").decode()
        if time.monotonic() > deadline:
            raise RankLostError(f"rank 0 has not written {rendezvous.file} in time")
        time.sleep(POLL_SECONDS)


def _connect_to_any(endpoint: dict[str, Any], rank: int) -> Store | None:
    """Rank 0's store by the first of its addresses that leads there; None if none does."""
    for address in endpoint["addresses"]:
        try:
            socket.create_connection((address, endpoint["port"]), timeout=CONNECT_SECONDS).close()
            store = _connect(address, endpoint["port"])
            if store is None or not store.check(["token"]) or store.get("token").decode() != endpoint["token"]:
                continue
        except (OSError, RuntimeError):
            continue
        joining = json.dumps({"address": address, "machine": machine_identity(), "own": secrets.token_hex(16)})
        # A second process that takes itself for the same rank is left to wait for another rank 0.
        if store.compare_set(f"joined/{rank}", "", joining).decode() == joining:
            return store
    return None


def _connect(address: str, port: int) -> TCPStore | None:
    """The store there; None if what listens there is none. Torch would wait for ever for one that says nothing."""
    found: list[TCPStore] = []

    def connect() -> None:
        with contextlib.suppress(RuntimeError):
            found.append(TCPStore(address, port, timeout=timedelta(seconds=CONNECT_SECONDS)))

    connecting = threading.Thread(target=connect, daemon=True, name="connect")
    connecting.start()
    connecting.join(CONNECT_SECONDS)
    return found[0] if found else None


# --- addresses of this machine ---------------------------------------------------------------------------------------


def _addresses() -> list[str]:
    """How this machine may be reached: its numeric addresses, its name, and itself from within."""
    numeric = [address for address in _interfaces().values() if not address.startswith("127.")]
    return [*numeric, socket.gethostname(), "127.0.0.1"]


def _interfaces() -> dict[str, str]:
    """The network interfaces and their IPv4 addresses; empty where the system does not say."""
    found = dict[str, str]()
    if sys.platform != "linux":
        return found
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without such an address
                answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
                found[name] = socket.inet_ntoa(answer[20:24])
    return found


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """For what C++ prints: gloo tells of its connections, among the JSON of a command."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def _gloo_towards(address: str) -> Iterator[None]:
    """Let gloo use the interface that leads to ``address``.

    By itself it takes the one that the host's name resolves to, which often is the loopback, and no other machine's.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing
        own = probe.getsockname()[0]
    names = [name for name, of_interface in _interfaces().items() if of_interface == own]
    if not names or "GLOO_SOCKET_IFNAME" in os.environ:
        yield
        return
    os.environ["GLOO_SOCKET_IFNAME"] = names[0]
    try:
        yield
    finally:
        del os.environ["GLOO_SOCKET_IFNAME"]
