"""Editors, shells and trackers: where the project meets other programs."""
