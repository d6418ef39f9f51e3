"""Cluster profiles, launch folders and what is shown of them, without a SLURM."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import garbage
from experiments.plan import make_plan
from experiments.registry import queues
from experiments.runs import slurm_environment
from experiments.runs.folder import DEAD_AFTER, Heartbeats, RunFolder, own_job
from experiments.runs.states import State
from experiments.slurm import commands
from experiments.slurm.commands import SlurmError
from experiments.slurm.job.first_task import in_order
from experiments.slurm.job.follow_up import end_round
from experiments.slurm.job.node import copy_images
from experiments.slurm.job.notify import FIRST_FAILURE, notify, notify_if_ended
from experiments.slurm.launch import Launch, Round, TaskReport, all_launches, create
from experiments.slurm.profile import Profile, cluster_names, expanded, load_cluster, minutes_from, warnings
from experiments.slurm.refusals import explained
from experiments.slurm.submit import arrays, clear_half_rounds
from experiments.status import Watcher
from experiments.studies.study import load_scale, load_study
from experiments.studies.yaml_files import read
from simsiam.data.sets import load, prepare
from simsiam.errors import SettingsError
from simsiam.record import checkpoint
from simsiam.settings.checks import validate
from simsiam.settings.fields import Settings
from tests import pictures
from tests.conftest import ROOT, Command

CELL = ["--scale", "smoke", "--set", "data.num_train=320", "--set", "evaluation.bank_size=200", "--set", "epochs=1"]


@pytest.mark.parametrize("name", cluster_names())
def test_the_examples_are_profiles_with_a_word_on_what_they_are(name: str) -> None:
    cluster = load_cluster(name)
    assert cluster.profile.description
    image = cluster.profile.container.image if cluster.profile.container else ""
    assert warnings(cluster) == (
        [f"container: the image {image} is not there on this machine  [{cluster.at('container')}]"] if image else []
    )


@pytest.mark.parametrize(
    ("text", "minutes"),
    # As sbatch's manual has it: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes ...
    [
        ("30:00", 30),
        ("30:01", 31),
        ("4:00:00", 240),
        ("2-0", 2880),
        ("1-12:30", 2190),
        ("0-0:00:59", 1),
        (90, 90),
        ("90", 90),
    ],
)
def test_times_are_read_as_slurm_reads_them(text: str | int, minutes: int) -> None:
    assert Profile(time_limit=text).time_limit == minutes


@pytest.mark.parametrize("text", ["soon", "4h", "", "-3:00:00"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        minutes_from(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("partiton: gpu", "partiton: no such key; did you mean 'partition'.*:1]"),
        ("partition: gpu\ncpus_per_task: 0", "cpus_per_task: 0 is not allowed.*greater than or equal to 1.*:2]"),
        ("time_limit: soon", "time_limit: 'soon' is not allowed: .*4:00:00.*:1]"),
        ("memory: much", "memory: 'much' is not allowed.*:1]"),
        ("memory: 16000", "memory: 16000 is not allowed: must be a number with K, M, G or T, such as 32G.*:1]"),
        ("options: {array: 3}", "options: .*array cannot be set here: the launcher does so itself.*:1]"),
        ("options: {--wait: true}", "options: .*wait cannot be set here.*:1]"),
        ("options: {cpus_per_task: 3}", "options: .*cpus-per-task cannot be set here: .*own key `cpus_per_task`.*:1]"),
        ("options: {N: 2}", "options: .*N cannot be set here: it is the profile's own key `nodes`.*:1]"),
        ("grace: 60\ntime_limit: 1", "grace: 60 s must be less than the time limit of 1 min.*:1]"),
        ("nodes: 2\ncells_per_gpu: 2", "cells_per_gpu: must be 1, not 2, where 2 tasks train each cell together.*:2]"),
        ("device: cuda\ngpus_per_task: 0", "device: cuda needs gpus_per_task.*:1]"),
        ("cells_per_gpu: 8\ncpus_per_task: 4", "cpus_per_task: 4 must be at least the 8 cells.*:2]"),
        ("container: {kind: docker, image: a}", "container.kind: 'docker' is not allowed.*apptainer.*pyxis.*:1]"),
        ("container: {kind: pyxis}", "container.image: .*:1]"),
        (
            "container: {kind: pyxis, image: a, mounts: [/a]}",
            "container.mounts.*'/a' is not allowed: must be /SOURCE.*:1]",
        ),
        ("container: {kind: pyxis, image: a, mount: []}", "container.mount: no such key; did you mean 'mounts'.*:1]"),
        ("partition: a\npartition: b", ":2: partition is set a second time"),
        ("- a", "a YAML mapping"),
    ],
)
def test_a_wrong_profile_is_refused_with_its_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(SettingsError) as error:
        load_cluster(str(path))
    assert re.search(message, str(error.value)), error.value
    assert str(path) in str(error.value)


def test_follow_ups_may_have_a_partition_of_their_own() -> None:
    assert Profile(follow_up_options={"partition": "short", "time": 5}).follow_up_options["partition"] == "short"


def test_ranks_that_cannot_share_a_batch_are_refused_before_anything_is_written(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text("partition: p\nnodes: 3\n")
    done = command("launch", "stop-gradient", *CELL, "--cluster", "c.yaml")
    assert done.returncode == 2
    assert re.search(r"batch_size: 64 must be a multiple of the 3 ranks.*\[nodes: .*c.yaml:2\]", done.stderr)
    assert {path.name for path in tmp_path.iterdir()} == {"c.yaml"}


def test_a_place_for_runs_that_slurm_would_read_otherwise(command: Command, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("partition: p\n")
    done = command("launch", "stop-gradient", *CELL, "--cluster", "c.yaml", "--runs", "100%A")
    assert done.returncode == 2
    assert "100%A must not hold a %" in done.stderr


@pytest.mark.parametrize("kind", ["apptainer", "pyxis", "enroot"])
def test_a_folder_whose_name_a_container_would_read_otherwise(kind: str, command: Command, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"container: {{kind: {kind}, image: a}}\n")
    done = command("launch", "stop-gradient", *CELL, "--cluster", "c.yaml", "--runs", "a,b", "--dry-run")
    assert done.returncode == 2
    assert re.search(r"error: .*a,b: a folder that is mounted .* no : or , in its name", done.stderr)


def test_commands_without_a_cluster_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What SLURM 22's squeue prints where it is installed and nothing is configured."""
    squeue = tmp_path / "squeue"
    squeue.write_text(
        "#!/bin/sh\necho 'squeue: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host' >&2\n"
        "echo 'squeue: error: fetch_config: DNS SRV lookup failed' >&2\nexit 1\n"
    )
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(SlurmError) as error:
        commands.my_jobs()
    assert "they know of no cluster" in str(error.value)
    assert "SRV" not in str(error.value)


def test_an_unknown_cluster_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"one-gpo.*did you mean 'one-gpu'"):
        load_cluster("one-gpo")


def test_a_time_limit_shorter_than_a_checkpoint_interval_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("time_limit: 5\ncheckpoint_minutes: 10")
    assert "shorter than a checkpoint interval" in warnings(load_cluster(str(path)))[0]


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("Batch job submission failed: Invalid account or account/partition combination specified", "account"),
        ("Batch job submission failed: Invalid qos specification", "qos"),
        ("Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)", "time_limit"),
        ("Batch job submission failed: Memory specification can not be satisfied", "memory"),
    ],
)
def test_sbatch_s_words_lead_to_a_line(said: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("time_limit: 10\nmemory: 1G\nqos: q\naccount: a\npartition: p\n")
    cluster = load_cluster(str(path))
    line = read(path).lines[(key,)]
    assert f"{path}:{line}]" in str(explained(said, cluster))


def test_options_are_texts_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "partition: 010\naccount: 1e3\ntime_limit: 1:30:00\nsetup: [12, ulimit]\n"
        "options: {exclude: 010, reservation: 0012, licenses: 1.50, exclusive: true, x11: off, begin: 16:00, nice: 7}\n"
        "follow_up_options: {partition: 0x1, priority: 08}\n"
    )
    profile = load_cluster(str(path)).profile
    assert (profile.partition, profile.account, profile.time_limit) == ("010", "1e3", 90)
    assert profile.setup == ("12", "ulimit")
    assert profile.options == {
        "exclude": "010",
        "reservation": "0012",
        "licenses": "1.50",
        "exclusive": True,
        "x11": "off",
        "begin": "16:00",
        "nice": "7",
    }
    assert profile.follow_up_options == {"partition": "0x1", "priority": "08"}


def test_a_dry_run_shows_the_script_and_writes_nothing(command: Command, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "partition: p\ngpus_per_task: 2\ncells_per_gpu: 2\nmemory: 7G\noptions: {nice: 5}\n"
    )
    done = command("launch", "stop-gradient", *CELL, "--seeds", "5", "--cluster", "c.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    for line in (
        "array=0-2%3",
        "gpus-per-node=2",
        "mem=7G",
        "partition=p",
        "nice=5",
        "hold",
        "requeue",
        "signal=USR2@120",
    ):
        assert f"#SBATCH --{line}" in done.stdout
    assert "--cpus-per-task=4 --kill-on-bad-exit=1" in done.stdout
    assert "Tasks: 3, in arrays: 1; cells at a time in each task: 4; CPU threads of each: 1." in done.stdout
    assert "10 cells: about" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"c.yaml"}


def test_the_environment_of_an_enclosing_job_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "CUDA_VISIBLE_DEVICES", "ABLATION_JOB", "SLURM_CONF", "MINE"):
        monkeypatch.setenv(name, "7")
    theirs = {"SBATCH_PARTITION", "SQUEUE_PARTITION", "SCANCEL_STATE", "SLURM_CLUSTERS", "SACCT_FORMAT", "SRUN_DEBUG"}
    for name in theirs:
        monkeypatch.setenv(name, "7")
    clean = slurm_environment.without_job()
    assert clean["SLURM_CONF"] == clean["MINE"] == "7"
    assert not clean.keys() & {"SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "CUDA_VISIBLE_DEVICES", "ABLATION_JOB", *theirs}


@pytest.mark.parametrize(
    ("cells", "limit", "most"), [(250, 101, 8), (6, 4, 2), (40, 4, 3), (7, 1001, 8), (2000, 1001, 1)]
)
def test_all_arrays_of_a_launch_keep_to_one_limit_together(cells: int, limit: int, most: int, tmp_path: Path) -> None:
    """SLURM's own %N holds for each array alone."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"partition: p\ngpus_per_task: 0\ncells_per_task: 1\narray_parallelism: {most}\n")
    launch = Launch(tmp_path / "mine-20260101-000000-abcd")
    launch.cluster = load_cluster(str(path))
    found = list(arrays(launch, [None] * cells, limit))  # type: ignore[list-item]
    assert sum(executor.parameters["array_parallelism"] for _, executor in found) <= max(most, 1)
    assert all(0 < len(indices) <= limit for indices, _ in found)
    numbers = [index for indices, _ in found for index in indices]
    assert numbers == list(range(min(cells, most * limit)))


def test_paths_of_a_profile_are_expanded_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("runs: /shared/$USER/runs\ndata: ~/data\nlocal_data: ${SCRATCH}/images\n")
    for name, value in {"USER": "me", "HOME": "/home/me", "SCRATCH": "/fast"}.items():
        monkeypatch.setenv(name, value)
    cluster = load_cluster(str(path))
    keys: list[Any] = ["runs", "data", "local_data"]
    assert [str(expanded(cluster, key)) for key in keys] == ["/shared/me/runs", "/home/me/data", "/fast/images"]
    monkeypatch.delenv("USER")
    with pytest.raises(SettingsError, match=r"runs: /shared/\$USER/runs: the variable \$USER is not set.*:1\]"):
        expanded(cluster, "runs")


def test_a_worker_begins_with_what_it_trained_before() -> None:
    cells: Any = [type("Cell", (), {"planned": type("P", (), {"run_id": f"r{n}"})})() for n in range(6)]
    order = [cell.planned.run_id for cell in in_order(cells, ["r1"], 0.5)]
    assert order == ["r1", "r3", "r4", "r5", "r0", "r2"]


@pytest.mark.parametrize("storage", ["memory", "files"])
def test_images_are_copied_to_the_node_once(storage: str, tmp_path: Path) -> None:
    pictures.write(tmp_path / "shared", 3, 3)
    values = {"data.name": "folder", "data.path": "mine", "data.storage": storage, "data.image_size": 16}
    settings = validate({**values, "batch_size": 2}).data
    prepared = prepare(settings, tmp_path / "shared")
    copy_images([settings], tmp_path / "shared", tmp_path / "node")
    assert load(settings, tmp_path / "node").fingerprint == prepared.fingerprint
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "node").rglob("*")}
    copy_images([settings], tmp_path / "shared", tmp_path / "node")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "node").rglob("*")}


# --- who owns a run, when the owner is a job ---------------------------------------------------------------------


def as_job(monkeypatch: pytest.MonkeyPatch, restart: int, job: str = "7") -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", job)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))


def test_a_restarted_job_takes_over_from_its_earlier_life_only(
    small: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path, "aaa-s0")
    as_job(monkeypatch, 0)
    assert own_job()["job"] == "7_3"
    first = run.claim(small(), Heartbeats(), retry_failed=False)
    assert first is not None
    first.write_state(State.RUNNING)
    as_job(monkeypatch, 1, job="8")
    assert run.claim(small(), Heartbeats(), retry_failed=False) is None  # another job, and this process lives
    as_job(monkeypatch, 0)
    assert run.claim(small(), Heartbeats(), retry_failed=False) is None
    as_job(monkeypatch, 1)
    assert run.claim(small(), Heartbeats(), retry_failed=False) is not None
    with pytest.raises(RuntimeError, match="taken this run over"):
        first.write_state(State.RUNNING)


def elsewhere(run: RunFolder) -> None:
    """The owner is on another machine, in a job."""
    path = run.path / f"lease.{run.highest_lease()}"
    path.write_text(json.dumps({**json.loads(path.read_text()), "machine": "other", "job": "5_1"}))


def test_a_heartbeat_on_another_machine_is_a_guess_until_it_is_seen_to_change(
    small: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, watching = RunFolder(tmp_path, "aaa-s0"), Heartbeats()
    attempt = run.claim(small(), Heartbeats(), retry_failed=False)
    assert attempt is not None
    attempt.write_state(State.RUNNING)
    elsewhere(run)
    assert (run.status(watching).state, run.status(watching).certain) == ("running", False)
    attempt.write_state(State.RUNNING)
    assert (run.status(watching).state, run.status(watching).certain) == ("running", True)
    now = __import__("time").monotonic()
    monkeypatch.setattr("experiments.runs.folder.time.monotonic", lambda: now + DEAD_AFTER + 1)
    assert (run.status(watching).state, run.status(watching).certain) == ("interrupted", True)


# --- what is shown -----------------------------------------------------------------------------------------------


def test_lost_and_stalled_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    made = make_plan(load_study("stop-gradient"), load_scale("smoke"), [0], [], runs, tmp_path / "data")
    launch = create(made, [(planned, 0) for planned in made.cells], load_cluster("cpu"), command="launch")
    launch.write_round(Round(number=1, jobs=("5",), complete=True, released=True, slurm="here"))
    launch.write_task(TaskReport(job="5_1"))
    monkeypatch.setattr(commands, "cluster_name", lambda: "here")
    for planned in made.cells:
        run = RunFolder(runs, planned.run_id)
        attempt = run.claim(planned.cell.settings, Heartbeats(), retry_failed=False)
        assert attempt is not None
        attempt.progress = {"step": 3, "num_steps": 10, "images_per_s": 64.0, "still_seconds": 1.0}
        attempt.write_state(State.RUNNING)
        elsewhere(run)

    def rows(jobs: object) -> list[tuple[str, str]]:
        def asked() -> object:
            if isinstance(jobs, Exception):
                raise jobs
            return jobs

        monkeypatch.setattr(commands, "my_jobs", asked)
        found = Watcher(made, queues()).look()
        return [(row.state, row.queue) for row in found.rows] + [("note", note) for note in found.notes]

    job = commands.Job("5_1", "me", "RUNNING", "None", "1:00", "n1", launch.id)
    assert rows([job]) == [("running", "5_1 running")] * 2
    assert rows([]) == [("lost", "")] * 2
    # A colleague's job is not among mine, and is none of those that I have lost.
    launch.write_round(Round(number=1, jobs=("7",), complete=True, released=True, slurm="here"))
    assert rows([]) == [("running", "")] * 2
    # Nor is one of the same number on another cluster.
    launch.write_round(Round(number=1, jobs=("5",), complete=True, released=True, slurm="there"))
    assert rows([]) == [("running", "")] * 2
    launch.write_round(Round(number=1, jobs=("5",), complete=True, released=True, slurm="here"))
    # SLURM that does not answer is no reason to call anything lost.
    assert rows(commands.SlurmError("away")) == [("running", "")] * 2 + [("note", "SLURM is not asked here: away")]
    state = json.loads((run.path / "state.json").read_text())
    (run.path / "state.json").write_text(json.dumps({**state, "still_seconds": 700.0}))
    assert rows([job])[1] == ("stalled", "5_1 running")
    assert Watcher(made, queues()).look().rows[0].left == pytest.approx((10 - 3) * 64 / 64.0)
    held = commands.Job("6", "me", "PENDING", "launch failed requeued held", "", "", launch.id)
    assert ("note", "job 6 is held (launch failed requeued held): scontrol release 6") in rows([job, held])


# --- what is freed -----------------------------------------------------------------------------------------------


def test_gc_frees_what_only_training_needs(command: Command, tmp_path: Path) -> None:
    assert command("run", "stop-gradient", *CELL).returncode == 0
    folder = next(path.parent for path in (tmp_path / "runs").glob("*/result.json"))
    before = checkpoint.load(folder)
    assert before is not None
    size = sum(path.stat().st_size for path in folder.iterdir())
    asked = command("gc", input="n\n")
    assert "Nothing was freed" in asked.stdout
    assert sum(path.stat().st_size for path in folder.iterdir()) == size
    assert "freed" in command("gc", "--yes").stdout
    assert sum(path.stat().st_size for path in folder.iterdir()) < 0.6 * size
    after = checkpoint.load(folder)
    assert after is not None
    assert "optimizer" not in after
    assert all(torch.equal(before["model"][name], after["model"][name]) for name in before["model"])
    assert "nothing can be freed" in command("gc").stdout
    assert command("evaluate", "stop-gradient", *CELL).returncode == 0
    # Nothing of it can be trained on by mistake.
    (folder / "result.json").unlink()
    again = command("run", "stop-gradient", *CELL)
    assert again.returncode == 1
    assert "only the weights of this run were kept" in again.stderr


def test_gc_leaves_launches_alone_that_may_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is being submitted, and one on another cluster, whose jobs are not seen from here."""
    made = make_plan(load_study("stop-gradient"), load_scale("smoke"), [0], [], tmp_path, tmp_path / "data")
    launch = create(made, [], load_cluster("cpu"), command="launch")
    monkeypatch.setattr(commands, "my_jobs", list)
    monkeypatch.setattr(commands, "settings", lambda: {"ClusterName": "here"})
    assert garbage.find(tmp_path) == []
    ended = Round(number=1, jobs=("5",), complete=True, released=True)
    launch.write_round(ended.model_copy(update={"slurm": "there"}))
    assert garbage.find(tmp_path) == []
    launch.write_round(ended.model_copy(update={"slurm": "here", "released": False}))
    assert garbage.find(tmp_path) == []
    launch.write_round(ended.model_copy(update={"slurm": "here"}))
    (found,) = garbage.find(tmp_path)
    found.free()
    assert not (launch.path / "code").exists()


def test_what_a_half_submission_left_is_cancelled_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follow-up died while it submitted round 2, and has submitted round 3 when it was started again."""
    launch = Launch(tmp_path / "mine-20260101-000000-abcd")
    (launch.path / "rounds").mkdir(parents=True)
    launch.write_round(Round(number=1, jobs=("5",), complete=True, released=True))
    launch.write_round(Round(number=2, jobs=("6",)))
    launch.write_round(Round(number=3, jobs=("8",), complete=True, released=True))
    said = [
        ("6_0", "PENDING", "JobHeldUser"), ("7_0", "PENDING", "JobHeldUser"), ("8_0", "RUNNING", "None"),
        ("8_1", "PENDING", "JobArrayTaskLimit"), ("8_2", "PENDING", "launch failed requeued held"),
    ]  # fmt: skip
    jobs = [commands.Job(job, "me", state, reason, "", "", launch.id) for job, state, reason in said]
    other = commands.Job("9", "me", "PENDING", "JobHeldUser", "", "", "another-launch")
    cancelled: list[str] = []
    monkeypatch.setattr(commands, "scancel", cancelled.extend)
    assert clear_half_rounds(launch, [*jobs, other]) == 2
    assert cancelled == ["6_0", "7_0"]
    assert all(content.complete for content in launch.rounds())


def test_a_launch_folder_that_is_not_ours_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"format": 99}')
    with pytest.raises(RuntimeError, match="is not the folder of a launch"):
        _ = Launch(tmp_path).spec


def test_a_launch_of_an_earlier_version_is_read(small: Callable[..., Settings], tmp_path: Path) -> None:
    """As revision 50b1b49 wrote it; what a later one adds is no reason not to read it either."""
    path = tmp_path / ".launches" / "stop-gradient-20261125-183936-e1d8"
    for folder in ("rounds", "tasks", "teams", "failures"):
        (path / folder).mkdir(parents=True)
    profile = {
        "description": "CPU only", "partition": "cpu", "account": None, "qos": None, "constraint": None, "nodes": 1,
        "tasks_per_node": 2, "gpus_per_task": 0, "cpus_per_task": 8, "memory": "16G", "time_limit": 240,
        "array_parallelism": 10, "cells_per_gpu": 1, "cells_per_task": None, "device": "auto", "max_failures": 2,
        "setup": ["module load x"], "options": {"nice": 5}, "runs": None, "data": None, "local_data": None,
        "checkpoint_minutes": 2.0, "grace": 60, "follow_up": True, "follow_up_options": {},
    }  # fmt: skip
    settings = small().model_dump(mode="json")
    cells = [
        {"run": f"abc-s{n}", "study": "stop-gradient", "variant": "with", "seed": n, "settings": "abc",
         "attempts_before": n, "ranks": 2}
        for n in (0, 1)
    ]  # fmt: skip
    spec = {
        "format": 2, "launch": path.name, "user": "me", "created": "2026-11-25 18:39:36", "command": "launch",
        "cluster": "cpu", "profile": profile, "profile_path": "/home/me/cpu.yaml", "studies": ["stop-gradient"],
        "scale": "smoke", "runs": str(tmp_path), "data": "/data", "settings": {"abc": settings}, "cells": cells,
        "something": "new",
    }  # fmt: skip
    written = {
        "spec.json": spec,
        "rounds/1.json": {
            "number": 1, "jobs": ["5"], "follow_up": "6", "complete": True, "released": True, "slurm": "c",
            "steps": 7, "submitter": {"machine": "m", "host": "h", "pid": 1, "start_time": "2"},
        },
        "rounds/2.json": {"number": 2, "jobs": [], "follow_up": None, "complete": True, "released": True,
                          "refused": "no"},
        "tasks/5_0.json": {
            "job": "5_0", "restart": 1, "cluster": "c", "host": "h", "node": "n1", "cpus": [0, 1], "gpus": None,
            "cells": ["abc-s0"], "problem": None, "warning": "slow",
        },
        "tasks/5_1.json": {"problem": "task 1: no images"},
        "failures/abc-s0.12345678.json": {"reason": "why", "attempt": 3, "final": True, "at": "2026-11-25 18:39:36"},
    }  # fmt: skip
    for name, content in written.items():
        (path / name).write_text(json.dumps(content))
    (launch,) = all_launches(tmp_path)
    assert launch.cluster.profile == Profile(**profile)
    assert launch.cluster.at("memory") == "/home/me/cpu.yaml"
    seed_1 = launch.cells[1]
    assert (seed_1.planned.run_id, seed_1.planned.cell.settings.seed, seed_1.attempts_before, seed_1.ranks) == (
        "abc-s1", 1, 1, 2,
    )  # fmt: skip
    first, second = launch.rounds()
    assert (first.job_ids, first.steps, second.refused, launch.job_ids()) == (["5", "6"], 7, "no", {"5", "6"})
    assert {job: (task.restart, task.problem, task.warning) for job, task in launch.tasks().items()} == {
        "5_0": (1, None, "slow"), "5_1": (0, "task 1: no images", None),
    }  # fmt: skip
    assert launch.has_given_up("abc-s0")
    assert [cell.planned.run_id for cell in launch.missing()] == ["abc-s1"]


# --- what is told ------------------------------------------------------------------------------------------------


def test_a_summary_says_what_waits_what_failed_and_what_to_do(
    small: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    made = make_plan(load_study("stop-gradient"), load_scale("smoke"), [0, 1, 2], [], runs, tmp_path / "data")
    launch = create(made, [(planned, 0) for planned in made.cells], load_cluster("cpu"), command="launch")
    for number, planned in enumerate(made.cells[:4]):
        attempt = RunFolder(runs, planned.run_id).claim(planned.cell.settings, Heartbeats(), retry_failed=False)
        assert attempt is not None
        if number < 3:
            attempt.fail(f"Traceback ...\nRuntimeError: out of memory, {number} MiB of /dev/{number}\n")
        else:
            attempt.finish([], {"outcome": "healthy", "final": {"step": 1}})

    def lines(*jobs: commands.Job) -> list[str]:
        monkeypatch.setattr(commands, "my_jobs", lambda: list(jobs))
        monkeypatch.setattr(commands, "cluster_name", lambda: "here")
        return Watcher(made, queues()).look().summary()

    waits = commands.Job("5_0", "me", "PENDING", "Priority", "1:00", "", launch.id)
    shown = lines(waits)
    assert shown[0] == f"6 runs in {runs}/: 1 done, 3 failed, 2 pending"
    assert "waiting: 2, queued: 1 pending (Priority)" in shown
    (failed,) = [line for line in shown if line.startswith("failed")]  # of one kind, whatever their numbers
    assert failed.startswith("failed: 3 of this kind: RuntimeError: out of memory, 0 MiB of /dev/0  [cell 1: ")
    assert shown[-1] == "It goes on by itself."
    assert lines()[-1] == "Nothing is queued: `run`, or `launch` again, trains what is left."


def test_a_user_is_told_once_of_each_event(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f'partition: p\ngpus_per_task: 0\nnotify: (echo "$ABLATION_EVENT"; cat) >> {tmp_path}/told\n')
    made = make_plan(load_study("stop-gradient"), load_scale("smoke"), [0], [], tmp_path / "runs", tmp_path / "data")
    launch = create(made, [(planned, 0) for planned in made.cells], load_cluster(str(path)), command="launch")
    notify_if_ended(launch)  # it has not ended
    assert not (tmp_path / "told").exists()
    for _ in range(3):
        notify(launch, FIRST_FAILURE, "cell 1: out of memory")
    for planned in made.cells:
        launch.record_failure(planned.run_id, "out of memory", 1, final=True)
    for _ in range(2):
        notify_if_ended(launch)
    told = (tmp_path / "told").read_text().splitlines()
    assert told[:2] == ["first failure", f"{launch.id}: first failure: cell 1: out of memory"]
    assert told[3:5] == ["ended", f"{launch.id}: ended"]
    assert told[-1] == "failed: 2: out of memory"


def test_options_of_srun_and_partitions_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("partition: [gpu, long]\nsrun_options: [--cpu-bind=cores]\noptions: {dependency: afterok:12}\n")
    profile = load_cluster(str(path)).profile
    assert profile.partition == "gpu,long"
    assert profile.srun_options == ("--cpu-bind=cores",)
    assert profile.options == {"dependency": "afterok:12"}
    for wrong in ("[--output=x]", "[cpu-bind]", "[--ntasks=3]", "[-K0]"):
        path.write_text(f"srun_options: {wrong}\n")
        with pytest.raises(SettingsError, match=r"srun_options: .*:1\]"):
            load_cluster(str(path))


def test_accounts_of_jobs_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As sacct prints them (--parsable2): a job that was queued again, its steps, and one that did not run."""
    printed = (
        "7_0|3600|240|4|03:00:00|\n7_0.batch|3600||4|00:00.100|1024K\n7_0.0|3600||4|02:59:59|3G\n"
        "7_0|60|240|4|00:01.500|\n7_1|0|240|4|00:00:00|\n8|90061|UNLIMITED|1|1-01:01:01|\n"
    )
    monkeypatch.setattr(commands, "call", lambda *_, **__: printed)
    first, again, other = commands.used_by(["7", "8"])
    assert (first.seconds, first.limit_seconds, first.cpus, first.cpu_seconds) == (3600, 14400, 4, 10800)
    assert first.peak_bytes == 3 * 2**30
    assert (again.job, again.seconds, again.cpu_seconds, again.peak_bytes) == ("7_0", 60, 1.5, 0)
    assert (other.limit_seconds, other.cpu_seconds) == (0, 86400 + 3600 + 60 + 1)


def test_rounds_without_a_step_are_further_and_further_apart(tmp_path: Path) -> None:
    """And never end: trouble pauses a grid. One that SLURM refused says nothing of the cells."""
    made = make_plan(load_study("stop-gradient"), load_scale("smoke"), [0], [], tmp_path, tmp_path / "data")
    launch = create(made, [(planned, 0) for planned in made.cells], load_cluster("cpu"), command="launch")
    assert end_round(launch) == (0, 0)
    pauses = []
    for number in range(1, 13, 2):
        launch.write_round(Round(number=number, jobs=(str(number),), complete=True, released=True))
        launch.write_round(Round(number=number + 1, complete=True, released=True, refused="no"))
        pauses.append(end_round(launch))
    assert [idle for idle, _ in pauses] == [0, 1, 2, 3, 4, 5]
    minutes = [pause for _, pause in pauses]
    assert minutes == sorted(minutes)
    assert (minutes[0], minutes[-1]) == (0, 60)
    first = made.cells[0]
    attempt = RunFolder(tmp_path, first.run_id).claim(first.cell.settings, Heartbeats(), retry_failed=False)
    assert attempt is not None
    attempt.progress = {"step": 3}
    attempt.write_state(State.RUNNING)
    launch.write_round(Round(number=13, jobs=("13",), complete=True, released=True))
    assert end_round(launch) == (0, 0)


SCONTROL = """#!/bin/sh
case $1 in
  requeue) (trap '' TERM; sleep 0.5; kill -TERM 0) >/dev/null 2>&1 & ;;
  update) case $3 in StartTime*) sleep 1.5; echo "$2 $3" >> "$SAID" ;; esac ;;
esac
"""
COME_BACK = """
import signal
from experiments.slurm.job import follow_up
class Launch:
    def is_cancelled(self):
        return False
signal.signal(signal.SIGTERM, lambda *_: None)  # as submitit's, which passes it by
follow_up.KILL_SECONDS = 0.0
follow_up.submit_look = lambda *_: print("submitted anew")
follow_up.come_back(Launch(), "the disk is full")
"""


def test_the_request_to_end_does_not_end_the_command_that_says_when_to_come_back(tmp_path: Path) -> None:
    """SLURM ends a job that is queued again: all its processes, `scontrol update` among them."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(SCONTROL)
    scontrol.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SAID": str(tmp_path / "said"), "SLURM_JOB_ID": "7",
    }  # fmt: skip
    command = [sys.executable, "-c", COME_BACK]
    done = subprocess.run(command, cwd=ROOT, env=environment, start_new_session=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "looking again sooner" not in done.stdout
    assert (tmp_path / "said").read_text() == "JobId=7 StartTime=now+10minutes\n"
