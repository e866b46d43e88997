"""scikit-learn estimators, fitted in this process on the preprocessed matrix."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, is_classifier, is_regressor
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from sklearn.utils.validation import has_fit_parameter

from mlflowkit import usercode
from mlflowkit.errors import EngineError, UserCodeError, closest_match
from mlflowkit.features.preprocess import (
    check_target,
    class_weights,
    fit_preprocess,
    open_table,
    save_preprocess,
    save_sklearn,
    transform,
)
from mlflowkit.ports import StageContext

LIBRARIES = ("sklearn",)
"""Libraries that may provide an estimator, besides the recipe's folder."""
MAX_CURVE_POINTS = 50
"""Points of the curve of a staged estimator (boosting)."""
MAX_CURVE_ROWS = 5000
"""Training rows whose loss is computed at each stage."""


class SklearnTrainer:
    """Fits classifiers (on class indices, with probabilities) and regressors (on the values themselves)."""

    def fit(self, spec: Any, context: StageContext) -> Mapping[str, Any]:
        """Fit by a stages.train.Spec, write ``context.out``, return the fields of a stages.train.FitResult.

        Raises DataError, UsageError, UserCodeError, EngineError or StoreError.
        """
        table = open_table(context.inputs["data"], spec.preprocess)
        train, validation = table.read("train"), table.read("validation")
        check_target(table, train)
        estimator = make_estimator(spec, context.folder, context.seed)
        preprocess = fit_preprocess(train.inputs, spec.preprocess, table.features, context.folder)
        x, x_validation = transform(preprocess, train.inputs), transform(preprocess, validation.inputs)
        y, y_validation = (part.target - table.target_offset if table.target_offset else part.target
                           for part in (train, validation))  # fmt: skip
        weights = class_weights(spec.train.class_weights, table.classes, train.target)
        _fit_estimator(estimator, x, y, weights, spec.model.module, context.folder)
        curves = _curves(estimator, (x, y), (x_validation, y_validation), weights, spec.task)
        save_preprocess(preprocess, context.out)
        save_sklearn(estimator, context.out / "model.skops")
        return {
            "epochs": int(curves["epoch"][-1]),
            "best_epoch": int(curves["epoch"][-1]),
            "metrics": {name: values[-1] for name, values in curves.items() if name != "epoch"},
            "curves": curves,
            "features": asdict(table.features),
            "classes": table.classes,
            "width": x.shape[1],
            "outputs": len(table.classes) or 1,
            "target_scale": table.target_scale,
        }


def make_estimator(spec: Any, folder: Path, seed: int) -> Any:
    """Construct the recipe's estimator; ``random_state`` is the seed unless model.args sets it.

    Raises UserCodeError when it is not a scikit-learn estimator class, does not suit the task, rejects model.args, or
    is a classifier without probabilities.
    """
    reference, args = spec.model.module, dict(spec.model.args)
    kind = usercode.load(reference, folder, libraries=LIBRARIES)
    if not (isinstance(kind, type) and issubclass(kind, BaseEstimator)):
        description = "a class" if isinstance(kind, type) else f"a {type(kind).__name__}"
        raise UserCodeError(
            f"{reference} is {description}, not a scikit-learn estimator",
            hint="name a class such as sklearn.ensemble:HistGradientBoostingClassifier under model.module",
        )
    parameters = sorted(inspect.signature(kind).parameters)
    for name in [name for name in args if name not in parameters]:
        match = closest_match(name, parameters)
        raise UserCodeError(
            f"model.args.{name}: {reference} takes {', '.join(parameters)}, not {name!r}",
            hint=f"did you mean {match}?" if match else "remove it",
        )
    _require_convertible(kind.__name__, args)
    with usercode.translate_user_errors(reference, folder):
        estimator = kind(**args)
    role, has_role = ("classifier", is_classifier) if spec.task == "classification" else ("regressor", is_regressor)
    if not has_role(estimator):
        raise UserCodeError(
            f"{reference} is not a {role}, and the task is {spec.task}",
            hint=f"name a {role} under model.module, or change task",
        )
    if spec.task == "classification" and not hasattr(estimator, "predict_proba"):
        raise UserCodeError(
            f"{reference} gives no probabilities (it has no predict_proba)",
            hint="use one with probabilities, such as sklearn.linear_model:LogisticRegression",
        )
    if not kind.__module__.startswith("sklearn."):
        raise UserCodeError(
            f"{reference} is an estimator of your own, which has no ONNX form: skl2onnx converts scikit-learn's",
            hint="write it as a torch.nn.Module (model.kind: torch), or bring its graph (model.kind: onnx)",
        )
    if "random_state" in estimator.get_params() and "random_state" not in args:
        estimator.set_params(random_state=seed)
    return estimator


def _require_convertible(name: str, args: Mapping[str, Any]) -> None:
    """Raise UserCodeError for arguments whose result no graph can hold; a rehearsal finds what is not known here."""
    if name.startswith("HistGradientBoosting") and args.get("categorical_features", "from_dtype") not in (
        None,
        "from_dtype",
    ):
        raise UserCodeError(
            f"model.args.categorical_features: {name} with categorical features has no ONNX form",
            hint="leave it out of model.args (what data.columns declares categorical is one-hot encoded already): "
            "mlkit run RECIPE '~model.args.categorical_features'",
        )


def _fit_estimator(
    estimator: Any, x: np.ndarray, y: np.ndarray, weights: tuple[float, ...] | None, reference: str, folder: Path
) -> None:
    """Fit in place. An error of scikit-learn (such as a model.args value out of range) becomes a UserCodeError."""
    options = {}
    if weights is not None:
        if not has_fit_parameter(estimator, "sample_weight"):
            raise UserCodeError(
                f"{reference} takes no sample weights, and train.class_weights is set",
                hint="train.class_weights=null, or another estimator",
            )
        options["sample_weight"] = np.asarray(weights)[y]
    try:
        with usercode.translate_user_errors(reference, folder):
            estimator.fit(x, y, **options)
    except UserCodeError as error:
        if reference.startswith(LIBRARIES):
            cause = f"{reference} cannot be fitted: {error.__cause__}"
            raise UserCodeError(cause, hint="mlkit explain RECIPE model.args shows what set them") from error
        raise
    except MemoryError as error:
        raise EngineError(f"{reference}: no memory left while fitting", hint="use fewer rows") from error


def _curves(
    estimator: Any, train: tuple[Any, Any], validation: tuple[Any, Any], weights: tuple[float, ...] | None, task: str
) -> dict[str, list[float]]:
    """Loss and metric on both parts, per stage for staged estimators (boosting), else one point."""
    curves: dict[str, list[float]] = {}
    sample = (train[0][:MAX_CURVE_ROWS], train[1][:MAX_CURVE_ROWS])
    staged = "staged_predict_proba" if task == "classification" else "staged_predict"
    stages = 1
    if hasattr(estimator, staged):
        count = getattr(estimator, "n_iter_", None) or getattr(estimator, "n_estimators_", None)
        stages = int(count or len(estimator.estimators_))
    reported = set(range(stages, 0, -max(1, stages // MAX_CURVE_POINTS)))

    def predictions(x: np.ndarray) -> Any:
        return [_predict(estimator, x, task)] if stages == 1 else getattr(estimator, staged)(x)

    pairs = zip(predictions(sample[0]), predictions(validation[0]), strict=True)
    for epoch, (on_train, on_validation) in enumerate(pairs, start=1):
        if epoch in reported:
            name, value = _metric(task, on_validation, validation[1])
            metrics = {
                "epoch": epoch,
                "train_loss": _loss(task, on_train, sample[1], weights),
                "val_loss": _loss(task, on_validation, validation[1], weights),
                f"val_{name}": value,
            }
            for key, metric in metrics.items():
                curves.setdefault(key, []).append(metric)
    curves["train_loss"][-1] = _loss(task, _predict(estimator, train[0], task), train[1], weights)
    diverged = [name for name, values in curves.items() if not all(map(math.isfinite, values))]
    if diverged:
        reason = f"{diverged[0]} is not finite: the model did not converge"
        raise EngineError(reason, hint="mlkit explain RECIPE model.args shows what set them")
    return curves


def _predict(estimator: Any, x: np.ndarray, task: str) -> Any:
    return estimator.predict_proba(x) if task == "classification" else estimator.predict(x)


def _loss(task: str, predictions: np.ndarray, target: np.ndarray, weights: tuple[float, ...] | None) -> float:
    """Log loss (weighted by class) or mean squared error."""
    if task == "regression":
        return float(np.mean((predictions.reshape(-1) - target) ** 2))
    sample_weight = None if weights is None else np.asarray(weights)[target]
    return float(log_loss(target, predictions, labels=range(predictions.shape[1]), sample_weight=sample_weight))


def _metric(task: str, predictions: np.ndarray, target: np.ndarray) -> tuple[str, float]:
    """roc_auc for two classes that both occur, accuracy for other classifications, rmse for a regression."""
    if task == "regression":
        return "rmse", math.sqrt(_loss(task, predictions, target, None))
    if predictions.shape[1] == 2 and len(np.unique(target)) == 2:
        return "roc_auc", float(roc_auc_score(target, predictions[:, 1]))
    return "accuracy", float(accuracy_score(target, predictions.argmax(axis=1)))
