"""The data sources of files and functions beside the recipe, and how any source is read."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from mlflowkit import usercode
from mlflowkit.bundle import TextRule
from mlflowkit.data_access.remote_source import RemoteSource
from mlflowkit.data_access.source_sections import DataSource, SourceContent, TextKeys
from mlflowkit.errors import DataError, MlkitError, UserCodeError, closest_match
from mlflowkit.features.cells import DEFAULT_MISSING, ReadingPlan
from mlflowkit.sections import PluginUnion
from mlflowkit.system.entry_points import SOURCES
from mlflowkit.system.file_patterns import fixed_folder, folder_columns, matching_paths
from mlflowkit.system.text import first_line, shell_word

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from mlflowkit.features.text_columns import TableRead
    from mlflowkit.ports import Tables

PATH_KEY = "data.source.path"
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
"""Ends of the names of compressed CSV files."""


class CsvSource(TextKeys):
    """One or more CSV files."""

    kind: Literal["csv"]
    location_keys: ClassVar[tuple[str, ...]] = ("path",)
    path: str = Field(min_length=1)
    """A file, a folder (every *.csv in it, sorted) or a glob, relative to the recipe; compressed ones (.gz, .bz2, .zst)
    too. Folders named KEY=VALUE below it are columns."""
    separator: str = Field(default=",", min_length=1, max_length=1)
    """The character between fields."""

    def resolve(self, folder: Path) -> SourceContent:
        return SourceContent(files=_files_at(folder / self.path, self.kind), roots=self.roots(folder))

    def roots(self, folder: Path) -> tuple[Path, ...]:
        return (_root_of(folder / self.path, fixed_folder(str(folder / self.path))),)

    def describe(self) -> str:
        return self.path

    def watched_patterns(self, folder: Path) -> tuple[str, ...] | None:
        return _watched(folder / self.path)

    def folder_columns(self, folder: Path, files: Sequence[Path]) -> list[Mapping[str, str | None]]:
        """The columns that the names of folders give each file."""
        return _folders(folder / self.path, files)

    def default_missing(self) -> tuple[str, ...]:
        return DEFAULT_MISSING

    def read(self, folder: Path, tables: Tables, *, skip: Sequence[str] = ()) -> pa.Table:
        return self.read_by_plan(folder, tables, ReadingPlan(self.text_rule(())), skip).table

    def read_by_plan(self, folder: Path, tables: Tables, plan: ReadingPlan, skip: Sequence[str]) -> TableRead:
        files = self.resolve(folder).files
        folders = self.folder_columns(folder, files)
        return tables.read_csv_by_plan(files, plan, separator=self.separator, skip=skip, folders=folders)


class ParquetSource(TextKeys):
    """One or more Parquet files."""

    kind: Literal["parquet"]
    location_keys: ClassVar[tuple[str, ...]] = ("path",)
    path: str = Field(min_length=1)
    """A file, a folder (every *.parquet in it, sorted) or a glob, relative to the recipe. Folders named KEY=VALUE below
    it are columns."""

    def resolve(self, folder: Path) -> SourceContent:
        return SourceContent(files=_files_at(folder / self.path, self.kind), roots=self.roots(folder))

    def roots(self, folder: Path) -> tuple[Path, ...]:
        return (_root_of(folder / self.path, fixed_folder(str(folder / self.path))),)

    def describe(self) -> str:
        return self.path

    def watched_patterns(self, folder: Path) -> tuple[str, ...] | None:
        return _watched(folder / self.path)

    def folder_columns(self, folder: Path, files: Sequence[Path]) -> list[Mapping[str, str | None]]:
        """The columns that the names of folders give each file."""
        return _folders(folder / self.path, files)

    def read(self, folder: Path, tables: Tables, *, skip: Sequence[str] = ()) -> pa.Table:
        return self.read_by_plan(folder, tables, ReadingPlan(self.text_rule(())), skip).table

    def read_by_plan(self, folder: Path, tables: Tables, plan: ReadingPlan, skip: Sequence[str]) -> TableRead:
        files = self.resolve(folder).files
        folders = self.folder_columns(folder, files)
        return tables.read_parquet_by_plan(files, plan, skip=skip, folders=folders)


class PythonSource(TextKeys):
    """A function beside the recipe that returns a pandas DataFrame."""

    kind: Literal["python"]
    location_keys: ClassVar[tuple[str, ...]] = ("files",)
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """``module:function``; the module is a file beside the recipe."""
    args: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    """Keyword arguments of the function."""
    files: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Files, folders (with all files below) or globs, relative to the recipe, that the function reads: the data stage
    runs again when their content changes. Changes of other files are not noticed."""

    def resolve(self, folder: Path) -> SourceContent:
        files = {file for path in self.files for file in declared_files(path, folder)}
        return SourceContent(files=tuple(sorted(files)), roots=self.roots(folder))

    def roots(self, folder: Path) -> tuple[Path, ...]:
        return tuple(_root_of(folder / path, folder / fixed_folder(path)) for path in self.files)

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


def content_names(content: SourceContent, folder: Path) -> dict[str, Path]:
    """The files of a source by the names that identify them wherever they lie.

    A name is the path below the first of the ``roots`` that has the file; below the recipe's folder, or the folder that
    the others have in common, where none does. Files of several roots with one name are numbered in their order.
    """
    outside = [file for file in content.files if os.path.relpath(file, folder).startswith(os.pardir)]
    common = os.path.commonpath([os.path.abspath(file.parent) for file in outside]) if outside else str(folder)
    roots = (*content.roots, folder, Path(common))
    names: dict[str, Path] = {}
    for _, base, file in sorted((*_within(file, roots), file) for file in content.files):
        number = 1
        while (name := base if number == 1 else f"{base}#{number}") in names:
            number += 1
        names[name] = file
    return names


def _within(file: Path, roots: Sequence[Path]) -> tuple[int, str]:
    """The first root that has a file, and the file's path below it."""
    for index, root in enumerate(roots):
        name = os.path.relpath(file, root)
        if not name.startswith(os.pardir):
            return index, Path(name).as_posix()
    return len(roots), file.name


def text_rule_of(source: DataSource, declared: Sequence[str]) -> TextRule:
    """What the texts of a source mean; see `TextKeys`. For a plugin: only the empty text is missing."""
    return source.text_rule(declared) if isinstance(source, TextKeys) else TextRule()


def read_source(
    source: DataSource,
    folder: Path,
    tables: Tables,
    plan: ReadingPlan,
    *,
    skip: Sequence[str] = (),
    fetch: Callable[[], Mapping[str, Path]] | None = None,
) -> TableRead:
    """The rows of a source, without the columns in ``skip``. ``fetch`` gives the files of a remote one.

    Raises DataError and UserCodeError.
    """
    import pandas as pd
    import pyarrow as pa

    from mlflowkit.features.text_columns import read_texts

    if isinstance(source, CsvSource | ParquetSource):
        return source.read_by_plan(folder, tables, plan, skip)
    if isinstance(source, RemoteSource) and fetch is not None:
        return source.read_fetched(fetch(), tables, plan, skip)
    try:
        table: Any = source.read(folder, tables, skip=skip)
    except MlkitError:
        raise
    except Exception as error:
        raise _plugin_error(source, "cannot be read", error) from error
    if isinstance(table, pd.DataFrame):
        holder = [table]
        del table
        return read_texts(tables.from_pandas(holder, source.describe(), skip=skip), plan)
    if not isinstance(table, pa.Table):
        reason = f"returned {type(table).__name__}; a pyarrow.Table or a pandas.DataFrame is needed"
        raise UserCodeError(f"the source {source.describe()} {reason}", hint=f"its code is {type(source).__module__}")
    return read_texts(table.drop_columns([name for name in skip if name in table.column_names]), plan)


def _plugin_error(source: DataSource, failed: str, error: Exception) -> UserCodeError:
    return UserCodeError(
        f"the source {source.describe()} {failed}: {type(error).__name__}: {first_line(error)}",
        hint=f"its code is {type(source).__module__}:{type(source).__name__}",
    )


def _files_at(path: Path, kind: str) -> tuple[Path, ...]:
    """A file, those in a folder and its KEY=VALUE folders, or those that a glob matches, sorted.

    Raises DataError when there is none, with the closest name, and for a glob over too many files.
    """
    if path.is_file():
        return (path,)
    if path.is_dir():
        return _files_in(path, kind)
    files = [Path(name) for name in matching_paths(str(path), PATH_KEY) if Path(name).is_file()]
    if not files:
        raise _no_file_error(path, PATH_KEY)
    return tuple(files)


def _files_in(folder: Path, kind: str) -> tuple[Path, ...]:
    """The files of a kind in a folder and in its KEY=VALUE folders, of any depth."""
    ends = (f".{kind}", *(f".{kind}{end}" for end in COMPRESSED if kind == "csv"))
    files: list[Path] = []
    level = [str(folder)]
    while level:
        escaped = [glob.escape(name) for name in level]
        names = [name for item in escaped for name in matching_paths(os.path.join(item, f"*.{kind}*"), PATH_KEY)]
        files += [Path(name) for name in names if name.endswith(ends) and os.path.isfile(name)]
        level = [name for item in escaped for name in matching_paths(os.path.join(item, "*=*"), PATH_KEY)]
        level = [name for name in level if os.path.isdir(name)]
    if not files:
        hint = f"mlkit explain RECIPE {PATH_KEY} shows what set it; for files in its folders: {folder.name}/**/*.{kind}"
        raise DataError(f"there is no *.{kind} in {folder}", hint=hint)
    return tuple(sorted(files))


def _folders(path: Path, files: Sequence[Path]) -> list[Mapping[str, str | None]]:
    """The columns that the folders of each file give."""
    root = _root_of(path, fixed_folder(str(path)))
    return [folder_columns(file, root) for file in files]


def _root_of(path: Path, fixed: Path) -> Path:
    """The folder that a path names, or that of the file, or the ``fixed`` part of a glob."""
    return path if path.is_dir() else path.parent if path.is_file() else fixed


def _watched(path: Path) -> tuple[str, ...]:
    """Patterns of the files of a path, and of those that would be added; KEY=VALUE folders included."""
    below = os.path.join(glob.escape(str(path)), "*=*", "**")
    return (str(path), below) if path.is_dir() else (str(path),)


def declared_files(path: str, folder: Path) -> tuple[Path, ...]:
    """The files of one entry of a python source's ``files``: a file, all files below a folder, or a glob's matches.

    Hidden files and ``__pycache__`` are excluded. Raises DataError when there is none.
    """
    matches = [Path(name) for name in matching_paths(_declared_pattern(path, folder), "data.source.files")]
    files = sorted(file for file in matches if file.is_file() and "__pycache__" not in file.parts)
    if not files and (folder / path).is_dir():
        raise DataError(
            f"there is no file in {folder / path}", hint="mlkit explain RECIPE data.source.files shows what set it"
        )
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
    hint = f"did you mean {near!r}?" if near else f"ls {shell_word(path.parent)} shows what there is for {key}"
    return DataError(f"there is no file {path}", hint=hint)
