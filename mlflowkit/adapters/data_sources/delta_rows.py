"""The rows of a version of a Delta table, from its files and what its log says of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from mlflowkit.errors import DataError, closest_match
from mlflowkit.features.cells import ReadingPlan
from mlflowkit.system.text import first_line, format_list

if TYPE_CHECKING:
    import pyarrow as pa

    from mlflowkit.features.text_columns import TableRead

TABLE_FILE = "_delta_table.json"
"""What the log says of a version: its schema, and the values of the partition columns by file."""
MAX_SHOWN = 5


def table_description(table: Any) -> bytes:
    """What reading the files of an open table needs besides them, as JSON."""
    import pyarrow as pa

    added = pa.table(table.get_add_actions(flatten=False))
    names = table.metadata().partition_columns
    values: dict[str, Any] = {}
    if names:
        struct = added.column("partition").combine_chunks()
        columns = {name: struct.field(name).cast(pa.string()).to_pylist() for name in names}
        for index, raw in enumerate(added.column("path").to_pylist()):
            values[unquote(raw)] = {name: texts[index] for name, texts in columns.items()}
    content = {"schema": json.loads(table.schema().to_json()), "partitions": values}
    return json.dumps(content, sort_keys=True, ensure_ascii=False).encode()


def read_delta_files(
    files: Mapping[str, Path], order_by: Sequence[str], plan: ReadingPlan, skip: Sequence[str]
) -> TableRead:
    """The rows of all files with the types of the table's schema, ordered by ``order_by``. Raises DataError."""
    import pyarrow as pa
    from deltalake import Schema

    from mlflowkit.features.text_columns import read_texts

    description = json.loads(files[TABLE_FILE].read_bytes())
    schema = pa.schema(Schema.from_json(json.dumps(description["schema"])))
    _require_columns(schema.names, skip, "data.drop")
    _require_columns(schema.names, order_by, "data.source.order_by")
    read_schema = pa.schema([field for field in schema if field.name not in skip or field.name in order_by])
    partitions = description["partitions"]
    parts = [
        _read_file(path, file, read_schema, partitions.get(path, {}))
        for path, file in files.items()
        if path != TABLE_FILE
    ]
    table = pa.concat_tables(parts) if parts else read_schema.empty_table()
    if order_by:
        table = _ordered(table, order_by)
    return read_texts(table.select([name for name in table.column_names if name not in skip]), plan)


def _read_file(path: str, file: Path, schema: pa.Schema, partition: Mapping[str, str | None]) -> pa.Table:
    """The rows of one file. Columns that were added to the table later are missing in all of them."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(file) as reader:
            present = set(reader.schema_arrow.names)
            table = reader.read(columns=[name for name in schema.names if name in present and name not in partition])
        columns = []
        for field in schema:
            if field.name in partition:
                columns.append(pa.repeat(pa.scalar(partition[field.name], pa.string()).cast(field.type), len(table)))
            elif field.name in present:
                columns.append(table.column(field.name).cast(field.type))
            else:
                columns.append(pa.nulls(len(table), field.type))
        return pa.table(columns, schema=pa.schema([field.with_nullable(True) for field in schema]))
    except (pa.ArrowException, OSError) as error:
        message = f"{path} cannot be read as the table's schema says: {first_line(error)}"
        raise DataError(message, hint="ask who writes the table to rewrite the file, or name another version") from None


def _ordered(table: pa.Table, order_by: Sequence[str]) -> pa.Table:
    """The rows in the order of keys that no two of them share. Raises DataError for keys that they do."""
    import pyarrow.compute as pc

    counted = table.select(list(order_by)).group_by(list(order_by)).aggregate([([], "count_all")])
    repeated = counted.filter(pc.greater(counted.column("count_all"), 1))
    if repeated.num_rows:
        shown = "; ".join(
            f"{', '.join(f'{name}={row[name]}' for name in order_by)} ({row['count_all']:,} rows)"
            for row in repeated.slice(0, MAX_SHOWN).to_pylist()
        )
        more = f" and {repeated.num_rows - MAX_SHOWN:,} more" if repeated.num_rows > MAX_SHOWN else ""
        message = f"data.source.order_by is not unique: {shown}{more}"
        raise DataError(message, hint="add columns to data.source.order_by until each row has keys of its own")
    order = [(name, "ascending") for name in order_by]
    return table.take(pc.sort_indices(table, sort_keys=order))


def _require_columns(names: Sequence[str], asked: Sequence[str], key: str) -> None:
    for name in asked:
        if name not in names:
            near = closest_match(name, names)
            hint = f"did you mean {near!r}?" if near else f"the columns are {format_list(names, 20)}"
            raise DataError(f"{key} names {name!r}, which the table does not have", hint=hint)
