"""What a recipe names in the world, looked up without running anything: data files, functions and classes."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from mlflowkit.errors import DataError, EngineError, nearest
from mlflowkit.graphs import imported_graph as imported
from mlflowkit.graphs.onnx_file import checked_load
from mlflowkit.recipe.rule import Problem, View
from mlflowkit.stages.data import CsvSource, ParquetSource, declared_files, source_files
from mlflowkit.stages.train import MODULES
from mlflowkit.values import Json

GIVEN_TO_TORCH = ("features", "outputs")
"""What a torch module is called with besides its args."""


def problems(values: Json, folder: Path) -> list[Problem]:
    """What a recipe in ``folder`` names and is not there."""
    view = View(values)
    found = [*_source(view, folder), *_declared(view, folder), *_function(view, folder)]
    return [*found, *_model(view, folder), *_graph(view, folder)]


def _source(view: View, folder: Path) -> Iterator[Problem]:
    kind, path = view.text("data", "source", "kind"), view.text("data", "source", "path")
    if kind not in ("csv", "parquet") or not path:
        return
    source = CsvSource(kind="csv", path=path) if kind == "csv" else ParquetSource(kind="parquet", path=path)
    try:
        source_files(source, folder)
    except DataError as error:
        yield Problem(("data", "source", "path"), error.message, error.hint)
    except (OSError, ValueError) as error:
        yield Problem(("data", "source", "path"), f"cannot be looked up: {error}", "name a file, a folder or a glob")


def _declared(view: View, folder: Path) -> Iterator[Problem]:
    """Files that a python source is said to read."""
    if view.text("data", "source", "kind") != "python":
        return
    for index, name in enumerate(view.items("data", "source", "files")):
        path = ("data", "source", "files", index)
        try:
            if isinstance(name, str) and name:
                declared_files(name, folder)
        except DataError as error:
            yield Problem(path, error.message, error.hint)
        except (OSError, ValueError) as error:
            yield Problem(path, f"cannot be looked up: {error}", "name a file, a folder or a glob")


def _function(view: View, folder: Path) -> Iterator[Problem]:
    reference = view.text("data", "source", "function")
    if view.text("data", "source", "kind") != "python" or reference.count(":") != 1:
        return
    path = ("data", "source", "function")
    found = list(_reference(reference, path, folder, functions_only=True))
    yield from found or _arguments(view, reference, ("data", "source", "args"), path, folder, given=())


def _model(view: View, folder: Path) -> Iterator[Problem]:
    kind, reference = view.text("model", "kind"), view.text("model", "module")
    if kind not in ("torch", "sklearn") or reference.count(":") != 1:
        return
    module = reference.partition(":")[0]
    path = ("model", "module")
    library = next((name for name in MODULES if module == name or module.startswith(f"{name}.")), "")
    if find_module(module, folder) is None and library:
        spec = importlib.util.find_spec(library.partition(".")[0])
        folder = Path(spec.origin).parents[1] if spec is not None and spec.origin else folder
        found = list(_library(reference, path))
    else:
        found = list(_reference(reference, path, folder))
    given = GIVEN_TO_TORCH if kind == "torch" else ()
    yield from found or _arguments(view, reference, ("model", "args"), path, folder, given=given)


def _graph(view: View, folder: Path) -> Iterator[Problem]:
    """A brought graph that is not there, is not sound, or cannot be connected as the recipe says."""
    name, key = view.text("model", "path"), ("model", "path")
    if view.text("model", "kind") != "onnx" or not name:
        return
    path = folder / name
    if not path.is_file():
        beside = [item.name for item in path.parent.glob("*.onnx")] if path.parent.is_dir() else []
        close = nearest(path.name, beside)
        yield Problem(
            key, f"there is no file {path}", f"did you mean {close}?" if close else "it is relative to the recipe"
        )
        return
    try:
        graph = imported.describe(checked_load(path, weights=False))
    except EngineError as error:
        yield Problem(key, error.message, error.hint)
        return
    inputs = view.get("model", "inputs")
    columns = {str(port): listed for port, listed in inputs.items() if isinstance(listed, list)} if inputs else None
    outputs = {role: text for role, text in view.mapping("model", "outputs").items() if isinstance(text, str)}
    for found in imported.objections(graph, view.task, columns, outputs):
        yield Problem(found.key, found.message, found.hint, at_key=found.at_key)


def _arguments(
    view: View, reference: str, args: tuple[str, ...], path: tuple[str, ...], folder: Path, *, given: Sequence[str]
) -> Iterator[Problem]:
    """Keyword arguments that the function or the class does not take, or does not get."""
    module, _, name = reference.partition(":")
    file = find_module(module, folder)
    takes = signature(file, name, folder) if file is not None else None
    if takes is None:
        return
    names, required = takes
    free = [item for item in names if item not in given]
    for key in view.mapping(*args):
        if key not in free:
            close = nearest(key, free)
            message = f"{name} takes no argument {key!r}; it takes {', '.join(free) or 'none'}"
            yield Problem((*args, key), message, f"did you mean {close}?" if close else "remove it", at_key=True)
    for key in required:
        if key not in given and key not in view.mapping(*args):
            yield Problem(path, f"{name} needs an argument {key!r}", f"add {'.'.join(args)}: {{{key}: ...}}")


def _reference(
    reference: str, path: tuple[str, ...], folder: Path, *, functions_only: bool = False
) -> Iterator[Problem]:
    """A reference to code beside the recipe."""
    module, _, name = reference.partition(":")
    file = find_module(module, folder)
    if file is None:
        beside = sorted(item.stem for item in folder.glob("*.py")) if folder.is_dir() else []
        close = nearest(module, beside)
        if functions_only or importlib.util.find_spec(module.partition(".")[0]) is None:
            message = f"there is no {module.replace('.', '/')}.py beside the recipe"
        else:
            message = f"{module} is neither beside the recipe nor in {' or '.join(MODULES)}"
        yield Problem(path, message, f"did you mean {close}:{name}?" if close else f"write {folder / module}.py")
        return
    try:
        names = defined(file, file.stat().st_mtime_ns)
    except SyntaxError as error:
        yield Problem(path, f"{file}:{error.lineno}: not Python: {error.msg}", "mend that line")
        return
    except (OSError, ValueError) as error:
        yield Problem(path, f"{file} cannot be read: {error}", f"ls -l {file}")
        return
    if name not in names and "*" not in names:
        close = nearest(name, sorted(names))
        message = f"{file.name} has no {name!r}"
        yield Problem(path, message, f"did you mean {module}:{close}?" if close else f"define {name} in {file}")


def _library(reference: str, path: tuple[str, ...]) -> Iterator[Problem]:
    """A reference into one of the libraries that models come from."""
    module, _, name = reference.partition(":")
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        yield Problem(path, f"{top} is not installed", f"pip install {top}")
        return
    file = find_module(".".join(rest), Path(spec.submodule_search_locations[0])) if rest else Path(str(spec.origin))
    if file is None:
        known = [item.name.removesuffix(".py") for item in Path(spec.submodule_search_locations[0]).iterdir()]
        close = nearest(rest[0] if rest else module, [item for item in known if not item.startswith("_")])
        yield Problem(path, f"there is no module {module}", f"did you mean {top}.{close}:{name}?" if close else "")
        return
    names = defined(file, file.stat().st_mtime_ns)
    if name not in names and "*" not in names:
        close = nearest(name, sorted(item for item in names if item[:1].isupper()))
        yield Problem(path, f"{module} has no {name!r}", f"did you mean {module}:{close}?" if close else "")


def find_module(module: str, folder: Path) -> Path | None:
    """The file of a module below a folder, or None."""
    base = folder.joinpath(*module.split("."))
    for file in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None


@lru_cache(maxsize=64)
def defined(file: Path, modified: int) -> frozenset[str]:
    """The names that a module defines at its top level; "*" among them when more may come in unseen.

    Raises SyntaxError. ``modified`` is the file's time, so that a changed file is read again.
    """
    tree = ast.parse(file.read_bytes(), filename=str(file))
    names: set[str] = set()
    for node in _top_level(tree.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add("*" if node.name == "__getattr__" else node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(item.id for target in targets for item in ast.walk(target) if isinstance(item, ast.Name))
    return frozenset(names)


def signature(file: Path, name: str, folder: Path, depth: int = 4) -> tuple[list[str], list[str]] | None:
    """The keyword arguments that a function or a class takes, and those that it must be given.

    None where reading does not tell: ``**kwargs``, decorators, an inherited ``__init__``. Only the definition is
    parsed, not the file: estimators live in long ones. A name that the file imports is followed, from ``folder``.
    """
    text = file.read_text(encoding="utf-8", errors="replace")
    match = re.search(rf"^(?:class|def|async def) {name}\b.*?(?=^[^\s)#]|\Z)", text, re.M | re.S)
    if match is None:
        imported = re.search(rf"^from ([\w.]+) import (?:\([^)]*?|[^\n(]*?)\b{name}\b", text, re.M)
        if imported is None or depth == 0:
            return None
        dots = len(imported[1]) - len(imported[1].lstrip("."))
        source = find_module(imported[1].lstrip("."), file.parents[dots - 1] if dots else folder)
        return signature(source, name, folder, depth - 1) if source is not None else None
    if text[: match.start()].rstrip("\n").rpartition("\n")[2].startswith("@"):
        return None
    try:
        node = ast.parse(match.group()).body[0]
    except SyntaxError:  # a definition that cannot be cut out whole: nothing is claimed of it
        return None
    return _parameters(node)


def _parameters(node: ast.stmt) -> tuple[list[str], list[str]] | None:
    """Names and required names of a function, or of a class that has its own ``__init__``."""
    if isinstance(node, ast.ClassDef):
        inits = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        taken = _parameters(inits[0]) if len(inits) == 1 and not inits[0].decorator_list else None
        return None if taken is None else (taken[0][1:], [item for item in taken[1] if item != taken[0][0]])
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.args.kwarg is not None:
        return None
    spec = node.args
    positional = [item.arg for item in (*spec.posonlyargs, *spec.args)]
    required = positional[: len(positional) - len(spec.defaults)]
    required += [item.arg for item, default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True) if default is None]
    return [*positional, *(item.arg for item in spec.kwonlyargs)], required


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, those under if, try and with included."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            for name in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from _top_level(handler.body)
