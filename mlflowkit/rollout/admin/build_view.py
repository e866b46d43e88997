"""Build the view of a service from a snapshot of its files. Pure; `mlflowkit.rollout.admin.snapshot` reads the files.

The page, the API, the metrics and ``mlkit status`` all show the `ServiceView`, so they cannot disagree. Unknown values
are None, never NaN: a view is JSON (`ServiceView.to_json`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from mlflowkit.judging.online.evidence import SCORE_BINS, Evidence, VariantCounts, bin_seconds
from mlflowkit.judging.stats import wilson
from mlflowkit.rollout import conditions, policy
from mlflowkit.rollout.admin.parse_records import finding_from_json, finite_or_none
from mlflowkit.rollout.admin.view_models import (
    Histogram,
    PointView,
    RequestSample,
    RolloutView,
    ServiceSnapshot,
    ServiceView,
    ShareView,
    StepView,
    VariantView,
)
from mlflowkit.rollout.commands import CommandKind
from mlflowkit.rollout.state import LIVE_PHASES, Observation, RolloutState, findings_json
from mlflowkit.service_state.records import summarize_state
from mlflowkit.system.text import format_count
from mlflowkit.values import Variant

CONFIDENCE = 0.95
"""Of displayed intervals; verdicts rest on the judges' confidence sequences at the plan's level."""
MERGED_BINS = 7
"""Latency bins of the evidence that are merged into one displayed bin, 15 % wide."""


def build_service_view(snapshot: ServiceSnapshot, before: RequestSample | None = None) -> ServiceView:
    """The view of a snapshot; ``before`` is an earlier sample of the service, for rates."""
    table, settings = snapshot.table, None if snapshot.desired is None else snapshot.desired.settings
    now, state = request_sample(snapshot), serving_state(snapshot)
    variants = () if table is None else table.variants
    epochs = present_epochs(snapshot)
    counts = {variant.name: snapshot.evidence.of(variant.name, epochs) for variant in variants}
    agreement = {name: agreement_views(evidence) for name, evidence in counts.items() if evidence.agreement}
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
        variants=tuple(variant_view(variant, counts[variant.name], state, before, now) for variant in variants),
        rollout=None if snapshot.rollout is None else rollout_view(snapshot.rollout, snapshot.rollout_evidence),
        agreement=agreement or candidate_agreement(snapshot),
        comparisons=snapshot.comparisons,
        incidents=snapshot.incidents,
        incident_count=snapshot.incident_count,
        previous="" if snapshot.rollout is not None and not snapshot.rollout.ended else snapshot.previous,
        controller=snapshot.controller,
        webhooks=snapshot.webhooks,
        waiting_webhooks=snapshot.waiting_webhooks,
        feedback=snapshot.feedback,
        problems=snapshot.problems,
    )


def present_epochs(snapshot: ServiceSnapshot) -> tuple[int, ...] | None:
    """Epochs whose evidence belongs to the present variants; None for the whole experiment.

    A promotion gives the champion's name to another version, so earlier counts are not the new champion's.
    """
    table, state = snapshot.table, snapshot.rollout
    if table is None or state is None or state.experiment != table.experiment:
        return None
    if state.phase not in ("promoting", "promoted"):
        return None
    return tuple(epoch for epoch in snapshot.evidence.epochs if epoch >= state.epoch)


def serving_state(snapshot: ServiceSnapshot) -> str:
    """The state of a service, "serving" if any replica is; see `service_state.records.summarize_state`."""
    serving = any(report.state == "serving" for report in snapshot.reports)
    return summarize_state(snapshot.reports, table=snapshot.table is not None, serving=serving)


def request_sample(snapshot: ServiceSnapshot) -> RequestSample:
    if snapshot.table is None:
        return RequestSample(snapshot.time, 0, {})
    counts = {variant.name: snapshot.evidence.of(variant.name) for variant in snapshot.table.variants}
    requests = {name: count.requests + count.mirrored for name, count in counts.items()}
    return RequestSample(snapshot.time, snapshot.table.epoch, requests)


def per_second(before: RequestSample | None, now: RequestSample, name: str) -> float | None:
    """Requests per second of a variant between two samples; None without an earlier one or after a counter reset.

    >>> per_second(RequestSample(10.0, 1, {"champion": 100}), RequestSample(12.0, 1, {"champion": 130}), "champion")
    15.0
    """
    if before is None or now.time <= before.time or name not in before.requests:
        return None
    grown = now.requests.get(name, 0) - before.requests[name]
    return grown / (now.time - before.time) if grown >= 0 else None


def variant_view(
    variant: Variant, counts: VariantCounts, state: str, before: RequestSample | None, now: RequestSample
) -> VariantView:
    """A variant with its counts, and its rate between two samples."""
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
        per_second=per_second(before, now, variant.name),
        mirrored=counts.mirrored,
        dropped=counts.dropped,
    )


def quantile_ms(latency: Mapping[int, int], q: float) -> float | None:
    """The q-quantile of binned latencies in milliseconds, at most 2 % too small; None without latencies.

    >>> quantile_ms({348: 99, 500: 1}, 0.5), quantile_ms({}, 0.5)
    (0.9837, None)
    """
    rank, total = q * sum(latency.values()), 0
    for index in sorted(latency):
        total += latency[index]
        if total >= rank:
            return round(1000 * bin_seconds(index), 4)
    return None


def agreement_views(counts: VariantCounts) -> tuple[ShareView, ...]:
    """Agreement of a shadow with the champion: over all rows first, then by slice, the lowest first."""
    views = []
    for name, moments in counts.agreement.items():
        if moments.count:
            interval = wilson(moments.total, moments.count, CONFIDENCE)
            views.append(ShareView(name, moments.count, moments.mean, *interval))
    return tuple(sorted(views, key=lambda view: (view.slice != "", view.high, view.slice)))


def candidate_agreement(snapshot: ServiceSnapshot) -> Mapping[str, tuple[ShareView, ...]]:
    if snapshot.rollout is None:
        return {}
    name = snapshot.rollout.candidate.name
    counts = snapshot.rollout_evidence.of(name)
    return {name: agreement_views(counts)} if counts.agreement else {}


def rollout_view(state: RolloutState, evidence: Evidence) -> RolloutView:
    live = state.phase in LIVE_PHASES
    step = state.steps[state.step]
    champion, candidate = (evidence.of(variant.name, state.epochs) for variant in (state.champion, state.candidate))
    roles = {spec.name: spec.role for spec in conditions.metric_specs(state)}
    findings = findings_json(state.findings)
    return RolloutView(
        experiment=state.experiment,
        summary=policy.describe(state),
        strategy=state.strategy,
        phase=state.phase,
        ended=state.ended,
        step=state.step,
        steps=step_views(state),
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
        waiting=waiting_for(state),
        commands=allowed_commands(state),
        findings=tuple(finding_from_json(item, roles.get(item["name"], "objective")) for item in findings),
        history=metric_histories(state.history),
        weights=weight_history(state),
        requests=(state.counts.champion, state.counts.challenger),
        latency=latency_histogram(champion.latency, candidate.latency),
        predictions=prediction_histogram(champion.predictions, candidate.predictions),
        fence=state.fence,
        looked=state.clock,
        signature_changes=state.signature_changes,
        warnings=policy.warnings(state),
    )


def step_views(state: RolloutState) -> tuple[StepView, ...]:
    views = []
    for number, step in enumerate(state.steps):
        if number < state.step or state.phase == "promoted":
            progress: Literal["done", "now", "ahead", "ended", "left"] = "done"
        elif number == state.step:
            progress = "ended" if state.ended and state.phase != "kept" else "now"
        else:
            progress = "left" if state.ended else "ahead"
        views.append(
            StepView(
                number=number + 1,
                weight=step.weight / 100,
                state=progress,
                min_samples=step.min_samples or 1,
                bake_seconds=step.bake_seconds or 0.0,
                max_seconds=step.max_seconds,
                sampling=step.sampling or 1.0,
                approval=step.approval,
            )
        )
    return tuple(views)


def allowed_commands(state: RolloutState) -> tuple[CommandKind, ...]:
    """Operator commands that a rollout accepts in its phase."""
    if state.ended or state.phase in ("promoting", "rolling_back"):
        return ()
    toggle: CommandKind = "resume" if state.phase == "paused" else "pause"
    if state.phase in ("pending", "preparing"):
        return ("abort",)
    return ("promote", toggle, "abort", "rollback")


def waiting_for(state: RolloutState) -> tuple[str, ...]:
    """The conditions that a rollout waits for, as text; () once it has ended.

    >>> from mlflowkit.rollout.settings import Rollout
    >>> variant, plan = Variant("challenger", "2", "d", "b"), Rollout(strategy="canary", steps=[5, 50])
    >>> waiting_for(RolloutState("e", "lending", plan, variant, variant, phase="running", elapsed=18.0))
    ('500 more requests of challenger', '500 more requests of champion', '12 s of baking', 'deadline in 59 min')
    """
    version = state.candidate.version
    conditions = {
        "pending": "its turn to begin",
        "preparing": f"every replica to load, verify and warm version {version}",
        "promoting": f"every replica to answer with version {version} alone",
        "rolling_back": f"every replica to answer with version {state.champion.version} alone",
        "paused": f"mlkit rollout resume {state.service}",
        "awaiting_approval": f"approval: mlkit rollout promote {state.service}",
    }
    if state.phase == "running":
        return tuple(_step_conditions(state))
    return (conditions[state.phase],) if state.phase in conditions else ()


def _step_conditions(state: RolloutState) -> Iterable[str]:
    """The conditions of a live step, and its deadline."""
    pending = conditions.pending_conditions(state)
    for name, count in pending.requests:
        yield f"{format_count(pending.min_samples - count, 'more request')} of {name}"
    if pending.bake_seconds > 0:
        yield f"{format_duration(pending.bake_seconds)} of baking"
    if pending.shown and pending.held_by:
        limit = state.plan.max_hold_seconds
        rest = "" if limit is None else f" for at most {format_duration(limit)}"
        yield f"held{rest} by {', '.join(pending.held_by)}: the estimate is beyond the limit, and undecided"
    if pending.objectives:
        yield f"{format_count(len(pending.objectives), 'metric')} inconclusive ({', '.join(pending.objectives)})"
    left = (state.steps[state.step].max_seconds or math.inf) - state.elapsed
    if math.isfinite(left):
        yield f"deadline in {format_duration(left)}" if left > 0 else "its deadline has passed"


def metric_histories(observations: Sequence[Observation]) -> Mapping[str, tuple[PointView, ...]]:
    histories: dict[str, list[PointView]] = {}
    for observation in observations:
        for reading in observation.readings:
            evidence = (reading.harm, reading.proof, reading.value, reading.low, reading.high)
            point = PointView(observation.time, reading.champion, reading.challenger, *map(finite_or_none, evidence))
            histories.setdefault(reading.name, []).append(point)
    return {name: tuple(points) for name, points in histories.items()}


def weight_history(state: RolloutState) -> tuple[tuple[float, float], ...]:
    """(time, the candidate's share) at each change, and now."""
    if not state.begun:
        return ()
    changes = [(state.begun, 0.0)]
    for observation in state.history:
        if observation.weight != changes[-1][1]:
            changes.append((observation.time, observation.weight))
    end = state.finished if state.finished is not None else max(state.clock, changes[-1][0])
    if state.weight != changes[-1][1]:
        changes.append((end, state.weight))
    return (*changes, (end, state.weight)) if end > changes[-1][0] else tuple(changes)


def latency_histogram(champion: Mapping[int, int], candidate: Mapping[int, int]) -> Histogram | None:
    """Latencies of both variants in bins of MERGED_BINS evidence bins; edges in milliseconds."""
    indices = {index // MERGED_BINS for index in (*champion, *candidate)}
    if not indices:
        return None
    bins = range(min(indices), max(indices) + 1)
    counts = []
    for latency in (champion, candidate):
        merged: Counter[int] = Counter()
        for index, count in latency.items():
            merged[index // MERGED_BINS] += count
        counts.append(tuple(merged[index] for index in bins))
    edges = tuple(1000 * bin_seconds(index * MERGED_BINS) for index in (*bins, bins[-1] + 1))
    return Histogram(edges, (), *counts)


def prediction_histogram(champion: Mapping[str, int], candidate: Mapping[str, int]) -> Histogram | None:
    """Predictions of both variants by score, by decile of the reference, or by class, as the evidence has them."""
    keys = {*champion, *candidate}
    for kind, bins, width in (("score", SCORE_BINS, 1 / SCORE_BINS), ("decile", 10, 1.0)):
        if any(key.startswith(f"{kind}:") for key in keys):
            counts = (tuple(arm.get(f"{kind}:{index}", 0) for index in range(bins)) for arm in (champion, candidate))
            return Histogram(tuple(width * edge for edge in range(bins + 1)), (), *counts)
    labels = {key: champion.get(key, 0) + candidate.get(key, 0) for key in keys if key.startswith("label:")}
    if not labels:
        return None
    ordered = sorted(labels, key=lambda key: (-labels[key], key))
    names = tuple(key.partition(":")[2] for key in ordered)
    return Histogram((), names, *(tuple(arm.get(key, 0) for key in ordered) for arm in (champion, candidate)))


def format_duration(seconds: float) -> str:
    """A duration, rounded for display.

    >>> format_duration(41.2), format_duration(150), format_duration(5400), format_duration(200_000)
    ('42 s', '2 min', '1.5 h', '2.3 days')
    """
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    if seconds < 5400:
        return f"{seconds // 60:.0f} min"
    return f"{seconds / 3600:.3g} h" if seconds < 172_800 else f"{seconds / 86_400:.2g} days"
