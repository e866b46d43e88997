"""What gates say, and the words that they say it in."""

from __future__ import annotations

import math

import pytest

from mlflowkit.judging import gates
from mlflowkit.judging.gates import GateSpec, assess, judge, judge_family, undecided_verdict
from mlflowkit.judging.stats import Estimate, UndefinedMetricError, wilson
from mlflowkit.values import Measurement, Outcome


def measured(low: float, high: float) -> Measurement:
    return Measurement("m", (low + high) / 2, low, high, samples=100)


def fixed(
    low: float, value: float, high: float, *, name: str = "roc_auc", unit: str = "", basis: str = "100 rows"
) -> Estimate:
    return Estimate(name, value, 100, lambda confidence: (low, high), "fixed", unit, basis)


def proportion(hits: int, rows: int) -> Estimate:
    return Estimate("accuracy", hits / rows, rows, lambda c: wilson(hits, rows, c), "Wilson", basis=f"{rows} rows")


@pytest.mark.parametrize(
    ("low", "high", "direction", "outcome"),
    [
        (0.70, 0.80, "min", Outcome.PASSED),
        (0.69, 0.80, "min", Outcome.INCONCLUSIVE),
        (0.60, 0.70, "min", Outcome.INCONCLUSIVE),
        (0.60, 0.69, "min", Outcome.FAILED),
        (0.60, 0.70, "max", Outcome.PASSED),
        (0.60, 0.71, "max", Outcome.INCONCLUSIVE),
        (0.70, 0.80, "max", Outcome.INCONCLUSIVE),
        (0.71, 0.80, "max", Outcome.FAILED),
        (math.nan, 0.80, "min", Outcome.ERROR),
        (0.80, math.nan, "max", Outcome.ERROR),
    ],
)
def test_the_whole_interval_decides(low: float, high: float, direction: gates.Direction, outcome: Outcome) -> None:
    assert assess(measured(low, high), 0.70, direction) is outcome


def test_words_compute_with_the_numbers() -> None:
    spec = GateSpec("g", "roc_auc", 0.70, "min")
    basis = "1,479 rows (78 positive)"
    assert judge(spec, fixed(0.689, 0.741, 0.793, basis=basis)).message == (
        "roc_auc 0.741 [0.689, 0.793] on 1,479 rows (78 positive): lower bound 0.689 < min 0.7 <= upper bound 0.793: "
        "INCONCLUSIVE; about 61 more rows would decide"
    )
    assert judge(spec, fixed(0.701, 0.741, 0.793)).message.endswith("lower bound 0.701 >= min 0.7: PASSED")
    assert judge(spec, fixed(0.5, 0.6, 0.69)).message.endswith("upper bound 0.69 < min 0.7: FAILED")
    slow = GateSpec("g", "latency_p99_ms", 5, "max")
    assert judge(slow, fixed(5.2, 6, 7, name="latency_p99_ms", unit="ms")).message == (
        "latency_p99_ms 6 ms [5.2, 7] on 100 rows: lower bound 5.2 > max 5: FAILED"
    )


def test_a_change_is_told_as_one() -> None:
    spec = GateSpec("g", "roc_auc", -0.01, "min", change=True)
    verdict = judge(spec, fixed(-0.008, 0.001, 0.01))
    assert verdict.message == (
        "roc_auc minus champion 0.001 [-0.008, 0.01] on 100 rows: lower bound -0.008 >= -0.01 (the margin): PASSED"
    )
    assert verdict.threshold == -0.01


def test_numbers_that_differ_are_told_apart() -> None:
    spec = GateSpec("g", "roc_auc", 0.7, "min")
    message = judge(spec, fixed(0.69996, 0.75, 0.8)).message
    assert "lower bound 0.69996 < min 0.7 <=" in message
    assert "lower bound 0.7 >= min 0.7: PASSED" in judge(spec, fixed(0.7, 0.75, 0.8)).message


def test_a_value_at_the_threshold_is_not_promised_a_decision() -> None:
    message = judge(GateSpec("g", "accuracy", 0.85, "min"), proportion(85, 100)).message
    assert message.endswith("more rows would hardly decide")


def test_the_rows_that_are_asked_for_do_decide() -> None:
    spec = GateSpec("g", "accuracy", 0.85, "min")
    verdict = judge(spec, proportion(90, 100))
    more = int(verdict.message.split("about ")[1].split(" ")[0])
    assert judge(spec, proportion(round(0.9 * (100 + more)), 100 + more)).outcome is Outcome.PASSED


@pytest.mark.parametrize(
    ("allow", "dry", "estimate", "bars", "words"),
    [
        (False, False, fixed(0.6, 0.7, 0.8), True, "INCONCLUSIVE;"),
        (True, False, fixed(0.6, 0.7, 0.8), False, "INCONCLUSIVE (allowed by the gate)"),
        (True, False, fixed(0.1, 0.2, 0.3), True, "FAILED"),
        (False, True, fixed(0.1, 0.2, 0.3), False, "FAILED (dry run: reported only)"),
        (False, True, fixed(0.6, 0.7, 0.8), False, "INCONCLUSIVE (dry run: reported only)"),
        (False, False, fixed(0.8, 0.85, 0.9), False, "PASSED"),
    ],
)
def test_who_bars_the_way(allow: bool, dry: bool, estimate: Estimate, bars: bool, words: str) -> None:
    verdict = judge(GateSpec("g", "roc_auc", 0.7, "min", allow_inconclusive=allow, dry_run=dry), estimate)
    assert gates.is_blocking(verdict) is bars
    assert gates.blessed([verdict]) is not bars
    assert words in verdict.message


def test_an_error_bars_the_way_unless_in_dry_run() -> None:
    for dry in (False, True):
        spec = GateSpec("g", "roc_auc", 0.7, "min", allow_inconclusive=True, dry_run=dry)
        verdict = undecided_verdict(spec, Outcome.ERROR, "the model answered NaN")
        assert gates.is_blocking(verdict) is not dry
        assert verdict.message.startswith("roc_auc: the model answered NaN: ERROR")


def test_the_worst_comes_first() -> None:
    spec = GateSpec("g", "roc_auc", 0.7, "min")
    verdicts = {outcome: undecided_verdict(spec, outcome, "why") for outcome in Outcome}
    assert gates.worst_blocking([]) is Outcome.PASSED
    assert gates.worst_blocking([verdicts[Outcome.PASSED], verdicts[Outcome.INCONCLUSIVE]]) is Outcome.INCONCLUSIVE
    assert gates.worst_blocking([verdicts[Outcome.ERROR], verdicts[Outcome.INCONCLUSIVE]]) is Outcome.ERROR
    assert gates.worst_blocking(verdicts.values()) is Outcome.FAILED
    dry = undecided_verdict(GateSpec("g", "m", 0.7, "min", dry_run=True), Outcome.FAILED, "why")
    assert gates.worst_blocking([dry]) is Outcome.PASSED


def test_slices_keep_their_order_and_say_how_they_were_corrected() -> None:
    spec = GateSpec("g", "accuracy", 0.8, "min")
    verdicts = judge_family(spec, {"a=1": proportion(88, 100), "a=2": proportion(40, 100), "a=3": proportion(82, 100)})
    assert [verdict.slice for verdict in verdicts] == ["a=1", "a=2", "a=3"]
    assert [verdict.outcome for verdict in verdicts] == [Outcome.INCONCLUSIVE, Outcome.FAILED, Outcome.INCONCLUSIVE]
    assert "on 100 rows where a=2: upper bound" in verdicts[1].message
    assert "interval at 98.33%, corrected for 3 slices (Holm)" in verdicts[1].message
    alone = judge(spec, proportion(88, 100))
    assert alone.outcome is Outcome.PASSED


def test_an_undecided_interval_straddles_its_threshold() -> None:
    spec = GateSpec("g", "accuracy", 0.8, "min")
    members = {str(number): proportion(70 + 3 * number, 100) for number in range(10)}
    for verdict in judge_family(spec, members):
        if verdict.outcome is Outcome.INCONCLUSIVE:
            assert verdict.measurement is not None
            assert verdict.measurement.low < 0.8 <= verdict.measurement.high


def test_members_without_an_estimate_count_in_the_correction() -> None:
    spec = GateSpec("g", "accuracy", 0.8, "min")
    assert judge_family(spec, {"a": proportion(88, 100)})[0].outcome is Outcome.PASSED
    assert judge_family(spec, {"a": proportion(88, 100)}, size=3)[0].outcome is Outcome.INCONCLUSIVE


def test_an_interval_that_cannot_be_made_is_inconclusive_in_words() -> None:
    def none(confidence: float) -> tuple[float, float]:
        raise UndefinedMetricError("no spread among 30 rows: no interval can be made")

    verdict = judge(GateSpec("g", "mae", 0.7, "max"), Estimate("mae", 0.0, 30, none, "t"))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "no spread among 30 rows" in verdict.message
    assert gates.is_blocking(verdict)


def test_no_slices_make_no_verdicts() -> None:
    assert judge_family(GateSpec("g", "mae", 0.7, "max"), {}) == ()
