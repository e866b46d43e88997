"""What the readers of CSV and Parquet share: columns of files that are read together, and defects as DataErrors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from mlflowkit.errors import DataError, closest_match
from mlflowkit.system.text import first_line, format_list, shell_word


def require_same_columns(files: Sequence[Path], headers: Sequence[Sequence[str]]) -> None:
    """Raise DataError unless all files have the columns of the first, in any order."""
    first = set(headers[0])
    for file, header in zip(files, headers, strict=True):
        missing = [name for name in headers[0] if name not in header]
        extra = [name for name in header if name not in first]
        if missing or extra:
            parts = [f"lacks {format_list(missing, 8)}"] if missing else []
            parts += [f"has {format_list(extra, 8)} besides"] if extra else []
            hint = "files read together need the same columns; narrow data.source.path, or fix the file"
            raise DataError(f"{file} {' and '.join(parts)}, compared with {files[0]}", hint=hint)


def require_unique(file: Path, header: Sequence[str]) -> None:
    """Raise DataError when two columns have one name."""
    duplicates = (
        sorted({name for name in header if list(header).count(name) > 1}) if len(set(header)) < len(header) else []
    )
    if duplicates:
        hint = "give each its own name"
        raise DataError(f"{file} has more than one column named {format_list(duplicates, 8)}", hint=hint)


def remaining_columns(file: Path, header: Sequence[str], skip: Sequence[str]) -> list[str]:
    """The columns without those in ``skip``. Raises DataError for one in ``skip`` that is not there."""
    for name in skip:
        if name not in header:
            match = closest_match(name, header)
            hint = f"did you mean {match!r}?" if match else f"the columns are {format_list(header, 20)}"
            raise DataError(f"{file} has no column {name!r} to drop", hint=hint)
    return [name for name in header if name not in skip]


def partition_columns(
    files: Sequence[Path], folders: Sequence[Mapping[str, str | None]], rows: Sequence[int], keys: Sequence[str]
) -> dict[str, pa.ChunkedArray]:
    """The columns that folder names give (``region=north``), as texts.

    ``rows`` has the rows of each file, ``keys`` the folder names that no column of the files has. Raises DataError when
    the folders of files differ in their keys.
    """
    if not folders:
        return {}
    names = list(folders[0])
    for file, folder in zip(files, folders, strict=True):
        if list(folder) != names:
            message = f"{file} lies in folders of {format_list(list(folder))}, {files[0]} of {format_list(names)}"
            raise DataError(
                message, hint="files read together need the same KEY=VALUE folders; narrow data.source.path"
            )
    return {
        name: pa.chunked_array(
            [
                pa.repeat(pa.scalar(folder[name], pa.string()), count)
                for folder, count in zip(folders, rows, strict=True)
            ],
            pa.string(),
        )
        for name in keys
    }


def unreadable(file: Path, kind: str, error: Exception) -> DataError:
    """The DataError of a file that is no CSV or Parquet."""
    reason = first_line(error)[:200]
    hint = f"head -c 300 {shell_word(file)} shows what it is; data.source.kind must say it"
    return DataError(f"{file} cannot be read as {kind}: {reason}", hint=hint)
