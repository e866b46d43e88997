"""Read a table, name its columns, split it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mlflowkit.stages.base import Check, Column, Section, TableInfo

__all__ = ["Check", "Column", "DataSection", "Spec", "TableInfo"]

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


