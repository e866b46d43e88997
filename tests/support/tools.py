"""Tools that are no Python dependency: checkers of generated files, and what runs them. `make tools` installs them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


def find_tool(name: str) -> str | None:
    """The path of a tool: in the folder MLKIT_TOOLS, in ``.tools`` of the checkout, or on PATH; None for nowhere."""
    folders = [os.environ.get("MLKIT_TOOLS", ""), str(CHECKOUT / ".tools" / "bin")]
    for folder in filter(None, folders):
        for below in (folder, os.path.join(folder, "bin")):
            tool = shutil.which(name, path=below)
            if tool is not None:
                return tool
    return shutil.which(name)


def require_tool(name: str, install: str = "make tools") -> str:
    """The path of a tool; skips the test where it is absent. ``install`` is the command that installs it."""
    tool = find_tool(name)
    if tool is None:
        pytest.skip(f"{name} is not installed: {install}, or MLKIT_TOOLS=DIR")
    return tool
