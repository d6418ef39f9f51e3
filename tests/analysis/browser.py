"""A page in a real browser without a window: what it shows, what it complains of, how it is laid out."""

from __future__ import annotations

import functools
import html
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.tools import require

MEASURE = Path(__file__).with_name("measure.js").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Opened:
    """A page as the browser has it, and what it said on the way."""

    dom: str
    console: tuple[str, ...]


def open_page(page: Path, *options: str) -> Opened:
    """The page itself, opened from disk."""
    command = [require("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [
        "--disable-background-networking",
        "--no-first-run",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--v=0",
    ]
    profile = page.parent / ".browser"
    done = subprocess.run(
        [*command, f"--user-data-dir={profile}", *options, "--dump-dom", page.absolute().as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return Opened(done.stdout, tuple(line for line in done.stderr.splitlines() if "CONSOLE" in line))


@functools.cache
def measure(page: Path, width: int) -> dict[str, Any]:
    """How a copy of the page is laid out in a frame of ``width`` CSS pixels; see ``measure.js``.

    A frame, since no browser makes a window as narrow as a phone.
    """
    copy = page.read_text(encoding="utf-8").replace("</body>", f"<script>{MEASURE}</script></body>")
    framed = page.with_name(f"framed-{width}.html")
    framed.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><body style="margin: 0"><iframe srcdoc="{html.escape(copy)}" '
        f'style="width: {width}px; height: 5000px; border: 0"></iframe></body>',
        encoding="utf-8",
    )
    opened = open_page(framed, "--window-size=1400,5000", "--virtual-time-budget=20000")
    found = re.search(r'<script type="application/json" id="found">(.*?)</script>', opened.dom, re.DOTALL)
    assert found, opened.console
    layout: dict[str, Any] = json.loads(found[1])
    return layout
