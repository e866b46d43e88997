"""What is told of a version's performance: from windows, cohorts and requests to findings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from mlflowkit.features.cell_counts import CellCounter, count_cells
from mlflowkit.features.reference_cells import cells_of
from mlflowkit.judging.online.evidence import Evidence, Moments, VariantCounts, latency_bin
from mlflowkit.judging.performance.assess import PerformanceInputs, assess_performance
from mlflowkit.judging.performance.burn_rate import RequestCounts
from mlflowkit.judging.performance.calibrator import Calibrator, fit_calibrator
from mlflowkit.judging.performance.error_table import fit_error_table
from mlflowkit.judging.performance.performance_findings import MetricFinding, PerformanceSettings
from mlflowkit.judging.performance.realised import LabelledCohort
from mlflowkit.judging.performance.request_history import RequestHistory, look
from mlflowkit.judging.performance.score_table import score_cells
from mlflowkit.judging.shift.counts import ProfileCounts, WindowCounts
from mlflowkit.values import Outcome

pytestmark = pytest.mark.unit
DAY = 86_400.0
SETTINGS = PerformanceSettings(
    estimated="roc_auc", max_drop=0.05, realised="recall", minimum=0.6, mature=7 * DAY, min_labels=300
)


def rows(
    count: int, seed: int, shift: float = 0.0, spread: float = 1.5, flip: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    scores = (1 / (1 + np.exp(-(random.normal(size=count) * spread - 1 + shift)))).astype(np.float32)
    actual = (random.random(count) < scores).astype(np.int64)
    return scores, (scores >= 0.4).astype(np.int64), np.where(random.random(count) < flip, 1 - actual, actual)


@cache
def calibrator() -> Calibrator:
    scores, predicted, actual = rows(5000, 0)
    cells = cells_of(scores)
    fitted = fit_calibrator(scores.astype(float), predicted, actual, cells, CellCounter(cells).codes(scores))
    assert fitted is not None
    return fitted


def window(day: int, **changes: float) -> WindowCounts:
    cells = calibrator().cells
    assert cells is not None
    scores, _, _ = rows(2000, day + 100, **changes)
    counts = ProfileCounts(2000, 2000, 2000, {"output.score": count_cells(cells, scores)})
    return WindowCounts("v1", day * DAY, DAY, counts, answered=2000)


def cohort(day: int, labelled: float = 1.0, **changes: float) -> LabelledCohort:
    scores, predicted, actual = rows(2000, day + 100, **changes)
    cells = score_cells(scores).tolist()
    answered: dict[tuple[int, int], int] = {}
    known: dict[tuple[int, int, int], int] = {}
    for index, cell in enumerate(cells):
        key = cell, int(predicted[index])
        answered[key] = answered.get(key, 0) + 1
        if index < 2000 * labelled:
            known[*key, int(actual[index])] = known.get((*key, int(actual[index])), 0) + 1
    return LabelledCohort(day * DAY, DAY, 2000, answered, known)


def by_kind(findings: Sequence[MetricFinding]) -> dict[str, MetricFinding]:
    json.dumps([finding.to_json() for finding in findings], allow_nan=False)
    return {finding.kind: finding for finding in findings}


def assessed(settings: PerformanceSettings = SETTINGS, **inputs: object) -> dict[str, MetricFinding]:
    given = {"evidence": calibrator(), **inputs}
    return by_kind(assess_performance(settings, PerformanceInputs("v1", 60 * DAY, **given)))  # type: ignore[arg-type]


def test_all_is_well() -> None:
    findings = assessed(windows=[window(day) for day in range(20)], cohorts=[cohort(day) for day in range(20)])
    assert {kind: str(finding.outcome) for kind, finding in findings.items()} == {
        "estimated": "PASSED", "realised": "PASSED"
    }  # fmt: skip
    assert findings["estimated"].trust == "TRUSTED"
    assert findings["realised"].labelled_share == 1.0
    assert "within 0.025 of what was realised" in findings["estimated"].message


def test_scores_that_tell_less_are_a_drop_that_a_trusted_estimate_may_act_on() -> None:
    days = range(20)
    findings = assessed(
        windows=[window(day, spread=0.5 if day >= 10 else 1.5) for day in days],
        cohorts=[cohort(day, spread=0.5 if day >= 10 else 1.5) for day in days],
    )
    estimate = findings["estimated"]
    assert estimate.outcome is Outcome.FAILED
    assert estimate.may_act
    assert estimate.since is not None
    assert estimate.since >= 9 * DAY
    assert estimate.high is not None
    assert estimate.bound is not None
    assert estimate.high < estimate.bound


def test_another_concept_moves_what_is_realised_and_not_the_estimate_which_is_then_biased() -> None:
    days = range(20)
    findings = assessed(
        windows=[window(day) for day in days], cohorts=[cohort(day, flip=0.3 if day >= 5 else 0.0) for day in days]
    )
    assert findings["estimated"].outcome is not Outcome.FAILED
    assert findings["estimated"].trust == "BIASED"
    assert "too high" in findings["estimated"].message
    assert findings["realised"].outcome is Outcome.FAILED
    assert findings["realised"].may_act
    assert not findings["estimated"].may_act


def test_an_untrusted_drop_may_not_act() -> None:
    windows = [window(day, spread=0.5) for day in range(20)]
    estimate = assessed(windows=windows)["estimated"]
    assert estimate.outcome is Outcome.FAILED
    assert estimate.trust == "UNKNOWN"
    assert not estimate.may_act


def test_a_bundle_without_a_calibrator_is_unknown_and_no_error() -> None:
    estimate = assessed(evidence=None, windows=[window(day) for day in range(3)])["estimated"]
    assert (estimate.outcome, estimate.trust, estimate.value) == (Outcome.INCONCLUSIVE, "UNKNOWN", None)
    assert "has no calibrator" in estimate.message
    other = assessed(replace(SETTINGS, estimated="macro_f1"))["estimated"]
    assert "is not estimated: of this task roc_auc" in other.message


def test_counts_in_other_cells_are_told() -> None:
    odd = WindowCounts("v1", 0, DAY, ProfileCounts(900, 900, 900, {"output.score": (1, 2, 3)}), answered=900)
    assert "other cells" in assessed(windows=[odd])["estimated"].message


def test_one_request_of_many_rows_is_no_evidence() -> None:
    scores = window(0).total.columns["output.score"]
    batch = WindowCounts("v1", 0, DAY, ProfileCounts(1, 2000, 2000**2, {"output.score": scores}), answered=2000)
    estimate = assessed(windows=[batch])["estimated"]
    assert (estimate.outcome, estimate.value) == (Outcome.INCONCLUSIVE, None)


@pytest.mark.parametrize("labels", ["never", "unknown ids", "young"])
def test_labels_that_did_not_come_are_late_and_no_drop(labels: str) -> None:
    cohorts = {
        "never": [],
        "unknown ids": [cohort(day, labelled=0.0) for day in range(20)],
        "young": [cohort(day) for day in range(55, 60)],
    }[labels]
    windows = [window(day) for day in (range(20) if labels != "young" else range(55, 60))]
    findings = assessed(windows=windows, cohorts=cohorts)
    assert findings["realised"].outcome is Outcome.INCONCLUSIVE
    assert findings["realised"].value is None
    assert ("labels" in findings) is (labels != "young")
    if labels != "young":
        assert findings["labels"].message.startswith("labels are late: none of 40,000 rows")


def test_labels_that_come_at_once_after_a_month_are_no_drop() -> None:
    late = assessed(windows=[window(day) for day in range(20)], cohorts=[cohort(day, 0.0) for day in range(20)])
    assert late["realised"].outcome is Outcome.INCONCLUSIVE
    came = assessed(windows=[window(day) for day in range(20)], cohorts=[cohort(day) for day in range(20)])
    assert came["realised"].outcome is Outcome.PASSED
    assert "labels" not in came


def test_a_metric_of_labelled_rows_that_are_unlike_the_others_decides_nothing() -> None:
    cohorts = []
    for day in range(20):
        whole = cohort(day, flip=0.4)
        top = {key: count for key, count in whole.labelled_cells.items() if key[0] > 80}
        cohorts.append(replace(whole, labelled_cells=top))
    findings = assessed(cohorts=cohorts)
    assert findings["realised"].outcome is Outcome.INCONCLUSIVE
    assert "of labelled rows only" in findings["realised"].message
    assert findings["estimated"].trust == "UNKNOWN"


def test_a_regression_is_estimated_and_realised() -> None:
    random = np.random.default_rng(0)
    group = random.integers(0, 3, 4000)
    table = fit_error_table({"group": group}, {"group": 3}, np.abs(random.normal(size=4000)) * (1 + group))
    settings = PerformanceSettings(estimated="mae", max_drop=0.4, realised="mae", maximum=2.0, mature=DAY)
    windows, cohorts = [], []
    for day in range(12):
        errors = np.abs(random.normal(size=1500)) * 3
        counts = ProfileCounts(1500, 1500, 1500, {"group": (0, 0, 1500)})
        windows.append(WindowCounts("v1", day * DAY, DAY, counts, answered=1500))
        moments = Moments(1500, float(errors.sum()), float((errors**2).sum()))
        cohorts.append(LabelledCohort(day * DAY, DAY, 1500, moments={"absolute_error": moments}))
    findings = assessed(settings, evidence=table, windows=windows, cohorts=cohorts)
    assert findings["estimated"].outcome is Outcome.FAILED
    assert findings["estimated"].trust == "TRUSTED"
    assert findings["realised"].outcome is Outcome.FAILED
    assert "mae is 2.369" in findings["realised"].message


def test_latency_and_errors_are_burn_rates() -> None:
    settings = PerformanceSettings(p99_seconds=0.02, error_rate=0.01)
    now = 60 * DAY
    fast, slow = {latency_bin(0.005): 100}, {latency_bin(0.005): 60, latency_bin(0.09): 40}
    good = [RequestCounts(now - 3600 + 60 * i, 60, 100, 0, fast) for i in range(60)]
    bad = [RequestCounts(now - 3600 + 60 * i, 60, 100, 0, slow) for i in range(60)]
    findings = assessed(settings, requests=good)
    assert {str(finding.outcome) for finding in findings.values()} == {"PASSED"}
    findings = assessed(settings, requests=bad)
    assert findings["latency"].outcome is Outcome.FAILED
    assert findings["latency"].value == pytest.approx(90, rel=0.03)
    assert "40.0 times the 1.00% that the budget allows" in findings["latency"].message
    assert findings["errors"].outcome is Outcome.PASSED
    assert {str(finding.outcome) for finding in assessed(settings).values()} == {"INCONCLUSIVE"}


def _counts(requests: int, errors: int = 0, name: str = "champion") -> dict[str, Evidence]:
    counts = VariantCounts(requests=requests, errors=errors, latency={300: requests - errors})
    return {"evidence/r1.json": Evidence("", {1: {name: counts}})}


def test_a_history_of_requests_is_what_is_new_since_the_last_look() -> None:
    history = look(RequestHistory(), _counts(500), ["champion"], 1000.0)
    assert history.parts == ()
    history = look(history, _counts(500), ["champion"], 1005.0)  # too soon
    history = look(history, _counts(520, 2), ["champion"], 1060.0)
    assert history.parts == (RequestCounts(1000.0, 60.0, 20, 2, {300: 18}),)
    history = look(history, _counts(30), ["champion"], 1120.0)  # the gateway began anew
    assert history.parts[-1] == RequestCounts(1060.0, 60.0, 30, 0, {300: 30})
    assert look(history, _counts(90, name="candidate"), ["champion"], 1180.0).parts[-1].requests == 0
    assert RequestHistory.from_json(json.loads(json.dumps(history.to_json()))) == history
    back = look(history, _counts(40), ["champion"], 1030.0)
    assert all(part.start < 1030.0 for part in back.parts)


def test_a_history_of_requests_is_bounded_and_loses_none() -> None:
    history, total = look(RequestHistory(), _counts(1), ["champion"], 0.0), 1
    for tick in range(1, 2000):
        total += 7
        history = look(history, _counts(total), ["champion"], tick * 15.0)
    assert len(history.parts) < 400
    covered = 2000 * 15.0 - 15.0 - history.parts[0].start
    assert sum(part.requests for part in history.parts) == round(covered / 15.0) * 7
