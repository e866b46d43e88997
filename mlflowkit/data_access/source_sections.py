"""Base classes of data sources: where the rows of a recipe's table come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from mlflowkit.bundle import TextRule
from mlflowkit.features.cells import ReadingPlan
from mlflowkit.sections import Section
from mlflowkit.system.entry_points import SOURCES, is_own

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from mlflowkit.features.text_columns import TableRead
    from mlflowkit.ports import Tables


@dataclass(frozen=True, slots=True)
class SourceContent:
    """What the rows of a source depend on: local files, and versions of remote data (a commit, an ETag) by name."""

    files: tuple[Path, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    roots: tuple[Path, ...] = ()
    """Folders that the recipe's keys name, in their order: a file counts by its path below one of them (see
    `stages.sources.content_names`), so that the same files elsewhere are the same content."""


class DataSource(Section):
    """A kind of ``data.source``. A plugin declares ``kind: Literal[NAME]`` and its keys, and implements `resolve` and
    `read`. Relative paths are relative to ``folder``, the recipe's."""

    kind: str
    location_keys: ClassVar[tuple[str, ...]] = ()
    """Keys that only say where the data is: what they lead to is in the fingerprint, not they."""

    def resolve(self, folder: Path) -> SourceContent:
        """Identify the content without reading the table: the data stage runs again when it changes.

        Raises DataError when there is none.
        """
        raise NotImplementedError

    def read(self, folder: Path, tables: Tables, *, skip: Sequence[str] = ()) -> pa.Table | pd.DataFrame:
        """Read the table, in a reproducible order of rows. ``skip`` names columns that need not be read."""
        raise NotImplementedError

    def describe(self) -> str:
        """Short text for messages and reports."""
        return self.kind

    def code_references(self) -> tuple[str, ...]:
        """Code beside the recipe that is run, as ``module:name``."""
        return ()

    def roots(self, folder: Path) -> tuple[Path, ...]:
        """`SourceContent.roots`, without looking for the files."""
        return ()

    def watched_patterns(self, folder: Path) -> tuple[str, ...] | None:
        """Globs that match all the files of `resolve`, and those that would be added; None where none can.

        With them, a run with nothing to do need not call `resolve`.
        """
        return None

    def plugin_names(self) -> tuple[tuple[str, str], ...]:
        return () if is_own(type(self)) else ((SOURCES, self.kind),)


class TextKeys(DataSource):
    """Keys of sources whose columns may hold texts."""

    missing: list[str | int | float] | None = None
    """Texts that say that a value is missing, in every column of texts; the empty field always does. Without it those
    of pyarrow (NA, N/A, NaN, null, ...) in CSV files, except in columns declared categorical, and none elsewhere."""
    trim: bool = False
    """Remove blanks around texts and the names of columns."""
    decimal: str = Field(default=".", min_length=1, max_length=1)
    """The decimal mark of numbers that are written as text."""
    thousands: str | None = Field(default=None, min_length=1, max_length=1)
    """What separates the digits of such numbers into groups of three."""
    units: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Signs and units around such numbers, which are left out: "%", "$", "kg". 12 % is 12."""

    def text_rule(self, declared: Sequence[str]) -> TextRule:
        """What texts mean; ``declared`` names the columns that the recipe declares categorical or a group."""
        default = self.missing is None
        missing = self.default_missing() if self.missing is None else tuple(map(str, self.missing))
        return TextRule(
            missing=tuple(text for text in dict.fromkeys(missing) if text),
            verbatim=tuple(sorted(declared)) if default and missing else (),
            trim=self.trim,
            decimal=self.decimal,
            thousands=self.thousands or "",
            units=tuple(self.units),
        )

    def default_missing(self) -> tuple[str, ...]:
        return ()

    def read_by_plan(self, folder: Path, tables: Tables, plan: ReadingPlan, skip: Sequence[str]) -> TableRead:
        """Read the table by what the recipe says of its columns."""
        raise NotImplementedError
