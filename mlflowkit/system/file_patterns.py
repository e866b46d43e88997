"""Files by pattern, within bounds; and the columns that names of folders give (``region=north``)."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from mlflowkit.errors import DataError

MAX_ENTRIES = 200_000
"""Entries of folders that one pattern looks at; more is a pattern over a disk, not over a table."""
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
"""Stands for a missing value in the name of a folder."""


def matching_paths(pattern: str, key: str) -> list[str]:
    """The paths that a glob matches, sorted; ``**`` is any number of folders, names with a dot in front are left out.

    Raises DataError, naming the recipe's ``key``, when the pattern looks at more than MAX_ENTRIES entries.
    """
    budget = [MAX_ENTRIES]
    parts = pattern.split(os.sep)
    start = os.sep if pattern.startswith(os.sep) else ""
    try:
        return sorted(set(_expand(start, [part for part in parts if part], budget)))
    except _OutOfBudgetError:
        message = f"{key}: {pattern} looks at more than {MAX_ENTRIES:,} files and folders"
        raise DataError(message, hint=f"begin {key} with the folder that holds the table's files") from None


def fixed_folder(pattern: str) -> Path:
    """The part of a pattern before its first wildcard.

    >>> fixed_folder("/data/sales/**/*.parquet").as_posix()
    '/data/sales'
    """
    parts = Path(pattern).parts
    wild = next((index for index, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:wild])


def folder_columns(file: Path, root: Path) -> Mapping[str, str | None]:
    """The columns that the folders between ``root`` and a file give, in their order; None for a missing value.

    >>> dict(folder_columns(Path("/d/region=north/month=01/a.csv"), Path("/d")))
    {'region': 'north', 'month': '01'}
    """
    columns: dict[str, str | None] = {}
    for part in file.parent.relative_to(root).parts:
        name, mark, value = part.partition("=")
        if mark and name:
            columns[unquote(name)] = None if value == NO_VALUE else unquote(value)
    return columns


class _OutOfBudgetError(Exception):
    """Too many entries were looked at."""


def _expand(base: str, parts: Sequence[str], budget: list[int]) -> Iterator[str]:
    if not parts:
        yield base
        return
    head, rest = parts[0], parts[1:]
    if head == "**":
        yield from _expand(base, rest, budget) if rest else ()
        for name, is_folder in _entries(base, budget):
            if is_folder:
                yield from _expand(os.path.join(base, name), parts, budget)
            elif not rest:
                yield os.path.join(base, name)
    elif glob.has_magic(head):
        for name, is_folder in _entries(base, budget, hidden=head.startswith(".")):
            if (is_folder or not rest) and fnmatch.fnmatchcase(name, head):
                yield from _expand(os.path.join(base, name), rest, budget)
    else:
        path = os.path.join(base, head)
        if os.path.lexists(path):
            yield from _expand(path, rest, budget)


def _entries(folder: str, budget: list[int], *, hidden: bool = False) -> Iterator[tuple[str, bool]]:
    """Names in a folder, and whether each is a folder; none for one that cannot be read."""
    try:
        with os.scandir(folder or os.curdir) as entries:
            for entry in entries:
                budget[0] -= 1
                if budget[0] < 0:
                    raise _OutOfBudgetError
                if hidden or not entry.name.startswith("."):
                    yield entry.name, entry.is_dir()
    except OSError:
        return
