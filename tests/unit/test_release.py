"""One version in three places, and a changelog entry for it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import mlflowkit

ROOT = Path(__file__).parents[2]


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert project["version"] == mlflowkit.__version__ == released[0]


def test_every_extra_is_documented() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    page = (ROOT / "docs" / "howto" / "install.md").read_text()
    undocumented = {extra for extra in extras if f"`{extra}`" not in page} - {"test", "dev", "docs"}
    assert not undocumented
