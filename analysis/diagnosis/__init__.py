"""What happened to a run, on what evidence, and why."""
