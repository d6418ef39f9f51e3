"""Run folders to data frames, figures, tables and pages. Reads the disk; imports no torch.

::

    from analysis import load_runs, plot_training
    points, runs = load_runs("runs")
    plot_training(points, runs, hue="optimizer.lr")
"""

from __future__ import annotations

from analysis.figures.linear import plot_linear
from analysis.figures.map import plot_map
from analysis.figures.spectrum import plot_spectra
from analysis.figures.sweep import plot_sweep
from analysis.figures.training import plot_training
from analysis.frames.load import load_runs

__all__ = ["load_runs", "plot_linear", "plot_map", "plot_spectra", "plot_sweep", "plot_training"]
