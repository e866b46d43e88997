"""Rules about columns: those that a recipe names must be in the header of its CSV or Parquet source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mlflowkit.errors import DataError, closest_match
from mlflowkit.recipe.rule import Problem, RecipeView
from mlflowkit.recipe.yaml_tree import KeyPath
from mlflowkit.stages.headers import column_names
from mlflowkit.stages.sources import CsvSource, ParquetSource
from mlflowkit.system.text import format_list
from mlflowkit.values import Json


def problems(values: Json, folder: Path) -> list[Problem]:
    """Columns that a recipe names and its files do not have. Empty where the header cannot be read."""
    view = RecipeView(values)
    names = header_names(view, folder)
    return [] if names is None else list(_missing_columns(view, names))


def header_names(view: RecipeView, folder: Path) -> tuple[str, ...] | None:
    """The columns of the source's header; None where it cannot be read without running something."""
    kind, path = view.text("data", "source", "kind"), view.text("data", "source", "path")
    if kind not in ("csv", "parquet") or not path:
        return None
    source = CsvSource(kind="csv", path=path) if kind == "csv" else ParquetSource(kind="parquet", path=path)
    try:
        files = source.resolve(folder).files
    except (DataError, OSError, ValueError):
        return None  # reported by reference_rules
    separator = view.text("data", "source", "separator", default=",")
    if len(separator) != 1:
        return None
    folders = source.folder_columns(folder, files[:1])[0]
    trim = view.get("data", "source", "trim") is True
    return column_names(files, kind, separator, folders=folders, trim=trim and kind == "csv")


def _missing_columns(view: RecipeView, names: tuple[str, ...]) -> Iterator[Problem]:
    for path, name, at_key in _named_columns(view):
        if name in names:
            continue
        close = closest_match(name, names)
        hint = f"did you mean {close!r}?" if close else f"the columns are {format_list(names, 20)}"
        yield Problem(path, f"the file has no column {name!r}", hint, at_key=at_key)


def _named_columns(view: RecipeView) -> Iterator[tuple[KeyPath, str, bool]]:
    """(key path, column, whether the column is the key itself); a slice names one of these columns too."""
    for path in (("data", "target"), ("data", "split", "column")):
        if name := view.text(*path):
            yield path, name, False
    for key in ("columns", "orders"):
        for name in view.mapping("data", key):
            yield ("data", key, name), name, True
    for kind in ("numeric", "categorical", "dates", "texts"):
        for name in view.mapping("preprocess", kind):
            yield ("preprocess", kind, name), name, True
    for place, _ in enumerate(view.items("preprocess", "transforms")):
        for index, name in enumerate(view.items("preprocess", "transforms", place, "columns")):
            if isinstance(name, str):
                yield ("preprocess", "transforms", place, "columns", index), name, False
    for name in view.mapping("monitor", "columns"):
        yield ("monitor", "columns", name), name, True
    for path in (("data", "drop"), ("monitor", "segments")):
        for index, name in enumerate(view.items(*path)):
            if isinstance(name, str):
                yield (*path, index), name, False
    for index, _ in enumerate(view.items("data", "checks")):
        if name := view.text("data", "checks", index, "column"):
            yield ("data", "checks", index, "column"), name, False
