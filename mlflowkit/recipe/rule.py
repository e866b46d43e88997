"""Rules of recipes: functions from a `RecipeView` of the written values to `Problem` objects."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlflowkit.recipe.yaml_tree import KeyPath
from mlflowkit.values import Json


@dataclass(frozen=True, slots=True)
class Problem:
    """A violated rule, located at the value or (``at_key``) the key of a key path."""

    path: KeyPath
    message: str
    hint: str = ""
    at_key: bool = False


@dataclass(frozen=True, slots=True)
class RecipeView:
    """The values that a recipe sets, without defaults; accessors check types and return None for others."""

    values: Json

    def get(self, *path: str | int) -> Any:
        """The value at a key path, or None."""
        value = self.values
        for part in path:
            if isinstance(value, list) and isinstance(part, int) and part < len(value):
                value = value[part]
            else:
                value = value.get(part) if isinstance(value, dict) else None
        return value

    def has(self, *path: str | int) -> bool:
        """Whether the recipe sets a key, even to null."""
        parent = self.get(*path[:-1])
        return isinstance(parent, dict) and path[-1] in parent

    def text(self, *path: str | int, default: str = "") -> str:
        """The text at a key path; ``default`` when the key is not set, "" for another type."""
        value = self.get(*path) if self.has(*path) else default
        return value if isinstance(value, str) else ""

    def number(self, *path: str | int) -> float | None:
        """The finite number at a key path, or None."""
        value = self.get(*path)
        finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return value if finite else None

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
        """The data checks of one kind with their index."""
        for index, check in enumerate(self.items("data", "checks")):
            if isinstance(check, dict) and check.get("kind") == kind:
                yield index, check

    @property
    def schema(self) -> Mapping[str, Any] | None:
        """The columns of a schema check that allows no others, or None."""
        for _, check in self.checks("schema"):
            columns = check.get("columns")
            if isinstance(columns, dict) and check.get("extra", "forbid") == "forbid":
                return columns
        return None


Rule = Callable[[RecipeView], Iterator[Problem]]
