"""What the judges of a rollout say of evidence whose truth is plain."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from mlflowkit.judging.online.evidence import Evidence, Moments, VariantCounts, latency_bin
from mlflowkit.judging.online.judge import Finding, Question, judge
from mlflowkit.values import Outcome

Arms = tuple[VariantCounts, VariantCounts]
ERRORS = Question("errors", "error_rate", margin=0.005)
FAILED, PASSED, INCONCLUSIVE = Outcome.FAILED, Outcome.PASSED, Outcome.INCONCLUSIVE


def look(
    questions: Sequence[Question], epochs: Mapping[int, Arms], traces: Mapping[str, Any], level: float = 0.05
) -> tuple[tuple[Finding, ...], Mapping[str, Any]]:
    """One look; traces go through JSON, as a controller keeps them."""
    evidence = Evidence("e", {epoch: {"champion": one, "challenger": two} for epoch, (one, two) in epochs.items()})
    findings, after = judge(
        questions,
        evidence,
        champion="champion",
        challenger="challenger",
        epochs=sorted(epochs),
        level=level,
        traces=json.loads(json.dumps(traces, allow_nan=False)),
    )
    return findings, after


def looks(question: Question, epochs: Sequence[Arms], blocks: int = 20, level: float = 0.05) -> Finding:
    """The finding after each epoch's counts came in evenly, in ``blocks`` looks."""
    seen: dict[int, Arms] = {}
    traces: Mapping[str, Any] = {}
    finding = None
    for epoch, arms in enumerate(epochs):
        seen[epoch] = (VariantCounts(), VariantCounts())
        for _ in range(blocks):
            seen[epoch] = (seen[epoch][0] + arms[0], seen[epoch][1] + arms[1])
            (finding,), traces = look([question], seen, traces, level)
    assert finding is not None
    return finding


def failing(requests: int, errors: int) -> VariantCounts:
    return VariantCounts(requests, errors, requests)


def graded(metric: str, count: int, mean: float, spread: float = 0.0) -> VariantCounts:
    moments = Moments(count, count * mean, count * (mean * mean + spread * spread))
    return VariantCounts(count, 0, count, quality={metric: moments})


def right(count: int, share: float) -> VariantCounts:
    return graded("accuracy", count, share, math.sqrt(share * (1 - share)))


def slow(count: int, milliseconds: float) -> VariantCounts:
    """Latencies in even steps from a half to one and a half of it."""
    latency: dict[int, int] = {}
    for index in range(count):
        place = latency_bin(milliseconds / 1000 * (0.5 + (index + 0.5) / count))
        latency[place] = latency.get(place, 0) + 1
    return VariantCounts(count, 0, count, latency)


def predicting(rows: int, requests: int | None = None, **shares: float) -> VariantCounts:
    counts = {name.replace("_", ":"): round(rows * share) for name, share in shares.items()}
    return VariantCounts(rows if requests is None else requests, 0, rows, predictions=counts)


def agreeing(count: int, **slices: float) -> VariantCounts:
    """A shadow's rows, evenly divided among slices ``column=value``, that agree with the champion as often as said."""
    each = count / len(slices)
    found = {name.replace("_", "="): Moments(round(each), each * share, each * share) for name, share in slices.items()}
    same = sum(moments.total for moments in found.values())
    return VariantCounts(rows=count, mirrored=count, agreement={"": Moments(count, same, same), **found})


WORSE: Mapping[str, tuple[Question, Arms]] = {
    "error_rate": (ERRORS, (failing(950, 9), failing(50, 4))),
    "error_rate, no margin": (Question("q", "error_rate"), (failing(950, 9), failing(50, 2))),
    "error_rate max": (Question("q", "error_rate", max=0.02), (failing(950, 9), failing(50, 3))),
    "accuracy": (Question("q", "accuracy", margin=0.02), (right(950, 0.9), right(50, 0.8))),
    "accuracy min": (Question("q", "accuracy", min=0.85), (right(950, 0.9), right(50, 0.74))),
    "log_loss": (
        Question("q", "log_loss", margin=0.02),
        (graded("log_loss", 950, 0.4, 0.3), graded("log_loss", 50, 0.6, 0.3)),
    ),
    "squared_error max": (
        Question("q", "squared_error", max=1.0),
        (graded("squared_error", 950, 1.0, 2.0), graded("squared_error", 50, 2.0, 2.0)),
    ),
    "latency ratio": (Question("q", "latency_p99_ms", ratio=1.2), (slow(950, 10), slow(50, 16))),
    "latency margin": (Question("q", "latency_p50_ms", margin=2), (slow(950, 10), slow(50, 16))),
    "latency max": (Question("q", "latency_p95_ms", max=18), (slow(950, 10), slow(50, 16))),
    "labels": (
        Question("q", "prediction_drift", max=0.1),
        (predicting(900, label_bad=0.1, label_good=0.9), predicting(50, label_bad=0.4, label_good=0.6)),
    ),
    "scores": (
        Question("q", "prediction_drift", max=0.1),
        (predicting(900, score_9=0.5, score_10=0.5), predicting(50, score_9=0.1, score_10=0.3, score_40=0.6)),
    ),
    "agreement": (Question("q", "agreement", min=0.95), (VariantCounts(950), agreeing(50, city_a=0.8))),
}

AS_GOOD: Mapping[str, tuple[Question, Arms]] = {
    "error_rate": (Question("q", "error_rate", margin=0.02), (failing(4000, 40), failing(200, 2))),
    "error_rate, no margin": (Question("q", "error_rate"), (failing(4000, 120), failing(200, 1))),
    "error_rate max": (Question("q", "error_rate", max=0.05), (failing(950, 9), failing(100, 1))),
    "accuracy": (Question("q", "accuracy", margin=0.05), (right(4000, 0.9), right(200, 0.9))),
    "log_loss": (
        Question("q", "log_loss", margin=0.1),
        (graded("log_loss", 950, 0.4, 0.3), graded("log_loss", 50, 0.4, 0.3)),
    ),
    "latency ratio": (Question("q", "latency_p99_ms", ratio=1.5), (slow(4000, 10), slow(200, 10))),
    "latency max": (Question("q", "latency_p99_ms", max=20), (slow(950, 10), slow(100, 10))),
    "labels": (
        Question("q", "prediction_drift", max=0.2),
        (predicting(4000, label_bad=0.1, label_good=0.9), predicting(200, label_bad=0.1, label_good=0.9)),
    ),
    "agreement": (Question("q", "agreement", min=0.9), (VariantCounts(950), agreeing(100, city_a=0.99))),
}


@pytest.mark.parametrize("name", WORSE)
def test_a_challenger_that_is_worse_fails(name: str) -> None:
    question, arms = WORSE[name]
    finding = looks(question, [arms], blocks=40)
    verdict = finding.verdict
    assert verdict.outcome is FAILED, verdict.message
    assert finding.harm >= 1
    measurement = verdict.measurement
    assert measurement is not None
    assert verdict.threshold is not None
    if verdict.direction == "min":
        assert measurement.high <= verdict.threshold
    else:
        assert measurement.low >= verdict.threshold


@pytest.mark.parametrize("name", AS_GOOD)
def test_a_challenger_that_is_as_good_passes(name: str) -> None:
    question, arms = AS_GOOD[name]
    finding = looks(question, [arms], blocks=20)
    assert finding.verdict.outcome is PASSED, finding.verdict.message
    assert finding.proof >= 1 > finding.harm


@pytest.mark.parametrize("question", [question for question, _ in WORSE.values()], ids=list(WORSE))
def test_nothing_counted_is_inconclusive(question: Question) -> None:
    (finding,), traces = look([question], {1: (VariantCounts(), VariantCounts())}, {})
    assert finding.verdict.outcome is INCONCLUSIVE
    assert finding.verdict.measurement is None
    assert (finding.harm, finding.proof, finding.samples) == (0.0, 0.0, (0, 0))
    assert look([question], {}, traces)[0][0].verdict.outcome is INCONCLUSIVE


@pytest.mark.parametrize("name", WORSE)
def test_a_look_with_nothing_new_changes_nothing(name: str) -> None:
    question, arms = WORSE[name]
    first, traces = look([question], {1: arms}, {})
    second, again = look([question], {1: arms}, traces)
    assert second == first
    assert json.dumps(again) == json.dumps(traces)


def test_requests_that_failed_make_no_more_observations_of_the_rows_of_others() -> None:
    """Ten rows a request: half of the requests failing must not count each of the others twice."""
    quality = {"accuracy": Moments(5000, 4500.0, 4500.0)}
    whole, half = VariantCounts(500, 0, 5000, quality=quality), VariantCounts(1000, 500, 5000, quality=quality)
    question = Question("accuracy", "accuracy", margin=0.05)
    one, other = (looks(question, [(arm, arm)], blocks=1) for arm in (whole, half))
    assert (one.proof, one.verdict.measurement) == (other.proof, other.verdict.measurement)


def test_a_message_has_no_minus_zero() -> None:
    """Nobody erred: the difference of two accuracies is -(0 - 0)."""
    finding = looks(Question("accuracy", "accuracy", margin=0.05), [(graded("accuracy", 500, 1.0),) * 2])
    assert finding.verdict.message.startswith("accuracy +0 [")
    assert "-0 " not in finding.verdict.message.replace(",", " ")


def test_the_message_computes_with_the_numbers() -> None:
    finding = looks(ERRORS, [(failing(950, 9), failing(50, 4))])
    assert finding.verdict.message.startswith("error_rate +0.0705 [")
    assert finding.verdict.message.endswith("] > margin 0.005 after 1,000/19,000 requests: FAILED")
    assert finding.samples == (19_000, 1_000)


@pytest.mark.parametrize("question", [Question("q", "latency_p99_ms", ratio=2), Question("q", "latency_p99_ms", max=9)])
def test_a_message_leaves_out_ends_that_say_nothing_and_the_numbers_stay(question: Question) -> None:
    """No p99 of 30 requests has an upper bound below the end of the histogram."""
    finding = looks(question, [(slow(3000, 4.0), slow(30, 2.0))], blocks=1)
    message, measurement = finding.verdict.message, finding.verdict.measurement
    assert measurement is not None
    assert measurement.high > 1e4
    assert " (at least " in message
    assert not re.search(r"e\+|inf|\d{5}", message), message
    nothing = looks(Question("q", "latency_p99_ms", margin=5), [(slow(40, 4.0), slow(30, 2.0))], blocks=1)
    assert " ms (no bounds yet) undecided against margin 5 " in nothing.verdict.message


def test_failed_stays() -> None:
    bad, good = (failing(950, 9), failing(50, 4)), (failing(950, 9), failing(500, 1))
    finding = looks(ERRORS, [bad, good])
    assert finding.verdict.outcome is FAILED
    measurement = finding.verdict.measurement
    assert measurement is not None
    assert measurement.low <= measurement.value <= measurement.high


def test_a_margin_on_agreement_is_a_least_value() -> None:
    arms = VariantCounts(950), agreeing(50, city_a=0.8)
    one, other = (looks(Question("q", "agreement", **limit), [arms]) for limit in ({"margin": 0.05}, {"min": 0.95}))
    assert one.verdict == other.verdict
    assert "< min 0.95 after 1,000 rows" in one.verdict.message


def test_passed_is_taken_back() -> None:
    question = Question("q", "error_rate", margin=0.02)
    good, bad = (failing(4000, 40), failing(200, 2)), (failing(4000, 40), failing(200, 9))
    assert looks(question, [good]).verdict.outcome is PASSED
    assert looks(question, [good, bad]).verdict.outcome is not PASSED


def test_a_challenger_that_turns_bad_late_is_found_out_soon() -> None:
    good, bad = (failing(950, 9), failing(500, 5)), (failing(950, 9), failing(50, 4))
    assert looks(ERRORS, [good]).verdict.outcome is not FAILED
    after = looks(ERRORS, [good, bad], blocks=20)
    assert after.verdict.outcome is FAILED


def test_epochs_of_different_load_are_not_pooled() -> None:
    """Simpson's: both arms are slow and err in the second epoch, in which the challenger has most of its traffic."""
    calm = slow(950, 10) + failing(950, 5), slow(50, 10) + failing(50, 0)
    busy = slow(500, 30) + failing(500, 100), slow(500, 30) + failing(500, 100)
    for question in (
        Question("q", "latency_p50_ms", ratio=1.2),
        Question("q", "latency_p99_ms", ratio=1.2),
        ERRORS,
    ):
        assert looks(question, [calm, busy]).verdict.outcome is not FAILED


def test_every_limit_must_pass_and_any_may_fail() -> None:
    both = Question("q", "error_rate", margin=0.02, max=0.005)
    arms = failing(4000, 40), failing(200, 2)
    assert looks(Question("q", "error_rate", margin=0.02), [arms]).verdict.outcome is PASSED
    finding = looks(both, [arms], blocks=60)
    assert finding.verdict.outcome is FAILED
    assert "max 0.005" in finding.verdict.message


def test_the_level_is_shared_among_the_questions() -> None:
    arms = {1: (failing(950, 9), failing(50, 0))}
    traces: Mapping[str, Any] = {}
    more = [ERRORS, *(Question(f"other {index}", "error_rate", margin=0.5) for index in range(9))]
    (alone, *_), _ = look([ERRORS], arms, traces)
    arms = {1: (failing(1900, 18), failing(100, 6))}
    (alone,), _ = look([ERRORS], arms, look([ERRORS], {1: (failing(950, 9), failing(50, 0))}, {})[1])
    (among, *_), _ = look(more, arms, look(more, {1: (failing(950, 9), failing(50, 0))}, {})[1])
    assert alone.harm == pytest.approx(among.harm * math.log(10 / 0.05) / math.log(1 / 0.05))
    assert alone.harm > 0


def test_findings_come_in_the_order_of_the_questions() -> None:
    questions = [Question("b", "error_rate"), Question("a", "prometheus", max=1.0, measured=(0.5,)), ERRORS]
    findings, _ = look(questions, {1: (failing(10, 0), failing(10, 0))}, {})
    assert [finding.name for finding in findings] == ["b", "a", "errors"]


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
    (finding,), traces = look([Question("q", "prometheus", max=2.0, min=0.1, measured=measured)], {}, {})
    assert finding.verdict.outcome is outcome, finding.verdict.message
    assert not traces


def test_a_slice_in_which_a_shadow_disagrees_is_named() -> None:
    question = Question("q", "agreement", min=0.9, columns=("city",))
    arms = VariantCounts(), agreeing(100, city_a=0.99, city_b=0.7, street_c=0.99, street_d=0.99)
    finding = looks(question, [arms])
    assert finding.verdict.outcome is FAILED
    assert finding.verdict.slice == "city=b"
    assert "where city=b" in finding.verdict.message
    whole = looks(Question("q", "agreement", min=0.9), [arms])
    assert whole.verdict.outcome is not FAILED


def test_rows_of_one_request_are_one_observation() -> None:
    question = Question("q", "prediction_drift", max=0.05)
    shares = {"label_bad": 0.1, "label_good": 0.9}, {"label_bad": 0.2, "label_good": 0.8}
    single = predicting(1000, **shares[0]), predicting(100, **shares[1])
    batches = predicting(1000, 50, **shares[0]), predicting(100, 5, **shares[1])
    assert looks(question, [single]).verdict.outcome is FAILED
    assert looks(question, [batches]).verdict.outcome is INCONCLUSIVE


def test_counts_that_shrink_are_waited_for() -> None:
    """The file of a replica that is gone for a moment."""
    full, part = (failing(1900, 18), failing(100, 1)), (failing(950, 9), failing(50, 0))
    _, traces = look([ERRORS], {1: full}, {})
    _, after = look([ERRORS], {1: part}, traces)
    assert after == traces
    assert look([ERRORS], {1: full}, after)[1] == traces


def test_neither_arm_alone_is_evidence() -> None:
    (finding,), _ = look([ERRORS], {1: (failing(0, 0), failing(500, 400))}, {})
    assert finding.verdict.outcome is INCONCLUSIVE
    assert finding.harm == 0.0
