"""Read a table, name its columns, split it."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from mlflowkit import usercode
from mlflowkit.errors import DataError, UserCodeError, nearest
from mlflowkit.sections import Section
from mlflowkit.stages import splitting, tabular
from mlflowkit.stages.base import PARTS, Check, Column, TableInfo
from mlflowkit.values import Event, Json, StageResult

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from mlflowkit.ports import StageContext, Tables

ColumnKind = Literal["numeric", "categorical", "time", "group", "ignore"]


class CsvSource(Section):
    """One or more CSV files."""

    kind: Literal["csv"]
    path: str = Field(min_length=1)
    """A file, a folder (every *.csv in it, sorted) or a glob, relative to the recipe."""
    separator: str = Field(default=",", min_length=1, max_length=1)
    """The character between fields."""


class ParquetSource(Section):
    """One or more Parquet files."""

    kind: Literal["parquet"]
    path: str = Field(min_length=1)
    """A file, a folder (every *.parquet in it, sorted) or a glob, relative to the recipe."""


class PythonSource(Section):
    """A function beside the recipe that returns a pandas DataFrame."""

    kind: Literal["python"]
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """``module:function``; the module is a file beside the recipe."""
    args: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    """Keyword arguments of the function."""
    files: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Files, folders (all that lies in them) or globs, relative to the recipe, that the function reads: the data stage
    runs again when their content changes. What a function reads and is not named here is not looked at."""


Source = Annotated[CsvSource | ParquetSource | PythonSource, Field(discriminator="kind")]


class RandomSplit(Section):
    """Rows drawn at random, seeded."""

    kind: Literal["random"]
    validation: float = Field(default=0.15, gt=0, lt=1)
    """Share of the rows for validation."""
    test: float = Field(default=0.15, gt=0, lt=1)
    """Share of the rows for the test."""


class StratifiedSplit(Section):
    """As random, with the share of each class kept in every part. Classification only."""

    kind: Literal["stratified"]
    validation: float = Field(default=0.15, gt=0, lt=1)
    """Share of the rows for validation."""
    test: float = Field(default=0.15, gt=0, lt=1)
    """Share of the rows for the test."""


class GroupSplit(Section):
    """Rows of one group stay in one part."""

    kind: Literal["group"]
    column: str
    """The column that names the group; it is not a feature."""
    validation: float = Field(default=0.15, gt=0, lt=1)
    """Share of the groups for validation."""
    test: float = Field(default=0.15, gt=0, lt=1)
    """Share of the groups for the test."""


class TimeSplit(Section):
    """The oldest rows train, the newest test. Rows of one time stay in one part."""

    kind: Literal["time"]
    column: str
    """The column that orders the rows; it is not a feature."""
    validation: float = Field(default=0.15, gt=0, lt=1)
    """Share of the rows for validation."""
    test: float = Field(default=0.15, gt=0, lt=1)
    """Share of the rows for the test."""


Split = Annotated[RandomSplit | StratifiedSplit | GroupSplit | TimeSplit, Field(discriminator="kind")]


class DataSection(Section):
    """Where the table comes from, what its columns are, how it is split and what must hold of it."""

    source: Source
    """Where the rows come from."""
    target: str = Field(min_length=1)
    """The column to predict."""
    positive: str | int | bool | None = None
    """The positive class of a binary task; without it, the last in sorted order."""
    columns: dict[str, ColumnKind] = Field(default_factory=dict)
    """Kind of columns by name. Columns left out are inferred: numbers and booleans are numeric, strings categorical."""
    drop: list[str] = Field(default_factory=list)
    """Columns that are not features (identifiers, leaks)."""
    split: Split
    """How rows are divided into train, validation and test."""
    checks: list[Check] = Field(default_factory=list)
    """What must hold of the table before anything is trained on it."""


class Spec(Section):
    """What the data stage's result depends on, besides code, content and seed."""

    task: Literal["classification", "regression"]
    source: Source
    target: str
    positive: str | int | bool | None
    columns: dict[str, ColumnKind]
    drop: list[str]
    split: Split


def run(spec: Spec, context: StageContext) -> StageResult:
    """Read the table, judge it, split it, and write train, validation and test as Parquet.

    Besides the files in ``stages.__init__``: ``split.npy``, the part of each source row (uint8; 0 train,
    1 validation, 2 test), so that later stages can name rows as the source has them. Raises DataError for what is
    wrong with the table and UserCodeError for what is wrong with a python source.
    """
    import numpy as np

    table = read_source(spec.source, context.folder, context.ports.tables, skip=spec.drop)
    if table.num_rows == 0:
        raise DataError(f"{described(spec.source)} has no rows", hint="check data.source")
    context.progress(Event("data", "progress", f"{table.num_rows:,} rows, {table.num_columns} columns", 0.3))
    categories = tabular.dictionary_columns(table)
    table = tabular.canonical(table)
    version = tabular.data_version(table)
    kept, features = _roles(spec, table)
    kinds = tabular.kinds_of(table, features, spec.columns, categories)
    table = tabular.as_numbers(table, [name for name, kind in kinds.items() if kind == "numeric"])
    tabular.refuse_unlearnable(table, kinds)
    classes: list[str | int] = []
    if spec.task == "classification":
        table, classes = tabular.class_target(table, spec.target, spec.positive)
    else:
        tabular.number_target(table, spec.target)
    parts = parts_of(spec, table, classes, context.seed)
    _refuse_poor_parts(spec, table, kinds, classes, parts)
    context.progress(Event("data", "progress", "writing the parts", 0.7))
    for code, part in enumerate(PARTS):
        context.ports.tables.write_parquet(table, parts == code, context.out / f"{part}.parquet")
    np.save(context.out / "split.npy", parts)
    info = TableInfo(
        task=spec.task,
        target=spec.target,
        features=tuple(Column.model_validate({"name": name, "kind": kind}) for name, kind in kinds.items()),
        classes=tuple(classes),
        rows={part: int((parts == code).sum()) for code, part in enumerate(PARTS)},
        data_version=version,
        slice_columns=tuple(kept),
        dropped=tuple(spec.drop),
    )
    (context.out / "table.json").write_text(info.model_dump_json(indent=1))
    return StageResult(
        metrics={f"rows_{part}": float(rows) for part, rows in info.rows.items()},
        summary=_summary(spec, table, info, parts),
    )


def source_files(source: CsvSource | ParquetSource | PythonSource, folder: Path) -> tuple[Path, ...]:
    """The files of a source, sorted: itself, those in a folder, or those that a glob matches.

    Of a python source, those that it declares to read. Raises DataError when a path names none; the nearest name is
    suggested.
    """
    if isinstance(source, PythonSource):
        return tuple(sorted({file for path in source.files for file in declared_files(path, folder)}))
    path = folder / source.path
    if path.is_file():
        return (path,)
    if path.is_dir():
        files = sorted(path.glob(f"*.{source.kind}"))
        if not files:
            raise DataError(f"there is no *.{source.kind} in {path}", hint="check data.source.path")
        return tuple(files)
    files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if not files:
        raise _no_file(path, "data.source.path")
    return tuple(files)


def declared_files(path: str, folder: Path) -> tuple[Path, ...]:
    """The files of one entry of a python source's ``files``: itself, all below a folder, or what a glob matches.

    Hidden files and ``__pycache__`` are left out. Raises DataError when there is none.
    """
    found = [Path(name) for name in glob.glob(declared_pattern(path, folder), recursive=True)]
    files = sorted(file for file in found if file.is_file() and "__pycache__" not in file.parts)
    if not files and (folder / path).is_dir():
        raise DataError(f"there is no file in {folder / path}", hint="check data.source.files")
    if not files:
        raise _no_file(folder / path, "data.source.files")
    return tuple(files)


def declared_pattern(path: str, folder: Path) -> str:
    """One entry of a python source's ``files`` as a recursive glob.

    >>> declared_pattern("tables/*.csv", Path("/recipes"))
    '/recipes/tables/*.csv'
    """
    place = folder / path
    if place.is_dir():
        return os.path.join(glob.escape(str(place)), "**")
    return glob.escape(str(place)) if place.is_file() else os.path.join(glob.escape(str(folder)), path)


def read_source(
    source: CsvSource | ParquetSource | PythonSource, folder: Path, tables: Tables, *, skip: Sequence[str] = ()
) -> pa.Table:
    """The rows of a source as an Arrow table, without the columns in ``skip``."""
    if isinstance(source, CsvSource):
        return tables.read_csv(source_files(source, folder), separator=source.separator, skip=skip)
    if isinstance(source, ParquetSource):
        return tables.read_parquet(source_files(source, folder), skip=skip)
    return _called(source, folder, tables, skip)


def _no_file(path: Path, key: str) -> DataError:
    siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, siblings)
    hint = f"did you mean {near!r}?" if near else f"check {key}; it is relative to the recipe"
    return DataError(f"there is no file {path}", hint=hint)


def described(source: CsvSource | ParquetSource | PythonSource) -> str:
    """What a person calls a source: its path, or its function."""
    return f"{source.function}()" if isinstance(source, PythonSource) else source.path


def parts_of(spec: Spec, table: pa.Table, classes: Sequence[str | int], seed: int) -> np.ndarray:
    """The part of each row as the recipe's split says; uint8 [rows]. Raises DataError where the column does not do."""
    split = spec.split
    if isinstance(split, RandomSplit):
        return splitting.random_parts(table.num_rows, split.validation, split.test, seed)
    if isinstance(split, StratifiedSplit):
        if spec.task != "classification":
            raise DataError("a stratified split needs classes", hint="set data.split.kind: random")
        labels = tabular.codes(table.column(spec.target), classes)
        return splitting.stratified_parts(labels, split.validation, split.test, seed)
    if isinstance(split, GroupSplit):
        groups = tabular.group_codes(table.column(split.column), split.column)
        return splitting.group_parts(groups, split.validation, split.test, seed)
    times = tabular.sortable_times(table.column(split.column), split.column)
    return splitting.time_parts(times, split.validation, split.test)


def _called(source: PythonSource, folder: Path, tables: Tables, skip: Sequence[str]) -> pa.Table:
    import pandas as pd

    function = usercode.load(source.function, folder)
    if not callable(function):
        raise UserCodeError(
            f"{source.function} is {type(function).__name__}, not a function",
            hint="name a function that returns a pandas.DataFrame",
        )
    with usercode.blame(source.function, folder):
        frame = function(**source.args)
    if not isinstance(frame, pd.DataFrame):
        raise UserCodeError(
            f"{source.function} returned {type(frame).__name__}; a pandas.DataFrame is needed",
            hint=f"return a DataFrame from {source.function}",
        )
    holder = [frame]
    del frame
    return tables.from_pandas(holder, described(source), skip=skip)


def _roles(spec: Spec, table: pa.Table) -> tuple[list[str], list[str]]:
    """Columns that are kept and not learned from, and the features; both in the order of the source."""
    tabular.require(table, [spec.target], "data.target")
    tabular.require(table, spec.columns, "data.columns")
    aside = {name for name, kind in spec.columns.items() if kind in ("time", "group", "ignore")}
    if isinstance(spec.split, GroupSplit | TimeSplit):
        tabular.require(table, [spec.split.column], "data.split.column")
        aside.add(spec.split.column)
    if spec.target in aside:
        raise DataError(
            f"target {spec.target!r} is also a {spec.columns.get(spec.target, spec.split.kind)} column",
            hint="a column has one role: change data.target, data.columns or data.split",
        )
    kept = [name for name in table.column_names if name in aside]
    features = [name for name in table.column_names if name not in aside and name != spec.target]
    if not features:
        raise DataError("no column is left to learn from", hint="see data.drop and data.columns")
    return kept, features


def _refuse_poor_parts(
    spec: Spec, table: pa.Table, kinds: Mapping[str, str], classes: Sequence[str | int], parts: np.ndarray
) -> None:
    """Raise DataError when a part is empty, lacks classes, or the training rows of a feature have no value."""
    import pyarrow as pa

    kind = spec.split.kind
    for code, part in enumerate(PARTS):
        if not (parts == code).any():
            raise DataError(
                f"the {kind} split of {table.num_rows} rows leaves none for {part}",
                hint="change the shares under data.split, take another kind of split, or bring more rows",
            )
    if classes:
        labels = tabular.codes(table.column(spec.target), classes)
        for code, part in enumerate(PARTS):
            present = set(labels[parts == code].tolist())
            lacking = [name for index, name in enumerate(classes) if index not in present]
            if lacking and (part == "train" or len(present) < 2):
                raise DataError(
                    f"the {kind} split leaves {part} without class {tabular.listed(lacking)}",
                    hint="set data.split.kind: stratified, or change the shares or the seed",
                )
    train = pa.array(parts == splitting.TRAIN)
    empty = [name for name in kinds if (column := table.column(name)).null_count and _all_missing(column, train)]
    if empty:
        raise DataError(
            f"column {tabular.listed(empty)}: no value in any of the training rows",
            hint=f"add to data.drop: [{', '.join(empty)}]",
        )


def _all_missing(column: pa.ChunkedArray, rows: pa.Array) -> bool:
    chosen = column.filter(rows)
    return bool(chosen.null_count == len(chosen))


def _summary(spec: Spec, table: pa.Table, info: TableInfo, parts: np.ndarray) -> dict[str, Json]:
    """What the report shows of the table."""
    import numpy as np

    columns = []
    for feature in info.features:
        column = table.column(feature.name)
        entry: dict[str, Json] = {
            "name": feature.name,
            "kind": feature.kind,
            "missing": column.null_count / table.num_rows,
        }
        if feature.kind == "categorical":
            entry["distinct"] = len(column.unique().drop_null())
        columns.append(entry)
    balance = {}
    if info.classes:
        labels = tabular.codes(table.column(spec.target), info.classes)
        for code, part in enumerate(PARTS):
            counts = np.bincount(labels[parts == code], minlength=len(info.classes))
            balance[part] = {str(name): int(count) for name, count in zip(info.classes, counts, strict=True)}
    return {
        "source": described(spec.source),
        "data_version": info.data_version,
        "target": info.target,
        "split": spec.split.kind,
        "rows": dict(info.rows),
        "columns": columns,
        "kept": list(info.slice_columns),
        "classes": balance,
    }
