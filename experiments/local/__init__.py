"""The launcher for this machine: worker processes, and the ranks of a cell."""
