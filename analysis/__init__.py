"""Run folders to data frames, figures, tables and pages. Reads the disk; imports no torch.

::

    from analysis import load_runs, plot_training
    points, runs = load_runs("runs")
    plot_training(points, runs, hue="optimizer.lr")
"""

from __future__ import annotations

from analysis.figures import plot_training
from analysis.linear_figure import plot_linear
from analysis.map_figure import plot_map
from analysis.results import load_runs
from analysis.spectrum_figure import plot_spectra
from analysis.sweeps import plot_sweep

__all__ = ["load_runs", "plot_linear", "plot_map", "plot_spectra", "plot_sweep", "plot_training"]
