"""scikit-learn estimators, fitted in this process on the preprocessed matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, is_classifier, is_regressor
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from sklearn.utils.validation import has_fit_parameter

from mlflowkit import usercode
from mlflowkit.errors import EngineError, UserCodeError, nearest
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
"""Where an estimator may come from, besides the recipe's folder."""
CURVE_POINTS = 50
"""Most points of the curve of an estimator that is built in stages."""
CURVE_ROWS = 5000
"""Most training rows whose loss is followed stage by stage."""


class SklearnTrainer:
    """Fits classifiers (on class indices, with probabilities) and regressors (on the values themselves)."""

    def fit(self, spec: Any, context: StageContext) -> Mapping[str, Any]:
        """Fit as a stages.train.Spec says, write ``context.out``, return the fields of a stages.train.FitResult.

        Raises DataError, UsageError, UserCodeError, EngineError or StoreError.
        """
        table = open_table(context.inputs["data"])
        train, validation = table.read("train"), table.read("validation")
        check_target(table, train)
        estimator = make_estimator(spec, context.folder, context.seed)
        preprocess = fit_preprocess(train.inputs, spec.preprocess)
        x, x_validation = transform(preprocess, train.inputs), transform(preprocess, validation.inputs)
        weights = class_weights(spec.train.class_weights, table.classes, train.target)
        _fit(estimator, x, train.target, weights, spec.model.module, context.folder)
        curves = _curves(estimator, (x, train.target), (x_validation, validation.target), weights, spec.task)
        save_preprocess(preprocess, context.out)
        save_sklearn(estimator, context.out / "model.skops")
        return {
            "epochs": len(curves["epoch"]),
            "best_epoch": len(curves["epoch"]),
            "metrics": {name: values[-1] for name, values in curves.items() if name != "epoch"},
            "curves": curves,
            "features": {"numeric": table.features.numeric, "categorical": table.features.categorical},
            "classes": table.classes,
            "width": x.shape[1],
            "outputs": len(table.classes) or 1,
        }


def make_estimator(spec: Any, folder: Path, seed: int) -> Any:
    """The unfitted estimator that the recipe names; ``random_state`` is the seed unless model.args sets it.

    Raises UserCodeError when it is not a class of a scikit-learn estimator, does not suit the task, does not take
    model.args, or is a classifier without probabilities.
    """
    reference, args = spec.model.module, dict(spec.model.args)
    kind = usercode.load(reference, folder, libraries=LIBRARIES)
    if not (isinstance(kind, type) and issubclass(kind, BaseEstimator)):
        found = "a class" if isinstance(kind, type) else f"a {type(kind).__name__}"
        raise UserCodeError(
            f"{reference} is {found}, not a scikit-learn estimator",
            hint="name a class such as sklearn.ensemble:HistGradientBoostingClassifier under model.module",
        )
    _check_names(kind, reference, args)
    with usercode.blame(reference, folder):
        estimator = kind(**args)
    suits = is_classifier if spec.task == "classification" else is_regressor
    if not suits(estimator):
        wanted = "classifier" if spec.task == "classification" else "regressor"
        raise UserCodeError(
            f"{reference} is not a {wanted}, and the task is {spec.task}",
            hint=f"name a {wanted} under model.module, or change task",
        )
    if spec.task == "classification" and not hasattr(estimator, "predict_proba"):
        raise UserCodeError(
            f"{reference} gives no probabilities (it has no predict_proba)",
            hint="use an estimator that does, such as sklearn.linear_model:LogisticRegression",
        )
    if "random_state" in estimator.get_params() and "random_state" not in args:
        estimator.set_params(random_state=seed)
    return estimator


def _check_names(kind: Any, reference: str, args: Mapping[str, Any]) -> None:
    known = kind._get_param_names()
    for name in args:
        if name not in known:
            near = nearest(name, known)
            raise UserCodeError(
                f"model.args.{name}: {reference} takes {', '.join(known)}, not {name!r}",
                hint=f"did you mean {near}?" if near else "remove it",
            )


def _fit(
    estimator: Any, x: np.ndarray, y: np.ndarray, weights: tuple[float, ...] | None, reference: str, folder: Path
) -> None:
    """Fit in place. What scikit-learn refuses (a value of model.args out of range, say) is a UserCodeError."""
    extra = {}
    if weights is not None:
        if not has_fit_parameter(estimator, "sample_weight"):
            raise UserCodeError(
                f"{reference} takes no sample weights, and train.class_weights is set",
                hint="train.class_weights=null, or another estimator",
            )
        extra["sample_weight"] = np.asarray(weights)[y]
    try:
        with usercode.blame(reference, folder):
            estimator.fit(x, y, **extra)
    except UserCodeError as error:
        if reference.startswith(LIBRARIES):
            cause = f"{reference} cannot be fitted: {error.__cause__}"
            raise UserCodeError(cause, hint="see model.args in the recipe") from error
        raise
    except MemoryError as error:
        raise EngineError(f"{reference}: no memory left while fitting", hint="use fewer rows") from error


def _curves(
    estimator: Any, train: tuple[Any, Any], validation: tuple[Any, Any], weights: tuple[float, ...] | None, task: str
) -> dict[str, list[float]]:
    """Loss and metric on both parts; stage by stage for estimators that are built so (boosting), else one point."""
    curves: dict[str, list[float]] = {}
    sample = (train[0][:CURVE_ROWS], train[1][:CURVE_ROWS])
    stages = _stages(estimator, task)
    chosen = set(range(stages, 0, -max(1, stages // CURVE_POINTS)))
    for epoch, (seen, unseen) in enumerate(
        zip(
            _answers(estimator, sample[0], stages, task), _answers(estimator, validation[0], stages, task), strict=True
        ),
        start=1,
    ):
        if epoch in chosen:
            name, value = _metric(task, unseen, validation[1])
            figures = {
                "epoch": epoch,
                "train_loss": _loss(task, seen, sample[1], weights),
                "val_loss": _loss(task, unseen, validation[1], weights),
                f"val_{name}": value,
            }
            for key, figure in figures.items():
                curves.setdefault(key, []).append(figure)
    curves["train_loss"][-1] = _loss(task, _final(estimator, train[0], task), train[1], weights)
    bad = [name for name, values in curves.items() if not all(map(math.isfinite, values))]
    if bad:
        raise EngineError(f"{bad[0]} is not finite: the model did not converge", hint="see model.args in the recipe")
    return curves


def _stages(estimator: Any, task: str) -> int:
    staged = "staged_predict_proba" if task == "classification" else "staged_predict"
    if not hasattr(estimator, staged):
        return 1
    count = getattr(estimator, "n_iter_", None) or getattr(estimator, "n_estimators_", None)
    return int(count or len(estimator.estimators_))


def _answers(estimator: Any, x: np.ndarray, stages: int, task: str) -> Iterator[np.ndarray]:
    if stages == 1:
        yield _final(estimator, x, task)
        return
    yield from estimator.staged_predict_proba(x) if task == "classification" else estimator.staged_predict(x)


def _final(estimator: Any, x: np.ndarray, task: str) -> Any:
    return estimator.predict_proba(x) if task == "classification" else estimator.predict(x)


def _loss(task: str, answers: np.ndarray, target: np.ndarray, weights: tuple[float, ...] | None) -> float:
    """Log loss (weighted by class) or mean squared error."""
    if task == "regression":
        return float(np.mean((answers.reshape(-1) - target) ** 2))
    sample_weight = None if weights is None else np.asarray(weights)[target]
    return float(log_loss(target, answers, labels=range(answers.shape[1]), sample_weight=sample_weight))


def _metric(task: str, answers: np.ndarray, target: np.ndarray) -> tuple[str, float]:
    """roc_auc for two classes that both occur, accuracy for other classifications, rmse for a regression."""
    if task == "regression":
        return "rmse", math.sqrt(_loss(task, answers, target, None))
    if answers.shape[1] == 2 and len(np.unique(target)) == 2:
        return "roc_auc", float(roc_auc_score(target, answers[:, 1]))
    return "accuracy", float(accuracy_score(target, answers.argmax(axis=1)))
