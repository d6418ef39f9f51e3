#!/usr/bin/env python3
"""The command: ``python run_ablation.py --help``."""

import sys

if __name__ == "__main__":
    try:
        from commands.app import main
    except KeyboardInterrupt:  # while it is being imported
        print("error: interrupted: nothing was begun", file=sys.stderr)
        sys.exit(130)
    main()
