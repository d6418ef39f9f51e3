"""Embeddings that any program wrote, read without unpickling, and measured as those of a run are."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simsiam.errors import DataError, nearest
from simsiam.evaluation.diagnostics import (
    OF_A_SPECTRUM,
    OF_A_VIEW,
    OF_FEATURES,
    OF_HELD_OUT_VIEWS,
    OF_VIEWS,
    effective_rank,
    output_std,
    spectrum,
)
from simsiam.evaluation.knn import knn_top1
from simsiam.record.catalogue import spectrum_ranks
from simsiam.record.checkpoint import load_tensors
from simsiam.record.curves import Point

ENDINGS = (".npy", ".npz", ".pt", ".pth", ".safetensors", ".parquet")
NAMES = ("z", "embeddings", "embedding", "features", "feats", "x", "representations", "data")
LABELS = ("labels", "label", "targets", "target", "y", "classes")
MOST_VECTORS = 8192  # of more, so many are drawn, evenly
MOST_PAIRED = 4096  # of which all pairs are compared
NEIGHBOURS = 200


@dataclass(frozen=True)
class Embeddings:
    """What a file holds."""

    name: str
    z: Tensor  # (N, d) float32; rows that are not finite are left out
    labels: Tensor | None  # (N,) int64, from 0
    views: Tensor | None  # (N, q, d), of q views of each image
    number: int | None  # of the epoch or step, from the file or its name
    num_vectors: int
    not_finite: int  # how many of them are not


def read_embeddings(path: Path, chosen: str | None = None) -> Embeddings:
    """Embeddings (N, d), or (N, q, d) of q views of each image, with labels (N,) if there are any.

    ``.npy``; ``.npz``, ``.pt`` and ``.safetensors`` with one array, or one named as in :data:`NAMES`, and labels as in
    :data:`LABELS`; ``.parquet`` with a column of lists or a column for each channel. ``chosen``: the name of the array.
    Raises OSError for a file that cannot be opened, DataError, in one line, for one that holds no embeddings.
    """
    with open(path, "rb") as file:  # whatever the format's own library would say of it
        if not file.read(1):
            raise DataError(f"{path}: is empty")
    try:
        arrays = _arrays(path)
    except DataError:
        raise
    except Exception as error:  # a damaged file can raise anything
        reason = str(error).partition("\n")[0][:120] or type(error).__name__
        if "pickle" in reason.lower():
            reason = "it holds Python objects, and nothing is unpickled"
        raise DataError(f"{path}: holds no embeddings that can be read ({reason})") from None
    name, z = _main(path, arrays, chosen)
    labels = next((array for key, array in arrays.items() if key.lower() in LABELS), None)
    if labels is not None and "step" in arrays and labels.ndim == 1 and len(labels) > len(z):
        labels = labels[: len(z)]  # a run's own file has the labels of all images, and z of the first
    if labels is not None and labels.shape != (len(z),):
        raise DataError(f"{path}: {name} has {len(z)} vectors, and its labels have the shape {labels.shape}")
    if labels is not None and labels.dtype.kind == "f" and not np.isfinite(labels).all():
        missing = np.flatnonzero(~np.isfinite(labels))
        raise DataError(
            f"{path}: {len(missing)} of {len(labels)} labels are not finite, the first at {missing[0]} (counted from 0)"
        )
    drawn = np.linspace(0, len(z) - 1, min(len(z), MOST_VECTORS)).astype(int)
    kept = np.asarray(z[drawn])
    finite = np.isfinite(kept).reshape(len(kept), -1).all(1)
    whole = kept[finite]
    largest = np.abs(whole.astype(np.float64)).max(initial=0)
    if largest > 0 and not 1e-6 < largest < 1e6:  # what float32 loses when it is squared; no measure goes by the scale
        whole = whole / largest
    vectors = torch.from_numpy(np.asarray(whole, dtype=np.float32))
    truth = None
    if labels is not None:
        _, places = np.unique(np.asarray(labels)[drawn][finite], return_inverse=True)
        truth = torch.from_numpy(places.reshape(-1).astype(np.int64))
    views = vectors if vectors.dim() == 3 else None
    number = next((int(arrays[key]) for key in ("step", "epoch") if key in arrays and arrays[key].size == 1), None)
    if number is None and (digits := re.findall(r"\d+", path.stem)):
        number = int(digits[-1][:15])
    return Embeddings(
        path.name,
        vectors[:, 0] if views is not None else vectors,
        truth,
        views,
        number,
        len(kept),
        int((~finite).sum()),
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    ending = path.suffix.lower()
    if ending == ".npy":
        return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
    if ending == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    if ending in (".pt", ".pth"):
        value = load_tensors(path)
        items = value.items() if isinstance(value, Mapping) else [("", value)]
        return {
            str(key): item.numpy()
            for key, item in items
            if isinstance(item, Tensor) and item.layout == torch.strided and not item.is_meta
        }
    if ending == ".safetensors":
        from safetensors.numpy import load_file

        return dict(load_file(path))
    return _parquet(path)


def _parquet(path: Path) -> dict[str, np.ndarray]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except ImportError:
        raise DataError(
            f"{path}: parquet is read by the package pyarrow, which is not here: pip install pyarrow"
        ) from None
    found: dict[str, np.ndarray] = {}
    channels = [name for name in frame if frame[name].dtype.kind == "f"]
    for name in frame:
        if str(name).lower() in LABELS:
            found[str(name)] = pd.factorize(frame[name])[0]
        elif name not in channels and len(frame) and np.ndim(frame[name].iloc[0]) == 1:
            found[str(name)] = np.stack(frame[name].to_list())
    if not any(array.ndim == 2 for array in found.values()) and len(channels) > 1:
        found["columns"] = frame[channels].to_numpy()
    return found


def _main(path: Path, arrays: Mapping[str, np.ndarray], chosen: str | None) -> tuple[str, np.ndarray]:
    """The array that holds the embeddings."""
    if chosen is not None and chosen not in arrays:
        known = ", ".join(map(repr, filter(None, arrays))) or "one without a name"
        raise DataError(f"{path}: has no array {chosen!r}{nearest(chosen, list(arrays))}; it has {known}")
    if chosen is not None:
        arrays = {chosen: arrays[chosen]}
    fitting = {name: array for name, array in arrays.items() if array.ndim in (2, 3) and array.dtype.kind in "fiu"}
    named = [name for wanted in NAMES for name in fitting if name.lower() == wanted]
    name = named[0] if named else next(iter(fitting), None) if len(fitting) == 1 else None
    if name is None and len(arrays) == 1:
        ((key, array),) = arrays.items()
        what = f"has the shape {array.shape}" if array.dtype.kind in "fiu" else f"holds {array.dtype}, no numbers"
        raise DataError(f"{path}: {key or 'its array'} {what}; embeddings are (N, d) or (N, views, d)")
    if name is None:
        shapes = ", ".join(f"{key} {array.shape}" for key, array in list(arrays.items())[:10]) or "nothing"
        say = f"; say it with --column z={next(iter(fitting))}" if fitting else ""
        raise DataError(
            f"{path}: which of its arrays are embeddings, (N, d) or (N, views, d), does not show; it holds {shapes};"
            f" names that are known: {', '.join(NAMES)}{say}"
        )
    z = arrays[name]
    if len(z) < 2 or z.shape[-1] < 2:
        raise DataError(
            f"{path}: {name or 'the array'} has the shape {z.shape}; two vectors of two channels are the least"
        )
    return name or "the array", z


def measure(found: Embeddings) -> Point:
    """Every measure of the catalogue that embeddings alone give, by its name; kNN where there are labels.

    Those of features, too: what is in the file stands for both z and features.
    Of views (N, q, d) the first two stand for a pair. kNN: half of the vectors, drawn once, classify the other half.
    """
    z = found.z
    if len(z) < 2:
        return {}
    if not z.any():  # z/|z| is not defined, and all of them are one point
        return {"z_std": 0.0, "z_std_relative": 0.0, "effective_rank": 1.0, "centre": 1.0}
    paired = z[torch.linspace(0, len(z) - 1, min(len(z), MOST_PAIRED)).long()]
    std = output_std(z).item()
    point: Point = {"z_std": std, "z_std_relative": std * math.sqrt(z.shape[1])}
    point |= {"effective_rank": effective_rank(z), **{name: of(z) for name, of in OF_FEATURES.items()}}
    singular = spectrum(z)
    point |= {name: of(singular) for name, of in OF_A_SPECTRUM.items()}
    point["spectrum"] = singular.numpy()[spectrum_ranks(len(singular)) - 1].tolist()
    point |= {name: of_view(paired).item() for name, of_view in OF_A_VIEW.items()}
    if found.views is not None and found.views.shape[1] > 1:
        point |= {name: of_views(found.views[:, 0], found.views[:, 1]).item() for name, of_views in OF_VIEWS.items()}
        point |= {name: of(found.views) for name, of in OF_HELD_OUT_VIEWS.items()}
    if found.labels is not None and int(found.labels.max()) > 0:
        order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
        bank, queries = order[: len(z) // 2], order[len(z) // 2 :]
        k = max(1, min(NEIGHBOURS, len(bank) // 10))
        point["knn_top1"] = knn_top1(z[bank], found.labels[bank], z[queries], found.labels[queries], k=k)
    return point


def as_row(found: Embeddings) -> dict[str, Any]:
    """What the frame of runs would hold of them."""
    row: dict[str, Any] = {
        "run": found.name, "state": "done", "of_embeddings": True, "unit_of_time": "file", "outcome": None,
        "num_vectors": found.num_vectors, "not_finite": found.not_finite, "projector.output_dim": found.z.shape[1],
    }  # fmt: skip
    if found.labels is not None and len(found.labels):
        row["reference_chance"] = 100 * found.labels.bincount().max().item() / len(found.labels)
    return row
