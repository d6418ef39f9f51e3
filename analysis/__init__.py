"""Run folders to data frames, figures, tables and pages. Reads the disk; imports no torch.

::

    from analysis import load_runs, plot_training
    points, runs = load_runs("runs")
    plot_training(points, runs, hue="optimizer.lr")
"""

from __future__ import annotations

from analysis.figures import plot_training
from analysis.results import load_runs

__all__ = ["load_runs", "plot_training"]
