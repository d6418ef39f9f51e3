"""What a run leaves on disk: curves, checkpoints, and the catalogue of all that is measured."""
