"""The base classes of plugins, and the types of their methods. See docs/howto/extend.md and `mlflowkit.testing`."""

from __future__ import annotations

from mlflowkit.data_access.source_sections import DataSource, SourceContent
from mlflowkit.errors import DataError
from mlflowkit.graphs.candidates import GraphPass
from mlflowkit.judging.metric_plugins import MeanMetric, Metric
from mlflowkit.judging.metrics import LabelledPredictions
from mlflowkit.judging.stats import Bounds, Estimate, UndefinedMetricError
from mlflowkit.ports import Tables
from mlflowkit.sections import Section

__all__ = [
    "Bounds",
    "DataError",
    "DataSource",
    "Estimate",
    "GraphPass",
    "LabelledPredictions",
    "MeanMetric",
    "Metric",
    "Section",
    "SourceContent",
    "Tables",
    "UndefinedMetricError",
]
