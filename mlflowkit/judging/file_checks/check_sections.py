"""Sections of ``data.checks`` whose rules stand in a file of another tool."""

from __future__ import annotations

import warnings
from typing import Literal

from pydantic import Field

from mlflowkit.sections import Section
from mlflowkit.values import Json

warnings.filterwarnings("ignore", 'Field name "schema" in "(Pandera|Tfdv)Check"', UserWarning)  # a method of pydantic 1

MAX_FILE_BYTES = 16 << 20
"""Largest file of rules that is read."""


class FileCheck(Section):
    """A check whose rules stand in a file beside the recipe. What it reads is part of the validate stage's result."""

    kind: str

    def files(self) -> tuple[str, ...]:
        """Files that the check reads, relative to the recipe's folder."""
        return ()

    def code_references(self) -> tuple[str, ...]:
        """References to user code (``MODULE:NAME``) that the check runs."""
        return ()


class ExpectationsCheck(FileCheck):
    """A suite of Great Expectations 1.x."""

    kind: Literal["expectations"]
    suite: str = Field(min_length=1)
    """JSON file of the suite."""
    parameters: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Values of the suite's $PARAMETER names."""

    def files(self) -> tuple[str, ...]:
        return (self.suite,)


class PanderaCheck(FileCheck):
    """A schema of pandera: code beside the recipe, or a YAML file that pandera wrote."""

    kind: Literal["pandera"]
    schema: str = Field(min_length=1)  # type: ignore[assignment]
    """MODULE:NAME of a DataFrameSchema or DataFrameModel beside the recipe, or a YAML file."""

    @property
    def is_file(self) -> bool:
        return str(self.schema).endswith((".yaml", ".yml"))

    def files(self) -> tuple[str, ...]:
        return (str(self.schema),) if self.is_file else ()

    def code_references(self) -> tuple[str, ...]:
        return () if self.is_file else (str(self.schema),)


class TfdvCheck(FileCheck):
    """A schema of TensorFlow Data Validation."""

    kind: Literal["tfdv"]
    schema: str = Field(min_length=1)  # type: ignore[assignment]
    """File of the schema in text format (schema.pbtxt)."""
    environment: str = ""
    """Environment whose features are required; without it, those of all."""
    serving: str = ""
    """Parquet file of rows that were served, which skew_comparator compares with."""

    def files(self) -> tuple[str, ...]:
        return (str(self.schema), *([self.serving] if self.serving else []))


def bounded_cell(value: Json, limit: int = 80) -> Json:
    """A cell as a failure shows it: texts are cut.

    >>> bounded_cell("x" * 100)[-1], bounded_cell(3)
    ('…', 3)
    """
    if isinstance(value, list):
        return [bounded_cell(item, limit) for item in value[:10]]
    return value[: limit - 1] + "…" if isinstance(value, str) and len(value) > limit else value
