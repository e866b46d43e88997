"""scikit-learn estimators on the preprocessed matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss, roc_auc_score

from mlflowkit.errors import UserCodeError
from mlflowkit.features.preprocess import load_sklearn
from tests.support.train_world import TrainWorld

BOOSTING = {"kind": "sklearn", "module": "sklearn.ensemble:HistGradientBoostingClassifier", "args": {"max_iter": 20}}


def test_a_classifier_is_what_scikit_learn_fits_itself(world: TrainWorld, binary: Path) -> None:
    trained = world.train(binary, BOOSTING, {"class_weights": "balanced"})
    x, y = trained.matrix("train")
    weights = np.where(y == 1, len(y) / (2 * y.sum()), len(y) / (2 * (len(y) - y.sum())))
    own = HistGradientBoostingClassifier(max_iter=20, random_state=7).fit(x, y, sample_weight=weights)
    x, y = trained.matrix()
    answers = load_sklearn(trained.out / "model.skops").predict_proba(x)
    np.testing.assert_array_equal(answers, own.predict_proba(x))
    assert trained.result.metrics["val_roc_auc"] == pytest.approx(roc_auc_score(y, answers[:, 1]))
    assert trained.result.metrics["val_loss"] == pytest.approx(
        log_loss(y, answers, sample_weight=np.where(y == 1, weights.max(), weights.min()))
    )


def test_boosting_has_curves_by_stage_and_others_a_point(world: TrainWorld, binary: Path) -> None:
    curves = world.train(binary, BOOSTING).curves
    assert curves["epoch"] == list(range(1, 21))
    assert curves["train_loss"][-1] < curves["train_loss"][0]
    long = world.train(binary, {**BOOSTING, "args": {"max_iter": 120, "max_leaf_nodes": 3}})
    assert len(long.curves["epoch"]) <= 60
    assert long.curves["epoch"][-1] == 120
    logistic = {"kind": "sklearn", "module": "sklearn.linear_model:LogisticRegression"}
    assert world.train(binary, logistic).curves["epoch"] == [1]


@pytest.mark.parametrize(
    ("module", "args"),
    [
        ("sklearn.ensemble:GradientBoostingRegressor", {"n_estimators": 30}),
        ("sklearn.ensemble:AdaBoostRegressor", {"n_estimators": 20}),
        ("sklearn.ensemble:RandomForestRegressor", {"n_estimators": 10}),
        ("sklearn.linear_model:Ridge", {}),
    ],
)
def test_regressors_learn_the_values_themselves(
    world: TrainWorld, regression: Path, module: str, args: dict[str, Any]
) -> None:
    trained = world.train(regression, {"kind": "sklearn", "module": module, "args": args})
    x, y = trained.matrix()
    answers = load_sklearn(trained.out / "model.skops").predict(x)
    assert trained.result.metrics["val_rmse"] == pytest.approx(float(np.sqrt(np.mean((answers - y) ** 2))))
    assert trained.result.metrics["val_rmse"] < 0.6 * y.std()
    assert trained.read("spec.json")["target_scale"] is None


def test_the_seed_is_the_estimators_unless_it_has_its_own(world: TrainWorld, binary: Path) -> None:
    def fitted(seed: int, **args: int) -> Any:
        forest = {"kind": "sklearn", "module": "sklearn.ensemble:RandomForestClassifier", "args": {"n_estimators": 5}}
        forest["args"] = {"n_estimators": 5, **args}
        trained = world.train(binary, forest, seed=seed)
        return load_sklearn(trained.out / "model.skops").predict_proba(trained.matrix()[0])

    assert np.array_equal(fitted(1), fitted(1))
    assert not np.array_equal(fitted(1), fitted(2))
    assert np.array_equal(fitted(1, random_state=3), fitted(2, random_state=3))


USER = """
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.dummy import DummyClassifier

class Prior(DummyClassifier):
    pass

class Broken(ClassifierMixin, BaseEstimator):
    def fit(self, x, y):
        raise OSError("no such weather")

    def predict_proba(self, x):
        return x

class Plain:
    pass
"""


def test_an_estimator_beside_the_recipe_has_no_graph_and_is_not_trained(world: TrainWorld, binary: Path) -> None:
    world.module(USER)
    with pytest.raises(UserCodeError, match="net:Prior is an estimator of your own, which has no ONNX form") as caught:
        world.train(binary, {"kind": "sklearn", "module": "net:Prior", "args": {"strategy": "prior"}})
    assert "model.kind: torch" in caught.value.hint


@pytest.mark.parametrize(
    ("module", "args", "message", "hint"),
    [
        ("net:Plain", {}, "is a class, not a scikit-learn estimator", "HistGradientBoosting"),
        ("sklearn.metrics:roc_auc_score", {}, "is a function, not a scikit-learn estimator", "model.module"),
        ("sklearn.linear_model:Ridge", {}, "is not a classifier, and the task is classification", "classifier"),
        ("sklearn.svm:LinearSVC", {}, "gives no probabilities", "LogisticRegression"),
        ("sklearn.svm:SVC", {}, "gives no probabilities", "LogisticRegression"),
        ("sklearn.linear_model:LogisticRegression", {"c": 1}, "model.args.c: ", "did you mean C?"),
        ("sklearn.linear_model:LogisticRegression", {"C": -1}, "cannot be fitted: The 'C' parameter", "model.args"),
        ("net:Broken", {}, "net:Broken is an estimator of your own", "model.kind: torch"),
        ("net:Brokn", {}, "there is no 'Brokn' in it", "Broken"),
    ],
)
def test_what_is_no_usable_estimator_is_said(
    world: TrainWorld, binary: Path, module: str, args: dict[str, Any], message: str, hint: str
) -> None:
    world.module(USER)
    with pytest.raises(UserCodeError) as caught:
        world.train(binary, {"kind": "sklearn", "module": module, "args": args})
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_weights_for_an_estimator_that_takes_none(world: TrainWorld, binary: Path) -> None:
    neighbours = {"kind": "sklearn", "module": "sklearn.neighbors:KNeighborsClassifier"}
    with pytest.raises(UserCodeError, match="takes no sample weights"):
        world.train(binary, neighbours, {"class_weights": "balanced"})
