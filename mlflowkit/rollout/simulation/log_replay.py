"""Simulate a rollout over recorded traffic: the requests of a prediction log, in order and at their times.

Two modes:

- A recorded experiment (`RecordedExperiment`): what would this plan have decided, and when? The challenger keeps its
  recorded share of the traffic, whatever the plan's step is, and requests are counted by recorded table and by the
  plan's step, as neither may be pooled.
- A champion's traffic with an injected regression (`InjectedRegression`): would this plan detect a challenger that is
  worse by a given amount? The router splits the recorded requests by the plan's weights, and the challenger's requests
  are degraded as in a `Scenario`. Each simulation has its own salt, so that other requests are affected.

Not replayable, because not logged: requests that the champion failed, affinity keys (requests are split by their ids),
and requests that the log's sampling left out. The same log, plan and seed give the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from zlib import crc32

import numpy as np

from mlflowkit.errors import DataError, UsageError
from mlflowkit.judging.online.evidence import LATENCY_GROWTH, Evidence, Moments, VariantCounts
from mlflowkit.rollout.settings import Rollout
from mlflowkit.rollout.simulation.recording import MIN_REQUESTS, Predictions, Recording, histogram
from mlflowkit.rollout.simulation.scenarios import ScenarioKind, scenario_name
from mlflowkit.rollout.simulation.simulator import MIN_INTERVAL, SimulatedRollout, analysis_interval, simulate_once
from mlflowkit.rollout.simulation.synthetic_traffic import (
    CHAMPION,
    QUALITY,
    SLICES,
    TAIL,
    Behaviour,
    SyntheticWorld,
    TrafficSplit,
    binary_predictions,
    normalised,
)
from mlflowkit.serving.inference.router import position
from mlflowkit.serving.observer.paired_answers import PairCounter

INJECTABLE: tuple[ScenarioKind, ...] = (
    "aa", "error-rate", "latency", "latency-tail", "accuracy", "log-loss", "absolute-error", "squared-error",
    "prediction-shift", "disagreement",
)  # fmt: skip
"""Scenarios that can be injected into recorded requests."""
MAX_LOOKS = 1000
"""Maximum looks at a recorded experiment."""


_Keys = tuple[dict[str, int], dict[str, float]]
"""Predictions counted by rows, and by requests."""


def _split_counts(bins: np.ndarray, failed: np.ndarray, rows: np.ndarray, keys: _Keys) -> VariantCounts:
    """Counts of split requests; ``keys`` are their predictions."""
    answered, latency = int(rows[~failed].sum()), histogram(bins[~failed])
    return VariantCounts(
        len(bins), int(failed.sum()), answered, latency, predictions=keys[0], request_predictions=keys[1]
    )


def _mirror_counts(requests: int, failed: int, rows: np.ndarray, alike: np.ndarray, keys: _Keys) -> VariantCounts:
    """Counts of mirrored requests, of whose ``rows`` (of each answered request) ``alike`` agree."""
    count, same = int(rows.sum()), float(alike.sum())
    means = alike[rows > 0] / rows[rows > 0]
    return VariantCounts(
        requests, failed, count, mirrored=requests,
        predictions=keys[0], agreement={"": Moments(count, same, same)},
        request_predictions=keys[1],
        request_agreement={"": Moments(len(means), float(means.sum()), float(np.square(means).sum()))},
    )  # fmt: skip


class _LogPlayer:
    """Plays a recording back. Subclasses assign each request to a variant and a table."""

    def __init__(self, recording: Recording, measured: Sequence[str]) -> None:
        self.requests = self.tried = self.exposed = 0
        self.now = 0.0
        self._log = recording
        self._next = self._next_feedback = 0
        self._counts: dict[int, dict[str, VariantCounts]] = {}
        self._epoch = np.full(len(recording), -1, dtype=np.int64)
        self._challenger_requests = np.zeros(len(recording), dtype=bool)
        self._drift = "prediction_drift" in measured
        self._quality = () if recording.feedback is None else tuple(set(measured) & set(recording.feedback.values))

    def evidence(self, experiment: str) -> Evidence:
        return Evidence(experiment, {epoch: dict(variants) for epoch, variants in self._counts.items()})

    def _next_window(self, seconds: float) -> slice:
        """Advance the clock; returns the requests of those seconds."""
        self.now += seconds
        first, self._next = self._next, int(self._log.times.searchsorted(self.now, side="right"))
        return slice(first, self._next)

    def _add(self, epoch: int, name: str, counts: VariantCounts) -> None:
        variants = self._counts.setdefault(epoch, {})
        variants[name] = variants[name] + counts if name in variants else counts

    def _keys(self, predictions: Predictions, requests: np.ndarray) -> _Keys:
        return (predictions.counted(requests), predictions.shared(requests)) if self._drift else ({}, {})

    def _add_feedback(self, challenger: str, changed: Callable[[str, np.ndarray, np.ndarray], np.ndarray]) -> None:
        """Add the feedback that has arrived; ``changed`` maps the challenger's values."""
        feedback = self._log.feedback
        if feedback is None or not self._quality:
            return
        last = int(feedback.times.searchsorted(self.now, side="right"))
        window, self._next_feedback = slice(self._next_feedback, last), last
        requests = feedback.requests[window]
        for epoch in np.unique(self._epoch[requests]):
            for is_challenger, name in ((False, CHAMPION), (True, challenger)):
                selected = (self._epoch[requests] == epoch) & (self._challenger_requests[requests] == is_challenger)
                if epoch < 0 or not selected.any():
                    continue
                quality, by_request = {}, {}
                for metric in self._quality:
                    values = feedback.values[metric][:, window][:, selected]
                    values = changed(metric, values, requests[selected]) if is_challenger else values
                    count, total, squares = values.sum(axis=1).tolist()
                    quality[metric] = Moments(int(count), total, squares)
                    means = values[1, values[0] > 0] / values[0, values[0] > 0]
                    by_request[metric] = Moments(len(means), float(means.sum()), float(np.square(means).sum()))
                self._add(int(epoch), name, VariantCounts(quality=quality, request_quality=by_request))


class RecordedExperiment(_LogPlayer):
    """A recorded experiment. Each pair of a plan epoch and a recorded epoch is one epoch of the evidence."""

    def __init__(self, recording: Recording, experiment: str, challenger: str, measured: Sequence[str]) -> None:
        super().__init__(recording, measured)
        self._challenger = challenger
        log = recording
        inside = log.experiment == log.experiments.index(experiment)
        self._champion = inside & log.of_variant(CHAMPION)
        self._challenger_requests = inside & log.of_variant(challenger)
        self._tables: dict[tuple[int, int], int] = {}
        self._pairs: dict[int, PairCounter] = {}

    def epochs(self, decided: Sequence[int]) -> tuple[int, ...]:
        """Epochs of the evidence that belong to epochs of the plan, oldest first."""
        return tuple(number for (epoch, _), number in self._tables.items() if epoch in decided)

    def advance(self, split: TrafficSplit, seconds: float) -> None:
        """Play the next seconds; of the split only the epoch matters."""
        window = self._next_window(seconds)
        log = self._log
        for recorded in np.unique(log.epoch[window][(self._champion | self._challenger_requests)[window]]).tolist():
            table = self._tables.setdefault((split.epoch, recorded), len(self._tables))
            for name, owned in ((CHAMPION, self._champion), (split.challenger, self._challenger_requests)):
                taken = window.start + np.flatnonzero(owned[window] & (log.epoch[window] == recorded))
                self._epoch[taken] = table
                keys = self._keys(log.predictions, taken)
                self._add(table, name, _split_counts(log.bins[taken], log.failed[taken], log.rows[taken], keys))
                self.requests += len(taken)
                if owned is self._challenger_requests:
                    self.tried += len(taken)
                    self.exposed += len(taken)
            self._mirror(table, recorded, window, split.challenger)
        self._add_feedback(split.challenger, lambda metric, values, requests: values)

    def _mirror(self, table: int, recorded: int, window: slice, name: str) -> None:
        """Add the shadow's answers to the champion's requests in a window, under one recorded table."""
        mirror = self._log.mirrored.get(self._challenger)
        if mirror is None:
            return
        first, last = (int(mirror.requests.searchsorted(end)) for end in (window.start, window.stop))
        requests = mirror.requests[first:last]
        taken = first + (self._champion[requests] & (self._log.epoch[requests] == recorded)).nonzero()[0]
        if len(taken):
            self.tried += len(taken)
            keys = self._keys(mirror.predictions, taken)
            counts = _mirror_counts(len(taken), 0, mirror.rows[taken], mirror.alike[taken], keys)
            counter = self._pairs.setdefault(table, PairCounter())
            self._add(table, name, replace(counts, pairs=counter.add(mirror.means[taken])))


class RegressionInjector:
    """The regression of a scenario, by a seeded draw per request. Raises UsageError for a kind not INJECTABLE."""

    def __init__(self, kind: ScenarioKind, size: float, recording: Recording, seed: Sequence[int]) -> None:
        if kind not in INJECTABLE:
            raise UsageError(f"{scenario_name(kind, size)} cannot be injected", hint=f"one of {', '.join(INJECTABLE)}")
        self._kind, self._size = kind, size
        self._draws = np.random.default_rng(list(seed)).random(len(recording))
        ordered = np.sort(recording.bins[~recording.failed])
        self._tail = int(ordered[int(TAIL * len(ordered))]) if len(ordered) else 0
        feedback = recording.feedback
        right = feedback.values.get("accuracy") if feedback is not None else None
        rows, hits, _ = (1.0, 1.0, 1.0) if right is None else right.sum(axis=1)
        self._accuracy = max(float(hits / max(rows, 1.0)), 1e-9)

    def affects(self, requests: np.ndarray, kind: ScenarioKind) -> np.ndarray:
        """Mask of requests that a regression of that kind changes; none if this one is of another kind."""
        mask: np.ndarray = self._draws[requests] < (self._size if self._kind == kind else 0.0)
        return mask

    def bins(self, requests: np.ndarray, bins: np.ndarray) -> np.ndarray:
        """Latency bins of the answers; a factor between two bins is rounded by the draw."""
        if self._kind not in ("latency", "latency-tail"):
            return bins
        steps = math.log(self._size) / math.log(LATENCY_GROWTH)
        later = bins + math.floor(steps) + (self._draws[requests] < steps - math.floor(steps))
        return np.where(bins >= self._tail, later, bins) if self._kind == "latency-tail" else later

    def quality(self, metric: str, values: np.ndarray, requests: np.ndarray) -> np.ndarray:
        """Moments of the feedback on its answers, float64 [3, n]."""
        if self._kind == "accuracy" and metric == "accuracy":
            wrong = self._draws[requests] < self._size / self._accuracy
            return np.where(wrong, np.array([[1.0], [0.0], [0.0]]) * values, values)
        larger = np.array([[1.0], [self._size], [self._size**2]])
        return larger * values if self._kind.replace("-", "_") == metric else values


class InjectedRegression(_LogPlayer):
    """A champion's requests, split by the plan's weights, with the challenger's degraded."""

    def __init__(
        self, recording: Recording, regression: RegressionInjector, salt: str, measured: Sequence[str]
    ) -> None:
        super().__init__(recording, measured)
        self._regression = regression
        self._positions = np.fromiter((position(salt, key) for key in recording.ids), np.float64, len(recording))
        self._mirrors: np.ndarray | None = None
        self._salt = salt
        self._splittable = recording.variant >= 0
        self._rarest = recording.predictions.rarest() if self._drift else ()

    def epochs(self, decided: Sequence[int]) -> tuple[int, ...]:
        """The epochs of the plan, which the evidence has as well."""
        return tuple(decided)

    def advance(self, split: TrafficSplit, seconds: float) -> None:
        """Play the next seconds under a split."""
        window = self._next_window(seconds)
        log = self._log
        requests = window.start + np.flatnonzero(self._splittable[window])
        assigned = self._positions[requests] < split.weight
        mine, others = requests[assigned], requests[~assigned]
        self._epoch[requests] = split.epoch
        self._challenger_requests[mine] = True
        self.requests += len(requests)
        keys = self._keys(log.predictions, others)
        self._add(split.epoch, CHAMPION, _split_counts(log.bins[others], log.failed[others], log.rows[others], keys))
        if split.shadow:
            self._mirror(split, others)
        elif len(mine):
            failed = log.failed[mine] | self._regression.affects(mine, "error-rate")
            bins = self._regression.bins(mine, log.bins[mine])
            counts = _split_counts(bins, failed, log.rows[mine], self._shifted(mine))
            self._add(split.epoch, split.challenger, counts)
            self.tried += len(mine)
            self.exposed += len(mine)
        self._add_feedback(split.challenger, self._regression.quality)

    def _mirror(self, split: TrafficSplit, requests: np.ndarray) -> None:
        """Add mirrored requests: the champion's answers with the regression applied."""
        if split.sampling < 1.0:
            if self._mirrors is None:
                salt = f"{self._salt}/{split.challenger}"
                self._mirrors = np.fromiter((position(salt, key) for key in self._log.ids), np.float64, len(self._log))
            requests = requests[self._mirrors[requests] < split.sampling]
        failed = self._regression.affects(requests, "error-rate")
        answered = requests[~failed]
        rows = self._log.rows[answered]
        alike = np.where(self._regression.affects(answered, "disagreement"), 0, rows)
        counts = _mirror_counts(len(requests), int(failed.sum()), rows, alike, self._shifted(answered))
        self._add(split.epoch, split.challenger, counts)
        self.tried += len(requests)

    def _shifted(self, requests: np.ndarray) -> _Keys:
        """Prediction counts of the challenger, with some moved to the rarest key."""
        moved = self._regression.affects(requests, "prediction-shift")
        counts, shares = self._keys(self._log.predictions, requests[~moved])
        rows = self._log.rows[requests[moved]]
        for rare in self._rarest:
            counts[rare] = counts.get(rare, 0) + int(rows.sum())
            shares[rare] = shares.get(rare, 0.0) + int((rows > 0).sum())
        return counts, shares


def replay_recorded(
    plan: Rollout, recording: Recording, experiment: str, challenger: str,
    done: Callable[[float], None] = lambda seconds: None,
) -> SimulatedRollout:  # fmt: skip
    """Simulate a plan over a recorded experiment; ``done`` gets the seconds played so far.

    Raises UsageError if the log has no such experiment or challenger.
    """
    if challenger not in recording.challengers(experiment):
        names = ", ".join(f"{name} ({' '.join(recording.challengers(name))})" for name in recording.experiments if name)
        hint = f"it holds {names}: --experiment ID --candidate NAME" if names else "mlkit replay RECIPE --plant aa"
        raise UsageError(f"the log holds no {challenger or 'challenger'} in experiment {experiment!r}", hint=hint)
    recording = recording.of(experiment)
    source = RecordedExperiment(recording, experiment, challenger, [metric.metric for metric in plan.metrics])
    interval = max(MIN_INTERVAL, recording.seconds / MAX_LOOKS)
    return simulate_once(plan, source, interval, until=recording.seconds, keep=True, done=done)


def injectable_plan(plan: Rollout) -> Rollout:
    """The plan without kappa, which no injected regression changes. Raises UsageError if no metric is left."""
    metrics = [metric for metric in plan.metrics if metric.metric != "kappa"]
    if not metrics:
        hint = "add {metric: error_rate, margin: 0.01}, or replay an experiment: --experiment ID"
        raise UsageError("serve.rollout has only kappa, which an injected regression does not change", hint=hint)
    return plan.model_copy(update={"metrics": metrics})


def replay_injected(
    plan: Rollout, recording: Recording, kind: ScenarioKind, size: float, rollouts: int, *, seed: int = 0,
    done: Callable[[int], None] = lambda count: None,
) -> tuple[SimulatedRollout, ...]:  # fmt: skip
    """Simulate a plan ``rollouts`` times over a champion's recorded requests. Raises as `RegressionInjector` does."""
    plan = injectable_plan(plan)
    measured = [metric.metric for metric in plan.metrics]
    results = []
    name = crc32(scenario_name(kind, size).encode())
    for number in range(rollouts):
        regression = RegressionInjector(kind, size, recording, (seed, name, number))
        source = InjectedRegression(recording, regression, f"replay-{seed}-{number}", measured)
        results.append(simulate_once(plan, source, analysis_interval(plan, recording.rate), until=recording.seconds))
        done(number + 1)
    return tuple(results)


def recorded_world(recording: Recording) -> SyntheticWorld:
    """A world in which both variants behave like the recorded champion. Raises DataError for too few requests."""
    own = recording.of_variant(CHAMPION)
    if own.sum() < MIN_REQUESTS:
        problem = f"the log holds {own.sum()} requests of the champion; {MIN_REQUESTS} are needed"
        raise DataError(problem, hint="wait for traffic, or mlkit simulate RECIPE")
    values = {} if recording.feedback is None else recording.feedback.values
    sums = {name: moments.sum(axis=1) for name, moments in values.items()}
    quality = {name: float(total / max(count, 1.0)) for name, (count, total, _) in sums.items()}
    behaviour = Behaviour(
        error_rate=float(recording.failed[own].mean()),
        latency=normalised(histogram(recording.bins[own])),
        predictions=binary_predictions(0.2),
        quality=quality,
        agreement=dict.fromkeys(SLICES, 1.0),
    )
    return SyntheticWorld(recording.rate, behaviour, behaviour)


def can_inject(kind: ScenarioKind, recording: Recording, plan: Rollout) -> bool:
    """Whether a kind of regression can be injected into the recording and detected by the plan."""
    metric = kind.replace("-", "_")
    if metric in QUALITY:
        return recording.feedback is not None and metric in recording.feedback.values
    if kind == "disagreement":
        return any(step.weight == 0 for step in plan.sequence)
    return kind in INJECTABLE
