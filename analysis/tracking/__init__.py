"""Run folders to trackers and tables of other programs, one way."""
