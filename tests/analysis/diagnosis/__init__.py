"""Tests of analysis/diagnosis, and of the monitor that writes what it reads."""
