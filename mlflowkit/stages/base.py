"""Values that several stages share. Stages do not import one another, so the data stage's description of its table
(`TableInfo`) and the checks on it (`Check`) live here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationError

from mlflowkit.bundle import Signature, TensorSpec, TextRule
from mlflowkit.errors import StoreError
from mlflowkit.judging.file_checks.check_sections import ExpectationsCheck, PanderaCheck, TfdvCheck
from mlflowkit.sections import Section
from mlflowkit.values import Json

if TYPE_CHECKING:
    import pandas as pd


class SchemaCheck(Section):
    """Column names and types: declared here, or inferred from the first run and frozen."""

    kind: Literal["schema"]
    columns: dict[str, Literal["int", "float", "string", "bool", "datetime"]] | None = None
    """Type of each column. Without it the schema of the last run of this recipe is required."""
    extra: Literal["forbid", "allow"] = "forbid"
    """Whether undeclared columns are a failure."""


class RangeCheck(Section):
    """Numbers within bounds."""

    kind: Literal["range"]
    column: str
    """The column to check."""
    min: float | None = None
    """Smallest value allowed."""
    max: float | None = None
    """Largest value allowed."""


class NullsCheck(Section):
    """Share of missing values."""

    kind: Literal["nulls"]
    column: str
    """The column to check."""
    max_share: float = Field(default=0.0, ge=0, le=1)
    """Largest share of missing values allowed."""


class UniqueCheck(Section):
    """No two rows alike in these columns."""

    kind: Literal["unique"]
    columns: list[str] = Field(min_length=1)
    """Columns that together identify a row."""


class AllowedCheck(Section):
    """Values from a list."""

    kind: Literal["allowed"]
    column: str
    """The column to check."""
    values: list[str | int | float | bool] = Field(min_length=1)
    """The values allowed. Missing values are left to the nulls check."""


class RowsCheck(Section):
    """Rows of the table against the last version that passed. The first version has nothing to compare with."""

    kind: Literal["rows"]
    min_ratio: float | None = Field(default=None, gt=0, le=1)
    """Smallest number of rows allowed, as a multiple of the last version's."""
    max_ratio: float | None = Field(default=None, ge=1)
    """Largest number of rows allowed, as a multiple of the last version's."""


class LeakageCheck(Section):
    """What a model cannot know when it serves, or has seen in training already."""

    kind: Literal["leakage"]
    duplicates: int | None = Field(default=0, ge=0)
    """Rows of the validation and test parts allowed that are copies of a row of an earlier part, in all features and
    the target. Null does not count them."""
    time: bool | str = False
    """No row of a later part is as old as, or older than, one of an earlier part: by this column, or with `true` by
    the column of the time split."""
    single_feature: float | None = Field(default=0.995, gt=0.5, le=1)
    """Score from which one feature alone says too much of the target: ROC AUC of a class, R2 of a number. A column
    that names the target's values is told as a copy of it. Null does not look."""


class DriftCheck(Section):
    """Columns of the table against a sample of the last version that passed."""

    kind: Literal["drift"]
    against: Literal["previous"] = "previous"
    """The version to compare with."""
    max: float = Field(default=0.1, gt=0, lt=1)
    """Distance of distributions that is no harm: Kolmogorov-Smirnov of numbers, total variation of texts."""
    columns: Literal["*"] | list[str] = "*"
    """The columns to compare; by default all features and the target."""
    level: float = Field(default=0.05, gt=0, lt=0.5)
    """The chance that any column of a table without drift is called drifted."""
    on: Literal["block", "warn"] = "block"
    """Whether a column that drifted ends the run."""
    on_inconclusive: Literal["allow", "block"] = "allow"
    """Whether columns with too few rows to tell end the run. They are told in any case."""


TableCheck = SchemaCheck | RangeCheck | NullsCheck | UniqueCheck | AllowedCheck
"""Checks of columns that the recipe itself declares."""
WholeTableCheck = RowsCheck | LeakageCheck | DriftCheck
"""Checks of the table as a whole: its parts, and the version before it."""
RulesFileCheck = ExpectationsCheck | PanderaCheck | TfdvCheck
"""Checks that stand in a file of another tool."""
Check = Annotated[TableCheck | WholeTableCheck | RulesFileCheck, Field(discriminator="kind")]


class Column(Section):
    """A feature column."""

    name: str
    kind: Literal["numeric", "categorical", "date", "text"]
    offset: float = 0.0
    """Subtracted in double precision before a number becomes float32; see mlflowkit.features.precision."""


class TableInfo(Section):
    """``table.json``: the description of the table for later stages."""

    task: Literal["classification", "regression"]
    target: str
    features: tuple[Column, ...]
    """In the order of the source."""
    classes: tuple[str | int, ...] = ()
    """Sorted, the positive class of a binary task last. Booleans are written as 0 and 1."""
    rows: dict[str, int]
    """Rows of train, validation and test."""
    data_version: str
    slice_columns: tuple[str, ...] = ()
    """Columns kept in the parts that are not features (group, time, ignore)."""
    dropped: tuple[str, ...] = ()
    """Columns of the source that the recipe drops."""
    texts: TextRule = TextRule()
    """What the texts of the source mean, for the service."""
    target_offset: float = 0.0
    """As `Column.offset`, of a regression's target: the model learns the rest, and predictions are FP64."""
    orders: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """The categories of columns that have an order, from the least to the greatest."""

    @property
    def numeric(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.features if column.kind == "numeric")

    @property
    def dates(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.features if column.kind == "date")

    @property
    def categorical(self) -> tuple[str, ...]:
        """The columns that a graph takes as text: categories and free texts."""
        return tuple(column.name for column in self.features if column.kind in ("categorical", "text"))


PARTS = ("train", "validation", "test")
"""The parts of a split, in the order of their codes in ``split.npy``."""
LARGE_BYTES = 1 << 28
"""Size of a table from which on it is told what memory it takes."""
DROPPED = 255
"""The code in ``split.npy`` of a source row that is in no part."""


def read_table_info(folder: Path) -> TableInfo:
    """``table.json`` of the data stage's folder. Raises StoreError when it is missing or altered."""
    try:
        return TableInfo.model_validate_json((folder / "table.json").read_bytes())
    except (OSError, ValidationError) as error:
        message = f"{folder / 'table.json'} cannot be read: {error}"
        raise StoreError(message, hint="mlkit run RECIPE --force data") from error


def expected_signature(info: TableInfo) -> Signature:
    """The signature of a graph that is trained and exported from a table.

    >>> columns = (Column(name="age", kind="numeric"), Column(name="term", kind="categorical"))
    >>> info = TableInfo(task="regression", target="y", features=columns, rows={}, data_version="")
    >>> [(tensor.name, tensor.columns) for tensor in expected_signature(info).inputs]
    [('numeric', ('age',)), ('categorical', ('term',))]
    """
    number: Literal["FP32", "FP64"] = "FP64" if any(column.offset for column in info.features) else "FP32"
    inputs = [
        TensorSpec(name=name, datatype=datatype, shape=(-1, len(columns)), columns=columns)
        for name, datatype, columns in (
            ("numeric", number, info.numeric),
            ("dates", "FP64", info.dates),
            ("categorical", "BYTES", info.categorical),
        )
        if columns
    ]
    if info.task == "regression":
        prediction = TensorSpec(name="prediction", datatype="FP64" if info.target_offset else "FP32", shape=(-1,))
        return Signature(task="regression", inputs=tuple(inputs), outputs=(prediction,), texts=info.texts)
    label: Literal["BYTES", "INT64"] = "BYTES" if isinstance(info.classes[0], str) else "INT64"
    labels = TensorSpec(name="label", datatype=label, shape=(-1,))
    probabilities = TensorSpec(name="probabilities", datatype="FP32", shape=(-1, len(info.classes)))
    outputs = (labels, probabilities)
    return Signature(
        task="classification", inputs=tuple(inputs), outputs=outputs, classes=info.classes, texts=info.texts
    )


def read_signature(folder: Path) -> Signature:
    """``signature.json`` beside a graph. Raises StoreError when it is missing or altered."""
    try:
        return Signature.model_validate_json((folder / "signature.json").read_bytes())
    except (OSError, ValidationError) as error:
        message = f"{folder / 'signature.json'} cannot be read: {error}"
        raise StoreError(message, hint="mlkit run RECIPE --force export") from error


def sample_rows(part: Path, signature: Signature, rows: int, seed: int) -> pd.DataFrame:
    """Up to ``rows`` rows of a part (Parquet), sampled without replacement, in order; the signature's columns."""
    import numpy as np
    import pandas as pd

    table = pd.read_parquet(part, columns=[column for tensor in signature.inputs for column in tensor.columns])
    if len(table) > rows:
        table = table.iloc[np.sort(np.random.default_rng(seed).choice(len(table), rows, replace=False))]
    return table


def write_json(path: Path, value: Json) -> None:
    """Write strict JSON for other programs. Raises ValueError for NaN and infinity."""
    path.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1))
