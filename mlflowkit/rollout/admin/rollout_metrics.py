"""Prometheus metrics of the rollouts of a state folder, computed on each scrape from the page's views."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from mlflowkit.rollout.admin.snapshot import EventCounter
from mlflowkit.rollout.admin.view_models import ServiceView
from mlflowkit.rollout.state import Phase

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PHASES: tuple[Phase, ...] = get_args(Phase)


def render_metrics(views: Sequence[ServiceView], counter: EventCounter) -> bytes:
    """Metrics of the services, in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(views, counter))
    return bytes(generate_latest(registry))


class _Collector:
    def __init__(self, views: Sequence[ServiceView], counter: EventCounter) -> None:
        self._views = views
        self._counter = counter

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        for families in (_traffic, _rollouts, _findings, _agreement, _feedback):
            yield from families(self._views)
        yield from _events(self._views, self._counter)
        yield from _controller(self._views)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"mlkit_{name}", text, labels=labels)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"mlkit_{name}", text, labels=labels)


def _traffic(views: Sequence[ServiceView]) -> Iterator[Metric]:
    names = ("service", "variant", "version", "role")
    families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {
        "weight": _gauge("variant_weight", "Share of the traffic, 0 to 1.", *names),
        "requests": _counter("evidence_requests", "Requests split to a variant in its experiment.", *names),
        "errors": _counter("evidence_errors", "Failed requests of a variant in its experiment.", *names),
        "mirrored": _counter("evidence_mirrored", "Requests mirrored to a shadow.", *names),
        "dropped": _counter("evidence_dropped", "Mirrored requests dropped before reaching the shadow.", *names),
    }
    for view in views:
        for variant in view.variants:
            for name, family in families.items():
                family.add_metric((view.service, variant.name, variant.version, variant.role), getattr(variant, name))
    yield from families.values()


def _rollouts(views: Sequence[ServiceView]) -> Iterator[Metric]:
    phase = _gauge("rollout_phase", "1 for the present phase of a rollout.", "service", "strategy", "phase")
    step = _gauge("rollout_step", "Present step of a rollout, from 1.", "service")
    steps = _gauge("rollout_steps", "Number of steps of a rollout.", "service")
    share = _gauge("rollout_weight", "The candidate's share of the traffic, 0 to 1.", "service")
    left = _gauge("rollout_deadline_seconds", "Seconds left of a rollout's present step.", "service")
    age = _gauge("rollout_look_age_seconds", "Seconds since the last observation of a rollout.", "service")
    for view in views:
        rollout, labels = view.rollout, (view.service,)
        if rollout is None:
            continue
        for name in PHASES:
            phase.add_metric((view.service, rollout.strategy, name), float(rollout.phase == name))
        step.add_metric(labels, rollout.step + 1)
        steps.add_metric(labels, len(rollout.steps))
        share.add_metric(labels, rollout.weight)
        if rollout.deadline is not None:
            left.add_metric(labels, rollout.deadline)
        if not rollout.ended:
            age.add_metric(labels, max(0.0, view.time - rollout.looked))
    yield from (phase, step, steps, share, left, age)


def _findings(views: Sequence[ServiceView]) -> Iterator[Metric]:
    names = ("service", "metric", "role")
    worse = _gauge("rollout_harm", "Evidence that a metric is worse than allowed; FAILED from 1 on.", *names)
    not_worse = _gauge("rollout_proof", "Evidence that a metric is not worse than allowed; PASSED from 1 on.", *names)
    text = "Candidate minus champion, or the value with a fixed limit, with its confidence sequence."
    estimate = _gauge("rollout_estimate", text, *names, "bound")
    for view in views:
        for finding in () if view.rollout is None else view.rollout.findings:
            labels = (view.service, finding.name, finding.role)
            for family, value in ((worse, finding.harm), (not_worse, finding.proof)):
                if value is not None:
                    family.add_metric(labels, value)
            for bound in ("low", "value", "high"):
                if getattr(finding, bound) is not None:
                    estimate.add_metric((*labels, bound), getattr(finding, bound))
    yield from (worse, not_worse, estimate)


def _agreement(views: Sequence[ServiceView]) -> Iterator[Metric]:
    text = "Share of rows on which a shadow agrees with the champion."
    share = _gauge("shadow_agreement", text, "service", "variant", "slice")
    for view in views:
        for name, slices in view.agreement.items():
            for agreement in slices:
                share.add_metric((view.service, name, agreement.slice), agreement.value)
    yield share


def _feedback(views: Sequence[ServiceView]) -> Iterator[Metric]:
    text = "Feedback by what became of it: answers joined, items that wait, and items that do not count."
    items = _gauge("feedback_items", text, "service", "outcome")
    for view in views:
        for outcome, count in view.feedback.items():
            items.add_metric((view.service, outcome), count)
    yield items


def _events(views: Sequence[ServiceView], counter: EventCounter) -> Iterator[Metric]:
    incidents = _counter("incidents", "Recorded rollbacks and aborts.", "service")
    text = "Rollouts that ended since this process started."
    ended = _counter("rollouts_ended", text, "service", "strategy", "outcome")
    text = "Webhook deliveries that succeeded or were given up since this process started."
    delivered = _counter("webhook_deliveries", text, "service", "outcome")
    waiting = _gauge("webhooks_waiting", "Events waiting for delivery.", "service")
    services = {view.service for view in views}
    for view in views:
        incidents.add_metric((view.service,), view.incident_count)
        waiting.add_metric((view.service,), view.waiting_webhooks)
    for family, counts in ((ended, counter.ended), (delivered, counter.delivered)):
        for labels, count in counts.items():
            if labels[0] in services:
                family.add_metric(labels, count)
    yield from (incidents, ended, delivered, waiting)


def _controller(views: Sequence[ServiceView]) -> Iterator[Metric]:
    """The lease belongs to the state folder, so every view has the same."""
    alive = _gauge("controller_lease", "1 while a controller holds its lease.")
    fence = _gauge("controller_fence", "Fence of the lease; grows with every acquisition.")
    controller = next((view.controller for view in views if view.controller is not None), None)
    alive.add_metric((), float(controller is not None and controller.alive))
    if controller is not None:
        fence.add_metric((), controller.fence)
    yield from (alive, fence)
