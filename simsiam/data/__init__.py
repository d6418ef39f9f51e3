"""From image files to the two views of a batch."""
