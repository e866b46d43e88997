"""Which objects of a store a source's ``path`` means: the rules of local files, for names in a list."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Iterable, Sequence
from typing import Literal

ENDS = {
    "parquet": (".parquet",),
    "csv": (".csv", ".csv.gz", ".csv.bz2", ".csv.zst", ".csv.lz4"),
}
"""Ends of the names of the files of a format, in a folder."""


def listed_prefix(path: str) -> str:
    """What the names of all objects that a path can mean begin with.

    >>> listed_prefix("loans/**/*.parquet"), listed_prefix("loans/a.csv"), listed_prefix("loans/"), listed_prefix("")
    ('loans/', 'loans/a.csv', 'loans/', '')
    """
    parts = path.split("/")
    wild = next((index for index, part in enumerate(parts) if glob.has_magic(part)), None)
    return path if wild is None else "".join(f"{part}/" for part in parts[:wild])


def select_objects(names: Iterable[str], path: str, format: Literal["csv", "parquet"]) -> tuple[str, list[str]]:
    """The folder of a path, and the names below it that the path means, sorted.

    A path is an object, a folder (the files of the format in it and in its KEY=VALUE folders) or a glob, in which
    ``**`` is any number of folders; names that begin with a dot are left out, as in local folders.

    >>> names = ["l/a.csv", "l/m=1/b.csv", "l/old/c.csv", "l/.d.csv", "l/e.txt"]
    >>> select_objects(names, "l/", "csv"), select_objects(names, "l/**/*.csv", "csv")[1]
    (('l/', ['a.csv', 'm=1/b.csv']), ['a.csv', 'm=1/b.csv', 'old/c.csv'])
    >>> select_objects(names, "l/a.csv", "csv"), select_objects(names, "l/old", "csv")
    (('l/', ['a.csv']), ('l/old/', ['c.csv']))
    """
    known = [name for name in names if not name.endswith("/")]
    if path and not path.endswith("/") and path in known:
        folder = path[: path.rfind("/") + 1]
        return folder, [path.removeprefix(folder)]
    if glob.has_magic(path):
        folder = listed_prefix(path)
        parts = path.split("/")
        return folder, sorted(name.removeprefix(folder) for name in known if _matches(parts, name.split("/")))
    folder = path if path.endswith("/") or not path else f"{path}/"
    below = [name.removeprefix(folder) for name in known if name.startswith(folder)]
    return folder, sorted(name for name in below if name.endswith(ENDS[format]) and _is_in_table(name))


def _is_in_table(name: str) -> bool:
    *folders, file = name.split("/")
    return not file.startswith(".") and all("=" in part and not part.startswith(".") for part in folders)


def _matches(parts: Sequence[str], names: Sequence[str]) -> bool:
    """Whether the parts of a name match those of a pattern."""
    if not parts:
        return not names
    head, rest = parts[0], parts[1:]
    if head == "**":
        if not rest:
            return bool(names) and not any(name.startswith(".") for name in names)
        visible = next((index for index, name in enumerate(names) if name.startswith(".")), len(names))
        return any(_matches(rest, names[index:]) for index in range(visible + 1))
    if not names or (names[0].startswith(".") and glob.has_magic(head) and not head.startswith(".")):
        return False
    return fnmatch.fnmatchcase(names[0], head) and _matches(rest, names[1:])
