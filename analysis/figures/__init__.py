"""Figures, from the two frames."""
