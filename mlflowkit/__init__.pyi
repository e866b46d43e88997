from mlflowkit import errors as errors
from mlflowkit.api import Plan as Plan
from mlflowkit.api import Recipe as Recipe
from mlflowkit.api import Run as Run
from mlflowkit.api import benchmark as benchmark
from mlflowkit.api import drift as drift
from mlflowkit.api import load as load
from mlflowkit.api import monitor as monitor
from mlflowkit.api import plan as plan
from mlflowkit.api import run as run

__version__: str
__all__ = ["Plan", "Recipe", "Run", "__version__", "benchmark", "drift", "errors", "load", "monitor", "plan", "run"]
