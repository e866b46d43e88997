"""Python that a recipe names: ``module:attr`` beside the recipe. Located and digested without being executed.

A module beside the recipe is imported under a private name (``_mlkit_<digest>.datasets``), and what *it* imports
is looked up beside the recipe first. So two recipes may both have a ``datasets.py``, a third-party package of the
same name stays visible to everybody else, a changed file is a new module, and ``sys.path`` is left alone.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from mlflowkit.errors import MlkitError, UserCodeError, nearest

PREFIX = "_mlkit_"
ALIASES: Mapping[str, str] = {
    "sklearn": "scikit_learn",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "cv2": "opencv_python",
    "dateutil": "python_dateutil",
    "skimage": "scikit_image",
    "bs4": "beautifulsoup4",
}
"""Modules whose distribution has another name, so that the common ones need no search."""


@dataclass(frozen=True, slots=True)
class Closure:
    """The files beside the recipe that a reference runs, and the libraries that they import.

    ``files`` are relative to the recipe's folder and sorted; ``digest`` is of their names and content;
    ``distributions`` maps the installed distributions imported from outside to their versions ("" when a module
    that is imported somewhere is not installed).
    """

    files: tuple[str, ...]
    digest: str
    distributions: tuple[tuple[str, str], ...]


def closure(reference: str, folder: Path) -> Closure:
    """Follow imports statically (ast; nothing is executed) from the module of ``reference``.

    Imports inside functions, relative imports, packages, submodules named by ``from package import submodule`` and
    ``importlib.import_module("literal")`` are followed. A reference outside ``folder`` (mlflowkit, sklearn) has no
    files; its distribution and version are listed. Raises UserCodeError when the module is not found or does not
    parse (file:line given).

    >>> closure("mlflowkit.models:TabularMLP", Path("recipes")).files
    ()
    """
    module = _split(reference)[0]
    top = module.partition(".")[0]
    if not _beside(top, folder):
        if not _importable(top):
            raise _module_not_found(module, folder)
        return Closure((), hashlib.sha256().hexdigest(), _distributions({top}))
    files, outside = _follow(module, folder)
    digest = hashlib.sha256()
    names = sorted(file.relative_to(folder).as_posix() for file in files)
    for name in names:
        content = (folder / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return Closure(tuple(names), digest.hexdigest(), _distributions(outside))


def load(reference: str, folder: Path, *, libraries: Sequence[str] = ()) -> Any:
    """Import the object of ``reference`` from ``folder``, mlflowkit.models or one of ``libraries``.

    What is beside the recipe comes first. Works in any process that sees ``folder``. Raises UserCodeError when the
    object is not there (the nearest name is suggested) or when its import raises.
    """
    module_name, attribute = _split(reference)
    folder = folder.resolve()
    top = module_name.partition(".")[0]
    if _beside(top, folder):
        if _files(module_name, folder)[1] != module_name:
            raise _module_not_found(module_name, folder)
        namespace = _namespace(folder, closure(reference, folder).digest)
        module_name = f"{namespace}.{module_name}"
    elif not _allowed(module_name, libraries):
        raise _module_not_found(module_name, folder, libraries)
    with blame(reference, folder):
        module = importlib.import_module(module_name)
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        where = _shown(Path(module.__file__), folder) if module.__file__ else reference
        public = [name for name in vars(module) if not name.startswith("_")]
        raise UserCodeError(
            f"{where}: there is no {attribute!r} in it (named by {reference!r})",
            hint=_meant(attribute, public) or f"define {attribute} there, or name another object",
        ) from error


@contextmanager
def blame(reference: str, folder: Path) -> Iterator[None]:
    """Turn what code named by a recipe raises into a UserCodeError that points at the user's own file and line.

    Errors of mlflowkit, KeyboardInterrupt and MemoryError pass through as they are.
    """
    try:
        yield
    except (MlkitError, KeyboardInterrupt, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        where = _place(error, folder.resolve())
        message = f"{where}: {reference} raised {type(error).__name__}: {error}".rstrip(": ")
        raise UserCodeError(message, hint=_advice(error, where)) from error


def installed() -> Mapping[str, str]:
    """Version of each installed distribution, by normalised name; read from folder names, in under a millisecond.

    >>> installed()["numpy"][0].isdigit()
    True
    """
    return _installed(tuple(sys.path))


# ------------------------------------------------------------------------------------------- following imports


def _split(reference: str) -> tuple[str, str]:
    module, separator, attribute = reference.partition(":")
    valid = separator and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))
    if not valid:
        raise UserCodeError(f"{reference!r} is not a reference to Python code", hint="write module:name")
    return module, attribute


def _beside(top: str, folder: Path) -> bool:
    """Whether a top-level name means something beside the recipe (mlflowkit and built-in modules never do)."""
    if top == "mlflowkit" or top in sys.builtin_module_names:
        return False
    return (folder / f"{top}.py").is_file() or any((folder / top).glob("*.py"))


def _files(module: str, folder: Path) -> tuple[list[Path], str]:
    """Files run by ``import module`` beside the recipe, and the longest prefix of it that is a module there."""
    files, path, found = [], folder, ""
    for part in module.split("."):
        package, single = path / part, path / f"{part}.py"
        if (package / "__init__.py").is_file():
            files.append(package / "__init__.py")
        elif single.is_file():
            files.append(single)
        elif not package.is_dir():
            break
        path, found = package, f"{found}.{part}".lstrip(".")
    return files, found


def _follow(module: str, folder: Path) -> tuple[set[Path], set[str]]:
    """Files reached from a module beside the recipe, and top-level names imported from elsewhere."""
    start, found = _files(module, folder)
    if found != module:
        raise _module_not_found(module, folder)
    queue, seen, outside = list(start), set(start), set[str]()
    while queue:
        file = queue.pop()
        for name in _imports(file, folder):
            top = name.partition(".")[0]
            if not _beside(top, folder):
                outside.add(top)
                continue
            fresh = [path for path in _files(name, folder)[0] if path not in seen]
            seen.update(fresh)
            queue.extend(fresh)
    return seen, {name for name in outside if name not in sys.stdlib_module_names}


def _imports(file: Path, folder: Path) -> Iterator[str]:
    """Absolute names (from the recipe's folder) of all that a file may import, submodules included."""
    parts = file.relative_to(folder).with_suffix("").parts
    package = parts[:-1]  # of __init__.py too: its own folder is its package
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
                names = _star(root, folder)
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


def _star(package: str, folder: Path) -> list[str]:
    """Names that ``from package import *`` may import as submodules: those listed in ``__all__``."""
    files, found = _files(package, folder)
    if not files or found != package:
        return []
    for node in _parse(files[-1], folder).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            listed = getattr(node, "value", None)
            elements = listed.elts if isinstance(listed, ast.List | ast.Tuple) else []
            return [item.value for item in elements if isinstance(item, ast.Constant) and isinstance(item.value, str)]
    return []


def _parse(file: Path, folder: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes(), filename=str(file))
    except SyntaxError as error:
        place = f"{_shown(file, folder)}:{error.lineno or 1}"
        raise UserCodeError(f"{place}: {error.msg}", hint=f"mend the syntax at {place}") from error
    except ValueError as error:
        raise UserCodeError(
            f"{_shown(file, folder)}:1: {error}", hint="is it a Python file, saved as UTF-8?"
        ) from error


# ------------------------------------------------------------------------------------------------ distributions


def _importable(top: str) -> bool:
    return top in sys.stdlib_module_names or top == "mlflowkit" or PathFinder.find_spec(top) is not None


def _distributions(modules: set[str]) -> tuple[tuple[str, str], ...]:
    found = {_distribution(top, tuple(sys.path)) for top in modules if top not in sys.stdlib_module_names}
    return tuple(sorted(found))


@lru_cache(maxsize=1024)
def _distribution(top: str, path: tuple[str, ...]) -> tuple[str, str]:
    """Distribution that a top-level module comes from, and its version.

    The usual case is told from names alone. Else the records of what is installed beside the module are searched
    (tens of milliseconds, once); a module of no distribution is named with a digest of its file.
    """
    versions = _installed(path)
    for name in (ALIASES.get(top, top), top):
        if (normal := _normalise(name)) in versions:
            return normal, versions[normal]
    spec = PathFinder.find_spec(top, list(path))
    if spec is None:
        return _normalise(top), ""
    if spec.origin is not None and (file := Path(spec.origin)).is_file():
        site = file.parent.parent if spec.submodule_search_locations else file.parent
        owner = _owner(top, site)
        return owner or (top, "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()[:16])
    return top, "namespace"


def _owner(top: str, site: Path) -> tuple[str, str] | None:
    """Distribution whose record lists the module, among those installed in one site-packages folder."""
    marks = (f"{top}/", f"{top}.")
    for record in sorted(site.glob("*.dist-info/RECORD")):
        with record.open(encoding="utf-8", errors="replace") as lines:
            if any(line.startswith(marks) for line in lines):
                name, _, version = record.parent.name.removesuffix(".dist-info").partition("-")
                return _normalise(name), version
    return None


@lru_cache(maxsize=8)
def _installed(path: tuple[str, ...]) -> Mapping[str, str]:
    versions: dict[str, str] = {}
    for entry in path:
        try:
            names = os.listdir(entry or ".")
        except OSError:  # zip files and folders that do not exist are legal on sys.path and hold no dist-info
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


# ------------------------------------------------------------------------------------------------------ loading


class _Finder:
    """Meta-path finder for the private namespaces, and for nothing else."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(PREFIX) or path is None:
            return None
        for entry in path:
            finder = importlib.machinery.FileFinder(entry, (_Loader, [".py"]))
            if (spec := finder.find_spec(fullname, target)) is not None:
                return spec
        return None


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles from source every time (a cached bytecode may be stale within a second) and leaves no cache."""

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def exec_module(self, module: ModuleType) -> None:
        namespace = module.__name__.partition(".")[0]
        folder = Path(next(iter(sys.modules[namespace].__path__)))
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _importer(namespace, folder)}
        super().exec_module(module)


def _importer(namespace: str, folder: Path) -> Any:
    """``__import__`` as modules beside the recipe see it: what is beside them comes first."""

    def __import__(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        top = name.partition(".")[0]
        if level or not _beside(top, folder):
            return builtins.__import__(name, globals, locals, fromlist, level)
        private = f"{namespace}.{name}"
        if fromlist:
            return builtins.__import__(private, globals, locals, fromlist, 0)
        importlib.import_module(private)
        return sys.modules[f"{namespace}.{top}"]

    return __import__


def _namespace(folder: Path, digest: str) -> str:
    """The private package of one folder in one state; made on first use."""
    name = PREFIX + hashlib.sha256(f"{folder}\0{digest}".encode()).hexdigest()[:16]
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules.setdefault(name, package)
    return name


def _allowed(module: str, libraries: Sequence[str]) -> bool:
    return any(module == library or module.startswith(f"{library}.") for library in ("mlflowkit.models", *libraries))


# ------------------------------------------------------------------------------------------------------- errors


def _module_not_found(module: str, folder: Path, libraries: Sequence[str] = ()) -> UserCodeError:
    top = module.partition(".")[0]
    wanted = folder / (module.replace(".", "/") + ".py")
    present = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    known = sorted({name for name in present if name.isidentifier()} | set(libraries))
    hint = _meant(module, known) or _meant(top, known) or f"create {wanted}"
    if libraries and _importable(top):
        return UserCodeError(
            f"{module} is neither beside the recipe nor one of {', '.join(libraries)}",
            hint=f"put the code in {wanted}, or use one of these libraries",
        )
    return UserCodeError(f"there is no module {module!r} beside the recipe, in {folder}", hint=hint)


def _meant(name: str, known: Sequence[str]) -> str:
    close = nearest(name, known)
    return f"did you mean {close!r}?" if close else ""


def _place(error: BaseException, folder: Path) -> str:
    """``file:line`` of the innermost frame in the recipe's folder, else of the innermost frame."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(Path(error.filename), folder)}:{error.lineno or 1}"
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append((Path(trace.tb_frame.f_code.co_filename), trace.tb_lineno))
        trace = trace.tb_next
    own = [frame for frame in frames if frame[0].is_relative_to(folder)]
    file, line = (own or frames)[-1]
    return f"{_shown(file, folder)}:{line}"


def _shown(file: Path, folder: Path) -> str:
    """A path as a person at the keyboard would type it: relative to the working folder when it is below it."""
    here = Path.cwd()
    full = file if file.is_absolute() else folder / file
    return str(full.relative_to(here)) if full.is_relative_to(here) else str(full)


def _advice(error: BaseException, where: str) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        top = error.name.partition(".")[0]
        return f"pip install {ALIASES.get(top, top).replace('_', '-')}, or put {top}.py beside the recipe"
    return f"see {where}"
