"""A service as people look at it: one frozen value, made from what its files say.

The page, the API, the metrics and ``mlkit status`` show this value and nothing else, so they cannot disagree.
Pure: a `Snapshot` and a time in, a `ServiceView` out; `mlflowkit.rollout.admin.snapshot` does the reading. What is not
known
is None, never NaN: a view is JSON (`ServiceView.to_json`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from mlflowkit.judging.online.evidence import SCORE_BINS, Evidence, Moments, VariantCounts, bin_seconds
from mlflowkit.judging.online.judge import Finding
from mlflowkit.judging.stats import wilson
from mlflowkit.rollout import policy
from mlflowkit.rollout.admin.view_models import (
    Command,
    ComparisonView,
    ExampleView,
    FindingView,
    Histogram,
    IncidentView,
    PointView,
    RolloutView,
    Sample,
    ServiceView,
    ShareView,
    Snapshot,
    StepView,
    VariantView,
)
from mlflowkit.rollout.state import LIVE, Look, Reading, RolloutState
from mlflowkit.service_state.records import service_state
from mlflowkit.values import Json, Outcome, Variant

CONFIDENCE = 0.95
"""Of intervals that are only shown; verdicts rest on the judges' confidence sequences at the level of the plan."""
COARSE = 7
"""Latency bins of the evidence that are drawn as one, 15 % wide."""


def view(snapshot: Snapshot, before: Sample | None = None) -> ServiceView:
    """The view of a snapshot; ``before`` is an earlier sample of the same service, for rates."""
    table, settings = snapshot.table, None if snapshot.desired is None else snapshot.desired.settings
    now, state = sample(snapshot), state_of(snapshot)
    variants = () if table is None else table.variants
    epochs = present_epochs(snapshot)
    counts = {variant.name: snapshot.evidence.of(variant.name, epochs) for variant in variants}
    agreement = {name: shares(found) for name, found in counts.items() if found.agreement}
    return ServiceView(
        service=snapshot.service,
        time=snapshot.time,
        endpoint="" if settings is None else settings.endpoint,
        grpc_endpoint="" if settings is None else settings.grpc_endpoint,
        admin=snapshot.admin,
        epoch=0 if table is None else table.epoch,
        state=state,
        replicas=len(snapshot.reports),
        replicas_wanted=0 if settings is None else settings.replicas,
        variants=tuple(arm(one, counts[one.name], state, per_second(before, now, one.name)) for one in variants),
        rollout=None if snapshot.rollout is None else rollout_view(snapshot.rollout, snapshot.trial),
        agreement=agreement or trial_agreement(snapshot),
        comparisons=snapshot.comparisons,
        incidents=snapshot.incidents,
        incident_count=snapshot.incident_count,
        previous="" if snapshot.rollout is not None and not snapshot.rollout.ended else snapshot.previous,
        controller=snapshot.controller,
        webhooks=snapshot.webhooks,
        waiting_webhooks=snapshot.waiting_webhooks,
        problems=snapshot.problems,
    )


def present_epochs(snapshot: Snapshot) -> tuple[int, ...] | None:
    """Tables under which the names of the present one meant what they mean now; None for all of its experiment.

    A promotion gives the champion's name to another version, so what was counted before is not the new champion's.
    """
    table, state = snapshot.table, snapshot.rollout
    if table is None or state is None or state.experiment != table.experiment:
        return None
    if state.phase not in ("promoting", "promoted"):
        return None
    return tuple(epoch for epoch in snapshot.evidence.epochs if epoch >= state.epoch)


def state_of(snapshot: Snapshot) -> str:
    """What a service does: serving where any replica says that it does; see `service_state.records.service_state`."""
    serving = any(report.state == "serving" for report in snapshot.reports)
    return service_state(snapshot.reports, table=snapshot.table is not None, serving=serving)


def sample(snapshot: Snapshot) -> Sample:
    """The requests of each variant, to be compared with a later sample."""
    table = snapshot.table
    names = () if table is None else tuple(variant.name for variant in table.variants)
    found = {name: snapshot.evidence.of(name) for name in names}
    return Sample(
        snapshot.time, 0 if table is None else table.epoch,
        {name: counts.requests + counts.mirrored for name, counts in found.items()},
    )  # fmt: skip


def per_second(before: Sample | None, now: Sample, name: str) -> float | None:
    """Requests a second of a variant between two samples; None when there is no earlier one, or counts began anew.

    >>> per_second(Sample(10.0, 1, {"champion": 100}), Sample(12.0, 1, {"champion": 130}), "champion")
    15.0
    """
    if before is None or now.time <= before.time or name not in before.requests:
        return None
    grown = now.requests.get(name, 0) - before.requests[name]
    return grown / (now.time - before.time) if grown >= 0 else None


def arm(variant: Variant, counts: VariantCounts, state: str, rate: float | None) -> VariantView:
    """A variant with what was counted of it."""
    return VariantView(
        name=variant.name,
        version=variant.version,
        digest=variant.digest,
        role=variant.role,
        weight=0.0 if variant.role == "shadow" else variant.weight,
        sampling=variant.sampling,
        placement=variant.placement,
        state=state,
        requests=counts.requests,
        errors=counts.errors,
        error_rate=counts.errors / counts.requests if counts.requests else None,
        p50_ms=quantile_ms(counts.latency, 0.5),
        p99_ms=quantile_ms(counts.latency, 0.99),
        per_second=rate,
        mirrored=counts.mirrored,
        dropped=counts.dropped,
    )


def quantile_ms(latency: Mapping[int, int], part: float) -> float | None:
    """A quantile of binned latencies, in milliseconds, at most 2 % too small; None of none.

    >>> quantile_ms({348: 99, 500: 1}, 0.5), quantile_ms({}, 0.5)
    (0.9837, None)
    """
    wanted, seen = part * sum(latency.values()), 0
    for index in sorted(latency):
        seen += latency[index]
        if seen >= wanted:
            return round(1000 * bin_seconds(index), 4)
    return None


def shares(counts: VariantCounts) -> tuple[ShareView, ...]:
    """How often a shadow gave the champion's answer: over all rows first, then by slice, the least agreeing first."""
    found = [share(name, moments) for name, moments in counts.agreement.items() if moments.count]
    return tuple(sorted(found, key=lambda one: (one.slice != "", one.high, one.slice)))


def share(name: str, moments: Moments) -> ShareView:
    """A mean of zeros and ones with its interval.

    >>> round(share("", Moments(10, 10.0, 10.0)).low, 3)
    0.722
    """
    low, high = wilson(moments.total, moments.count, CONFIDENCE)
    return ShareView(name, moments.count, moments.mean, low, high)


def trial_agreement(snapshot: Snapshot) -> Mapping[str, tuple[ShareView, ...]]:
    """The agreement of a rollout's candidate whose experiment is over."""
    if snapshot.rollout is None:
        return {}
    name = snapshot.rollout.candidate.name
    found = snapshot.trial.of(name)
    return {name: shares(found)} if found.agreement else {}


def rollout_view(state: RolloutState, trial: Evidence) -> RolloutView:
    """A rollout as it is shown."""
    live = state.phase in LIVE
    step = state.steps[state.step]
    champion, candidate = (trial.of(arm.name, state.epochs) for arm in (state.champion, state.candidate))
    return RolloutView(
        experiment=state.experiment,
        summary=policy.where(state),
        strategy=state.strategy,
        phase=state.phase,
        ended=state.ended,
        step=state.step,
        steps=steps(state),
        weight=state.weight,
        champion=state.champion.name,
        champion_version=state.champion.version,
        candidate=state.candidate.name,
        candidate_version=state.candidate.version,
        candidate_digest=state.candidate.digest,
        level=state.plan.level,
        begun=state.begun,
        step_started=state.step_started,
        elapsed=state.elapsed,
        deadline=max(0.0, step.max_seconds - state.elapsed) if live and step.max_seconds else None,
        finished=state.finished,
        reason=state.reason,
        by=state.by,
        waiting=waiting(state),
        commands=commands(state),
        findings=tuple(finding_view(one, roles(state).get(one.name, "objective")) for one in state.findings),
        history=history(state.history),
        weights=weights(state),
        requests=(state.counts.champion, state.counts.challenger),
        latency=latency_histogram(champion.latency, candidate.latency),
        predictions=prediction_histogram(champion.predictions, candidate.predictions),
        fence=state.fence,
        looked=state.clock,
    )


def steps(state: RolloutState) -> tuple[StepView, ...]:
    """The plan's steps and where the rollout is among them."""
    found = []
    for number, step in enumerate(state.steps):
        if number < state.step or state.phase == "promoted":
            place: Literal["done", "now", "ahead", "ended", "left"] = "done"
        elif number == state.step:
            place = "ended" if state.ended and state.phase != "kept" else "now"
        else:
            place = "left" if state.ended else "ahead"
        found.append(
            StepView(
                number=number + 1,
                weight=step.weight / 100,
                state=place,
                min_samples=step.min_samples or 1,
                bake_seconds=step.bake_seconds or 0.0,
                max_seconds=step.max_seconds,
                sampling=step.sampling or 1.0,
                approval=step.approval,
            )
        )
    return tuple(found)


def commands(state: RolloutState) -> tuple[Command, ...]:
    """What a person may say to a rollout in its phase."""
    if state.ended or state.phase in ("promoting", "rolling_back"):
        return ()
    turn: Command = "resume" if state.phase == "paused" else "pause"
    if state.phase in ("pending", "preparing"):
        return ("abort",)
    return ("promote", turn, "abort", "rollback")


def waiting(state: RolloutState) -> tuple[str, ...]:
    """What a rollout waits for, in words; nothing once it has ended.

    >>> from mlflowkit.rollout.settings import Rollout
    >>> variant, plan = Variant("challenger", "2", "d", "b"), Rollout(strategy="canary", steps=[5, 50])
    >>> waiting(RolloutState("e", "lending", plan, variant, variant, phase="running", elapsed=18.0))
    ('500 more requests of challenger', '500 more requests of champion', '12 s of baking', 'deadline in 59 min')
    """
    version = state.candidate.version
    match state.phase:
        case "pending":
            return ("its turn to begin",)
        case "preparing":
            return (f"every replica to load, verify and warm version {version}",)
        case "promoting":
            return (f"every replica to answer with version {version} alone",)
        case "rolling_back":
            return (f"every replica to answer with version {state.champion.version} alone",)
        case "paused":
            return (f"someone to say mlkit rollout resume {state.service}",)
        case "awaiting_approval":
            return (f"approval: mlkit rollout promote {state.service}",)
        case "running":
            return (*_waited(policy.waits(state)), *_deadline(state))
    return ()


def _waited(wait: policy.Wait) -> Iterable[str]:
    """What a step waits for, one thing after the other."""
    for name, seen in wait.requests:
        left = wait.least - seen
        yield f"{left:,} more request{'' if left == 1 else 's'} of {name}"
    if wait.seconds > 0:
        yield f"{span(wait.seconds)} of baking"
    if wait.unshown:
        count = len(wait.unshown)
        yield f"{count} metric{'' if count == 1 else 's'} inconclusive ({', '.join(wait.unshown)})"


def _deadline(state: RolloutState) -> Iterable[str]:
    left = (state.steps[state.step].max_seconds or math.inf) - state.elapsed
    if math.isfinite(left):
        yield f"deadline in {span(left)}" if left > 0 else "its deadline has passed"


def roles(state: RolloutState) -> Mapping[str, Literal["objective", "guardrail"]]:
    """Role of each metric of the plan by the name that its findings have."""
    return {
        question.name: metric.role for question, metric in zip(policy.questions(state), state.plan.metrics, strict=True)
    }


def finding_view(finding: Finding, role: Literal["objective", "guardrail"]) -> FindingView:
    """A finding as it is shown."""
    verdict, measured = finding.verdict, finding.verdict.measurement
    return FindingView(
        name=finding.name,
        metric=verdict.metric,
        role=role,
        outcome=verdict.outcome,
        message=verdict.message,
        harm=_known(finding.harm),
        proof=_known(finding.proof),
        value=None if measured is None else _known(measured.value),
        low=None if measured is None else _known(measured.low),
        high=None if measured is None else _known(measured.high),
        threshold=None if verdict.threshold is None else _known(verdict.threshold),
        direction=verdict.direction,
        change=verdict.change,
        unit="" if measured is None else measured.unit,
        method="" if measured is None else measured.method,
        slice=verdict.slice,
        champion=finding.samples[0],
        challenger=finding.samples[1],
    )


def finding_from_json(value: Mapping[str, Json], role: str) -> FindingView:
    """A finding as an incident keeps it. Raises KeyError, TypeError or ValueError for anything else."""
    verdict, measured = value["verdict"], value["verdict"]["measurement"] or {}
    champion, challenger = value["samples"]
    return FindingView(
        name=str(value["name"]),
        metric=str(verdict["metric"]),
        role="guardrail" if role == "guardrail" else "objective",
        outcome=Outcome(verdict["outcome"]),
        message=str(verdict["message"]),
        harm=_number(value["harm"]),
        proof=_number(value["proof"]),
        value=_number(measured.get("value")),
        low=_number(measured.get("low")),
        high=_number(measured.get("high")),
        threshold=_number(verdict["threshold"]),
        direction="min" if verdict["direction"] == "min" else "max",
        change=bool(verdict["change"]),
        unit=str(measured.get("unit", "")),
        method=str(measured.get("method", "")),
        slice=str(verdict["slice"]),
        champion=int(champion),
        challenger=int(challenger),
    )


def incident_from_json(name: str, value: Json) -> IncidentView:
    """An incident as `rollout.incidents` writes it. Raises KeyError, TypeError or ValueError for anything else."""
    metrics, findings = value["plan"]["metrics"], value["findings"]
    judged = [metric["role"] for metric in metrics] if len(metrics) == len(findings) else ["objective"] * len(findings)
    return IncidentView(
        id=name,
        experiment=str(value["experiment"]),
        time=float(value["time"]),
        began=float(value["began"]),
        ending=str(value["ending"]),
        by=str(value["by"]),
        reason=str(value["reason"]),
        strategy=str(value["strategy"]),
        step=int(value["step"]),
        steps=tuple(float(weight) / 100 for weight in value["steps"]),
        champion_version=str(value["champion"]["version"]),
        candidate_version=str(value["candidate"]["version"]),
        candidate_digest=str(value["candidate"]["digest"]),
        findings=tuple(finding_from_json(one, role) for one, role in zip(findings, judged, strict=True)),
        counts={
            str(arm): {key: int(counts.get(key, 0)) for key in ("requests", "errors", "rows")}
            for arm, counts in value["counts"].items()
        },
        lineage={str(key): str(item) for key, item in (value["lineage"] or {}).items()},
        examples=tuple(map(example_from_json, value["disagreements"])),
    )


def comparison_from_json(value: Json) -> ComparisonView:
    """The comparison that `serving.observer.shadow_comparison` keeps of a shadow, from JSON.

    Raises KeyError, TypeError or ValueError for anything else.
    """
    means = {name: Moments(*value[name]).mean for name in ("difference", "rank", "latency")}
    rows = value["agreement"].get("", (0, 0.0, 0.0))[0]
    examples = sorted(map(example_from_json, value["examples"]), key=lambda one: -one.time)
    return ComparisonView(
        shadow=str(value["shadow"]),
        version=str(value["version"]),
        rows=int(rows),
        disagreements=int(value["disagreements"]),
        difference=_known(means["difference"]),
        rank=_known(means["rank"]),
        latency=_known(means["latency"]),
        examples=tuple(examples),
    )


def example_from_json(value: Json) -> ExampleView:
    """One disagreement. Raises KeyError, TypeError or ValueError for anything else."""
    return ExampleView(
        time=float(value["time"]),
        id=str(value["id"]),
        row=int(value["row"]),
        slices=tuple(map(str, value.get("slices", ()))),
        inputs=dict(value["inputs"]),
        champion=dict(value["champion"]),
        shadow=dict(value["shadow"]),
        difference=_number(value["difference"]),
    )


def history(looks: Sequence[Look]) -> Mapping[str, tuple[PointView, ...]]:
    """The looks by metric."""
    found: dict[str, list[PointView]] = {}
    for look in looks:
        for reading in look.readings:
            found.setdefault(reading.name, []).append(_point(look.time, reading))
    return {name: tuple(points) for name, points in found.items()}


def _point(time: float, reading: Reading) -> PointView:
    numbers = (reading.harm, reading.proof, reading.value, reading.low, reading.high)
    return PointView(time, reading.champion, reading.challenger, *map(_known, numbers))


def weights(state: RolloutState) -> tuple[tuple[float, float], ...]:
    """When the candidate's share changed and to what, up to now."""
    if not state.begun:
        return ()
    found = [(state.begun, 0.0)]
    for look in state.history:
        if look.weight != found[-1][1]:
            found.append((look.time, look.weight))
    end = state.finished if state.finished is not None else max(state.clock, found[-1][0])
    if state.weight != found[-1][1]:
        found.append((end, state.weight))
    return (*found, (end, state.weight)) if end > found[-1][0] else tuple(found)


def latency_histogram(champion: Mapping[int, int], candidate: Mapping[int, int]) -> Histogram | None:
    """Latencies of both arms in bins that are COARSE bins of the evidence wide; edges in milliseconds."""
    indices = {index // COARSE for index in (*champion, *candidate)}
    if not indices:
        return None
    bins = range(min(indices), max(indices) + 1)
    counted = []
    for latency in (champion, candidate):
        coarse: dict[int, int] = {}
        for index, count in latency.items():
            coarse[index // COARSE] = coarse.get(index // COARSE, 0) + count
        counted.append(tuple(coarse.get(index, 0) for index in bins))
    edges = tuple(1000 * bin_seconds(index * COARSE) for index in (*bins, bins[-1] + 1))
    return Histogram(edges, (), *counted)


def prediction_histogram(champion: Mapping[str, int], candidate: Mapping[str, int]) -> Histogram | None:
    """Predictions of both arms, by score, by decile of the reference, or by class, whichever the evidence has."""
    keys = {*champion, *candidate}
    for kind, bins, width in (("score", SCORE_BINS, 1 / SCORE_BINS), ("decile", 10, 1.0)):
        if any(key.startswith(f"{kind}:") for key in keys):
            counted = (
                tuple(found.get(f"{kind}:{index}", 0) for index in range(bins)) for found in (champion, candidate)
            )
            return Histogram(tuple(width * edge for edge in range(bins + 1)), (), *counted)
    labels = {key: champion.get(key, 0) + candidate.get(key, 0) for key in keys if key.startswith("label:")}
    if not labels:
        return None
    ordered = sorted(labels, key=lambda key: (-labels[key], key))
    names = tuple(key.partition(":")[2] for key in ordered)
    return Histogram((), names, *(tuple(found.get(key, 0) for key in ordered) for found in (champion, candidate)))


def span(seconds: float) -> str:
    """A span of time as one says it.

    >>> span(41.2), span(150), span(5400), span(200_000)
    ('42 s', '2 min', '1.5 h', '2.3 days')
    """
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    if seconds < 5400:
        return f"{seconds // 60:.0f} min"
    return f"{seconds / 3600:.3g} h" if seconds < 172_800 else f"{seconds / 86_400:.2g} days"


def _number(value: Json) -> float | None:
    """A number in JSON, where null stands for one that is not finite."""
    return None if value is None else _known(float(value))


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
