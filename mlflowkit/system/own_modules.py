"""mlflowkit's own import graph, read from source: which modules the code of a stage or an adapter consists of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
CONTRACTS = ("errors", "ports", "values")
"""Modules with declarations only, which no result depends on."""

_OWN = re.compile(
    r"^[ \t]*from mlflowkit((?:\.\w+)*) import (\([^)]*\)|[^\n]+)|^[ \t]*import mlflowkit\.([\w.]+)", re.M
)
_FACTORY = re.compile(r"^ *def (\w+)\(.*?(?=^ *(?:def|class|@)\b|\Z)", re.M | re.S)
_ADAPTER = re.compile(r"^ +from mlflowkit\.(adapters[\w.]*) import", re.M)
_LIBRARY = re.compile(r"^[ \t]*(?:import|from) ([A-Za-z_]\w*)", re.M)


@dataclass(frozen=True, slots=True)
class ModuleImports:
    """The modules of mlflowkit, and the top-level names of libraries, that a file imports anywhere."""

    own: tuple[str, ...]
    libraries: tuple[str, ...]


def own_modules(roots: Sequence[str]) -> dict[str, Path]:
    """The files of the transitive imports of ``roots`` within mlflowkit, ``roots`` included.

    >>> sorted(own_modules(["system.digests"]))
    ['system', 'system.digests']
    """
    modules: dict[str, Path] = {}
    pending = list(roots)
    while pending:
        name = pending.pop()
        if name in modules or name in CONTRACTS:
            continue
        base = PACKAGE.joinpath(*name.split("."))
        path = next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)
        if path is None:
            continue
        modules[name] = path
        pending.extend(read_imports(path).own)
        if parent := name.rpartition(".")[0]:
            pending.append(parent)
    return dict(sorted(modules.items()))


@lru_cache(maxsize=1)
def adapter_modules() -> Mapping[str, tuple[str, ...]]:
    """The adapter modules that each function of `mlflowkit.wiring` imports, read from its source.

    A function is named for its port, or ``PORT_KIND`` where the recipe selects one of several adapters.

    >>> adapter_modules()["tables"], adapter_modules()["trainer_torch"]
    (('adapters.arrow',), ('adapters.ray_train',))
    """
    functions = _FACTORY.finditer((PACKAGE / "wiring.py").read_text(encoding="utf-8"))
    return {match[1]: tuple(dict.fromkeys(_ADAPTER.findall(match[0]))) for match in functions}


@lru_cache(maxsize=256)
def read_imports(path: Path) -> ModuleImports:
    """The imports of a file, those inside functions included."""
    text = path.read_text(encoding="utf-8")
    own: list[str] = []
    for module, names, plain in _OWN.findall(text):
        base = module.removeprefix(".")
        own.extend([base] if base else [])
        own.extend(f"{base}.{name}".removeprefix(".") for name in re.findall(r"\w+", names))
        own.extend([plain] if plain else [])
    return ModuleImports(tuple(own), tuple(sorted(set(_LIBRARY.findall(text)))))
