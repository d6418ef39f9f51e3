"""Print the lower bounds of pyproject.toml as pip constraints, for `make test-lowest`."""

import re
import sys
from pathlib import Path

# The run-time dependencies alone: the tools of `dev` need not be old.
text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
dependencies = text.partition("dependencies = [")[2].partition("]")[0]
for name, version in re.findall(r'"([\w-]+)>=([\d.]+)', dependencies):
    sys.stdout.write(f"{name}=={version}\n")
