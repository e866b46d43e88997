"""What validate keeps of a table, so that the next version can be compared with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.errors import StoreError
from mlflowkit.stages.base import write_json
from mlflowkit.system.text import parse_json

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

RECORD, SAMPLE = "version.json", "sample.parquet"
SAMPLE_ROWS = 20_000
"""Rows kept of a version, drawn at random: enough for an interval of about 0.03 for each of a hundred columns."""


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A version of a table that passed its checks."""

    data_version: str
    rows: int
    sample: Path | None = None
    """The rows that were kept, where a drift check asked for them."""


def drawn_rows(rows: int, seed: int) -> np.ndarray:
    """The numbers of up to SAMPLE_ROWS of so many rows, drawn without replacement, in order."""
    import numpy as np

    if rows <= SAMPLE_ROWS:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, SAMPLE_ROWS, replace=False))


def write_version(folder: Path, record: VersionRecord, sample: pa.Table | None) -> None:
    """Write the record, and the rows where there are any."""
    import pyarrow.parquet as pq

    values = asdict(record)
    del values["sample"]
    write_json(folder / RECORD, values)
    if sample is not None:
        pq.write_table(sample, folder / SAMPLE, version="2.6", compression="snappy")


def read_version(folder: Path | None) -> VersionRecord | None:
    """The record of the last run's folder; None where there was no run, or one that kept none.

    Raises StoreError for a damaged one.
    """
    if folder is None or not (folder / RECORD).exists():
        return None
    try:
        values = parse_json((folder / RECORD).read_text())
        sample = folder / SAMPLE
        return VersionRecord(str(values["data_version"]), int(values["rows"]), sample if sample.exists() else None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{folder / RECORD} cannot be read: {error}"
        raise StoreError(message, hint="mlkit run RECIPE --force validate") from error
