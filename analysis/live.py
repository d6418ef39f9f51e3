"""Pages that reload themselves while the runs that they show are in progress."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from simsiam.files import write_atomically


@dataclass(frozen=True)
class Live:
    """That a page is being remade, as it says itself."""

    seconds: int  # between two reloads
    as_of: str  # the local time at which the page was made


_TRACES = re.compile(r'<meta http-equiv="refresh"[^>]*>\n|<p class="live">.*?</p>\n', re.DOTALL)


def make_still(page: Path) -> None:
    """Leave a page as it is, but for its reloading; nothing if it is not there."""
    if page.exists():
        write_page(page, _TRACES.sub("", page.read_text(encoding="utf-8")))


def write_page(page: Path, text: str) -> None:
    """In one step, so that no browser reloads half a page."""
    write_atomically(page, lambda file: file.write(text.encode()), aside=str(os.getpid()))
