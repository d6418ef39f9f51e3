"""Checkpoints: atomic, with the one before kept, and used when the newest does not load."""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from simsiam.errors import CheckpointError
from simsiam.record.atomic_files import write_atomically

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
FORMAT = 1

State = dict[str, Any]


def load_tensors(path: Path) -> Any:
    """What torch.save wrote into a file, on the CPU: tensors and plain values only, so a stranger's file is safe.

    Raises OSError for a file that cannot be read, ValueError, with the reason in one line, for one that does not load.
    """
    with open(path, "rb") as file:
        try:
            if zipfile.is_zipfile(file):  # torch does not look at the checksums that it writes
                with zipfile.ZipFile(file) as archive:
                    damaged = archive.testzip()
                if damaged is not None:
                    raise ValueError(f"{damaged} is damaged")
            file.seek(0)
            with warnings.catch_warnings():  # of formats that torch gives up: nothing that a user can change here
                warnings.simplefilter("ignore")
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle can raise anything
            reason = str(error).partition("\n")[0] or type(error).__name__
            # What is cut off ends in an OSError, too: "Invalid argument", of a place before the file's start.
            if isinstance(error, pickle.UnpicklingError | OSError) or not isinstance(error, ValueError | RuntimeError):
                reason = "it is cut off or damaged, or holds more than tensors and plain values"
            raise ValueError(reason) from None


def save(folder: Path, state: State, attempt: int) -> None:
    """Publish ``state`` as the newest checkpoint. At every moment the newest or the one before is whole."""
    newest = folder / NEWEST

    content = io.BytesIO()  # torch hides a full disk behind an error of its own
    torch.save({"format": FORMAT, **state}, content)

    def publish_over_previous(file: Any) -> None:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())
        if newest.exists():
            os.replace(newest, folder / PREVIOUS)

    write_atomically(newest, publish_over_previous, aside=str(attempt))


def step(folder: Path) -> int | None:
    """At which step a run would go on, without reading the weights; None if it would start from nothing."""
    for name in (NEWEST, PREVIOUS):
        try:
            return int(torch.load(folder / name, map_location="cpu", weights_only=True, mmap=True)["step"])
        except Exception:  # a damaged pickle can raise anything
            continue
    return None


def bytes_for_training(folder: Path) -> int:
    """How much of the newest checkpoint only further training needs, without reading it; 0 if there is none."""
    try:
        state = torch.load(folder / NEWEST, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # a damaged pickle can raise anything
        return 0
    return sum(
        value.numel() * value.element_size()
        for moments in state.get("optimizer", {}).get("state", {}).values()
        for value in moments.values()
        if isinstance(value, torch.Tensor)
    )


def keep_weights_only(folder: Path, aside: str) -> None:
    """Drop what only further training needs: the checkpoint before the newest, and the optimiser's state."""
    state = load(folder)
    if state is None:
        return
    content = io.BytesIO()
    torch.save({"format": FORMAT, "model": state["model"], "step": state["step"]}, content)
    write_atomically(folder / NEWEST, lambda file: file.write(content.getbuffer()), aside=aside)
    (folder / PREVIOUS).unlink(missing_ok=True)


def load(folder: Path) -> State | None:
    """The newest checkpoint that loads, on the CPU; None if there is none that does.

    Only tensors and plain values are unpickled (``weights_only``), so a stranger's run folder is safe to read.
    Raises CheckpointError for a checkpoint of a later format.
    """
    for name in (NEWEST, PREVIOUS):
        try:
            state = load_tensors(folder / name)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            print(f"{folder / name} does not load ({error}); trying the one before", flush=True)
            continue
        if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
            raise CheckpointError(f"{folder / name} was written by another version of this program")
        return state
    return None
