"""User code: ``module:attr`` references of a recipe, located and digested without executing anything.

A module beside the recipe is imported under a private name (``_mlkit_<digest>.datasets``), and its own imports
are looked up beside the recipe first. So two recipes may both have a ``datasets.py``, a third-party package of the
same name stays importable elsewhere, a changed file is a new module, and ``sys.path`` is unchanged.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from mlflowkit.errors import MlkitError, UserCodeError, closest_match
from mlflowkit.system.entry_points import Plugin
from mlflowkit.system.text import shell_word

PREFIX = "_mlkit_"
_PARSER = threading.Lock()
ALIASES: Mapping[str, str] = {
    "sklearn": "scikit_learn",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "cv2": "opencv_python",
    "dateutil": "python_dateutil",
    "skimage": "scikit_image",
    "bs4": "beautifulsoup4",
}
"""Common modules whose distribution has another name."""


@dataclass(frozen=True, slots=True)
class SourceClosure:
    """The source files beside the recipe that a reference runs, and the libraries they import.

    ``files`` are relative to the recipe's folder and sorted; ``digest`` covers their names and content;
    ``distributions`` pairs each imported distribution with its version ("" when it is not installed).
    """

    files: tuple[str, ...]
    digest: str
    distributions: tuple[tuple[str, str], ...]


def source_closure(reference: str, folder: Path) -> SourceClosure:
    """Collect the transitive imports of the module of ``reference`` by reading the sources (ast).

    Imports inside functions, relative imports, packages, submodules named by ``from package import submodule`` and
    ``importlib.import_module("literal")`` are followed. A reference outside ``folder`` (mlflowkit, sklearn) has no
    files, only a distribution. Raises UserCodeError, with file:line, when the module is not found or does not parse.

    >>> source_closure("mlflowkit.models:TabularMLP", Path("recipes")).files
    ()
    """
    module = _split_reference(reference)[0]
    top = module.partition(".")[0]
    if not _is_local(top, folder):
        if not _is_importable(top):
            raise _module_not_found(module, folder)
        return SourceClosure((), hashlib.sha256().hexdigest(), _distributions({top}))
    return _closure(*_follow_imports(module, folder), folder)


def _closure(files: set[Path], outside: set[str], folder: Path) -> SourceClosure:
    digest = hashlib.sha256()
    names = sorted(file.relative_to(folder).as_posix() for file in files)
    for name in names:
        content = (folder / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return SourceClosure(tuple(names), digest.hexdigest(), _distributions(outside))


def installed_closure(reference: str) -> tuple[Path, SourceClosure]:
    """Collect the source files that an installed module consists of: those of its top-level package that it imports.

    Returns the folder that the file names are relative to, and the closure. Raises UserCodeError when the module is not
    found.
    """
    module = reference.partition(":")[0]
    top = module.partition(".")[0]
    spec = PathFinder.find_spec(top)
    if spec is None or spec.origin is None:
        raise UserCodeError(f"there is no module {top!r}", hint=f"pip install {top}")
    folder = Path(spec.origin).parents[1 if spec.submodule_search_locations else 0]
    files, outside = _follow_imports(module, folder, only=top)
    return folder, _closure(files, outside, folder)


def plugin_digest(plugin: Plugin) -> str:
    """Digest of a plugin's version, source files and libraries."""
    closure = installed_closure(plugin.reference)[1]
    return hashlib.sha256(repr((plugin.version, closure.digest, closure.distributions)).encode()).hexdigest()


def load(reference: str, folder: Path, *, libraries: Sequence[str] = ()) -> Any:
    """Import the object of ``reference`` from ``folder``, mlflowkit.models or one of ``libraries``.

    Modules beside the recipe come first. Works in any process that sees ``folder``. Raises UserCodeError when the
    object does not exist (with the most similar name) or its import raises.
    """
    module_name, attribute = _split_reference(reference)
    folder = folder.resolve()
    top = module_name.partition(".")[0]
    if _is_local(top, folder):
        if _module_files(module_name, folder)[1] != module_name:
            raise _module_not_found(module_name, folder)
        namespace = _namespace(folder, source_closure(reference, folder).digest)
        module_name = f"{namespace}.{module_name}"
    elif not any(f"{module_name}.".startswith(f"{library}.") for library in ("mlflowkit.models", *libraries)):
        raise _module_not_found(module_name, folder, libraries)
    with translate_user_errors(reference, folder):
        module = importlib.import_module(module_name)
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        where = _display_path(Path(module.__file__), folder) if module.__file__ else reference
        public = [name for name in vars(module) if not name.startswith("_")]
        hint = _suggest(attribute, public) or f"define {attribute} there, or name another object"
        raise UserCodeError(f"{where}: there is no {attribute!r} in it (named by {reference!r})", hint=hint) from error


@contextmanager
def translate_user_errors(reference: str, folder: Path) -> Iterator[None]:
    """Translate exceptions of user code into a UserCodeError that names the user's file and line.

    MlkitError, KeyboardInterrupt and MemoryError pass through unchanged.
    """
    try:
        yield
    except (MlkitError, KeyboardInterrupt, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        where = _error_location(error, folder.resolve())
        message, hint = f"{where}: {reference} raised {type(error).__name__}: {error}".rstrip(": "), f"see {where}"
        if isinstance(error, ModuleNotFoundError) and error.name:
            top = error.name.partition(".")[0]
            hint = f"pip install {ALIASES.get(top, top).replace('_', '-')}, or put {top}.py beside the recipe"
        raise UserCodeError(message, hint=hint) from error


def installed() -> Mapping[str, str]:
    """Versions of the installed distributions by normalised name, read from folder names (under 1 ms).

    >>> installed()["numpy"][0].isdigit()
    True
    """
    return _installed_versions(tuple(sys.path))


def _split_reference(reference: str) -> tuple[str, str]:
    module, separator, attribute = reference.partition(":")
    valid = separator and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))
    if not valid:
        raise UserCodeError(f"{reference!r} is not a reference to Python code", hint="write MODULE:NAME")
    return module, attribute


def _is_local(top: str, folder: Path) -> bool:
    """Whether a top-level module is beside the recipe (mlflowkit and built-in modules never are)."""
    if top == "mlflowkit" or top in sys.builtin_module_names:
        return False
    return (folder / f"{top}.py").is_file() or any((folder / top).glob("*.py"))


def _module_files(module: str, folder: Path) -> tuple[list[Path], str]:
    """Files beside the recipe that ``import module`` runs, and the longest prefix of ``module`` that exists."""
    files, path, prefix = [], folder, ""
    for part in module.split("."):
        package, single = path / part, path / f"{part}.py"
        if (package / "__init__.py").is_file():
            files.append(package / "__init__.py")
        elif single.is_file():
            files.append(single)
        elif not package.is_dir():
            break
        path, prefix = package, f"{prefix}.{part}".lstrip(".")
    return files, prefix


def _follow_imports(module: str, folder: Path, only: str = "") -> tuple[set[Path], set[str]]:
    """Files in a folder that a module there reaches, and the top-level modules imported from elsewhere.

    With ``only``, just this top-level module counts as being in the folder.
    """
    start, prefix = _module_files(module, folder)
    if prefix != module:
        raise _module_not_found(module, folder)
    queue, files, outside = list(start), set(start), set[str]()
    while queue:
        file = queue.pop()
        for name in _imported_names(file, folder):
            top = name.partition(".")[0]
            if (only and top != only) or not _is_local(top, folder):
                outside.add(top)
                continue
            fresh = [path for path in _module_files(name, folder)[0] if path not in files]
            files.update(fresh)
            queue.extend(fresh)
    return files, {name for name in outside if name not in sys.stdlib_module_names}


def _imported_names(file: Path, folder: Path) -> Iterator[str]:
    """Absolute names (from the recipe's folder) that a file may import, submodules included."""
    parts = file.relative_to(folder).with_suffix("").parts
    package = parts[:-1]
    tree = _parse(file, folder)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level > len(package) + 1:
                continue
            base = package[: len(package) - node.level + 1] if node.level else ()
            root = ".".join((*base, node.module) if node.module else base)
            if root:
                yield root
            names = [alias.name for alias in node.names]
            if "*" in names:
                names = _star_names(root, folder)
            yield from (f"{root}.{name}".lstrip(".") for name in names)
        elif isinstance(node, ast.Call) and (literal := _literal_import(node)):
            yield literal


def _literal_import(node: ast.Call) -> str:
    """Name in ``import_module("name")`` or ``__import__("name")``, else ""."""
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
        value = node.args[0].value
        if isinstance(value, str) and all(part.isidentifier() for part in value.split(".")):
            return value
    return ""


def _star_names(package: str, folder: Path) -> list[str]:
    """Names in ``__all__`` of a package: ``from package import *`` may import them as submodules."""
    files, prefix = _module_files(package, folder)
    if not files or prefix != package:
        return []
    for node in _parse(files[-1], folder).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            listed = getattr(node, "value", None)
            elements = listed.elts if isinstance(listed, ast.List | ast.Tuple) else []
            return [item.value for item in elements if isinstance(item, ast.Constant) and isinstance(item.value, str)]
    return []


def parse_source(source: str | bytes, filename: str = "<unknown>") -> ast.Module:
    """The syntax tree of Python source, from any thread. Raises SyntaxError and ValueError.

    CPython 3.11 counts the depth of a tree's conversion per interpreter: two threads that parse at once may get a
    SystemError (python/cpython#106905).
    """
    with _PARSER:
        return ast.parse(source, filename=filename)


def _parse(file: Path, folder: Path) -> ast.Module:
    try:
        return parse_source(file.read_bytes(), str(file))
    except SyntaxError as error:
        location = f"{_display_path(file, folder)}:{error.lineno or 1}"
        raise UserCodeError(f"{location}: {error.msg}", hint=f"fix the syntax at {location}") from error
    except ValueError as error:
        message = f"{_display_path(file, folder)}:1: {error}"
        raise UserCodeError(message, hint=f"python -m py_compile {shell_word(file)} says why") from error


def _is_importable(top: str) -> bool:
    return top in sys.stdlib_module_names or top == "mlflowkit" or PathFinder.find_spec(top) is not None


def _distributions(modules: set[str]) -> tuple[tuple[str, str], ...]:
    libraries = modules - sys.stdlib_module_names
    return tuple(sorted({_distribution(top, tuple(sys.path)) for top in libraries}))


@lru_cache(maxsize=1024)
def _distribution(top: str, path: tuple[str, ...]) -> tuple[str, str]:
    """The distribution of a top-level module, and its version.

    Usually derived from names alone. Else the RECORD files beside the module are searched (tens of milliseconds,
    once); a module without a distribution gets the digest of its file as version.
    """
    versions = _installed_versions(path)
    for name in (ALIASES.get(top, top), top):
        if (normal := _normalise(name)) in versions:
            return normal, versions[normal]
    spec = PathFinder.find_spec(top, list(path))
    if spec is None:
        return _normalise(top), ""
    if spec.origin is not None and (file := Path(spec.origin)).is_file():
        site = file.parent.parent if spec.submodule_search_locations else file.parent
        return _search_records(top, site) or (top, "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()[:16])
    return top, "namespace"


def _search_records(top: str, site: Path) -> tuple[str, str] | None:
    """The distribution in a site-packages folder whose RECORD lists the module."""
    marks = (f"{top}/", f"{top}.")
    for record in sorted(site.glob("*.dist-info/RECORD")):
        with record.open(encoding="utf-8", errors="replace") as lines:
            if any(line.startswith(marks) for line in lines):
                name, _, version = record.parent.name.removesuffix(".dist-info").partition("-")
                return _normalise(name), version
    return None


@lru_cache(maxsize=8)
def _installed_versions(path: tuple[str, ...]) -> Mapping[str, str]:
    versions: dict[str, str] = {}
    for entry in path:
        try:
            names = os.listdir(entry or ".")
        except OSError:  # zip files and missing folders are legal on sys.path
            continue
        for item in names:
            stem, _, kind = item.rpartition(".")
            if kind in ("dist-info", "egg-info"):
                name, _, version = stem.partition("-")
                if version:  # an egg-info in a source checkout has none in its name
                    versions.setdefault(_normalise(name), version.partition("-py")[0])
    return versions


def _normalise(name: str) -> str:
    return name.lower().replace("-", "_").replace(".", "_")


class _LocalFinder:
    """Meta-path finder for the private namespaces only."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(PREFIX) or path is None:
            return None
        finders = (importlib.machinery.FileFinder(entry, (_LocalLoader, [".py"])) for entry in path)
        return next(filter(None, (finder.find_spec(fullname, target) for finder in finders)), None)


class _LocalLoader(importlib.machinery.SourceFileLoader):
    """Compiles from source every time, without bytecode cache (whose timestamps are too coarse)."""

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def exec_module(self, module: ModuleType) -> None:
        namespace = module.__name__.partition(".")[0]
        folder = Path(next(iter(sys.modules[namespace].__path__)))
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _importer(namespace, folder)}
        super().exec_module(module)


def _importer(namespace: str, folder: Path) -> Any:
    """``__import__`` for modules beside the recipe: local modules come first."""

    def __import__(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        top = name.partition(".")[0]
        if level or not _is_local(top, folder):
            return builtins.__import__(name, globals, locals, fromlist, level)
        private = f"{namespace}.{name}"
        if fromlist:
            return builtins.__import__(private, globals, locals, fromlist, 0)
        importlib.import_module(private)
        return sys.modules[f"{namespace}.{top}"]

    return __import__


def _namespace(folder: Path, digest: str) -> str:
    """Get or create the private package of a folder with this digest."""
    name = PREFIX + hashlib.sha256(f"{folder}\0{digest}".encode()).hexdigest()[:16]
    if _LocalFinder not in sys.meta_path:
        sys.meta_path.insert(0, _LocalFinder)
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules.setdefault(name, package)
    return name


def _module_not_found(module: str, folder: Path, libraries: Sequence[str] = ()) -> UserCodeError:
    top = module.partition(".")[0]
    expected = folder / (module.replace(".", "/") + ".py")
    present = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    names = sorted({name for name in present if name.isidentifier()} | set(libraries))
    hint = _suggest(module, names) or _suggest(top, names) or f"create {expected}"
    if libraries and _is_importable(top):
        return UserCodeError(
            f"{module} is neither beside the recipe nor one of {', '.join(libraries)}",
            hint=f"put the code in {expected}, or use one of these libraries",
        )
    return UserCodeError(f"there is no module {module!r} beside the recipe, in {folder}", hint=hint)


def _suggest(name: str, names: Sequence[str]) -> str:
    close = closest_match(name, names)
    return f"did you mean {close!r}?" if close else ""


def _error_location(error: BaseException, folder: Path) -> str:
    """``file:line`` of the innermost frame in the recipe's folder, else of the innermost frame."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_display_path(Path(error.filename), folder)}:{error.lineno or 1}"
    frames = [(Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    local = [frame for frame in frames if frame[0].is_relative_to(folder)]
    file, line = (local or frames)[-1]
    return f"{_display_path(file, folder)}:{line}"


def _display_path(file: Path, folder: Path) -> str:
    """A path relative to the working directory when it is below it."""
    full = file if file.is_absolute() else folder / file
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)
