"""Run folders to data frames, figures, tables and pages. Reads the disk; imports no torch.

::

    from analysis import load_runs, plot_training
    points, runs = load_runs("runs")
    plot_training(points, runs, hue="optimizer.lr")

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

__all__ = ["load_runs", "plot_linear", "plot_map", "plot_spectra", "plot_sweep", "plot_training"]

_PLACES = {
    "load_runs": "frames.load",
    "plot_linear": "figures.linear",
    "plot_map": "figures.map",
    "plot_spectra": "figures.spectrum",
    "plot_sweep": "figures.sweep",
    "plot_training": "figures.training",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
