"""Memory of training workers that share a data set: ``python -m benchmarks.memory`` (Linux: it reads /proc).

Each worker is a process of its own that maps a prepared data set of the size of CIFAR-10 and reads all of it, as an
epoch does. Proportional memory counts a page that n processes share as 1/n in each.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.harness import Bench, Reach

NUM_IMAGES = 50_000


def work(path: str, connection: Connection) -> None:
    """Read all images of the mapped array, then tell this process's proportional memory of them, in bytes."""
    images = np.load(path, mmap_mode="r")
    for start in range(0, len(images), 1000):
        images[start : start + 1000].max()
    connection.send("read")
    connection.recv()  # until the others have read it too
    connection.send(proportional(path))
    connection.recv()


def proportional(path: str) -> int:
    """This process's share of the pages of a mapped file, in bytes."""
    text = Path("/proc/self/smaps").read_text()
    return 1024 * sum(
        int(found[1])
        for block in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", text)
        if path in block.partition("\n")[0] and (found := re.search(r"^Pss:\s+(\d+) kB", block, re.MULTILINE))
    )


def together(path: str, num: int) -> int:
    """The memory, in bytes, of the images in ``num`` processes that have all read them."""
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    for _ in range(num):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(path, theirs)))
        processes[-1].start()
        connections.append(ours)
    for connection in connections:
        connection.recv()
    for connection in connections:
        connection.send("tell")
    shares = [connection.recv() for connection in connections]
    for connection in connections:
        connection.send("end")
    for process in processes:
        process.join()
    return sum(shares)


def main() -> None:
    bench = Bench("memory", "Memory of the images in n workers, over that in one.")
    if sys.platform != "linux":
        print("memory: rows that read /proc are skipped: this is not Linux")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "images.npy")
        np.save(path, np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 3, 32, 32), dtype=np.uint8))
        one, four = together(path, 1), together(path, 4)
    bench.add(
        f"the images of 4 workers, over those of 1 ({NUM_IMAGES} of 32x32)",
        "MB",
        ours=[four / 1e6],
        peer_name="one worker",
        peer=[one / 1e6],
        ratios=[four / one],
        clock="wall",
        reach=Reach(1.05, at_least=False),
        note="proportional memory of the mapped array",
    )


if __name__ == "__main__":
    main()
