"""What to write instead of a scikit-learn estimator whose conversion by skl2onnx is wrong or fails."""

from __future__ import annotations

from collections.abc import Mapping

SAFE: Mapping[str, str] = {
    "classification": "sklearn.ensemble:HistGradientBoostingClassifier or sklearn.linear_model:LogisticRegression",
    "regression": "sklearn.ensemble:HistGradientBoostingRegressor or sklearn.linear_model:Ridge",
}
"""Estimators whose graphs agree with scikit-learn."""


def remedy(name: str, task: str, classes: int) -> str:
    """The hint for an estimator (its class name) that has no faithful graph.

    >>> remedy("KNeighborsClassifier", "classification", 2).partition(";")[0]
    'write model.args.weights: uniform'
    """
    instead = f"under model.module write {SAFE[task]}, with their own model.args"
    if name.startswith("KNeighbors"):
        return f"write model.args.weights: uniform; or {instead}"
    if name == "LinearDiscriminantAnalysis" and classes == 2:
        return f"skl2onnx converts it for three classes and more; for two, {instead}"
    return f"skl2onnx does not convert {name} as scikit-learn computes it: {instead}"
