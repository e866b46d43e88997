"""Rules about references: data files, functions, classes and graphs that a recipe names. Nothing is executed."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from mlflowkit.bundle import MANIFEST
from mlflowkit.data_access.registry_sections import is_remote_reference
from mlflowkit.errors import DataError, EngineError, closest_match
from mlflowkit.graphs import imported_graph as imported
from mlflowkit.graphs.onnx_file import load_checked
from mlflowkit.recipe.rule import Problem, RecipeView
from mlflowkit.recipe.yaml_tree import KeyPath, dotted
from mlflowkit.stages.sources import CsvSource, ParquetSource, declared_files
from mlflowkit.stages.train import MODULES, UNSUPPORTED, unsupported_hint
from mlflowkit.system.text import shell_word
from mlflowkit.usercode import parse_source
from mlflowkit.values import Json

GIVEN_TO_TORCH = ("features", "outputs")
"""Arguments that mlflowkit passes to a torch module."""


def problems(values: Json, folder: Path) -> list[Problem]:
    """Missing or unsuitable references of a recipe in ``folder``."""
    view = RecipeView(values)
    rules = (_source, _declared_files, _function, _model, _transforms, _graph, _bundle)
    return [problem for rule in rules for problem in rule(view, folder)]


def _source(view: RecipeView, folder: Path) -> Iterator[Problem]:
    kind, path = view.text("data", "source", "kind"), view.text("data", "source", "path")
    if kind not in ("csv", "parquet") or not path:
        return
    source = CsvSource(kind="csv", path=path) if kind == "csv" else ParquetSource(kind="parquet", path=path)
    try:
        source.resolve(folder)
    except DataError as error:
        yield Problem(("data", "source", "path"), error.message, error.hint)
    except (OSError, ValueError) as error:
        yield Problem(("data", "source", "path"), f"cannot be looked up: {error}", "name a file, a folder or a glob")


def _declared_files(view: RecipeView, folder: Path) -> Iterator[Problem]:
    """Missing files of a python source (data.source.files)."""
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


def _function(view: RecipeView, folder: Path) -> Iterator[Problem]:
    reference = view.text("data", "source", "function")
    if view.text("data", "source", "kind") != "python" or reference.count(":") != 1:
        return
    path = ("data", "source", "function")
    problems = list(_reference(reference, path, folder, functions_only=True))
    yield from problems or _arguments(view, reference, ("data", "source", "args"), path, folder, given=())


def _model(view: RecipeView, folder: Path) -> Iterator[Problem]:
    kind, reference = view.text("model", "kind"), view.text("model", "module")
    if kind not in ("torch", "sklearn") or reference.count(":") != 1:
        return
    module = reference.partition(":")[0]
    path = ("model", "module")
    top = module.partition(".")[0]
    if top in UNSUPPORTED and find_module(module, folder) is None:
        yield Problem(path, f"{top} is not supported", unsupported_hint(top, view.task))
        return
    library = next((name for name in MODULES if module == name or module.startswith(f"{name}.")), "")
    if find_module(module, folder) is None and library:
        spec = importlib.util.find_spec(library.partition(".")[0])
        folder = Path(spec.origin).parents[1] if spec is not None and spec.origin else folder
        problems = list(_library(reference, path))
    else:
        problems = list(_reference(reference, path, folder))
    given = GIVEN_TO_TORCH if kind == "torch" else ()
    yield from problems or _arguments(view, reference, ("model", "args"), path, folder, given=given)


def _transforms(view: RecipeView, folder: Path) -> Iterator[Problem]:
    """Classes of ``preprocess.transforms``."""
    for index, _ in enumerate(view.items("preprocess", "transforms")):
        key = ("preprocess", "transforms", index)
        if (reference := view.text(*key, "module")).count(":") == 1:
            problems = list(_reference(reference, (*key, "module"), folder, functions_only=True))
            yield from problems or _arguments(view, reference, (*key, "args"), (*key, "module"), folder, given=())


def _graph(view: RecipeView, folder: Path) -> Iterator[Problem]:
    """An imported graph that is missing, invalid, or incompatible with the recipe."""
    name, key = view.text("model", "path"), ("model", "path")
    if view.text("model", "kind") != "onnx" or not name:
        return
    path = folder / name
    if not path.is_file():
        beside = [item.name for item in path.parent.glob("*.onnx")] if path.parent.is_dir() else []
        close = closest_match(path.name, beside)
        message = f"there is no file {path}"
        yield Problem(
            key, message, f"did you mean {close}?" if close else f"ls {shell_word(path.parent)} shows the files"
        )
        return
    try:
        graph = imported.read_interface(load_checked(path, weights=False))
    except EngineError as error:
        yield Problem(key, error.message, error.hint)
        return
    inputs = view.get("model", "inputs")
    columns = {str(port): listed for port, listed in inputs.items() if isinstance(listed, list)} if inputs else None
    outputs = {role: text for role, text in view.mapping("model", "outputs").items() if isinstance(text, str)}
    for mismatch in imported.find_incompatibilities(graph, view.task, columns, outputs):
        yield Problem(mismatch.key, mismatch.message, mismatch.hint, at_key=mismatch.at_key)


def _bundle(view: RecipeView, folder: Path) -> Iterator[Problem]:
    """A bundle that is the model and is not there, or does another task. Its files are verified when it is fetched."""
    reference, key = view.text("model", "reference"), ("model", "reference")
    if view.text("model", "kind") != "bundle" or not reference or is_remote_reference(reference):
        return
    path = folder / reference
    if not any((place / MANIFEST).is_file() for place in (path, path / "bundle")):
        message = f"there is no bundle in {path}: it has no {MANIFEST}"
        yield Problem(key, message, "name the folder of a bundle: mlkit lineage NAME shows that of a champion")


def _arguments(
    view: RecipeView, reference: str, args: KeyPath, path: KeyPath, folder: Path, *, given: Sequence[str]
) -> Iterator[Problem]:
    """Unknown and missing keyword arguments of a function or class."""
    module, _, name = reference.partition(":")
    file = find_module(module, folder)
    accepted = keyword_arguments(file, name, folder) if file is not None else None
    if accepted is None:
        return
    names, required = accepted
    free = [item for item in names if item not in given]
    for key in view.mapping(*args):
        if key not in free:
            close = closest_match(key, free)
            message = f"{name} takes no argument {key!r}; it takes {', '.join(free) or 'none'}"
            yield Problem((*args, key), message, f"did you mean {close}?" if close else "remove it", at_key=True)
    for key in required:
        if key not in given and key not in view.mapping(*args):
            yield Problem(path, f"{name} needs an argument {key!r}", f"add {dotted(args)}: {{{key}: ...}}")


def _reference(reference: str, path: KeyPath, folder: Path, *, functions_only: bool = False) -> Iterator[Problem]:
    """A reference to user code that does not exist or cannot be parsed."""
    module, _, name = reference.partition(":")
    file = find_module(module, folder)
    if file is None:
        beside = sorted(item.stem for item in folder.glob("*.py")) if folder.is_dir() else []
        close = closest_match(module, beside)
        if functions_only or importlib.util.find_spec(module.partition(".")[0]) is None:
            message = f"there is no {module.replace('.', '/')}.py beside the recipe"
        else:
            message = f"{module} is neither beside the recipe nor in {' or '.join(MODULES)}"
        yield Problem(path, message, f"did you mean {close}:{name}?" if close else f"write {folder / module}.py")
        return
    try:
        names = defined_names(file, file.stat().st_mtime_ns)
    except SyntaxError as error:
        yield Problem(path, f"{file}:{error.lineno}: not Python: {error.msg}", "fix that line")
        return
    except (OSError, ValueError) as error:
        yield Problem(path, f"{file} cannot be read: {error}", f"ls -l {shell_word(file)}")
        return
    if name not in names and "*" not in names:
        close = closest_match(name, sorted(names))
        message = f"{file.name} has no {name!r}"
        yield Problem(path, message, f"did you mean {module}:{close}?" if close else f"define {name} in {file}")


def reference_problems(reference: str, path: KeyPath, folder: Path) -> Iterator[Problem]:
    """Problems of a reference to code beside the recipe."""
    yield from _reference(reference, path, folder, functions_only=True)


def _library(reference: str, path: tuple[str, ...]) -> Iterator[Problem]:
    """A reference to a model of a library that does not exist."""
    module, _, name = reference.partition(":")
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        yield Problem(path, f"{top} is not installed", f"pip install {top}")
        return
    file = find_module(".".join(rest), Path(spec.submodule_search_locations[0])) if rest else Path(str(spec.origin))
    if file is None:
        modules = [item.name.removesuffix(".py") for item in Path(spec.submodule_search_locations[0]).iterdir()]
        close = closest_match(rest[0] if rest else module, [item for item in modules if not item.startswith("_")])
        yield Problem(path, f"there is no module {module}", f"did you mean {top}.{close}:{name}?" if close else "")
        return
    names = defined_names(file, file.stat().st_mtime_ns)
    if name not in names and "*" not in names:
        close = closest_match(name, sorted(item for item in names if item[:1].isupper()))
        yield Problem(path, f"{module} has no {name!r}", f"did you mean {module}:{close}?" if close else "")


def find_module(module: str, folder: Path) -> Path | None:
    """The file of a module below a folder, or None."""
    base = folder.joinpath(*module.split("."))
    files = (base.with_name(f"{base.name}.py"), base / "__init__.py")
    return next((file for file in files if file.is_file()), None)


@lru_cache(maxsize=64)
def defined_names(file: Path, modified: int) -> frozenset[str]:
    """Top-level names of a module; "*" when there may be others (a star import or ``__getattr__``).

    Raises SyntaxError. ``modified``, the file's time, is part of the cache key.
    """
    tree = parse_source(file.read_bytes(), str(file))
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


def keyword_arguments(file: Path, name: str, folder: Path, depth: int = 4) -> tuple[list[str], list[str]] | None:
    """The keyword arguments of a function or class, and the required ones.

    None where the source does not tell: ``**kwargs``, decorators, an inherited ``__init__``. Parses the definition
    only, since files of estimators are long. Follows imported names, from ``folder``.
    """
    text = file.read_text(encoding="utf-8", errors="replace")
    match = re.search(rf"^(?:class|def|async def) {name}\b.*?(?=^[^\s)#]|\Z)", text, re.M | re.S)
    if match is None:
        imported = re.search(rf"^from ([\w.]+) import (?:\([^)]*?|[^\n(]*?)\b{name}\b", text, re.M)
        if imported is None or depth == 0:
            return None
        dots = len(imported[1]) - len(imported[1].lstrip("."))
        source = find_module(imported[1].lstrip("."), file.parents[dots - 1] if dots else folder)
        return keyword_arguments(source, name, folder, depth - 1) if source is not None else None
    if text[: match.start()].rstrip("\n").rpartition("\n")[2].startswith("@"):
        return None
    try:
        node = parse_source(match.group()).body[0]
    except SyntaxError:  # the definition was not cut out correctly
        return None
    return _parameters(node)


def _parameters(node: ast.stmt) -> tuple[list[str], list[str]] | None:
    """Names and required names of the parameters of a function, or of a class with its own ``__init__``."""
    if isinstance(node, ast.ClassDef):
        inits = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        parameters = _parameters(inits[0]) if len(inits) == 1 and not inits[0].decorator_list else None
        return parameters and (parameters[0][1:], [name for name in parameters[1] if name != parameters[0][0]])
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.args.kwarg is not None:
        return None
    spec = node.args
    positional = [item.arg for item in (*spec.posonlyargs, *spec.args)]
    required = positional[: len(positional) - len(spec.defaults)]
    required += [item.arg for item, default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True) if default is None]
    return [*positional, *(item.arg for item in spec.kwonlyargs)], required


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, including those inside if, try and with."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            for name in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from _top_level(handler.body)
