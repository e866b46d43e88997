"""The programs beside the recipes, as modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

RECIPES = Path(__file__).parents[2] / "recipes"


@contextmanager
def recipe_program(name: str) -> Iterator[ModuleType]:
    """A program of ``recipes/`` as a module, beside the modules that it imports; all are forgotten at the end."""
    before = set(sys.modules)
    sys.path.insert(0, str(RECIPES))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(RECIPES))
        for module in set(sys.modules) - before:
            if str(RECIPES) in str(getattr(sys.modules[module], "__file__", "")):
                del sys.modules[module]
