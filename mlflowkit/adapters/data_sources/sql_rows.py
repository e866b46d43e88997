"""The rows of a query as Parquet: typed by stated rules, ordered by unique keys, a batch at a time.

==================================  =========================================================================
type of the database                type of the column
==================================  =========================================================================
smallint, integer, bigint           int64
numeric(p, 0), p up to 18           int64
any other numeric                   float64, the nearest; beyond 2^53 only what float64 holds exactly
real, double precision              float32, float64
boolean                             bool
text, varchar, char, name, enum     string
date, timestamp                     timestamp without a zone
timestamptz                         timestamp in UTC
anything else                       refused: cast it in the query
SQLite: a column's stored values    int64 if all are integers, float64 if all are numbers, string if all are
                                    texts; texts among numbers and blobs are refused; no value at all is null
==================================  =========================================================================

A column without a value has the type that the database declares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, BinaryIO

from mlflowkit.errors import DataError, closest_match
from mlflowkit.system.text import first_line, format_list

if TYPE_CHECKING:
    import pyarrow as pa
    from sqlalchemy import Connection

BATCH_ROWS = 16_384
GROUP_ROWS = 131_072
"""Rows of a row group of the file."""
TYPE_RULES = 1
"""Raised when a rule above changes: what was materialised by another is read anew."""
MAX_SHOWN = 5
EXACT = 2**53
"""Up to here float64 holds every whole number."""
PLAIN_TYPES: Mapping[int, str] = {
    16: "bool_",
    20: "int64",
    21: "int64",
    23: "int64",
    700: "float32",
    701: "float64",
    18: "string",
    19: "string",
    25: "string",
    1042: "string",
    1043: "string",
    1082: "date32",
    1114: "naive",
    1184: "zoned",
}
"""Types of columns by the OID of PostgreSQL's types."""
NUMERIC = 1700


@dataclass(frozen=True, slots=True)
class SqlColumn:
    """A column of a query. ``kind`` names the type; whole numbers and fractions of NUMERIC are converted."""

    name: str
    kind: str
    convert: Callable[[str, Any], Any] | None = None

    @property
    def type(self) -> pa.DataType:
        import pyarrow as pa

        times = {"naive": pa.timestamp("us"), "zoned": pa.timestamp("us", tz="UTC")}
        return times.get(self.kind) or getattr(pa, self.kind)()

    def array(self, values: Sequence[Any]) -> pa.Array:
        """The values as an array. Raises DataError for one that the type does not hold."""
        import pyarrow as pa

        try:
            if self.convert is not None:
                values = [None if value is None else self.convert(self.name, value) for value in values]
            return pa.array(values, self.type)
        except (pa.ArrowException, ValueError, OverflowError, TypeError) as error:
            message = f"column {self.name!r} has a value that is no {self.type}: {first_line(error)}"
            raise DataError(message, hint="cast the column in the query") from None


@dataclass(frozen=True, slots=True)
class QueryReader:
    """A query in an open transaction."""

    connection: Connection
    query: str
    parameters: Mapping[str, str | int | float | bool]
    order_by: Sequence[str]

    def columns(self) -> list[SqlColumn]:
        """The columns of the query with their types. Raises DataError."""
        result = self._execute(f"SELECT * FROM (\n{self.query}\n) AS mlkit_rows LIMIT 0")
        names = list(map(str, result.keys()))
        described = result.cursor.description if result.cursor is not None else ()
        twice = sorted({name for name in names if names.count(name) > 1 or not name})
        if twice:
            message = f"the query has two columns of the name {twice[0]!r}" if twice[0] else "a column has no name"
            raise DataError(message, hint="name the columns in the query: select a.id as account, ...")
        for key in self.order_by:
            if key not in names:
                near = closest_match(key, names)
                hint = f"did you mean {near!r}?" if near else f"the columns are {format_list(names, 20)}"
                raise DataError(f"data.source.order_by names {key!r}, which the query does not have", hint=hint)
        if self.connection.dialect.name == "sqlite":
            result.close()
            return self._stored_columns(names)
        return self._declared_columns(names, described)

    def rows(self, limit: int) -> list[Sequence[Any]]:
        """The first rows."""
        return list(self._execute(f"SELECT * FROM (\n{self.query}\n) AS mlkit_rows LIMIT {limit}").all())

    def write(self, stream: BinaryIO, progress: Callable[[int], None]) -> int:
        """Write the rows to a Parquet file, in their order; how many there are. Raises DataError."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        columns = self.columns()
        schema = pa.schema([(column.name, column.type) for column in columns])
        places = [schema.get_field_index(key) for key in self.order_by]
        repeated = RepeatedKeys(self.order_by)
        rows, group = 0, []
        with parquet.ParquetWriter(stream, schema, version="2.6", compression="zstd") as writer:
            for batch in self._batches(columns):
                repeated.add(batch, places)
                values = zip(*batch, strict=True)
                arrays = [column.array(cells) for column, cells in zip(columns, values, strict=True)]
                group.append(pa.record_batch(arrays, schema=schema))
                rows += len(batch)
                if sum(part.num_rows for part in group) >= GROUP_ROWS:
                    writer.write_table(pa.Table.from_batches(group))
                    group = []
                    progress(rows)
            repeated.require_none()
            if group:
                writer.write_table(pa.Table.from_batches(group))
        return rows

    def _batches(self, columns: Sequence[SqlColumn]) -> Iterator[Sequence[Sequence[Any]]]:
        collation = "BINARY" if self.connection.dialect.name == "sqlite" else '"C"'
        kinds = {column.name: column.kind for column in columns}
        quote = self.connection.dialect.identifier_preparer.quote_identifier
        # Texts by their bytes: the collation of a server, and the version of its library, order rows otherwise.
        keys = [quote(key) + (f" COLLATE {collation}" if kinds[key] == "string" else "") for key in self.order_by]
        order = ", ".join(f"{key} ASC NULLS LAST" for key in keys)
        result = self._execute(f"SELECT * FROM (\n{self.query}\n) AS mlkit_rows ORDER BY {order}", BATCH_ROWS)
        yield from result.partitions(BATCH_ROWS)

    def _execute(self, statement: str, batch: int = 0) -> Any:
        import sqlalchemy

        options = {"yield_per": batch} if batch else {}
        text = sqlalchemy.text(statement)
        unset = sorted(set(text._bindparams) - set(self.parameters))
        if unset:
            message = f"the query has the parameter :{unset[0]}, which data.source.parameters does not have"
            raise DataError(message, hint=f"add parameters: {{{unset[0]}: ...}}; a colon in a text is written as \\:")
        used = {name: value for name, value in self.parameters.items() if name in text._bindparams}
        return self.connection.execute(text, used, execution_options=options)

    def _stored_columns(self, names: Sequence[str]) -> list[SqlColumn]:
        """The columns of a query in SQLite, by the storage classes of all their values."""
        quote = self.connection.dialect.identifier_preparer.quote_identifier
        classes = ("integer", "real", "text", "blob")
        counts = [f"count(CASE WHEN typeof({quote(name)}) = '{kind}' THEN 1 END)" for name in names for kind in classes]
        row: list[int] = []
        for start in range(0, len(counts), 400):  # a statement of SQLite has no more than 2,000 columns
            part = ", ".join(counts[start : start + 400])
            row += self._execute(f"SELECT {part} FROM (\n{self.query}\n) AS mlkit_rows").one()
        return [
            _stored_column(name, dict(zip(classes, row[4 * index : 4 * index + 4], strict=True)))
            for index, name in enumerate(names)
        ]

    def _declared_columns(self, names: Sequence[str], described: Sequence[Any]) -> list[SqlColumn]:
        """The columns of a query in PostgreSQL, by their types."""
        unknown = sorted({item.type_code for item in described} - {*PLAIN_TYPES, NUMERIC})
        others: dict[int, tuple[str, str]] = {}
        if unknown:
            import sqlalchemy

            query = "SELECT oid, format_type(oid, NULL), typtype FROM pg_type WHERE oid = ANY(:oids)"
            statement = sqlalchemy.text(query)
            others = {
                int(oid): (str(name), str(kind))
                for oid, name, kind in self.connection.execute(statement, {"oids": unknown})
            }
        return [_declared_column(name, item, others) for name, item in zip(names, described, strict=True)]


def _stored_column(name: str, counts: Mapping[str, int]) -> SqlColumn:
    numbers = counts["integer"] + counts["real"]
    if counts["blob"]:
        message = f"column {name!r} has {counts['blob']:,} blobs, which have no type of a column here"
        raise DataError(message, hint="leave the column out of the query, or cast it to text")
    if counts["text"] and numbers:
        message = f"column {name!r} has {counts['text']:,} texts among {numbers:,} numbers"
        raise DataError(message, hint=f"cast it in the query: cast({name} as text) as {name}")
    if counts["text"]:
        return SqlColumn(name, "string")
    if counts["real"]:
        return SqlColumn(name, "float64", _fraction)
    return SqlColumn(name, "int64" if counts["integer"] else "null")


def _declared_column(name: str, item: Any, others: Mapping[int, tuple[str, str]]) -> SqlColumn:
    if item.type_code == NUMERIC:
        is_whole = item.scale == 0 and item.precision is not None and item.precision <= 18
        return SqlColumn(name, "int64", _whole) if is_whole else SqlColumn(name, "float64", _fraction)
    if item.type_code in PLAIN_TYPES:
        return SqlColumn(name, PLAIN_TYPES[item.type_code])
    type_name, type_kind = others.get(item.type_code, (str(item.type_code), ""))
    if type_kind == "e":
        return SqlColumn(name, "string")
    message = f"column {name!r} is of type {type_name}, which has no type of a column here"
    raise DataError(message, hint=f"cast it in the query: {name}::text")


def _whole(name: str, value: Decimal) -> int:
    return int(value)


def _fraction(name: str, value: Decimal | float) -> float:
    number = float(value)
    if abs(number) >= EXACT and abs(number) != float("inf") and Decimal(number) != Decimal(value):
        message = f"column {name!r} has {value}, which float64 does not hold exactly"
        raise DataError(message, hint=f"cast it in the query, to bigint or text: cast({name} as text) as {name}")
    return number


class RepeatedKeys:
    """Finds keys that more than one row has, among rows that are ordered by them."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._last: tuple[Any, ...] | None = None
        self._found: dict[tuple[Any, ...], int] = {}

    def add(self, rows: Sequence[Sequence[Any]], places: Sequence[int]) -> None:
        """Rows that follow those so far. Raises DataError as soon as MAX_SHOWN keys are repeated."""
        last = self._last
        for row in rows:
            key = tuple(row[place] if row[place] == row[place] else "NaN" for place in places)
            if key == last:
                self._found[key] = self._found.get(key, 1) + 1
            last = key
        self._last = last
        if len(self._found) >= MAX_SHOWN:
            self.require_none()

    def require_none(self) -> None:
        """Raise DataError when a key was repeated."""
        if not self._found:
            return
        shown = [
            f"{', '.join(f'{name}={value}' for name, value in zip(self.names, key, strict=True))} ({count:,} rows)"
            for key, count in list(self._found.items())[:MAX_SHOWN]
        ]
        message = f"the rows have no order of their own: data.source.order_by is not unique: {'; '.join(shown)}"
        hint = "add columns to data.source.order_by until each row has keys of its own, such as [id]"
        raise DataError(message, hint=hint)
