"""mlflowkit: one recipe, from data to a model that answers requests.

>>> import mlflowkit as mk
>>> mk.__version__
'0.1.0'
"""

from __future__ import annotations

__version__ = "0.1.0"
