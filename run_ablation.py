#!/usr/bin/env python3
"""The command: ``python run_ablation.py --help``."""

from commands.app import main

if __name__ == "__main__":
    main()
