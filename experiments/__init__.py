"""Which runs, where they run, and what state they are in."""
