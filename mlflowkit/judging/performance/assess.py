"""All findings on a version's performance: from its windows, its labelled cohorts and its gateways' counts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from mlflowkit.judging.performance import burn_rate, estimated
from mlflowkit.judging.performance.backtest import BackTest, EstimateError, judge_estimates
from mlflowkit.judging.performance.burn_rate import BurnRate, RequestCounts
from mlflowkit.judging.performance.calibrator import Calibrator
from mlflowkit.judging.performance.error_table import ERROR_METRIC, ErrorTable, estimate_error
from mlflowkit.judging.performance.estimated import PerformanceEstimate
from mlflowkit.judging.performance.harm import PerformanceBlock, is_worse, judge_blocks
from mlflowkit.judging.performance.label_selection import judge_selection
from mlflowkit.judging.performance.maturity import LabelMaturity, label_maturity
from mlflowkit.judging.performance.performance_findings import MetricFinding, PerformanceSettings
from mlflowkit.judging.performance.realised import (
    REALISED_METRICS,
    LabelledCohort,
    cohort_block,
    join_cohorts,
    realised_performance,
)
from mlflowkit.judging.performance.score_table import LOWER_IS_BETTER, SCORE_METRICS
from mlflowkit.judging.shift.counts import ProfileCounts, WindowCounts
from mlflowkit.values import Outcome

ALIASES = {"mae": "absolute_error"}
"""Metrics of gates by the names that feedback has for them."""
RECENT_WINDOWS = 3
"""Windows that a shown estimate is of."""
MAX_COHORTS = 120
"""Cohorts that are judged, the newest."""
MIN_EFFECTIVE = 30.0
"""Effective rows of a window that is estimated."""
Evidence = Calibrator | ErrorTable


@dataclass(frozen=True, slots=True)
class PerformanceInputs:
    """What is known of a version: closed ``windows`` and ``cohorts``, and ``requests``, in the order of time.

    ``evidence`` is None for a bundle without; ``label_error`` says why cohorts cannot be read, "" when they can.
    """

    version: str
    now: float
    evidence: Evidence | None = None
    windows: Sequence[WindowCounts] = ()
    cohorts: Sequence[LabelledCohort] = ()
    requests: Sequence[RequestCounts] = ()
    label_error: str = ""


def assess_performance(settings: PerformanceSettings, inputs: PerformanceInputs) -> tuple[MetricFinding, ...]:
    """The findings that the settings ask for; never an exception for what the inputs lack."""
    findings: list[MetricFinding] = []
    mature = [cohort for cohort in inputs.cohorts if cohort.start + cohort.seconds + settings.mature <= inputs.now]
    maturity = label_maturity(inputs.cohorts, inputs.now, settings.mature)
    if settings.estimated is not None:
        findings.append(_estimated(settings, inputs, mature[-MAX_COHORTS:]))
    if settings.realised is not None:
        findings.append(_realised(settings, inputs, mature[-MAX_COHORTS:], maturity))
        findings.extend(_late_labels(settings, inputs, maturity))
    if settings.p99_seconds is not None:
        findings.append(_latency(settings.p99_seconds, settings, inputs))
    if settings.error_rate is not None:
        rate = burn_rate.burn_rate(
            inputs.requests, inputs.now, settings.error_rate, budget_seconds=settings.budget_seconds
        )
        share = rate.bad / rate.requests if rate.requests else None
        message = _burn_message(rate, "failed", settings.error_rate)
        findings.append(_burn_finding("error_rate", "errors", rate, share, settings.error_rate, message))
    return tuple(findings)


# ---------------------------------------------------------------------------------------------------------- estimated


def _estimated(
    settings: PerformanceSettings, inputs: PerformanceInputs, mature: Sequence[LabelledCohort]
) -> MetricFinding:
    name = str(settings.estimated)
    metric = ALIASES.get(name, name)
    nothing = MetricFinding(name, "estimated", Outcome.INCONCLUSIVE, trust="UNKNOWN")
    reference = _reference(metric, inputs.evidence)
    if inputs.evidence is None or reference is None:
        return replace(nothing, message=_no_estimate(name, inputs))
    sign = 1.0 if metric in LOWER_IS_BETTER else -1.0
    bound = reference + sign * settings.max_drop
    backtest = back_test(metric, inputs.evidence, mature, inputs.windows, settings)
    nothing = replace(nothing, bound=bound, reference=reference, trust=backtest.trust)
    blocks, fault = _estimated_blocks(metric, inputs)
    recent = sum((window.total for window in inputs.windows[-RECENT_WINDOWS:]), ProfileCounts())
    shown, fault = _estimate(metric, inputs.evidence, recent) if blocks else (None, fault)
    if shown is None:
        return replace(nothing, message=fault or f"{name} is not determined: no window has enough rows")
    slack = NormalDist().inv_cdf(1 - settings.level / 2) * shown.drift_error
    scale = settings.max_drop
    verdict = judge_blocks(metric, blocks, bound, slack=slack, scale=scale, level=settings.level / 2)
    beyond = is_worse(metric, shown.low if metric in LOWER_IS_BETTER else shown.high, bound)
    outcome = verdict.outcome
    if outcome is Outcome.FAILED and not beyond:
        outcome = Outcome.INCONCLUSIVE
    message = (
        f"{name} is estimated at {_figures(shown.value, shown.low, shown.high)}, {_figure(reference)} on held-out "
        f"rows, bound {_figure(bound)}; {backtest.message}"
    )
    return MetricFinding(
        name, "estimated", outcome, shown.value, shown.low, shown.high, bound, reference, verdict.evidence,
        round(shown.rows), backtest.trust, since=verdict.since, start=inputs.windows[-1].start, message=message,
    )  # fmt: skip


def _reference(metric: str, evidence: Evidence | None) -> float | None:
    if isinstance(evidence, ErrorTable):
        return evidence.realised if metric == ERROR_METRIC else None
    bias = None if evidence is None else evidence.held_out.get(metric)
    return None if bias is None else bias.realised


def _no_estimate(name: str, inputs: PerformanceInputs) -> str:
    if inputs.evidence is None:
        return (
            f"{name} is not estimated: the bundle of version {inputs.version} has no calibrator (packaged by an "
            "earlier version of mlflowkit, more than two classes, or too few held-out rows)"
        )
    estimable = ("mae",) if isinstance(inputs.evidence, ErrorTable) else SCORE_METRICS
    return f"{name} is not estimated: of this task {', '.join(estimable)} are"


def _estimate(metric: str, evidence: Evidence, counts: ProfileCounts) -> tuple[PerformanceEstimate | None, str]:
    """An estimate of a window's rows, or why there is none."""
    effective = counts.effective_rows
    if effective < MIN_EFFECTIVE:
        return None, ""
    try:
        if isinstance(evidence, ErrorTable):
            return estimate_error(evidence, counts.columns, effective), ""
        table = estimated.score_table_of(counts.columns.get("output.score", ()), evidence)
        return estimated.estimate_score_metric(metric, table, evidence, effective), ""
    except ValueError as error:
        return None, str(error)


def _estimated_blocks(metric: str, inputs: PerformanceInputs) -> tuple[list[PerformanceBlock], str]:
    blocks, fault = [], ""
    assert inputs.evidence is not None
    for window in inputs.windows[-MAX_COHORTS:]:
        estimate, fault = _estimate(metric, inputs.evidence, window.total)
        if estimate is not None:
            variance = estimate.sampling**2
            blocks.append(PerformanceBlock(window.start, window.seconds, estimate.value, variance, estimate.effective))
    return blocks, fault


def back_test(
    metric: str,
    evidence: Evidence,
    mature: Sequence[LabelledCohort],
    windows: Sequence[WindowCounts],
    settings: PerformanceSettings,
) -> BackTest:
    """Estimates held against the labels of mature cohorts; UNKNOWN where the labelled rows are not like all rows."""
    tolerance = settings.max_drop / 2
    if judge_selection(mature).outcome is Outcome.FAILED:
        return BackTest("UNKNOWN", None, None, None, tolerance, 0, 0)
    errors = []
    for cohort in join_cohorts(mature, settings.min_labels):
        block = cohort_block(metric, cohort, variance=False)
        expected = None if block is None else _expected_of_cohort(metric, evidence, cohort, windows)
        if block is not None and expected is not None:
            errors.append(EstimateError(cohort.start, expected[0] - block.value, expected[1], cohort.labels))
    return judge_estimates(errors, tolerance)


def _expected_of_cohort(
    metric: str, evidence: Evidence, cohort: LabelledCohort, windows: Sequence[WindowCounts]
) -> tuple[float, float] | None:
    """The estimate, and the variance of what will be realised.

    Of a classification by the labelled rows' own scores; of a regression by the windows of the same time.
    """
    if isinstance(evidence, Calibrator):
        return estimated.expected_metric(metric, cohort.table(), evidence) if cohort.labelled_cells else None
    end = cohort.start + cohort.seconds
    parts = [window.total for window in windows if cohort.start <= window.start and window.start < end]
    estimate, _ = _estimate(metric, evidence, sum(parts, ProfileCounts()))
    return None if estimate is None else (estimate.value, estimate.sampling**2 * estimate.effective / cohort.labels)


# ----------------------------------------------------------------------------------------------------------- realised


def _realised(
    settings: PerformanceSettings,
    inputs: PerformanceInputs,
    mature: Sequence[LabelledCohort],
    maturity: LabelMaturity,
) -> MetricFinding:
    name = str(settings.realised)
    metric, bound = _realised_bound(name, settings)
    nothing = MetricFinding(
        name, "realised", Outcome.INCONCLUSIVE, bound=bound, labelled_share=maturity.share,
        reference=_reference(metric, inputs.evidence),
    )  # fmt: skip
    if metric not in REALISED_METRICS:
        countable = ", ".join((*SCORE_METRICS, "mae"))
        return replace(nothing, message=f"{name} is not counted from labels: {countable} are")
    result = realised_performance(metric, mature, settings.min_labels)
    if inputs.label_error or result is None:
        labels = sum(cohort.labels for cohort in mature)
        few = f"{labels:,} labels of answers that are old enough, {settings.min_labels:,} are needed"
        return replace(nothing, message=f"{name} is not known: {inputs.label_error or few}")
    message = f"{name} is {_figures(result.value, result.low, result.high)} on {result.rows:,} labelled rows"
    values = replace(
        nothing, value=result.value, low=result.low, high=result.high, rows=result.rows, start=result.blocks[-1].start
    )
    if bound is None:
        return replace(values, message=message)
    message += f", bound {bound:g}" + (
        f", days differ {result.design_effect:.1f} times as much as rows would" if result.design_effect > 1.5 else ""
    )
    selection = judge_selection(mature)
    if selection.outcome is Outcome.FAILED:
        apart = f"; of labelled rows only: their scores are {selection.distance:.2f} from those of all rows"
        return replace(values, message=message + apart)
    scale = 0.25 * bound if metric in ("absolute_error", "log_loss") and bound else 0.08
    verdict = judge_blocks(metric, result.blocks, bound, scale=scale, level=settings.level)
    return replace(values, outcome=verdict.outcome, evidence=verdict.evidence, since=verdict.since, message=message)


def _realised_bound(name: str, settings: PerformanceSettings) -> tuple[str, float | None]:
    metric = ALIASES.get(name, name)
    return metric, settings.maximum if metric in LOWER_IS_BETTER else settings.minimum


def _late_labels(
    settings: PerformanceSettings, inputs: PerformanceInputs, maturity: LabelMaturity
) -> list[MetricFinding]:
    """A finding where labels that should have come did not: no reason to call anything worse, but to tell."""
    late = maturity.late
    old = [window for window in inputs.windows if window.start + window.seconds + settings.mature <= inputs.now]
    rows = sum(window.total.rows for window in old)
    if not maturity.answered and rows:
        late = f"none of {rows:,} rows that are old enough has a label"
    if not late:
        return []
    share = maturity.share if maturity.answered else 0.0
    message = f"labels are late: {late} (an age of {_duration(settings.mature)})"
    return [
        MetricFinding(str(settings.realised), "labels", Outcome.INCONCLUSIVE, labelled_share=share, message=message)
    ]


# ------------------------------------------------------------------------------------------------- latency and errors


def _latency(p99: float, settings: PerformanceSettings, inputs: PerformanceInputs) -> MetricFinding:
    rate = burn_rate.burn_rate(inputs.requests, inputs.now, 0.01, slow=p99, budget_seconds=settings.budget_seconds)
    recent = [part for part in inputs.requests if part.start + part.seconds > inputs.now - rate.long]
    value = burn_rate.quantile_seconds(burn_rate.merge_latency(recent), 0.99)
    message = _burn_message(rate, f"took longer than {1000 * p99:g} ms", 0.01)
    shown = None if value is None else 1000 * value
    return _burn_finding("latency_p99_ms", "latency", rate, shown, 1000 * p99, message)


def _burn_finding(
    metric: str, kind: str, rate: BurnRate, value: float | None, bound: float, message: str
) -> MetricFinding:
    evidence = 0.0 if not rate.factor else min(rate.low / rate.factor, 1.0)
    evidence = 1.0 if rate.outcome is Outcome.FAILED else min(evidence, 0.99)
    return MetricFinding(
        metric, "errors" if kind == "errors" else "latency", rate.outcome, value, bound=bound, evidence=evidence,
        rows=rate.requests, message=message,
    )  # fmt: skip


def _burn_message(rate: BurnRate, what: str, allowed: float) -> str:
    if not rate.requests:
        return "no requests were counted"
    return (
        f"{rate.bad:,} of {rate.requests:,} requests of the last {_duration(rate.long)} {what}: {rate.rate:.1f} times "
        f"the {allowed:.2%} that the budget allows, {rate.short_rate:.1f} times in the last {_duration(rate.short)}; "
        f"{rate.factor:.3g} times is an alarm"
    )


def _figures(value: float, low: float, high: float) -> str:
    return f"{_figure(value)} [{_figure(low)}, {_figure(high)}]"


def _figure(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.5g}"


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
