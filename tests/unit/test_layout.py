"""The layout keeps its promises: no circle of modules, no folder that one cannot take in at a glance."""

from __future__ import annotations

from graphlib import TopologicalSorter
from pathlib import Path

import grimp

PACKAGE = Path(__file__).parents[2] / "mlflowkit"
MOST_MODULES = 14
EXEMPT = {"adapters": "one vendor a module", "cli/commands": "one command a module"}


def test_no_modules_import_one_another_in_a_circle() -> None:
    """Imports inside functions count; those for type checkers do not. TopologicalSorter raises CycleError."""
    graph = grimp.build_graph("mlflowkit", exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(tuple(TopologicalSorter(imports).static_order())) > 250


def test_a_folder_has_at_most_fourteen_modules() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    sizes = {
        str(folder.relative_to(PACKAGE)): sum(path.name != "__init__.py" for path in folder.glob("*.py"))
        for folder in folders
    }
    assert {name: size for name, size in sizes.items() if size > MOST_MODULES and name not in EXEMPT} == {}
