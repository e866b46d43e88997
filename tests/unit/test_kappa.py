"""Agreement beyond chance: what is counted of two models' answers, and how it is judged."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from mlflowkit.bundle import Signature
from mlflowkit.judging.online.evidence import Evidence, PairMoments, VariantCounts
from mlflowkit.judging.online.judge import MetricSpec
from mlflowkit.serving.observer import paired_answers, shadow_comparison
from mlflowkit.serving.observer.paired_answers import PairCounter
from tests.support.online_evidence import FAILED, INCONCLUSIVE, PASSED, looks

SPEC = MetricSpec("kappa", "kappa", min=0.4)
ROWS = 20_000


def counted(signature: Signature, champion: Any, shadow: Any, requests: int = ROWS, edges: Any = ()) -> PairMoments:
    rows = shadow_comparison.compare(signature, champion, shadow, signature, 0.1)
    points = paired_answers.embed(signature, champion, shadow, signature, rows, edges)
    request = np.arange(ROWS) * requests // ROWS
    return paired_answers.pair_moments(paired_answers.request_means(request, *points))


def kappa(moments: PairMoments) -> float:
    return 1 - moments.apart / moments.chance


def classified(labels: Any, classes: Any, probabilities: Any = None) -> dict[str, Any]:
    chosen = np.full((len(labels), len(classes)), 0.5) if probabilities is None else probabilities
    return {"label": np.asarray(labels, dtype=object), "probabilities": chosen}


@pytest.mark.parametrize("requests", [ROWS, ROWS // 7])
def test_of_labels_it_is_cohens_kappa(requests: int) -> None:
    random = np.random.default_rng(1)
    classes = ("a", "b", "c")
    signature = Signature(task="classification", inputs=(), outputs=(), classes=classes)
    first = random.choice(classes, ROWS, p=[0.9, 0.07, 0.03])
    second = np.where(random.random(ROWS) < 0.5, first, random.choice(classes, ROWS, p=[0.8, 0.1, 0.1]))
    own = kappa(counted(signature, classified(first, classes), classified(second, classes), requests))
    assert own == pytest.approx(cohen_kappa_score(first, second), abs=0.03)
    unrelated = random.permutation(first)
    assert (first == unrelated).mean() > 0.8  # they agree on nearly everything
    assert abs(kappa(counted(signature, classified(first, classes), classified(unrelated, classes)))) < 0.03


def test_of_scores_and_numbers_it_is_the_concordance_correlation() -> None:
    random = np.random.default_rng(2)
    signature = Signature(task="classification", inputs=(), outputs=(), classes=("no", "yes"))
    angles = np.clip(random.normal(0.3, 0.1, (2, ROWS)) + np.array([[0.0], [0.05]]), 0.01, 0.99)
    angles[1] = 0.6 * angles[0] + 0.4 * angles[1]
    scores = np.sin(angles * math.pi / 2) ** 2
    answers = [classified(["no"] * ROWS, ("no", "yes"), np.stack([1 - score, score], axis=1)) for score in scores]
    covariance = np.cov(angles)
    shift = float(angles[0].mean() - angles[1].mean())
    concordance = 2 * covariance[0, 1] / (covariance[0, 0] + covariance[1, 1] + shift**2)
    assert kappa(counted(signature, *answers)) == pytest.approx(concordance, abs=0.02)

    regression = Signature(task="regression", inputs=(), outputs=())
    prices = random.lognormal(8, 1, ROWS)
    edges = shadow_comparison.decile_edges(prices)
    alike = {"prediction": prices * random.lognormal(0, 0.05, ROWS)}
    assert kappa(counted(regression, {"prediction": prices}, alike, edges=edges)) > 0.97
    shuffled = {"prediction": random.permutation(prices)}
    assert abs(kappa(counted(regression, {"prediction": prices}, shuffled, edges=edges))) < 0.03


def test_pairs_are_the_same_however_requests_arrive() -> None:
    random = np.random.default_rng(3)
    champion, shadow = random.random((2, 101, 1))
    means = paired_answers.request_means(np.arange(101), champion, shadow)
    whole = paired_answers.pair_moments(means)
    assert whole.pairs == 50
    counter, total, start = PairCounter(), PairMoments(), 0
    for size in (1, 1, 3, 10, 1, 85):
        total = total + counter.add(means[slice(start, start + size)])
        start += size
    assert total.pairs == 50
    assert (total.apart, total.chance) == pytest.approx((whole.apart, whole.chance))


def test_answers_that_are_no_numbers_are_left_out() -> None:
    champion = np.array([[0.5], [np.nan], [0.2], [0.1]])
    shadow = np.array([[0.5], [0.5], [np.inf], [0.1]])
    means = paired_answers.request_means(np.array([0, 0, 1, 2]), champion, shadow)
    assert (len(means), means.apart.tolist()) == (2, [0.0, 0.0])
    assert paired_answers.pair_moments(means[slice(0, 1)]) == PairMoments()


def test_labels_of_classes_that_one_model_does_not_have_differ_from_all() -> None:
    corners = paired_answers.as_corners(np.array([3, 5, 4]), ("3", "4"))
    assert np.square(corners[:, None] - corners[None]).sum(axis=2).round(9).tolist() == [
        [0, 1, 1], [1, 0, 1], [1, 1, 0]
    ]  # fmt: skip


def block(pairs: int, kappa: float, chance: float = 0.02) -> tuple[VariantCounts, VariantCounts]:
    """A look's counts of a champion and its shadow, with exponential distances."""
    apart = (1 - kappa) * chance
    moments = PairMoments(pairs, pairs * apart, pairs * chance, 2 * pairs * apart**2, 2 * pairs * chance**2,
                          pairs * apart * chance)  # fmt: skip
    return VariantCounts(), VariantCounts(mirrored=2 * pairs, pairs=moments)


def test_answers_that_have_nothing_in_common_fail_and_like_ones_pass() -> None:
    for worse in (0.0, -0.3, 0.2):
        verdict = looks(SPEC, [block(100, worse)], blocks=30).verdict
        assert verdict.outcome is FAILED, verdict.message
        assert verdict.message.startswith(f"kappa {worse + 0.0:.3g} [")
    assert looks(SPEC, [block(100, 0.9)]).verdict.outcome is PASSED
    undecided = looks(SPEC, [block(5, 0.4)]).verdict
    assert undecided.outcome is INCONCLUSIVE
    assert looks(SPEC, [(VariantCounts(), VariantCounts())]).verdict.outcome is INCONCLUSIVE


def test_shown_intervals_stay_within_what_kappa_can_be() -> None:
    once = VariantCounts(pairs=PairMoments(100, 1.0, 20.0, 1.0, 20.0, 0.2))
    verdict = looks(SPEC, [(VariantCounts(), once)], blocks=1).verdict
    assert verdict.measurement is not None
    assert verdict.measurement.high > 1  # the number stays
    assert verdict.message.partition("]")[0].endswith(", 1"), verdict.message


def test_pairs_are_kept_in_the_evidence() -> None:
    counts = block(7, 0.5)[1]
    evidence = Evidence("e", {1: {"challenger": counts + counts}})
    assert Evidence.from_json(json.loads(json.dumps(evidence.to_json()))) == evidence
    assert evidence.of("challenger").pairs.pairs == 14
    assert "pairs" not in json.dumps(Evidence("e", {1: {"challenger": VariantCounts(3)}}).to_json())
