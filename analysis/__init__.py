"""Run folders to data frames, figures, tables and pages. Reads the disk; imports no torch.

::

    from analysis import load_runs, plot_training
    points, runs = load_runs("runs")
    plot_training(points, runs, hue="optimizer.lr")

Of one study, with its variants and what happened to each run (columns ``study``, ``variant``, ``diagnosis``)::

    from analysis import load_study, plot_sweep
    points, runs = load_study("batch-size", "runs")
    plot_sweep(runs, "batch_size")

These names are imported when they are asked for, so that a training loop can have :mod:`analysis.monitor` alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.figures.linear import plot_linear
    from analysis.figures.map import plot_map
    from analysis.figures.spectrum import plot_spectra
    from analysis.figures.sweep import plot_sweep
    from analysis.figures.training import plot_training
    from analysis.frames.load import load_runs
    from analysis.notebook import load_study, with_diagnosis

__all__ = [
    "load_runs",
    "load_study",
    "plot_linear",
    "plot_map",
    "plot_spectra",
    "plot_sweep",
    "plot_training",
    "with_diagnosis",
]

_PLACES = {
    "load_runs": "frames.load",
    "load_study": "notebook",
    "plot_linear": "figures.linear",
    "plot_map": "figures.map",
    "plot_spectra": "figures.spectrum",
    "plot_sweep": "figures.sweep",
    "plot_training": "figures.training",
    "with_diagnosis": "notebook",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
