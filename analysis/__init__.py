"""Run folders to data frames, figures, tables and pages. Reads the disk; imports no torch.

::

    from analysis import load_runs, plot_training
    points, runs = load_runs("runs")
    plot_training(points, runs, hue="optimizer.lr")

Of one study, with its variants and what happened to each run (columns ``study``, ``variant``, ``diagnosis``)::

    from analysis import load_study, plot_sweep
    points, runs = load_study("batch-size", "runs")
    plot_sweep(runs, "batch_size")
"""

from __future__ import annotations

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
