"""Which inputs of a run no commit holds: what makes the result of a checkout "dirty", by name.

A change counts where it could have influenced the run:

- a tracked file that differs from the commit, in the recipe's folder or among the inputs outside of it; of other
  folders, a module of a library that is installed from this checkout (``pip install -e``);
- an untracked file that the run reads: the recipe and its config groups, its code, its data, its graph; and one in the
  recipe's folder whose name, or whose folder's name, stands in the recipe's arguments or in its code;
- code that git ignores. Ignored data is told and does not count: the data version names its content, as that of data
  outside of the repository.

Other untracked files do not count: reports, logs and JSON that a pipeline left beside the recipe. Neither do the files
of mlkit itself, nor the file that this process writes its output to.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlparse

from mlflowkit.data_access.remote_source import RemoteSource
from mlflowkit.errors import MlkitError
from mlflowkit.pipeline.lineage.checkout import Checkout, StatusEntry
from mlflowkit.recipe.schema import LoadedRecipe
from mlflowkit.stages.sources import content_names, resolve_source
from mlflowkit.stages.train import ImportedBundle, OnnxModel
from mlflowkit.system.git.git_command import ask_git
from mlflowkit.system.text import limited, shell_word
from mlflowkit.usercode import parse_source
from mlflowkit.values import EventKind, Json

OWN_FILES = (".mlkit", ".mlkit-export.lock")
"""Names of folders and files that mlkit writes and no run reads."""
MAX_WORD = 200
"""Longest text of a program that may name a file."""
PATHS_A_CALL = 500


@dataclass(frozen=True, slots=True)
class RunInputs:
    """What a run reads: files, and words by which its recipe and code may name others."""

    code: tuple[Path, ...] = ()
    data: tuple[Path, ...] = ()
    words: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class UncommittedInputs:
    """``changes`` make the result dirty; ``forgotten`` are those of them that git was never told of.

    ``ignored`` is data that git ignores by the user's wish.
    """

    changes: tuple[str, ...] = ()
    forgotten: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def messages(self, checkout: Checkout) -> Iterator[tuple[EventKind, str]]:
        """What to tell of them: a kind of event, and a text."""
        if self.forgotten:
            names = limited(self.forgotten)
            yield (
                "warning",
                f"no commit holds {names}, which this run reads; git -C {shell_word(checkout.root)} add FILE",
            )
        other = [change for change in self.changes if change not in self.forgotten]
        if other:
            yield "progress", f"differs from commit {checkout.commit[:12]}: {limited(other)}"
        if self.ignored:
            names = limited(self.ignored)
            yield "progress", f"git ignores {names}: the data version names its content, no commit holds it"


def run_inputs(loaded: LoadedRecipe, ingredients: Iterable[Mapping[str, str]]) -> RunInputs:
    """The inputs of a run by the ingredients of its steps' fingerprints."""
    code: dict[Path, None] = dict.fromkeys(loaded.files or (loaded.path,))
    data: dict[Path, None] = {}
    for name in sorted({name for step in ingredients for name in step}):
        kind, _, rest = name.partition(":")
        if kind == "code":
            code[loaded.folder / rest] = None
        elif kind == "content":
            data |= dict.fromkeys(_content_paths(loaded, rest))
    sources = [path for path in code if path.suffix == ".py" and path.is_relative_to(loaded.folder)]
    words = {word for text in (*_recipe_texts(loaded), *_source_texts(sources)) for word in _words(text)}
    return RunInputs(tuple(code), tuple(data), frozenset(words))


def _content_paths(loaded: LoadedRecipe, name: str) -> list[Path]:
    """The files that an ingredient ``content:name`` may stand for; none for a version of remote data."""
    model, source = loaded.recipe.model, loaded.recipe.data.source
    roots = [*source.roots(loaded.folder)]
    roots += [(loaded.folder / model.path).parent] if isinstance(model, OnnxModel) else []
    roots += [loaded.folder / model.path] if isinstance(model, ImportedBundle) and model.path else []
    plain = re.sub(r"#\d+$", "", name)
    if isinstance(source, RemoteSource):
        return [path for root in roots if os.path.lexists(path := root / name)]
    named = [root / name if os.path.lexists(root / name) else root / plain for root in roots]
    paths = [path for path in named if os.path.lexists(path)] or [loaded.folder / name]
    if not os.path.lexists(paths[0]) and source.plugin_names():
        with contextlib.suppress(MlkitError):  # reported by the step that reads it
            file = content_names(resolve_source(source, loaded.folder), loaded.folder).get(name)
            paths = [file] if file is not None else []
    return [path for path in paths if os.path.lexists(path)]


def uncommitted_inputs(checkout: Checkout, inputs: RunInputs) -> UncommittedInputs:
    """Which inputs differ from the checkout's commit, as ``path (modified)``."""
    if not checkout.root:
        return UncommittedInputs()
    code, data = _inside(inputs.code, checkout.root), _inside(inputs.data, checkout.root)
    outputs, editable = _standard_streams(), None
    changes, forgotten = [], []
    names = code | data
    reached = names | {str(parent) for name in names for parent in PurePosixPath(name).parents}
    for entry in checkout.entries:
        path = entry.path.rstrip("/")
        if _is_own(path) or _stamp(Path(checkout.root, path)) in outputs:
            continue
        read = path in reached
        beside = not checkout.prefix or path.startswith(f"{checkout.prefix}/")
        counts = read or (beside and (entry.tracked or _is_named(path, checkout.prefix, inputs.words)))
        if not counts and not beside and _is_module(checkout.root, entry):
            editable = _editable_folders(checkout.root) if editable is None else editable
            counts = any(path.startswith(folder) for folder in editable)
        if counts:
            changes.append(f"{path} ({entry.state})")
            forgotten += [changes[-1]] if not entry.tracked else []
    ignored_code, ignored_data = (_ignored(checkout.root, sorted(names)) for names in (code, data))
    hidden = [f"{path} (ignored by git)" for path in ignored_code]
    return UncommittedInputs((*changes, *hidden), (*forgotten, *hidden), tuple(ignored_data))


def _inside(paths: Sequence[Path], root: str) -> set[str]:
    """The paths within the repository, from its root; a link's own and that of its target."""
    names = set()
    for path in paths:
        own = os.path.join(os.path.realpath(path.parent), path.name)
        for candidate in (own, os.path.realpath(path)):
            if candidate.startswith(f"{root}{os.sep}"):
                names.add(Path(os.path.relpath(candidate, root)).as_posix())
    return names


def _is_own(path: str) -> bool:
    return any(part in OWN_FILES for part in PurePosixPath(path).parts)


def _is_named(path: str, prefix: str, words: frozenset[str]) -> bool:
    """Whether recipe or code name an untracked file or one of its folders, or have a pattern that matches it.

    >>> _is_named("recipes/maps/a.json", "recipes", frozenset({"maps"}))
    True
    >>> _is_named("run.json", "", frozenset({"*.csv"}))
    False
    """
    parts = PurePosixPath(path).parts[len(PurePosixPath(prefix).parts) :]
    patterns = [word for word in words if set(word) & set("*?[")]
    return any(part in words or any(fnmatchcase(part, pattern) for pattern in patterns) for part in parts)


def _words(text: str) -> set[str]:
    """The parts of a text that may name a file.

    >>> sorted(_words("maps/*.json")), _words("*"), _words("a sentence\\nof two lines")
    (['*.json', 'maps'], set(), set())
    """
    if len(text) > MAX_WORD or "\n" in text:
        return set()
    return {word for word in re.split(r"[/\\]", text) if word.strip("*.? ")}


def _recipe_texts(loaded: LoadedRecipe) -> Iterator[str]:
    """Texts of the recipe that its source and its model get."""
    data = loaded.composed.get("data")
    yield from _texts(data.get("source") if isinstance(data, Mapping) else None)
    yield from _texts(loaded.composed.get("model"))


def _texts(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _source_texts(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        try:
            tree = parse_source(path.read_bytes())
        except (OSError, SyntaxError, ValueError):  # reported by the step that runs it
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def _ignored(root: str, names: Sequence[str]) -> list[str]:
    """Those of the files that git ignores and does not track."""
    found: list[str] = []
    for start in range(0, len(names), PATHS_A_CALL):
        chunk = names[start : start + PATHS_A_CALL]
        arguments = ("ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--", *chunk)
        answer = ask_git(Path(root), "--literal-pathspecs", *arguments)
        found += [name for name in answer.text.split("\0") if name]
    return sorted(found)


def _standard_streams() -> set[tuple[int, int]]:
    """The files that this process writes its output to, as `_stamp`."""
    stamps = set()
    for descriptor in (1, 2):
        try:
            status = os.fstat(descriptor)
        except OSError:
            continue
        stamps.add((status.st_dev, status.st_ino))
    return stamps


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_module(root: str, entry: StatusEntry) -> bool:
    """Whether a change could be one of an importable module."""
    path = Path(root, entry.path)
    if path.suffix != ".py":
        return False
    return entry.tracked or (path.parent / "__init__.py").exists()


def _editable_folders(root: str) -> tuple[str, ...]:
    """The folders of this checkout that libraries are installed from, from its root, with a slash at the end."""
    from importlib.metadata import distributions

    folders = set()
    for distribution in distributions():
        try:
            text = distribution.read_text("direct_url.json")
            value = json.loads(text) if text else {}
            editable = bool(value.get("dir_info", {}).get("editable"))
            url = urlparse(str(value.get("url", "")))
        except (OSError, ValueError, AttributeError):
            continue
        place = os.path.realpath(unquote(url.path))
        if editable and url.scheme == "file" and (place == root or place.startswith(f"{root}{os.sep}")):
            folders.add("" if place == root else Path(os.path.relpath(place, root)).as_posix() + "/")
    return tuple(sorted(folders))
