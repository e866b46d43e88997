"""One name, one meaning: class and module names are unique, and variables are not called ``found`` or ``one``."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import mlflowkit

PACKAGE = Path(mlflowkit.__file__).parent
SHARED_CLASS_NAMES = {
    "Spec": "each stage's Spec, used as stages.NAME.Spec",
}
"""Class names that may be defined more than once, each with a reason; at most 10."""
SHARED_MODULE_NAMES = {
    "__init__": "packages",
    "__main__": "packages that can be run",
}
"""Module names that may exist more than once, each with a reason."""
VAGUE_NAMES = ("found", "one", "told", "said", "made")
MAX_VAGUE_ASSIGNMENTS = 60


@cache
def _trees() -> dict[Path, ast.Module]:
    return {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(PACKAGE.rglob("*.py"))}


def _bound_names(tree: ast.Module) -> Iterator[str]:
    """Names that are assigned: variables, loop and comprehension variables, parameters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def test_class_names_are_unique() -> None:
    assert len(SHARED_CLASS_NAMES) <= 10
    homes: dict[str, list[str]] = defaultdict(list)
    for file, tree in _trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(str(file.relative_to(PACKAGE)))
    shared = {name: files for name, files in homes.items() if len(files) > 1 and name not in SHARED_CLASS_NAMES}
    assert not shared, "\n".join(f"{name}: {', '.join(files)}" for name, files in sorted(shared.items()))


def test_module_names_are_unique() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for file in _trees():
        relative = file.relative_to(PACKAGE)
        if relative.parts[:2] != ("cli", "commands"):  # named for their commands
            homes[file.stem].append(str(relative))
    shared = {name: files for name, files in homes.items() if len(files) > 1 and name not in SHARED_MODULE_NAMES}
    assert not shared, "\n".join(f"{name}: {', '.join(files)}" for name, files in sorted(shared.items()))


def test_variables_are_named_for_what_they_hold() -> None:
    counts: Counter[str] = Counter()
    for file, tree in _trees().items():
        counts.update({str(file.relative_to(PACKAGE)): sum(name in VAGUE_NAMES for name in _bound_names(tree))})
    vague = {file: count for file, count in counts.most_common() if count}
    total = sum(vague.values())
    listed = "\n".join(f"{count:4} {file}" for file, count in vague.items())
    assert total < MAX_VAGUE_ASSIGNMENTS, f"{', '.join(VAGUE_NAMES)} are assigned {total} times:\n{listed}"
