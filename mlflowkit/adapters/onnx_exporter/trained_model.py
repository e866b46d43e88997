"""The train stage's folder as the exporter reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlflowkit.bundle import TokenRule


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """The contents of a train folder's spec.json. Regression targets were scaled as ``(value - mean) / scale``."""

    folder: Path
    kind: Literal["torch", "sklearn", "onnx"]
    task: Literal["classification", "regression"]
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    classes: tuple[str | int, ...]
    width: int
    mean: float = 0.0
    scale: float = 1.0
    double_inputs: bool = False
    """Whether the graph takes numbers as FP64, because float32 would merge values of a column."""
    double_target: bool = False
    """Whether it gives predictions as FP64."""
    dates: tuple[str, ...] = ()
    tokens: Mapping[str, TokenRule] = field(default_factory=dict)
    """How the columns of free text are read."""

    def labels(self, codes: np.ndarray) -> np.ndarray:
        """The classes at these indices; object [rows] for text, else int64."""
        is_text = isinstance(self.classes[0], str)
        labels: np.ndarray = np.array(self.classes, dtype=object if is_text else np.int64).take(codes)
        return labels


def read_trained(trained: Path) -> TrainedModel:
    """Read a train folder's spec.json."""
    info = json.loads((trained / "spec.json").read_text())
    target = info.get("target_scale") or {}
    return TrainedModel(
        folder=trained,
        kind="onnx" if info["spec"]["model"]["kind"] == "bundle" else info["spec"]["model"]["kind"],
        task=info["spec"]["task"],
        numeric=tuple(info["features"]["numeric"]),
        categorical=tuple(info["features"]["categorical"]),
        classes=tuple(info["classes"]),
        width=info["width"],
        mean=float(target.get("mean", 0.0)),
        scale=float(target.get("scale", 1.0)),
        double_inputs=any(info["features"].get("offsets", ())),
        double_target=bool(target.get("double")),
        dates=tuple(info["features"].get("dates", ())),
        tokens=_token_rules(info),
    )


def _token_rules(info: Mapping[str, Any]) -> dict[str, TokenRule]:
    names = info["features"].get("texts", ())
    settings = info["spec"].get("preprocess", {}).get("texts", {})
    keys = TokenRule.model_fields
    return {
        name: TokenRule.model_validate({key: item for key, item in settings.get(name, {}).items() if key in keys})
        for name in names
    }
