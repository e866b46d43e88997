"""mlflowkit: one recipe, from data to a model that answers requests.

>>> import mlflowkit as mk
>>> mk.__version__
'0.1.0'

``mk.load(path, overrides)`` composes and checks a recipe, ``mk.plan(recipe)`` lists what a run would do and why,
``mk.run(recipe)`` runs it, ``mk.benchmark(path)`` measures latency, ``mk.drift(a, b)`` compares tables,
``mk.monitor(service)`` tells what is seen in live traffic; ``mk.errors`` has the exceptions. The names are imported
lazily from `mlflowkit.api` (``__init__.pyi`` has their types).
"""

from __future__ import annotations

import importlib
from typing import Any

from mlflowkit.system import telemetry

telemetry.switch_off()

__version__ = "0.1.0"
__all__ = ["Plan", "Recipe", "Run", "__version__", "benchmark", "drift", "errors", "load", "monitor", "plan", "run"]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("mlflowkit.errors")
    if name in __all__:
        return getattr(importlib.import_module("mlflowkit.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
