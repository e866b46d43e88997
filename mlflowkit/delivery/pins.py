"""The versions that generated files name: actions by commit, images by digest. Read from ``pins.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True, slots=True)
class ActionPin:
    """A GitHub action at a commit. ``runtime`` is what it runs on, ``date`` when the commit was verified."""

    name: str
    sha: str
    tag: str
    runtime: str
    date: date

    @property
    def uses(self) -> str:
        """What ``uses:`` names."""
        return f"{self.name}@{self.sha}"


@cache
def _pins() -> dict[str, Any]:
    return tomllib.loads(resources.files("mlflowkit.delivery").joinpath("pins.toml").read_text(encoding="utf-8"))


def action(name: str, path: str = "") -> ActionPin:
    """The pin of an action; ``path`` is a folder in its repository. Raises KeyError.

    >>> action("actions/cache", "restore").uses.partition("@")[0]
    'actions/cache/restore'
    """
    entry = _pins()["actions"][name]
    return ActionPin(f"{name}/{path}" if path else name, entry["sha"], entry["tag"], entry["runtime"], entry["date"])


def actions() -> tuple[ActionPin, ...]:
    """All pinned actions."""
    return tuple(action(name) for name in _pins()["actions"])


def python_image() -> str:
    """The base image of generated images, by digest."""
    reference: str = _pins()["images"]["python"]["reference"]
    return reference
