"""The rollouts of a state folder for Prometheus: made from views when asked, so they say what the page says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from mlflowkit.rollout.admin.snapshot import Tally
from mlflowkit.rollout.admin.view_models import ServiceView
from mlflowkit.rollout.state import Phase

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PHASES: tuple[Phase, ...] = get_args(Phase)


def page(views: Sequence[ServiceView], tally: Tally) -> bytes:
    """Metrics of the services, in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(views, tally))
    return bytes(generate_latest(registry))


class _Collector:
    def __init__(self, views: Sequence[ServiceView], tally: Tally) -> None:
        self._views = views
        self._tally = tally

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from _traffic(self._views)
        yield from _rollouts(self._views)
        yield from _findings(self._views)
        yield from _agreement(self._views)
        yield from _records(self._views, self._tally)
        yield from _controller(self._views)


def _traffic(views: Sequence[ServiceView]) -> Iterator[Metric]:
    names = ("service", "variant", "version", "role")
    weight = GaugeMetricFamily("mlkit_variant_weight", "Share of the traffic, 0 to 1.", labels=names)
    counted = {
        "requests": "Requests that the split gave a variant in its experiment.",
        "errors": "Requests that a variant failed in its experiment.",
        "mirrored": "Requests mirrored to a shadow.",
        "dropped": "Mirrored requests that it was not given in time.",
    }
    evidence = {
        name: CounterMetricFamily(f"mlkit_evidence_{name}", words, labels=names) for name, words in counted.items()
    }
    for view in views:
        for variant in view.variants:
            labels = (view.service, variant.name, variant.version, variant.role)
            weight.add_metric(labels, variant.weight)
            for name, family in evidence.items():
                family.add_metric(labels, getattr(variant, name))
    yield weight
    yield from evidence.values()


def _rollouts(views: Sequence[ServiceView]) -> Iterator[Metric]:
    phase = GaugeMetricFamily(
        "mlkit_rollout_phase", "1 for the phase that a rollout is in.", labels=("service", "strategy", "phase")
    )
    single = ("service",)
    step = GaugeMetricFamily("mlkit_rollout_step", "Step of a rollout, from 1.", labels=single)
    steps = GaugeMetricFamily("mlkit_rollout_steps", "Steps that a rollout has.", labels=single)
    share = GaugeMetricFamily("mlkit_rollout_weight", "The candidate's share of the traffic, 0 to 1.", labels=single)
    left = GaugeMetricFamily("mlkit_rollout_deadline_seconds", "Seconds left of the step of a rollout.", labels=single)
    age = GaugeMetricFamily(
        "mlkit_rollout_look_age_seconds", "Seconds since the last look at a rollout.", labels=single
    )
    for view in views:
        found = view.rollout
        if found is None:
            continue
        for name in PHASES:
            phase.add_metric((view.service, found.strategy, name), float(found.phase == name))
        step.add_metric((view.service,), found.step + 1)
        steps.add_metric((view.service,), len(found.steps))
        share.add_metric((view.service,), found.weight)
        if found.deadline is not None:
            left.add_metric((view.service,), found.deadline)
        if not found.ended:
            age.add_metric((view.service,), max(0.0, view.time - found.looked))
    yield from (phase, step, steps, share, left, age)


def _findings(views: Sequence[ServiceView]) -> Iterator[Metric]:
    names = ("service", "metric", "role")
    harm = GaugeMetricFamily(
        "mlkit_rollout_harm", "Evidence that a metric is worse than allowed; FAILED from 1 on.", labels=names
    )
    proof = GaugeMetricFamily(
        "mlkit_rollout_proof", "Evidence that a metric is not worse than allowed; PASSED from 1 on.", labels=names
    )  # fmt: skip
    estimate = GaugeMetricFamily(
        "mlkit_rollout_estimate",
        "What is judged, with its confidence sequence: candidate minus champion, or the value held against a bound.",
        labels=(*names, "bound"),
    )
    for view in views:
        for finding in () if view.rollout is None else view.rollout.findings:
            labels = (view.service, finding.name, finding.role)
            for family, value in ((harm, finding.harm), (proof, finding.proof)):
                if value is not None:
                    family.add_metric(labels, value)
            for bound in ("low", "value", "high"):
                value = getattr(finding, bound)
                if value is not None:
                    estimate.add_metric((*labels, bound), value)
    yield from (harm, proof, estimate)


def _agreement(views: Sequence[ServiceView]) -> Iterator[Metric]:
    share = GaugeMetricFamily(
        "mlkit_shadow_agreement", "Share of rows to which a shadow gave the champion's answer.",
        labels=("service", "variant", "slice"),
    )  # fmt: skip
    for view in views:
        for name, found in view.agreement.items():
            for one in found:
                share.add_metric((view.service, name, one.slice), one.value)
    yield share


def _records(views: Sequence[ServiceView], tally: Tally) -> Iterator[Metric]:
    single = ("service",)
    incidents = CounterMetricFamily("mlkit_incidents", "Rollouts that were turned down, on record.", labels=single)
    ended = CounterMetricFamily(
        "mlkit_rollouts_ended", "Rollouts that ended, since this process began.",
        labels=("service", "strategy", "outcome"),
    )  # fmt: skip
    delivered = CounterMetricFamily(
        "mlkit_webhook_deliveries", "Events that were told to hooks or given up, since this process began.",
        labels=("service", "outcome"),
    )  # fmt: skip
    waiting = GaugeMetricFamily("mlkit_webhooks_waiting", "Events that are still to be told.", labels=single)
    shown = {view.service for view in views}
    for view in views:
        incidents.add_metric((view.service,), view.incident_count)
        waiting.add_metric((view.service,), view.waiting_webhooks)
    for family, counter in ((ended, tally.ended), (delivered, tally.delivered)):
        for labels, count in counter.items():
            if labels[0] in shown:
                family.add_metric(labels, count)
    yield from (incidents, ended, delivered, waiting)


def _controller(views: Sequence[ServiceView]) -> Iterator[Metric]:
    """The lease is of the state folder, so any view tells it."""
    alive = GaugeMetricFamily("mlkit_controller_lease", "1 while a controller holds its lease.")
    fence = GaugeMetricFamily("mlkit_controller_fence", "Number of the lease; it grows with every taking.")
    found = next((view.controller for view in views if view.controller is not None), None)
    alive.add_metric((), float(found is not None and found.alive))
    if found is not None:
        fence.add_metric((), found.fence)
    yield from (alive, fence)
