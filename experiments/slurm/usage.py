"""What the jobs of a launch used of what they asked for, and what to ask for next time. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean

from experiments.runs.folder import RunFolder
from experiments.slurm import commands
from experiments.slurm.commands import SlurmError
from experiments.slurm.launch import Launch
from experiments.slurm.profile import Profile

ROOM = 1.3  # to ask for, times what was used at most
GPU_IN_USE = 90.0  # percent of the time, of a GPU that has nothing to spare


def usage_of(launch: Launch) -> Iterator[str]:
    """Lines for the user: hours, cores, memory from SLURM's accounting; memory and GPU from the runs' own records."""
    profile = launch.cluster.profile
    workers = [job for each in launch.rounds() for job in each.jobs]
    try:
        jobs = commands.used_by(workers) if workers else []
    except SlurmError as error:
        yield f"SLURM's accounting does not answer: {error}"
        jobs = []
    if jobs:
        used, asked = sum(job.seconds for job in jobs), sum(job.limit_seconds for job in jobs)
        longest = max(job.seconds for job in jobs)
        share = f" of {asked / 3600:,.2f} asked for ({used / asked:.0%})" if asked else ""
        yield f"hours of jobs: {used / 3600:,.2f} used{share}, in {len(jobs)} jobs"
        limit = max(job.limit_seconds for job in jobs)
        if limit and ROOM * longest < limit:
            minutes = max(math.ceil(ROOM * longest / 60), math.ceil(2 * profile.grace / 60))
            yield f"the longest took {longest / 60:,.0f} min of {limit / 60:,.0f}: `time_limit: {minutes}` would do"
        if cores := sum(job.seconds * job.cpus for job in jobs):
            busy = sum(job.cpu_seconds for job in jobs)
            yield f"cores: {busy / cores:.0%} of their time in use" if busy else "cores: their use is not on record"
        peak = max(job.peak_bytes for job in jobs)
        if peak:
            next_time = math.ceil(ROOM * peak * profile.tasks_per_node / 2**30)
            asked_for = f" of {profile.memory} asked for" if profile.memory else ""
            yield f"memory: {peak / 2**30:,.2f} GiB at most in a task{asked_for}: `memory: {next_time}G` would do"
        else:
            yield "memory: SLURM has no record of it (JobAcctGatherType)"
    results = [RunFolder(launch.runs, cell.planned.run_id).result() or {} for cell in launch.cells]
    peaks = [result["peak_memory_bytes"] for result in results if result.get("peak_memory_bytes")]
    if peaks:
        what = "of a GPU" if profile.on_gpu else "of a cell's process"
        yield f"memory {what}, by the runs' own records: {max(peaks) / 2**30:,.2f} GiB at most ({len(peaks)} cells)"
    shares = [result["gpu_busy_percent"] for result in results if result.get("gpu_busy_percent") is not None]
    if shares:
        yield gpu_line(shares, profile)


def gpu_line(busy_percent: list[float], profile: Profile) -> str:
    """How busy the GPUs were, from a number of each cell, and how many cells could share one."""
    mean = fmean(busy_percent)
    line = f"GPU, by the runs' own records: busy for {mean:.0f} % of the time ({len(busy_percent)} cells)"
    more = int(profile.cells_per_gpu * GPU_IN_USE / max(mean, 1.0))
    if more > profile.cells_per_gpu and profile.ranks == 1:
        line += f"; `cells_per_gpu: {more}` could use the rest, if {more} cells fit into its memory"
    return line
