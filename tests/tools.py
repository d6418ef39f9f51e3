"""Programs that some tests need beside Python: a browser and LaTeX.

Where one is missing, its tests are skipped and say so in a line. ``ABLATION_TEST_REQUIRE=chromium,latex`` names those
that must be there, as in continuous integration: a test that misses one of these fails.
"""

from __future__ import annotations

import os
import shutil

import pytest

TOOLS = {  # what each is called where it is installed, and the packages of Debian and Ubuntu that have it
    "chromium": (("chromium", "chromium-browser", "google-chrome"), "chromium"),
    "latex": (("pdflatex",), "texlive-latex-recommended"),
}


def require(tool: str) -> str:
    """The path of a program; skips the test, or fails it, where it is not installed."""
    names, packages = TOOLS[tool]
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        missing(tool, f"{tool} is not installed (apt-get install {packages})")
    return str(found)


def missing(tool: str, reason: str) -> None:
    """Skip the test for want of a tool, or fail it if the tool has to be there."""
    wanted = {name.strip() for name in os.environ.get("ABLATION_TEST_REQUIRE", "").split(",")} - {""}
    assert wanted <= TOOLS.keys(), f"ABLATION_TEST_REQUIRE: {wanted - TOOLS.keys()} are none of {', '.join(TOOLS)}"
    if tool in wanted:
        pytest.fail(f"{reason}, and ABLATION_TEST_REQUIRE asks for it", pytrace=False)
    pytest.skip(reason)
