"""Reads a table, classifies its columns, and splits it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from mlflowkit.bundle import TextRule
from mlflowkit.data_access.results.write_back import WriteBackSection
from mlflowkit.errors import DataError
from mlflowkit.features.cells import ReadingPlan, Role
from mlflowkit.features.dates.date_terms import Zone
from mlflowkit.sections import Section
from mlflowkit.stages.base import DROPPED, LARGE_BYTES, PARTS, Check, Column, TableInfo
from mlflowkit.stages.sources import Source, read_source, text_rule_of
from mlflowkit.system.text import category_text, format_list
from mlflowkit.values import Event, Json, StageResult

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from mlflowkit.features.column_findings import Finding
    from mlflowkit.features.text_columns import TableRead
    from mlflowkit.ports import StageContext, Tables

PORTS = ("tables",)
"""Ports that the result depends on."""
COLUMNS = "columns"
"""Folder of a table's columns, below the stage's scratch folder."""

ColumnKind = Literal["numeric", "categorical", "date", "text", "time", "group", "ignore"]


class RandomSplit(Section):
    """Random rows, seeded."""

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
    """Rows of one group stay together."""

    kind: Literal["group"]
    column: str
    """The column that names the group; it is not a feature."""
    validation: float = Field(default=0.15, gt=0, lt=1)
    """Share of the groups for validation."""
    test: float = Field(default=0.15, gt=0, lt=1)
    """Share of the groups for the test."""


class TimeSplit(Section):
    """Oldest rows for training, newest for the test. Rows of equal time stay together."""

    kind: Literal["time"]
    column: str
    """The column that orders the rows; it is not a feature."""
    validation: float = Field(default=0.15, gt=0, lt=1)
    """Share of the rows for validation."""
    test: float = Field(default=0.15, gt=0, lt=1)
    """Share of the rows for the test."""


Split = Annotated[RandomSplit | StratifiedSplit | GroupSplit | TimeSplit, Field(discriminator="kind")]


class DataSection(Section):
    """Source, columns, split and checks of the table."""

    source: Source
    """Where the rows come from."""
    target: str = Field(min_length=1)
    """The column to predict."""
    missing_target: Literal["error", "drop"] = "error"
    """What to do with rows that have no target: refuse the table, or leave them out and tell how many."""
    positive: str | int | bool | None = None
    """The positive class of a binary task; without it, the last in sorted order."""
    columns: dict[str, ColumnKind] = Field(default_factory=dict)
    """Kind of columns by name. A categorical column is read as text and never parsed: 02116, NA and 1E5 are categories.
    A date is a feature, ISO 8601 text or seconds since 1970 (see preprocess.dates); a time only orders rows. A text is
    free text, whose words are hashed (see preprocess.texts). Columns left out are inferred: numbers and booleans are
    numeric, other texts categorical."""
    orders: dict[str, Annotated[list[str | int | float], Field(min_length=2)]] = Field(default_factory=dict)
    """Categorical columns whose values have an order, from the least to the greatest: ``size: [S, M, L]``. Encoded as
    equal or above, so that a model sees the order; a value that is not listed is refused."""
    drop: list[str] = Field(default_factory=list)
    """Columns that are not features (identifiers, leaks)."""
    split: Split
    """How rows are divided into train, validation and test."""
    checks: list[Check] = Field(default_factory=list)
    """Checks that the table must pass before training."""
    write_back: WriteBackSection | None = None
    """Commit results to the lakeFS repository that the data came from, on a branch of their own, merged once blessed.
    """


class Spec(Section):
    """Inputs of the data stage's result, besides code, content and seed."""

    task: Literal["classification", "regression"]
    source: Source
    target: str
    missing_target: Literal["error", "drop"] = "error"
    positive: str | int | bool | None
    columns: dict[str, ColumnKind]
    orders: dict[str, list[str | int | float]] = Field(default_factory=dict)
    drop: list[str]
    split: Split

    @model_validator(mode="before")
    @classmethod
    def _ordered_are_categorical(cls, values: Any) -> Any:
        """Columns with an order are categorical where the recipe does not say so."""
        if not isinstance(values, dict) or not values.get("orders"):
            return values
        return {**values, "columns": {**dict.fromkeys(values["orders"], "categorical"), **values.get("columns", {})}}

    @property
    def order_texts(self) -> dict[str, tuple[str, ...]]:
        """The orders, as the texts of their categories."""
        return {name: tuple(map(category_text, order)) for name, order in self.orders.items()}


def run(spec: Spec, context: StageContext) -> StageResult:
    """Read, check and split the table, and write its parts as Parquet.

    ``split.npy`` holds the part of each source row, so that later stages can number rows as the source does. Columns of
    Parquet files lie in the scratch folder meanwhile, and one is in memory at a time; a table of any other source is in
    memory whole. Raises DataError for a faulty table and UserCodeError for a faulty python source.
    """
    columns = context.scratch / COLUMNS
    shutil.rmtree(columns, ignore_errors=True)
    try:
        return _read_and_split(spec, context, context.ports.tables.on_disk(columns))
    finally:
        shutil.rmtree(columns, ignore_errors=True)


def _read_and_split(spec: Spec, context: StageContext, tables: Tables) -> StageResult:
    import numpy as np

    plan = reading_plan(spec)
    read = read_source(spec.source, context.folder, tables, plan, skip=spec.drop, fetch=context.fetch)
    if read.table.num_rows == 0:
        raise DataError(
            f"{spec.source.describe()} has no rows", hint="mlkit explain RECIPE data.source shows what set it"
        )
    context.progress(Event("data", "progress", _shape(read.table), 0.3))
    prepared = _prepare(spec, read, plan.rule)
    table, kept = prepared.table, prepared.kept
    findings = list(prepared.findings)
    for finding in findings:
        context.progress(Event("data", "warning", str(finding)))
    parts = parts_of(spec, table, prepared.classes, context.seed)
    _require_usable_parts(spec, table, prepared.kinds, prepared.classes, parts)
    precision = _precision_of(spec, table, prepared.kinds, parts, context, findings)
    context.progress(Event("data", "progress", "writing the parts", 0.7))
    for code, part in enumerate(PARTS):
        context.ports.tables.write_parquet(table, parts == code, context.out / f"{part}.parquet")
    np.save(context.out / "split.npy", parts if kept is None else _with_dropped(parts, kept))
    info = TableInfo(
        task=spec.task,
        target=spec.target,
        features=tuple(
            Column.model_validate({"name": name, "kind": kind, "offset": precision.get(name, 0.0)})
            for name, kind in prepared.kinds.items()
        ),
        classes=prepared.classes,
        rows={part: int((parts == code).sum()) for code, part in enumerate(PARTS)},
        data_version=prepared.version,
        slice_columns=prepared.slice_columns,
        dropped=tuple(spec.drop),
        texts=plan.rule.model_copy(update={"dates": dict(prepared.zones)}),
        target_offset=precision.get(spec.target, 0.0),
        orders=spec.order_texts,
    )
    (context.out / "table.json").write_text(info.model_dump_json(indent=1))
    details: dict[str, Json] = {
        "missing_texts": {name: dict(counts) for name, counts in read.missing.items()},
        "findings": [finding.to_json() for finding in findings],
    }
    return StageResult(
        metrics={f"rows_{part}": float(rows) for part, rows in info.rows.items()},
        summary=_summary(spec, table, info, parts) | details,
    )


def _shape(table: pa.Table) -> str:
    """Rows and columns of a table, and where those of a large one are until the parts are written."""
    import pyarrow as pa

    shape = f"{table.num_rows:,} rows, {table.num_columns} columns"
    if table.nbytes < LARGE_BYTES:
        return shape
    held = "in memory" if isinstance(table, pa.Table) else "in scratch files, one column in memory at a time"
    return f"{shape}; {table.nbytes / 2**30:,.1f} GiB {held}"


@dataclass(frozen=True, slots=True)
class PreparedTable:
    """A table with its kinds of columns and classes; ``kept`` marks the source rows in it, None for all."""

    table: pa.Table
    kinds: Mapping[str, str]
    classes: tuple[str | int, ...]
    slice_columns: tuple[str, ...]
    version: str
    kept: np.ndarray | None
    findings: Sequence[Finding]
    zones: Mapping[str, Zone]


def _prepare(spec: Spec, read: TableRead, rule: TextRule) -> PreparedTable:
    """Give each column its kind and type, and the target its classes. Raises DataError for what cannot be right."""
    from mlflowkit.features.dates import date_columns
    from mlflowkit.stages import tabular

    categories = tabular.dictionary_columns(read.table)
    declared = {name for name, kind in spec.columns.items() if kind in ("categorical", "text")} & set(
        read.table.column_names
    )
    texts = declared | (categories - set(spec.columns))
    table = tabular.canonical(tabular.as_categories(read.table, sorted(texts)))
    slice_columns, features = _columns_by_role(spec, table)
    kinds = tabular.kinds_of(table, features, spec.columns, categories)
    tokens = seen_tokens(read)
    dates = date_columns.as_seconds(table, [name for name, kind in kinds.items() if kind == "date"])
    table = dates.table
    table = tabular.as_numbers(table, [name for name, kind in kinds.items() if kind == "numeric"], rule, tokens)
    table, kept = tabular.drop_missing(table, spec.target) if spec.missing_target == "drop" else (table, None)
    tabular.require_learnable(table, kinds)
    tabular.require_orders(table, spec.order_texts)
    findings = [*dates.findings, *examine(spec, read, table, kinds, rule)]
    classes: list[str | int] = []
    if spec.task == "classification":
        table, classes = tabular.class_target(table, spec.target, spec.positive, parsed=read.parsed)
    else:
        tabular.number_target(table, spec.target, rule, tokens)
    if kept is not None and not kept.all():
        findings.insert(0, _dropped_finding(spec.target, int((~kept).sum()), len(kept)))
    version = tabular.data_version(table)
    return PreparedTable(table, kinds, tuple(classes), tuple(slice_columns), version, kept, findings, dates.zones)


def reading_plan(spec: Spec) -> ReadingPlan:
    """What a source is to do with the texts of each column: categories, groups and classes stay text."""
    roles: dict[str, Role] = {}
    for name, kind in spec.columns.items():
        if kind in ("categorical", "group", "date", "text"):
            roles[name] = "text"
        elif kind == "numeric":
            roles[name] = "number"
    if isinstance(spec.split, GroupSplit):
        roles[spec.split.column] = "text"
    declared = [name for name, role in roles.items() if role == "text" and spec.columns.get(name) != "date"]
    roles[spec.target] = "text" if spec.task == "classification" else "number"
    return ReadingPlan(text_rule_of(spec.source, declared), roles)


def seen_tokens(read: TableRead) -> list[str]:
    """The texts that count as missing somewhere in the table."""
    return sorted({text.strip() for counts in read.missing.values() for text in counts if text.strip()})


def examine(spec: Spec, read: TableRead, table: pa.Table, kinds: Mapping[str, str], rule: TextRule) -> list[Finding]:
    """What is to be told about columns of text. Raises DataError for those that are numbers in all likelihood."""
    from mlflowkit.features import column_findings
    from mlflowkit.stages import tabular

    tokens = seen_tokens(read)
    categorical = [name for name, kind in kinds.items() if kind == "categorical"]
    undeclared = [name for name in categorical if name not in spec.columns]
    default = getattr(spec.source, "missing", None) is None
    findings = column_findings.missing_findings(read.missing, undeclared, table.num_rows, default=default)
    findings += column_findings.name_findings(table.column_names)
    refused: list[Finding] = []
    if spec.task == "classification":
        categorical.append(spec.target)
    for name in categorical:
        column = table.column(name)
        if column.type != "string":
            continue
        values = tabular.text_counts(column)
        if name in undeclared:
            distinct = len(column.unique().drop_null())
            about = column_findings.examine_undeclared(name, values, distinct, rule, tokens, typed=not read.parsed)
            findings += about.told
            refused += about.refused
        elif name in rule.verbatim:
            findings += column_findings.verbatim_findings(name, values, rule.missing)
        findings += column_findings.blank_findings(name, values)
    if refused:
        raise column_findings.refusal(refused)
    return findings


def _dropped_finding(target: str, dropped: int, rows: int) -> Finding:
    from mlflowkit.features.column_findings import Finding

    message = f"is missing in {dropped:,} of {rows:,} rows ({dropped / rows:.1%}), which are left out"
    return Finding(target, message, "write missing_target: error under data to refuse them")


def _with_dropped(parts: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The part of each source row, DROPPED for those that are left out."""
    import numpy as np

    codes = np.full(len(kept), DROPPED, dtype=parts.dtype)
    codes[kept] = parts
    return codes


def parts_of(spec: Spec, table: pa.Table, classes: Sequence[str | int], seed: int) -> np.ndarray:
    """The part of each row by the recipe's split; uint8 [rows]. Raises DataError for an unsuitable column."""
    from mlflowkit.stages import splitting, tabular

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


def _columns_by_role(spec: Spec, table: pa.Table) -> tuple[list[str], list[str]]:
    """Columns that are kept but no features, and the features; both in the order of the source."""
    from mlflowkit.stages import tabular

    tabular.require(table, [spec.target], "data.target")
    tabular.require(table, spec.columns, "data.columns")
    aside = {name for name, kind in spec.columns.items() if kind in ("time", "group", "ignore")}
    if isinstance(spec.split, GroupSplit | TimeSplit):
        tabular.require(table, [spec.split.column], "data.split.column")
        aside.add(spec.split.column)
    if spec.target in aside:
        message = f"target {spec.target!r} is also a {spec.columns.get(spec.target, spec.split.kind)} column"
        raise DataError(message, hint="a column has one role: change data.target, data.columns or data.split")
    slice_columns = [name for name in table.column_names if name in aside]
    features = [name for name in table.column_names if name not in aside and name != spec.target]
    if not features:
        raise DataError("no column is left to learn from", hint="mlkit explain RECIPE data.drop shows what is left out")
    return slice_columns, features


def _require_usable_parts(
    spec: Spec, table: pa.Table, kinds: Mapping[str, str], classes: Sequence[str | int], parts: np.ndarray
) -> None:
    """Raise DataError when a part is empty, lacks classes, or the training rows of a feature have no value."""
    import numpy as np
    import pyarrow as pa

    from mlflowkit.stages import splitting, tabular

    kind = spec.split.kind
    for code, part in enumerate(PARTS):
        if not (parts == code).any():
            hint = "change the shares under data.split, take another kind of split, or bring more rows"
            raise DataError(f"the {kind} split of {table.num_rows} rows leaves none for {part}", hint=hint)
    if classes:
        labels = tabular.codes(table.column(spec.target), classes)
        for code, part in enumerate(PARTS):
            present = set(np.flatnonzero(np.bincount(labels[parts == code])).tolist())
            lacking = [name for index, name in enumerate(classes) if index not in present]
            if lacking and (part == "train" or len(present) < 2):
                message = f"the {kind} split leaves {part} without class {format_list(lacking)}"
                raise DataError(message, hint="set data.split.kind: stratified, or change the shares or the seed")
    train = pa.array(parts == splitting.TRAIN)
    empty = [name for name in kinds if (column := table.column(name)).null_count and _all_missing(column, train)]
    if empty:
        message = f"column {format_list(empty)}: no value in any of the training rows"
        raise DataError(message, hint=f"add to data.drop: [{', '.join(empty)}]")


def _precision_of(
    spec: Spec,
    table: pa.Table,
    kinds: Mapping[str, str],
    parts: np.ndarray,
    context: StageContext,
    findings: list[Finding],
) -> dict[str, float]:
    """The offset of each number (a regression's target too) that float32 cannot hold by itself; what is lost is told.

    Raises DataError for a column of which float32 merges most values also after centring.
    """
    from mlflowkit.features import precision
    from mlflowkit.features.column_findings import Finding
    from mlflowkit.stages import splitting, tabular

    train = parts == splitting.TRAIN
    names = [name for name, kind in kinds.items() if kind == "numeric"]
    offsets = {}
    for name in names if spec.task == "classification" else [*names, spec.target]:
        held = precision.assess(tabular.present_values(table.column(name), train))
        if held.example is None:
            continue
        role = "target" if name == spec.target else "column"
        merges = f"float32, in which models compute, merges {held.merged:.0%} of the {held.distinct} distinct values"
        pair = " and ".join(map(repr, held.example))
        if held.merged_centred > precision.LARGEST_SHARE:
            message = f"{role} {name!r}: {merges} (such as {pair}), and {held.merged_centred:.0%} after centring"
            hint = f"write data.columns: {{{name}: categorical}} for codes, or {{{name}: ignore}} to leave it out"
            raise DataError(message, hint=hint if role == "column" else "is data.target an identifier?")
        offsets[name] = held.offset
        if held.merged_centred > precision.SMALL_SHARE:
            findings.append(Finding(name, f"loses {held.merged_centred:.0%} of its values also centred: {merges}"))
            context.progress(Event("data", "warning", str(findings[-1])))
        else:
            message = f"{role} {name!r} is centred at {held.offset:.15g} in double precision: {merges}"
            context.progress(Event("data", "progress", message))
    return offsets


def _all_missing(column: pa.ChunkedArray, rows: pa.Array) -> bool:
    import pyarrow.compute as pc

    return not pc.any(pc.and_(pc.is_valid(column), rows)).as_py()


def _summary(spec: Spec, table: pa.Table, info: TableInfo, parts: np.ndarray) -> dict[str, Json]:
    """Description of the table for the report."""
    import numpy as np

    from mlflowkit.stages import tabular

    columns = []
    for feature in info.features:
        column = table.column(feature.name)
        entry: dict[str, Json] = {
            "name": feature.name,
            "kind": feature.kind,
            "missing": column.null_count / table.num_rows,
        }
        if feature.kind in ("categorical", "text"):
            entry["distinct"] = len(column.unique().drop_null())
        columns.append(entry)
    balance = {}
    if info.classes:
        labels = tabular.codes(table.column(spec.target), info.classes)
        for code, part in enumerate(PARTS):
            counts = np.bincount(labels[parts == code], minlength=len(info.classes))
            balance[part] = {str(name): int(count) for name, count in zip(info.classes, counts, strict=True)}
    return {
        "source": spec.source.describe(),
        "data_version": info.data_version,
        "target": info.target,
        "split": spec.split.kind,
        "rows": dict(info.rows),
        "columns": columns,
        "kept": list(info.slice_columns),
        "classes": balance,
    }
