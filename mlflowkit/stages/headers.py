"""Column names of a file source, read from its first file's header without reading the table."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from mlflowkit.errors import DataError

MAX_HEADER_BYTES = 2**20
"""Bytes of a CSV that are searched for its header."""

_DECOMPRESSORS: dict[str, Callable[[IO[bytes]], io.BufferedIOBase]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream),
    ".bz2": lambda stream: bz2.BZ2File(stream),
}


def column_names(
    files: tuple[Path, ...], kind: str, separator: str = ",", *, folders: Iterable[str] = (), trim: bool = False
) -> tuple[str, ...] | None:
    """Names of the columns of a source's first file, and of those that its folders give (``region=north``).

    With ``trim`` without blanks around them. None where they cannot be read: the data stage reports why.
    """
    if not files:
        return None
    try:
        names = _parquet_names(files[0]) if kind == "parquet" else _csv_names(files[0], separator)
    except (DataError, OSError, ValueError, EOFError, csv.Error):
        return None
    names = tuple(name.strip() for name in names) if trim else names
    return (*names, *(name for name in folders if name not in names)) if names else None


def _csv_names(path: Path, separator: str) -> tuple[str, ...]:
    if path.suffix in (".zst", ".lz4"):
        raise ValueError(f"{path.suffix} is not read here")
    with path.open("rb") as stream:
        decompress = _DECOMPRESSORS.get(path.suffix)
        start = (stream if decompress is None else decompress(stream)).read(MAX_HEADER_BYTES)
    text = start.decode("utf-8-sig", errors="surrogateescape")
    return tuple(next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), []))


def _parquet_names(path: Path) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        return tuple(parquet.read_schema(path).names)
    except pa.ArrowException as error:
        raise DataError(
            f"{path} cannot be read", hint="mlkit explain RECIPE data.source.path shows what set it"
        ) from error
