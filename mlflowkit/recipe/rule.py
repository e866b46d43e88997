"""What a rule of a recipe is: a function from a `View` of the written values to `Problem` objects."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlflowkit.recipe.yaml_tree import KeyPath
from mlflowkit.values import Json


@dataclass(frozen=True, slots=True)
class Problem:
    """Something impossible at a key path: at its value, or at the key itself."""

    path: KeyPath
    message: str
    hint: str = ""
    at_key: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """The values that a recipe sets, defaults left out."""

    values: Json

    def get(self, *path: str | int) -> Any:
        """The value at a key path, or None."""
        value = self.values
        for part in path:
            known = part in value if isinstance(value, dict) else isinstance(part, int) and part < _length(value)
            if not known:
                return None
            value = value[part]
        return value

    def has(self, *path: str | int) -> bool:
        """Whether the recipe sets a key, be it to null."""
        parent = self.get(*path[:-1])
        return isinstance(parent, dict) and path[-1] in parent

    def text(self, *path: str | int, default: str = "") -> str:
        """The text at a key path; ``default`` when nothing is set there, "" when it is no text."""
        value = self.get(*path) if self.has(*path) else default
        return value if isinstance(value, str) else ""

    def number(self, *path: str | int) -> float | None:
        """The finite number at a key path, or None."""
        value = self.get(*path)
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return value if good else None

    def items(self, *path: str | int) -> list[Any]:
        value = self.get(*path)
        return value if isinstance(value, list) else []

    def mapping(self, *path: str | int) -> Mapping[str, Any]:
        value = self.get(*path)
        return value if isinstance(value, dict) else {}

    @property
    def task(self) -> str:
        return self.text("task")

    @property
    def regression(self) -> bool:
        return self.task == "regression"

    def checks(self, kind: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The checks of one kind, with their index."""
        for index, check in enumerate(self.items("data", "checks")):
            if isinstance(check, dict) and check.get("kind") == kind:
                yield index, check

    @property
    def schema(self) -> Mapping[str, Any] | None:
        """The columns that a schema check declares to be all that there are, or None."""
        for _, check in self.checks("schema"):
            columns = check.get("columns")
            if isinstance(columns, dict) and check.get("extra", "forbid") == "forbid":
                return columns
        return None


def _length(value: Json) -> int:
    return len(value) if isinstance(value, list) else 0


Rule = Callable[[View], Iterator[Problem]]
