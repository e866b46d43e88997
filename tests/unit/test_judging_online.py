"""What the judges of a rollout say of evidence whose truth is plain."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import pytest
from scipy.special import log_ndtr

from mlflowkit.judging.online import quantiles, sequential
from mlflowkit.judging.online.evidence import Evidence, Moments, VariantCounts, bin_seconds, latency_bin, merge
from mlflowkit.judging.online.judge import MetricSpec
from mlflowkit.values import Outcome
from tests.support.online_evidence import (
    AS_GOOD,
    ERRORS,
    FAILED,
    INCONCLUSIVE,
    PASSED,
    WORSE,
    agreeing,
    failing,
    graded,
    look,
    looks,
    predicting,
    slow,
)


@pytest.mark.parametrize("name", WORSE)
def test_a_challenger_that_is_worse_fails(name: str) -> None:
    spec, arms = WORSE[name]
    result = looks(spec, [arms], blocks=40)
    verdict = result.verdict
    assert verdict.outcome is FAILED, verdict.message
    assert result.evidence_worse >= 1
    measurement = verdict.measurement
    assert measurement is not None
    assert verdict.threshold is not None
    if verdict.direction == "min":
        assert measurement.high <= verdict.threshold
    else:
        assert measurement.low >= verdict.threshold


@pytest.mark.parametrize("name", AS_GOOD)
def test_a_challenger_that_is_as_good_passes(name: str) -> None:
    spec, arms = AS_GOOD[name]
    result = looks(spec, [arms], blocks=20)
    assert result.verdict.outcome is PASSED, result.verdict.message
    assert result.evidence_not_worse >= 1 > result.evidence_worse


@pytest.mark.parametrize("spec", [spec for spec, _ in WORSE.values()], ids=list(WORSE))
def test_nothing_counted_is_inconclusive(spec: MetricSpec) -> None:
    (result,), traces = look([spec], {1: (VariantCounts(), VariantCounts())}, {})
    assert result.verdict.outcome is INCONCLUSIVE
    assert result.verdict.measurement is None
    assert (result.evidence_worse, result.evidence_not_worse, result.samples) == (0.0, 0.0, (0, 0))
    assert look([spec], {}, traces)[0][0].verdict.outcome is INCONCLUSIVE


@pytest.mark.parametrize("name", WORSE)
def test_a_look_with_nothing_new_changes_nothing(name: str) -> None:
    spec, arms = WORSE[name]
    first, traces = look([spec], {1: arms}, {})
    second, again = look([spec], {1: arms}, traces)
    assert second == first
    assert json.dumps(again) == json.dumps(traces)


def test_requests_that_failed_make_no_more_observations_of_the_rows_of_others() -> None:
    """Ten rows a request: half of the requests failing must not count each of the others twice."""
    quality = {"accuracy": Moments(5000, 4500.0, 4500.0)}
    whole, half = VariantCounts(500, 0, 5000, quality=quality), VariantCounts(1000, 500, 5000, quality=quality)
    spec = MetricSpec("accuracy", "accuracy", margin=0.05)
    one, other = (looks(spec, [(arm, arm)], blocks=1) for arm in (whole, half))
    assert (one.evidence_not_worse, one.verdict.measurement) == (other.evidence_not_worse, other.verdict.measurement)


def test_a_message_has_no_minus_zero() -> None:
    """Nobody erred: the difference of two accuracies is -(0 - 0)."""
    result = looks(MetricSpec("accuracy", "accuracy", margin=0.05), [(graded("accuracy", 500, 1.0),) * 2])
    assert result.verdict.message.startswith("accuracy +0 [")
    assert "-0 " not in result.verdict.message.replace(",", " ")


def test_the_message_computes_with_the_numbers() -> None:
    result = looks(ERRORS, [(failing(950, 9), failing(50, 4))])
    assert result.verdict.message.startswith("error_rate +0.0705 [")
    assert result.verdict.message.endswith("] > margin 0.005 after 1,000/19,000 requests: FAILED")
    assert result.samples == (19_000, 1_000)


@pytest.mark.parametrize("spec", [MetricSpec("q", "latency_p99_ms", ratio=2), MetricSpec("q", "latency_p99_ms", max=9)])
def test_a_message_leaves_out_ends_that_say_nothing_and_the_numbers_stay(spec: MetricSpec) -> None:
    """No p99 of 30 requests has an upper bound below the end of the histogram."""
    result = looks(spec, [(slow(3000, 4.0), slow(30, 2.0))], blocks=1)
    message, measurement = result.verdict.message, result.verdict.measurement
    assert measurement is not None
    assert measurement.high > 1e4
    assert " (at least " in message
    assert not re.search(r"e\+|inf|\d{5}", message), message
    nothing = looks(MetricSpec("q", "latency_p99_ms", margin=5), [(slow(40, 4.0), slow(30, 2.0))], blocks=1)
    assert " ms (no bounds yet) undecided against margin 5 " in nothing.verdict.message


def test_failed_stays() -> None:
    bad, good = (failing(950, 9), failing(50, 4)), (failing(950, 9), failing(500, 1))
    result = looks(ERRORS, [bad, good])
    assert result.verdict.outcome is FAILED
    measurement = result.verdict.measurement
    assert measurement is not None
    assert measurement.low <= measurement.value <= measurement.high


def test_a_margin_on_agreement_is_a_least_value() -> None:
    arms = VariantCounts(950), agreeing(50, city_a=0.8)
    one, other = (looks(MetricSpec("q", "agreement", **limit), [arms]) for limit in ({"margin": 0.05}, {"min": 0.95}))
    assert one.verdict == other.verdict
    assert "< min 0.95 after 1,000 rows" in one.verdict.message


def test_passed_is_taken_back() -> None:
    spec = MetricSpec("q", "error_rate", margin=0.02)
    good, bad = (failing(4000, 40), failing(200, 2)), (failing(4000, 40), failing(200, 9))
    assert looks(spec, [good]).verdict.outcome is PASSED
    assert looks(spec, [good, bad]).verdict.outcome is not PASSED


def test_a_challenger_that_turns_bad_late_is_found_out_soon() -> None:
    good, bad = (failing(950, 9), failing(500, 5)), (failing(950, 9), failing(50, 4))
    assert looks(ERRORS, [good]).verdict.outcome is not FAILED
    after = looks(ERRORS, [good, bad], blocks=20)
    assert after.verdict.outcome is FAILED


def test_epochs_of_different_load_are_not_pooled() -> None:
    """Simpson's: both arms are slow and err in the second epoch, in which the challenger has most of its traffic."""
    calm = slow(950, 10) + failing(950, 5), slow(50, 10) + failing(50, 0)
    busy = slow(500, 30) + failing(500, 100), slow(500, 30) + failing(500, 100)
    for spec in (
        MetricSpec("q", "latency_p50_ms", ratio=1.2),
        MetricSpec("q", "latency_p99_ms", ratio=1.2),
        ERRORS,
    ):
        assert looks(spec, [calm, busy]).verdict.outcome is not FAILED


def test_every_limit_must_pass_and_any_may_fail() -> None:
    both = MetricSpec("q", "error_rate", margin=0.02, max=0.005)
    arms = failing(4000, 40), failing(200, 2)
    assert looks(MetricSpec("q", "error_rate", margin=0.02), [arms]).verdict.outcome is PASSED
    result = looks(both, [arms], blocks=60)
    assert result.verdict.outcome is FAILED
    assert "max 0.005" in result.verdict.message


def test_a_metric_passes_only_when_every_limit_passes() -> None:
    """The margin is shown to hold, the bound (the challenger's own rate) cannot be: the metric must not pass on one."""
    arms = failing(4000, 40), failing(200, 2)
    assert looks(MetricSpec("q", "error_rate", margin=0.02), [arms]).verdict.outcome is PASSED
    result = looks(MetricSpec("q", "error_rate", margin=0.02, max=0.01), [arms])
    assert result.verdict.outcome is INCONCLUSIVE, result.verdict.message
    assert result.evidence_not_worse < 1
    assert result.verdict.threshold == 0.01
    loose = looks(MetricSpec("q", "error_rate", margin=0.02, max=0.05), [arms])
    assert loose.verdict.outcome is PASSED
    assert loose.evidence_not_worse >= 1


def test_the_level_is_shared_among_the_questions() -> None:
    arms = {1: (failing(950, 9), failing(50, 0))}
    traces: Mapping[str, Any] = {}
    more = [ERRORS, *(MetricSpec(f"other {index}", "error_rate", margin=0.5) for index in range(9))]
    (alone, *_), _ = look([ERRORS], arms, traces)
    arms = {1: (failing(1900, 18), failing(100, 6))}
    (alone,), _ = look([ERRORS], arms, look([ERRORS], {1: (failing(950, 9), failing(50, 0))}, {})[1])
    (among, *_), _ = look(more, arms, look(more, {1: (failing(950, 9), failing(50, 0))}, {})[1])
    assert alone.evidence_worse == pytest.approx(among.evidence_worse * math.log(10 / 0.05) / math.log(1 / 0.05))
    assert alone.evidence_worse > 0


def test_findings_come_in_the_order_of_the_questions() -> None:
    specs = [MetricSpec("b", "error_rate"), MetricSpec("a", "prometheus", max=1.0, measured=(0.5,)), ERRORS]
    results, _ = look(specs, {1: (failing(10, 0), failing(10, 0))}, {})
    assert [result.name for result in results] == ["b", "a", "errors"]


@pytest.mark.parametrize(
    ("measured", "outcome"),
    [
        ((), INCONCLUSIVE),
        ((0.5, 0.5), INCONCLUSIVE),
        ((0.5, 0.5, 0.5), PASSED),
        ((0.5, 0.5, 0.5, math.nan), INCONCLUSIVE),
        ((0.5, 3.0, 3.0), INCONCLUSIVE),
        ((0.5, 3.0, 3.0, 3.0), FAILED),
        ((3.0, 3.0, 3.0, 0.5), INCONCLUSIVE),
        ((3.0, 3.0, math.nan, 3.0), INCONCLUSIVE),
    ],
)
def test_a_metric_that_is_measured_elsewhere(measured: tuple[float, ...], outcome: Outcome) -> None:
    (result,), traces = look([MetricSpec("q", "prometheus", max=2.0, min=0.1, measured=measured)], {}, {})
    assert result.verdict.outcome is outcome, result.verdict.message
    assert not traces


def test_a_slice_in_which_a_shadow_disagrees_is_named() -> None:
    spec = MetricSpec("q", "agreement", min=0.9, columns=("city",))
    arms = VariantCounts(), agreeing(100, city_a=0.99, city_b=0.7, street_c=0.99, street_d=0.99)
    result = looks(spec, [arms])
    assert result.verdict.outcome is FAILED
    assert result.verdict.slice == "city=b"
    assert "where city=b" in result.verdict.message
    whole = looks(MetricSpec("q", "agreement", min=0.9), [arms])
    assert whole.verdict.outcome is not FAILED


def test_rows_of_one_request_are_one_observation() -> None:
    spec = MetricSpec("q", "prediction_drift", max=0.05)
    shares = {"label_bad": 0.1, "label_good": 0.9}, {"label_bad": 0.2, "label_good": 0.8}
    single = predicting(1000, **shares[0]), predicting(100, **shares[1])
    batches = predicting(1000, 50, **shares[0]), predicting(100, 5, **shares[1])
    assert looks(spec, [single]).verdict.outcome is FAILED
    assert looks(spec, [batches]).verdict.outcome is INCONCLUSIVE


def test_counts_that_shrink_are_waited_for() -> None:
    """The file of a replica that is gone for a moment."""
    full, part = (failing(1900, 18), failing(100, 1)), (failing(950, 9), failing(50, 0))
    _, traces = look([ERRORS], {1: full}, {})
    _, after = look([ERRORS], {1: part}, traces)
    assert after == traces
    assert look([ERRORS], {1: full}, after)[1] == traces


def test_neither_arm_alone_is_evidence() -> None:
    (result,), _ = look([ERRORS], {1: (failing(0, 0), failing(500, 400))}, {})
    assert result.verdict.outcome is INCONCLUSIVE
    assert result.evidence_worse == 0.0


def test_no_information_is_no_evidence_of_a_mean() -> None:
    assert sequential.mean_evidence(0.3, 0.0, 0.1, 0.05) == (0.0, 0.0)
    assert sequential.mean_evidence(0.3, 100.0, 0.1, 0.0) == (0.0, 0.0)


def test_latencies_up_to_a_microsecond_are_in_the_first_bin() -> None:
    assert [latency_bin(seconds) for seconds in (0.0, 1e-7, 1e-6, 1.021e-6)] == [0, 0, 0, 1]


def test_an_arm_without_requests_is_no_evidence_of_a_quantile() -> None:
    nothing, some = quantiles.counts_below({}), quantiles.counts_below({400: 9})
    assert quantiles.quantile_evidence(nothing, some, 0.5) == quantiles.quantile_evidence(some, nothing, 0.5) == (0, 0)


@pytest.mark.parametrize("difference", [-3.0, -0.5, -0.42, -0.38, -0.3, -0.05, 0.0, 0.02, 0.3, 2.0])
def test_evidence_of_a_mean_is_the_mixture_of_half_normals(difference: float) -> None:
    """Against SciPy's logarithm of the normal distribution function, far into both tails."""
    information, bound, scale = 10_000.0, 0.01, 0.05
    spread = scale * scale * information
    z = (difference - bound) * information * scale / math.sqrt(1 + spread)
    above, below = sequential.mean_evidence(difference, information, bound, scale)
    flat = math.log(2) - math.log1p(spread) / 2
    assert above == pytest.approx(flat + z * z / 2 + log_ndtr(z), abs=1e-4, rel=1e-9)
    assert below == pytest.approx(flat + z * z / 2 + log_ndtr(-z), abs=1e-4, rel=1e-9)


def test_an_edge_of_a_latency_bin_is_exact() -> None:
    for index in (100, 348, 700):
        edge = bin_seconds(index)
        assert [latency_bin(edge * factor) for factor in (1 - 1e-9, 1 + 1e-9)] == [index - 1, index]
        below = quantiles.counts_below({index: 5})
        assert quantiles.count_below_edge(below, edge * (1 + 1e-8), up=True) == 5
        assert quantiles.count_below_edge(below, edge * (1 + 1e-8), up=False) == 0
        assert quantiles.count_below_edge(below, edge * (1 - 1e-8), up=True) == 0
    assert quantiles.count_below_edge(below, 1e9, up=True) == 5


def test_counts_of_several_writers_are_added_by_table_and_variant() -> None:
    one = Evidence("e", {1: {"champion": failing(10, 1)}, 2: {"champion": failing(5, 0)}})
    two = Evidence("e", {1: {"champion": failing(3, 2), "challenger": failing(4, 4)}})
    merged = merge("e", [one, Evidence("another", {1: {"champion": failing(99, 9)}}), two])
    assert merged.experiment == "e"
    assert merged.epochs == {
        1: {"champion": failing(13, 3), "challenger": failing(4, 4)},
        2: {"champion": failing(5, 0)},
    }
    assert merge("e", []).epochs == {}
