from mlflowkit import errors as errors
from mlflowkit.library import Plan as Plan
from mlflowkit.library import Recipe as Recipe
from mlflowkit.library import Run as Run
from mlflowkit.library import benchmark as benchmark
from mlflowkit.library import load as load
from mlflowkit.library import plan as plan
from mlflowkit.library import run as run

__version__: str
__all__ = ["Plan", "Recipe", "Run", "__version__", "benchmark", "errors", "load", "plan", "run"]
