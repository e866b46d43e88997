"""Trained models in Python as the reference for parity (the port `ReferenceModel`)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlflowkit.adapters.onnx_exporter import external_model, sklearn_remedies
from mlflowkit.adapters.onnx_exporter.trained_model import TrainedModel
from mlflowkit.features.preprocess import FittedPreprocessing, load_preprocess, load_sklearn, transform

Tensors = Mapping[str, np.ndarray]

NUDGE = 4 * float(np.finfo(np.float32).eps)
"""How far float32 arithmetic may move a feature, relative to the numbers that it is made of."""
TORCH_REMEDY = "does forward compute otherwise while it is traced, or depend on values? Write it with torch.where"
LARGEST_NUDGE = 1e-4
"""In standard deviations of the feature."""


class TorchReference:
    """A torch module after preprocessing."""

    kind: Literal["torch"] = "torch"
    remedy = TORCH_REMEDY

    def __init__(self, model: TrainedModel, folder: Path) -> None:
        from mlflowkit.models import load_trained

        self.model, self.preprocess = model, load_preprocess(model.folder)
        self.module = load_trained(model.folder, folder)
        self.name = type(self.module).__name__

    def predict(self, inputs: Tensors) -> dict[str, np.ndarray]:
        return self._answer(self.module, transform(self.preprocess, inputs))

    def predict_double(self, inputs: Tensors) -> dict[str, np.ndarray]:
        features = _double_features(self.preprocess, inputs)
        try:
            return self._answer(copy.deepcopy(self.module).double(), features)
        except Exception:  # noqa: BLE001  # a module that makes float32 tensors in forward cannot run in double precision
            return self._answer(self.module, features.astype(np.float32))

    def _answer(self, module: Any, features: np.ndarray) -> dict[str, np.ndarray]:
        import torch

        with torch.inference_mode():
            scores = module(torch.from_numpy(features))
        if self.model.task == "regression":
            return {"prediction": scores.numpy().astype(np.float64).ravel() * self.model.scale + self.model.mean}
        codes = scores.argmax(dim=1).numpy()
        return {"label": self.model.labels(codes), "probabilities": scores.softmax(dim=1).numpy()}


class SklearnReference:
    """A scikit-learn estimator after preprocessing, which is given float64 as scikit-learn's users do."""

    kind: Literal["sklearn"] = "sklearn"

    def __init__(self, model: TrainedModel, folder: Path) -> None:
        self.model, self.preprocess = model, load_preprocess(model.folder)
        self.fitted = load_sklearn(model.folder / "model.skops")
        self.name = type(self.fitted).__name__
        self.remedy = sklearn_remedies.remedy(self.name, model.task, len(model.classes))

    def predict(self, inputs: Tensors) -> dict[str, np.ndarray]:
        return self._answer(transform(self.preprocess, inputs).astype(np.float64))

    def predict_double(self, inputs: Tensors) -> dict[str, np.ndarray]:
        return self._answer(_double_features(self.preprocess, inputs))

    def _answer(self, features: np.ndarray) -> dict[str, np.ndarray]:
        values = self.fitted.predict(features)
        if self.model.task == "regression":
            return {"prediction": values.ravel() * self.model.scale + self.model.mean}
        labels = self.model.labels(values.astype(np.int64))
        return {"label": labels, "probabilities": self.fitted.predict_proba(features)}


class ExternalReference:
    """An external graph as it was before it was wrapped."""

    kind: Literal["onnx"] = "onnx"
    remedy = "is the graph's treatment of its inputs its own? See model.inputs and model.outputs"

    def __init__(self, trained: Path) -> None:
        self.external = external_model.read_external(trained)
        self.name = self.external.path.name

    def predict(self, inputs: Tensors) -> dict[str, np.ndarray]:
        if not self.external.double_inputs and "numeric" in inputs:
            inputs = {**inputs, "numeric": inputs["numeric"].astype(np.float32)}
        return external_model.predict_external(self.external, inputs)

    def predict_double(self, inputs: Tensors) -> None:
        return None


def _double_features(preprocess: FittedPreprocessing, inputs: Tensors) -> np.ndarray:
    """Features computed in double precision, but for what rounding explains: there they are the graph's own.

    A tree was fitted on the graph's own, and has thresholds among them: the last bit would move rows across.
    """
    exact, single = transform(preprocess, inputs, np.float64), transform(preprocess, inputs).astype(np.float64)
    features: np.ndarray = np.where(np.abs(exact - single) <= _rounding(preprocess, exact), single, exact)
    return features


def _rounding(preprocess: FittedPreprocessing, features: np.ndarray) -> np.ndarray:
    """The change of each feature that float32 arithmetic may make: of the feature itself, and of what was subtracted.

    At most LARGEST_NUDGE of its spread: what moves a feature further is a loss, not rounding.
    """
    changes: np.ndarray = NUDGE * np.abs(features)
    count = len(preprocess.fill)
    if count:
        center, scale = preprocess.center.astype(np.float64), preprocess.scale.astype(np.float64)
        changes[:, :count] += NUDGE * np.abs(center) / scale
    for curve in preprocess.curves:  # a curve may be steep
        changes[:, curve.column] = np.inf
    changes = np.minimum(changes, LARGEST_NUDGE * np.nanstd(features, axis=0))
    changes[:, count:] = 0  # categories are exact
    return changes
