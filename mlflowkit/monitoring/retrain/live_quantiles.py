"""Quartiles of live values, from the newest rows of the prediction log: a change of units shows in them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mlflowkit.monitoring.retrain.attempt_work import number_quantiles
from mlflowkit.service_state.records import ServiceFiles

ROWS = 20_000
"""Rows that are read, the newest."""
SEGMENTS = 50
"""Segments of the log that are opened at most."""
_log = logging.getLogger("mlflowkit.monitoring")


def live_quantiles(files: ServiceFiles, version: str, columns: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Quartiles of the values of columns of numbers that a version answered last; {} without a log."""
    import pyarrow as pa
    import pyarrow.compute as compute
    import pyarrow.parquet as parquet

    from mlflowkit.serving.observer import prediction_log

    folder = files.folder / "predictions"
    paths = [folder / segment.name for segment in prediction_log.segments(folder)]
    paths = sorted((path for path in paths if path.exists()), key=lambda path: path.stat().st_mtime)[-SEGMENTS:]
    names = [f"input.{column}" for column in columns]
    tables: list[pa.Table] = []
    rows = 0
    for path in reversed(paths):
        try:
            file = parquet.ParquetFile(path)
            present = [name for name in names if name in file.schema_arrow.names]
            table = file.read(columns=["version", "how", *present])
        except (OSError, pa.ArrowException) as error:  # removed or merged meanwhile, or damaged
            _log.warning("%s is not read for quantiles: %s", path, error)
            continue
        answered = compute.and_(compute.equal(table["version"], version), compute.not_equal(table["how"], "mirror"))
        table = table.filter(answered)
        tables.append(table)
        rows += table.num_rows
        if rows >= ROWS:
            break
    quantiles = {}
    for column, name in zip(columns, names, strict=True):
        chunks = [table[name] for table in tables if name in table.column_names]
        if chunks:
            values = pa.chunked_array([chunk for column in chunks for chunk in column.chunks])
            if pa.types.is_floating(values.type) or pa.types.is_integer(values.type):
                quantiles[column] = number_quantiles(values.cast("float64").to_numpy())
    return {column: row for column, row in quantiles.items() if row}
