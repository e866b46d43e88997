"""Decision thresholds: chosen by brute force's answer, and held by the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from mlflowkit.adapters.onnx_passes import OnnxPasses
from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.errors import DataError, EngineError
from mlflowkit.graphs import onnx_file
from mlflowkit.graphs.candidates import Float16
from mlflowkit.graphs.decision import set_threshold
from mlflowkit.judging.decision_rule import DecisionSection, MistakeCosts
from mlflowkit.judging.thresholds import decide
from mlflowkit.recipe.rules import problems
from tests.support.lending_bundle import SIGNATURE, graph

METRICS = {"f1": f1_score, "balanced_accuracy": balanced_accuracy_score, "accuracy": accuracy_score}
scored_rows = st.lists(
    st.tuples(st.integers(0, 20).map(lambda number: number / 20), st.booleans()), min_size=2, max_size=60
).filter(lambda rows: len({hit for _, hit in rows}) == 2)


def arrays(rows: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([score for score, _ in rows]), np.array([hit for _, hit in rows])


def every_threshold(scores: np.ndarray) -> list[float]:
    """A threshold between any two scores, and below the least one."""
    return [value for value in np.linspace(0.0125, 0.9875, 40) if value not in scores]


@settings(max_examples=150)
@given(rows=scored_rows, metric=st.sampled_from(sorted(METRICS)))
def test_no_threshold_has_a_better_metric(rows: list[tuple[float, bool]], metric: str) -> None:
    scores, positive = arrays(rows)
    decision = decide(DecisionSection(maximize=metric), scores, positive)  # type: ignore[arg-type]
    chosen = METRICS[metric](positive, scores >= decision.threshold)
    best = max(METRICS[metric](positive, scores >= value) for value in every_threshold(scores))
    assert decision.value == pytest.approx(chosen)
    assert chosen >= best - 1e-12


@settings(max_examples=150)
@given(rows=scored_rows, false_positive=st.integers(0, 9), false_negative=st.integers(1, 9))
def test_no_threshold_costs_less(rows: list[tuple[float, bool]], false_positive: int, false_negative: int) -> None:
    scores, positive = arrays(rows)

    def cost(threshold: float) -> float:
        answered = scores >= threshold
        return float(false_positive * (answered & ~positive).sum() + false_negative * (~answered & positive).sum())

    costs = MistakeCosts(false_positive=false_positive, false_negative=false_negative)
    decision = decide(DecisionSection(costs=costs), scores, positive)
    assert cost(decision.threshold) <= min(map(cost, every_threshold(scores)))


@pytest.mark.parametrize("rate", [0.05, 0.25, 0.5])
def test_a_rate_is_met_on_the_rows_it_was_chosen_on(rate: float) -> None:
    scores = np.random.default_rng(1).random(1000)
    decision = decide(DecisionSection(rate=rate), scores, scores > 0.7)
    assert (scores >= decision.threshold).mean() == pytest.approx(rate, abs=0.001)
    assert decision.rate == pytest.approx(rate, abs=0.001)


def test_one_class_decides_nothing() -> None:
    with pytest.raises(DataError, match="both classes"):
        decide(DecisionSection(maximize="f1"), np.array([0.1, 0.9]), np.array([True, True]))


@pytest.mark.parametrize("threshold", [0.2, 0.45, 0.5, 0.55, 0.9])
def test_the_graph_answers_by_its_threshold(threshold: float, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(graph(3), path)
    numbers = np.random.default_rng(2).exponential(20_000, (400, 3)).astype(np.float32)
    texts = np.array([["36 months", "car"], ["60 months", ""]] * 200, dtype=object)
    inputs = {"numeric": numbers, "categorical": texts}
    before = OnnxRuntime().load(path).run(inputs)
    set_threshold(path, SIGNATURE, threshold)
    after = OnnxRuntime().load(path).run(inputs)
    assert np.array_equal(before["probabilities"], after["probabilities"])
    chosen = before["probabilities"][:, 1] >= np.float32(threshold)
    assert after["label"].tolist() == ["good" if yes else "bad" for yes in chosen]
    names = {name for node in onnx.load(path).graph.node for name in node.output}
    assert "best" not in names, "what computed the former label is gone"


def test_half_precision_converts_a_network_before_a_threshold(tmp_path: Path) -> None:
    """The threshold's own cast to an integer is of a comparison; no number of the network depends on it."""
    features = onnx_file.FEATURES_TENSOR
    weights = numpy_helper.from_array(np.array([[0.5, -1.0], [0.25, 2.0]], np.float32), "network/weights")
    nodes = [
        helper.make_node("Identity", ["numeric"], [features], name="features"),
        helper.make_node("MatMul", [features, "network/weights"], ["network/scores"], name="network/product"),
        helper.make_node("Softmax", ["network/scores"], ["probabilities"], name="probabilities.node", axis=1),
        helper.make_node("ArgMax", ["network/scores"], ["code"], name="code.node", axis=1, keepdims=0),
        helper.make_node("Gather", ["classes", "code"], ["label"], name="label.node", axis=0),
    ]
    numbers = helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["rows", 2])
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.STRING, ["rows"]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 2]),
    ]
    classes = numpy_helper.from_array(np.array(SIGNATURE.classes, dtype=object), "classes")
    network = helper.make_graph(nodes, "network", [numbers], outputs, [weights, classes])
    path, half = tmp_path / "model.onnx", tmp_path / "half.onnx"
    onnx.save(helper.make_model(network, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    set_threshold(path, SIGNATURE, 0.2)
    inputs = {"numeric": np.random.default_rng(1).normal(size=(200, 2)).astype(np.float32)}
    assert OnnxPasses().apply([Float16()], path, half, inputs) == ""
    answers = OnnxRuntime().load(half).run(inputs)
    chosen = answers["probabilities"][:, 1] >= np.float32(0.2)
    assert answers["label"].tolist() == [SIGNATURE.classes[int(yes)] for yes in chosen]
    assert any(value.data_type == TensorProto.FLOAT16 for value in onnx.load(half).graph.initializer)
    undefined = {"numeric": np.full((1, 2), np.nan, np.float32)}
    assert OnnxRuntime().load(path).run(undefined)["label"].tolist() == [SIGNATURE.classes[0]], "NaN reaches nothing"


def test_three_classes_have_no_threshold(tmp_path: Path) -> None:
    onnx.save(graph(3), tmp_path / "model.onnx")
    three = SIGNATURE.model_copy(update={"classes": ("a", "b", "c")})
    with pytest.raises(EngineError, match="two classes"):
        set_threshold(tmp_path / "model.onnx", three, 0.5)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"decision": {}}, "one of"),
        ({"decision": {"threshold": 0.3, "rate": 0.1}}, "threshold and rate at once"),
        ({"decision": {"rate": 0.1}, "task": "regression"}, "no classes"),
        ({"decision": {"rate": 0.1}, "task": "classification", "data": {"target": "y"}}, "data.positive"),
        (
            {"decision": {"costs": {"false_positive": 0, "false_negative": 0}}, "data": {"positive": "a"}},
            "cost nothing",
        ),
    ],
)
def test_a_recipe_that_cannot_decide_is_refused(recipe: dict[str, object], message: str) -> None:
    assert any(message in problem.message for problem in problems(recipe))


def test_a_recipe_that_decides_is_no_problem() -> None:
    recipe = {"task": "classification", "data": {"target": "y", "positive": "a"}, "decision": {"maximize": "f1"}}
    assert not [problem for problem in problems(recipe) if problem.path[0] == "decision"]
