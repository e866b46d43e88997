"""Agreement of two answers: by label in any order of classes, by a tolerance in any unit, by slice."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mlflowkit.judging.online.evidence import Moments
from mlflowkit.serving.observer import shadow_comparison
from tests.support.observing import REGRESSION, SIGNATURE, classified


def test_labels_agree_and_scores_are_those_of_the_positive_class() -> None:
    rows = shadow_comparison.compare(SIGNATURE, classified([0.2, 0.6]), classified([0.4, 0.3]), SIGNATURE, 0.0)
    assert rows.agrees.tolist() == [True, False]
    np.testing.assert_allclose(rows.difference, [0.2, -0.3], atol=1e-6)


def test_classes_are_matched_by_name_not_by_place() -> None:
    turned = SIGNATURE.model_copy(update={"classes": ("good", "bad")})
    shadow = classified([0.2, 0.6])
    shadow["probabilities"] = shadow["probabilities"][:, ::-1]
    rows = shadow_comparison.compare(SIGNATURE, classified([0.2, 0.6]), shadow, turned, 0.0)
    assert rows.agrees.all()
    np.testing.assert_allclose(rows.difference, 0.0, atol=1e-6)


def test_of_many_classes_the_champions_answer_is_compared() -> None:
    three = SIGNATURE.model_copy(update={"classes": (0, 1, 2)})
    champion = {"label": np.array([0, 2]), "probabilities": np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])}
    shadow = {"label": np.array([0, 1]), "probabilities": np.array([[0.5, 0.4, 0.1], [0.1, 0.6, 0.3]])}
    rows = shadow_comparison.compare(three, champion, shadow, three, 0.0)
    assert rows.agrees.tolist() == [True, False]
    np.testing.assert_allclose(rows.difference, [-0.2, -0.5])


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e6])
def test_tolerance_of_a_regression_does_not_depend_on_the_unit(unit: float) -> None:
    edges = shadow_comparison.decile_edges(np.linspace(0, 100, 1001) * unit)
    within = shadow_comparison.tolerance(edges)
    shadow = {"prediction": np.array([10.0, 10.0, 10.0]) * unit}
    champion = {"prediction": np.array([10.0, 13.9, 14.1]) * unit}
    rows = shadow_comparison.compare(REGRESSION, champion, shadow, REGRESSION, within)
    assert rows.agrees.tolist() == [True, True, False]


def test_a_constant_champion_is_agreed_with_up_to_rounding() -> None:
    within = shadow_comparison.tolerance(shadow_comparison.decile_edges(np.full(500, 7.0)))
    rows = shadow_comparison.compare(
        REGRESSION,
        {"prediction": np.array([7.0, 7.0])},
        {"prediction": np.array([7.0 + 1e-7, 7.1])},
        REGRESSION,
        within,
    )
    assert rows.agrees.tolist() == [True, False]


def test_different_tasks_are_not_compared() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        shadow_comparison.compare(SIGNATURE, classified([0.2]), {"prediction": np.array([1.0])}, REGRESSION, 0.0)


def test_predictions_are_counted_by_decile() -> None:
    edges = shadow_comparison.decile_edges(np.arange(1000.0))
    counts = shadow_comparison.prediction_counts(REGRESSION, {"prediction": np.arange(1000.0)}, edges)
    assert counts == {f"decile:{decile}": 100 for decile in range(10)}
    outside = shadow_comparison.prediction_counts(REGRESSION, {"prediction": np.array([-5.0, 5000.0])}, edges)
    assert outside == {"decile:0": 1, "decile:9": 1}


def test_scores_at_the_ends_have_a_bin() -> None:
    counts = shadow_comparison.prediction_counts(SIGNATURE, classified([0.0, 1.0]))
    assert counts == {"label:bad": 1, "label:good": 1, "score:0": 1, "score:49": 1}


def test_slices_are_the_frequent_values_the_rest_together() -> None:
    values = np.array(["a", "b", "", "rare", "b"], dtype=object)
    agrees = np.array([True, False, True, False, True])
    slices = shadow_comparison.slice_moments(agrees, "term", values, frozenset({"a", "b"}))
    assert slices == {
        "term=a": Moments(1, 1.0, 1.0),
        "term=b": Moments(2, 1.0, 1.0),
        "term=(missing)": Moments(1, 1.0, 1.0),
        "term=(other)": Moments(1, 0.0, 0.0),
    }


def test_columns_are_sliced_by_name_or_because_they_have_few_values() -> None:
    few = {"frequent": [["a", 5], ["b", 4]]}
    many = {"frequent": [[f"v{i}", 1] for i in range(50)]}
    inputs = (SIGNATURE.inputs[1].model_copy(update={"columns": ("term", "state", "note")}),)
    signature = SIGNATURE.model_copy(update={"inputs": inputs})
    reference = {"columns": {"term": few, "state": many, "note": {}}}
    assert set(shadow_comparison.sliced_columns(signature, reference)) == {"term"}
    named = shadow_comparison.sliced_columns(signature, reference, ("state",))
    assert set(named) == {"state"}
    assert len(named["state"]) == shadow_comparison.SLICE_VALUES
    assert shadow_comparison.sliced_columns(signature, None) == {}


def test_the_rank_figure_is_one_window_after_the_other() -> None:
    rng = np.random.default_rng(0)
    report = shadow_comparison.ShadowComparison("s", "v", "e")
    scores = rng.normal(size=shadow_comparison.RANK_WINDOW * 2 + 10)
    for begin in range(0, len(scores), 100):
        part = scores[begin : begin + 100]
        agrees = np.ones(len(part), dtype=bool)
        report.add(
            shadow_comparison.RowComparison(agrees, part * 0, (part, part**3)),
            {"": shadow_comparison.moments(agrees)},
            part * 0,
        )
    assert report.rank.count == 2
    assert report.rank.mean == pytest.approx(1.0)
    assert shadow_comparison.spearman(scores, -scores) == pytest.approx(-1.0)
    assert report.agreement[""].count == len(scores)


def test_a_reservoir_is_uniform_and_the_same_each_time() -> None:
    def sample(seed: int) -> list[int]:
        reservoir = shadow_comparison.Reservoir(5, seed=seed)
        for number in range(50):
            index = reservoir.next_index()
            if index is not None:
                reservoir.items[index : index + 1] = [number]
        return reservoir.items

    assert sample(1) == sample(1)
    counts = Counter(number for seed in range(2000) for number in sample(seed))
    assert set(counts) == set(range(50))
    assert max(counts.values()) < 270  # 200 are expected; six standard deviations
    assert min(counts.values()) > 130


def test_what_replicas_saw_is_added_up() -> None:
    parts = []
    for number in (1, 2):
        report = shadow_comparison.ShadowComparison("s", "v", "e")
        agrees = np.array([True] * number + [False])
        zero = np.zeros(number + 1)
        report.add(
            shadow_comparison.RowComparison(agrees, zero, (zero, zero)), {"": shadow_comparison.moments(agrees)}, zero
        )
        report.examples.next_index()
        report.examples.items.append({"time": float(-number)})
        parts.append(report.to_json())
    merged = shadow_comparison.merge_comparisons(parts)
    assert merged["agreement"] == {"": [5, 3.0, 3.0]}
    assert merged["disagreements"] == 2
    assert [item["time"] for item in merged["examples"]] == [-2.0, -1.0]
