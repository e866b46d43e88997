"""Data sources: where the rows of a recipe's table come from. Plugins subclass `DataSource`."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mlflowkit import usercode
from mlflowkit.errors import DataError, MlkitError, UserCodeError, closest_match
from mlflowkit.sections import PluginUnion, Section
from mlflowkit.system.entry_points import SOURCES
from mlflowkit.system.text import first_line

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from mlflowkit.ports import Tables


@dataclass(frozen=True, slots=True)
class SourceContent:
    """What the rows of a source depend on: local files, and versions of remote data (a commit, an ETag) by name."""

    files: tuple[Path, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


class DataSource(Section):
    """A kind of ``data.source``. A plugin declares ``kind: Literal[NAME]`` and its keys, and implements `resolve` and
    `read`. Relative paths are relative to ``folder``, the recipe's."""

    kind: str

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

    def watched_patterns(self, folder: Path) -> tuple[str, ...] | None:
        """Globs that match all the files of `resolve`, and those that would be added; None where none can.

        With them, a run with nothing to do need not call `resolve`.
        """
        return None

    def plugin_names(self) -> tuple[tuple[str, str], ...]:
        return () if isinstance(self, BUILT_IN) else ((SOURCES, self.kind),)


class CsvSource(DataSource):
    """One or more CSV files."""

    kind: Literal["csv"]
    path: str = Field(min_length=1)
    """A file, a folder (every *.csv in it, sorted) or a glob, relative to the recipe."""
    separator: str = Field(default=",", min_length=1, max_length=1)
    """The character between fields."""

    def resolve(self, folder: Path) -> SourceContent:
        return SourceContent(files=_files_at(folder / self.path, self.kind))

    def describe(self) -> str:
        return self.path

    def watched_patterns(self, folder: Path) -> tuple[str, ...] | None:
        return (str(folder / self.path),)

    def read(self, folder: Path, tables: Tables, *, skip: Sequence[str] = ()) -> pa.Table:
        return tables.read_csv(self.resolve(folder).files, separator=self.separator, skip=skip)


class ParquetSource(DataSource):
    """One or more Parquet files."""

    kind: Literal["parquet"]
    path: str = Field(min_length=1)
    """A file, a folder (every *.parquet in it, sorted) or a glob, relative to the recipe."""

    def resolve(self, folder: Path) -> SourceContent:
        return SourceContent(files=_files_at(folder / self.path, self.kind))

    def describe(self) -> str:
        return self.path

    def watched_patterns(self, folder: Path) -> tuple[str, ...] | None:
        return (str(folder / self.path),)

    def read(self, folder: Path, tables: Tables, *, skip: Sequence[str] = ()) -> pa.Table:
        return tables.read_parquet(self.resolve(folder).files, skip=skip)


class PythonSource(DataSource):
    """A function beside the recipe that returns a pandas DataFrame."""

    kind: Literal["python"]
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """``module:function``; the module is a file beside the recipe."""
    args: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    """Keyword arguments of the function."""
    files: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Files, folders (with all files below) or globs, relative to the recipe, that the function reads: the data stage
    runs again when their content changes. Changes of other files are not noticed."""

    def resolve(self, folder: Path) -> SourceContent:
        files = {file for path in self.files for file in declared_files(path, folder)}
        return SourceContent(files=tuple(sorted(files)))

    def read(self, folder: Path, tables: Tables, *, skip: Sequence[str] = ()) -> pd.DataFrame:
        import pandas as pd

        function = usercode.load(self.function, folder)
        if not callable(function):
            message = f"{self.function} is {type(function).__name__}, not a function"
            raise UserCodeError(message, hint="name a function that returns a pandas.DataFrame")
        with usercode.translate_user_errors(self.function, folder):
            frame = function(**self.args)
        if not isinstance(frame, pd.DataFrame):
            message = f"{self.function} returned {type(frame).__name__}; a pandas.DataFrame is needed"
            raise UserCodeError(message, hint=f"return a DataFrame from {self.function}")
        return frame

    def describe(self) -> str:
        return f"{self.function}()"

    def code_references(self) -> tuple[str, ...]:
        return (self.function,)

    def watched_patterns(self, folder: Path) -> tuple[str, ...] | None:
        return tuple(_declared_pattern(path, folder) for path in self.files)


BUILT_IN = (CsvSource, ParquetSource, PythonSource)
Source = Annotated[
    CsvSource | ParquetSource | PythonSource, Field(discriminator="kind"), PluginUnion(SOURCES, DataSource)
]


def resolve_source(source: DataSource, folder: Path) -> SourceContent:
    """The content of a source. Raises DataError, and UserCodeError when a plugin raises anything else."""
    try:
        return source.resolve(folder)
    except MlkitError:
        raise
    except Exception as error:
        raise _plugin_error(source, "cannot be resolved", error) from error


def read_source(source: DataSource, folder: Path, tables: Tables, *, skip: Sequence[str] = ()) -> pa.Table:
    """The rows of a source as an Arrow table, without the columns in ``skip``. Raises DataError and UserCodeError."""
    import pandas as pd
    import pyarrow as pa

    try:
        table: Any = source.read(folder, tables, skip=skip)
    except MlkitError:
        raise
    except Exception as error:
        raise _plugin_error(source, "cannot be read", error) from error
    if isinstance(table, pd.DataFrame):
        holder = [table]
        del table
        return tables.from_pandas(holder, source.describe(), skip=skip)
    if not isinstance(table, pa.Table):
        reason = f"returned {type(table).__name__}; a pyarrow.Table or a pandas.DataFrame is needed"
        raise UserCodeError(f"the source {source.describe()} {reason}", hint=f"see {type(source).__module__}")
    return table.drop_columns([name for name in skip if name in table.column_names])


def _plugin_error(source: DataSource, failed: str, error: Exception) -> UserCodeError:
    return UserCodeError(
        f"the source {source.describe()} {failed}: {type(error).__name__}: {first_line(error)}",
        hint=f"see {type(source).__module__}:{type(source).__name__}",
    )


def _files_at(path: Path, kind: str) -> tuple[Path, ...]:
    """A file, those in a folder, or those that a glob matches, sorted. Raises DataError when there is none, with the
    closest name."""
    if path.is_file():
        return (path,)
    if path.is_dir():
        files = sorted(path.glob(f"*.{kind}"))
        if not files:
            raise DataError(f"there is no *.{kind} in {path}", hint="check data.source.path")
        return tuple(files)
    files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if not files:
        raise _no_file_error(path, "data.source.path")
    return tuple(files)


def declared_files(path: str, folder: Path) -> tuple[Path, ...]:
    """The files of one entry of a python source's ``files``: a file, all files below a folder, or a glob's matches.

    Hidden files and ``__pycache__`` are excluded. Raises DataError when there is none.
    """
    matches = [Path(name) for name in glob.glob(_declared_pattern(path, folder), recursive=True)]
    files = sorted(file for file in matches if file.is_file() and "__pycache__" not in file.parts)
    if not files and (folder / path).is_dir():
        raise DataError(f"there is no file in {folder / path}", hint="check data.source.files")
    if not files:
        raise _no_file_error(folder / path, "data.source.files")
    return tuple(files)


def _declared_pattern(path: str, folder: Path) -> str:
    """One entry of a python source's ``files`` as a recursive glob.

    >>> _declared_pattern("tables/*.csv", Path("/recipes"))
    '/recipes/tables/*.csv'
    """
    target = folder / path
    if target.is_dir():
        return os.path.join(glob.escape(str(target)), "**")
    return glob.escape(str(target)) if target.is_file() else os.path.join(glob.escape(str(folder)), path)


def _no_file_error(path: Path, key: str) -> DataError:
    siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    near = closest_match(path.name, siblings)
    hint = f"did you mean {near!r}?" if near else f"check {key}; it is relative to the recipe"
    return DataError(f"there is no file {path}", hint=hint)
