"""The training loop, the optimiser, and what is logged."""
