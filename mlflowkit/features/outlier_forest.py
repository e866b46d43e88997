"""Rows unlike the training data: an isolation forest as plain tables, fitted when a model is packaged.

Source: Liu, Ting, Zhou, "Isolation Forest", ICDM 2008: rows that random splits isolate after few steps are outliers.
scikit-learn fits it; here its trees are arrays that are evaluated without it, in the process that counts live rows,
with the same scores. A missing number is the median, a text its information, the logarithm of how rare its value is
among the training rows; a new value is rarer than any of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.reference import ColumnReference
from mlflowkit.values import Json

EVIDENCE_FILE = "evidence/outlier.json"
"""Where a bundle has it."""
COLUMN = "output.outlier"
"""The column of live counts and of the reference that says which rows are outliers."""
CELLS = Cells("text", values=("inlier", "outlier"))
FIT_ROWS = 20_000
"""Training rows that it is fitted on, at most."""
TREES, TREE_ROWS = 64, 128
CHUNK = 4096
"""Rows that are scored at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class OutlierForest:
    """An isolation forest with its threshold.

    columns    in the order of its features; ``fills`` (columns,) stand for missing numbers and for new texts
    texts      of a column of texts, the information of each value of the training rows; "" is a missing one
    features   (trees, nodes) the feature that a node splits, ``thresholds`` where; ``left`` and ``right`` are the next
               nodes, of a leaf itself; ``paths`` is a leaf's path length, with the expected one of the rows in it
    threshold  mean path length below which a row is an outlier
    """

    columns: tuple[str, ...]
    fills: np.ndarray
    texts: Mapping[str, Mapping[str, float]]
    features: np.ndarray
    thresholds: np.ndarray
    left: np.ndarray
    right: np.ndarray
    paths: np.ndarray
    threshold: float = 0.0

    def path_lengths(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """The mean path length of each row; ``columns`` are arrays of numbers (NaN is missing) or of texts."""
        matrix = encode(columns, self.columns, self.fills, self.texts)
        parts = [self._walk(matrix[start : start + CHUNK]) for start in range(0, len(matrix), CHUNK)]
        return np.concatenate([*parts, np.empty(0)])

    def outliers(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which rows are outliers, bool (rows,)."""
        short: np.ndarray = self.path_lengths(columns) < self.threshold
        return short

    def _walk(self, matrix: np.ndarray) -> np.ndarray:
        trees = np.arange(len(self.features))[None, :]
        rows = np.arange(len(matrix))[:, None]
        nodes = np.zeros((len(matrix), len(self.features)), dtype=np.int64)
        for _ in range(self.features.shape[1]):
            lower = matrix[rows, self.features[trees, nodes]] <= self.thresholds[trees, nodes]
            following = np.where(lower, self.left[trees, nodes], self.right[trees, nodes])
            if (following == nodes).all():
                break
            nodes = following
        lengths: np.ndarray = self.paths[trees, nodes].mean(axis=1)
        return lengths

    def to_json(self) -> Json:
        """The content of ``evidence/outlier.json``."""
        return {
            "format": 1,
            "columns": list(self.columns),
            "fills": self.fills.tolist(),
            "texts": {name: dict(values) for name, values in self.texts.items()},
            "threshold": self.threshold,
            **{name: getattr(self, name).tolist() for name in _TABLES},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> OutlierForest:
        """The forest that `to_json` returned. Raises KeyError, TypeError or ValueError for anything else."""
        if value["format"] != 1:
            raise ValueError(f"format {value['format']!r} of an outlier model is not known")
        tables = {name: np.array(value[name], dtype=dtype) for name, dtype in _TABLES.items()}
        shape, columns = tables["features"].shape, tuple(map(str, value["columns"]))
        if len(shape) != 2 or any(table.shape != shape for table in tables.values()):
            raise ValueError("the tables of an outlier model do not fit each other")
        for name, end in (("left", shape[1]), ("right", shape[1]), ("features", len(columns))):
            if ((tables[name] < 0) | (tables[name] >= end)).any():
                raise ValueError(f"the table {name} of an outlier model points outside of it")
        texts = {
            str(name): {str(text): float(number) for text, number in of.items()} for name, of in value["texts"].items()
        }
        fills = np.array(value["fills"], dtype=np.float32)
        if len(fills) != len(columns):
            raise ValueError("an outlier model needs a fill for each column")
        return cls(columns, fills, texts, **tables, threshold=float(value["threshold"]))


_TABLES = {"features": np.int64, "thresholds": np.float64, "left": np.int64, "right": np.int64, "paths": np.float64}


def fit_forest(
    columns: Mapping[str, np.ndarray], references: Mapping[str, ColumnReference], share: float, seed: int = 0
) -> OutlierForest:
    """A forest of training rows, of which it calls ``share`` outliers. ``references`` say how rare texts are."""
    from sklearn.ensemble import IsolationForest

    names = tuple(columns)
    texts = {name: _information(references[name]) for name in names if columns[name].dtype == object}
    fills = np.array(
        [_rarest(references[name]) if name in texts else _median(columns[name]) for name in names], dtype=np.float32
    )
    matrix = encode(columns, names, fills, texts)
    matrix = np.where(np.isfinite(matrix), matrix, fills[None, :])
    rows = min(TREE_ROWS, len(matrix))
    model = IsolationForest(n_estimators=TREES, max_samples=rows, random_state=seed).fit(matrix)
    tables: dict[str, Any] = _tables(model.estimators_)
    forest = OutlierForest(names, fills, texts, **tables)
    return replace(forest, threshold=float(np.quantile(forest.path_lengths(columns), share, method="inverted_cdf")))


def encode(
    columns: Mapping[str, np.ndarray],
    names: tuple[str, ...],
    fills: np.ndarray,
    texts: Mapping[str, Mapping[str, float]],
) -> np.ndarray:
    """Rows as float32 [rows, columns] for a forest; a column that is not there is its fill in all rows."""
    import pandas as pd

    rows = max((len(values) for values in columns.values()), default=0)
    matrix = np.empty((rows, len(names)), dtype=np.float32)
    for index, name in enumerate(names):
        values = columns.get(name)
        if values is None:
            matrix[:, index] = fills[index]
        elif name in texts:
            codes, uniques = pd.factorize(values)
            known, new = texts[name], float(fills[index])
            matrix[:, index] = np.array([known.get(text, new) for text in uniques], np.float32)[codes]
        else:
            with np.errstate(over="ignore"):
                numbers = values.astype(np.float32)
            matrix[:, index] = np.where(np.isnan(numbers), fills[index], numbers)
    return matrix


def _information(reference: ColumnReference) -> dict[str, float]:
    """The information of each text in nats, of a missing one by ""."""
    cells, counts = reference.cells, reference.counts
    rows = max(reference.rows, 1)
    numbers = {text: float(counts[code]) for code, text in enumerate(cells.values)}
    numbers |= dict.fromkeys(cells.others, counts[-3] / max(len(cells.others), 1))
    return {text: -math.log(max(number, 0.5) / rows) for text, number in {**numbers, "": counts[-1]}.items()}


def _rarest(reference: ColumnReference) -> float:
    """The information of a text that the training rows do not have."""
    return math.log(2 * max(reference.rows, 1))


def _median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else 0.0


def _tables(estimators: list[object]) -> dict[str, np.ndarray]:
    """The trees as arrays of one size; a leaf's next nodes are itself."""
    trees = [estimator.tree_ for estimator in estimators]  # type: ignore[attr-defined]
    nodes = max(tree.node_count for tree in trees)
    tables = {name: np.zeros((len(trees), nodes), dtype=dtype) for name, dtype in _TABLES.items()}
    for number, tree in enumerate(trees):
        size, own = tree.node_count, np.arange(tree.node_count)
        leaf = tree.children_left < 0
        depth = np.zeros(size)
        for node in own[~leaf]:  # a node comes before its children
            depth[[tree.children_left[node], tree.children_right[node]]] = depth[node] + 1
        tables["features"][number, :size] = np.where(leaf, 0, tree.feature)
        tables["thresholds"][number, :size] = np.where(leaf, 0.0, tree.threshold)
        tables["left"][number, :size] = np.where(leaf, own, tree.children_left)
        tables["right"][number, :size] = np.where(leaf, own, tree.children_right)
        tables["paths"][number, :size] = depth + [expected_path(int(rows)) for rows in tree.n_node_samples]
    return tables


def expected_path(rows: int) -> float:
    """The mean path length of an unsuccessful search in a binary search tree of ``rows`` (the paper's c).

    >>> expected_path(1), expected_path(2), round(expected_path(256), 2)
    (0.0, 1.0, 10.24)
    """
    if rows <= 2:
        return float(max(rows - 1, 0))
    return 2.0 * (math.log(rows - 1.0) + float(np.euler_gamma)) - 2.0 * (rows - 1.0) / rows
