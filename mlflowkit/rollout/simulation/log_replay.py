"""Rehearses a rollout over recorded traffic: the requests of a prediction log, in their order and at their times.

Two questions can be asked of a log:

- Of an experiment that it holds: what would this plan have decided, and when? (`Recorded`) The answers are those that
  were given; so the challenger has the share of the traffic that it had then, whatever the plan's step says, and
  requests are counted by the recorded table as well as by the plan's step, since neither may be pooled.
- Of a champion's traffic: would this plan find a challenger that is worse by so much? (`Planted`) The router deals the
  recorded requests by the plan's weights, and to those of the challenger the harm of a `Scenario` is done. Each rollout
  has a salt of its own, so that other requests are hit.

What the log does not hold cannot be replayed: requests that the champion itself failed, affinity keys (requests are
dealt by their ids), and what its sampling left out. The same log, plan and seed give the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol
from zlib import crc32

import numpy as np

from mlflowkit.errors import DataError, UsageError
from mlflowkit.judging.online.evidence import LATENCY_GROWTH, Evidence, Moments, VariantCounts
from mlflowkit.rollout.settings import Rollout
from mlflowkit.rollout.simulation.recording import LEAST_REQUESTS, Predictions, Recording
from mlflowkit.rollout.simulation.scenarios import Kind, words
from mlflowkit.rollout.simulation.simulator import SERVICE_LOOK, Rehearsal, look_seconds, play
from mlflowkit.rollout.simulation.synthetic_traffic import (
    CHAMPION,
    QUALITY,
    SLICES,
    TAIL,
    Behaviour,
    Split,
    World,
    binary_predictions,
    normalised,
)
from mlflowkit.serving.inference.router import position

PLANTABLE: tuple[Kind, ...] = ("aa", "error-rate", "latency", "latency-tail", "accuracy", "log-loss", "absolute-error",
                               "squared-error", "prediction-shift", "disagreement")  # fmt: skip
"""Scenarios that can be planted into recorded requests."""
MOST_LOOKS = 1000
"""Looks at a recorded experiment."""


def _answered(bins: np.ndarray, failed: np.ndarray, rows: np.ndarray, keys: Mapping[str, int]) -> VariantCounts:
    """Requests that the split gave a variant; ``keys`` counts their predictions."""
    return VariantCounts(len(bins), int(failed.sum()), int(rows[~failed].sum()), _histogram(bins[~failed]), keys)


def _compared(requests: int, failed: int, rows: int, alike: float, keys: Mapping[str, int]) -> VariantCounts:
    """Requests that were mirrored to a shadow, and how many of the rows agree."""
    agreement = {"": Moments(rows, alike, alike)}
    return VariantCounts(requests, failed, rows, predictions=keys, agreement=agreement, mirrored=requests)


def _histogram(bins: np.ndarray) -> dict[int, int]:
    found, counts = np.unique(bins, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _moments(values: np.ndarray) -> Moments:
    count, total, squares = values.sum(axis=1).tolist()
    return Moments(int(count), total, squares)


class _Player:
    """Hands out a recording as time passes. Subclasses say whose each request is, and under which table."""

    def __init__(self, recording: Recording, measured: Sequence[str]) -> None:
        self.requests = self.tried = self.exposed = 0
        self.now = 0.0
        self._log = recording
        self._next = self._told = 0
        self._counts: dict[int, dict[str, VariantCounts]] = {}
        self._epoch = np.full(len(recording), -1, dtype=np.int64)
        self._mine = np.zeros(len(recording), dtype=bool)
        self._drift = "prediction_drift" in measured
        self._quality = () if recording.feedback is None else tuple(set(measured) & set(recording.feedback.values))

    def evidence(self, experiment: str) -> Evidence:
        """All that was counted until now."""
        return Evidence(experiment, {epoch: dict(variants) for epoch, variants in self._counts.items()})

    def _until(self, seconds: float) -> slice:
        """The requests of the next seconds."""
        self.now += seconds
        last = int(self._log.times.searchsorted(self.now, side="right"))
        found = slice(self._next, last)
        self._next = last
        return found

    def _add(self, epoch: int, name: str, counts: VariantCounts) -> None:
        variants = self._counts.setdefault(epoch, {})
        variants[name] = variants[name] + counts if name in variants else counts

    def _keys(self, predictions: Predictions, taken: np.ndarray) -> dict[str, int]:
        """Predictions of some requests, given by their places."""
        return predictions.counted(taken) if self._drift else {}

    def _hear(self, challenger: str, changed: Callable[[str, np.ndarray, np.ndarray], np.ndarray]) -> None:
        """Feedback that has come in by now, of requests whose variant is known; ``changed`` does harm to values."""
        told = self._log.feedback
        if told is None or not self._quality:
            return
        last = int(told.times.searchsorted(self.now, side="right"))
        window, self._told = slice(self._told, last), last
        requests = told.requests[window]
        for epoch in np.unique(self._epoch[requests]):
            for mine, name in ((False, CHAMPION), (True, challenger)):
                taken = (self._epoch[requests] == epoch) & (self._mine[requests] == mine)
                if epoch < 0 or not taken.any():
                    continue
                values = {metric: told.values[metric][:, window][:, taken] for metric in self._quality}
                if mine:
                    values = {metric: changed(metric, one, requests[taken]) for metric, one in values.items()}
                self._add(int(epoch), name, VariantCounts(quality={key: _moments(one) for key, one in values.items()}))


class Recorded(_Player):
    """An experiment as it was. A table of the plan and one of the recording make a table of the evidence."""

    def __init__(self, recording: Recording, experiment: str, challenger: str, measured: Sequence[str]) -> None:
        super().__init__(recording, measured)
        self._challenger = challenger
        log = recording
        inside = log.experiment == log.experiments.index(experiment)
        places = {name: log.variants.index(name) for name in (CHAMPION, challenger) if name in log.variants}
        self._champion = inside & (log.variant == places.get(CHAMPION, -2))
        self._mine = inside & (log.variant == places.get(challenger, -2))
        self._tables: dict[tuple[int, int], int] = {}

    def epochs(self, decided: Sequence[int]) -> tuple[int, ...]:
        """The tables of the evidence that belong to tables of the plan, oldest first."""
        return tuple(number for (epoch, _), number in self._tables.items() if epoch in decided)

    def flow(self, split: Split, seconds: float) -> None:
        """Let time pass; the split says only which step the plan is at."""
        window = self._until(seconds)
        log = self._log
        for recorded in np.unique(log.epoch[window][(self._champion | self._mine)[window]]).tolist():
            table = self._tables.setdefault((split.epoch, recorded), len(self._tables))
            for name, owned in ((CHAMPION, self._champion), (split.challenger, self._mine)):
                taken = window.start + np.flatnonzero(owned[window] & (log.epoch[window] == recorded))
                self._epoch[taken] = table
                keys = self._keys(log.predictions, taken)
                self._add(table, name, _answered(log.bins[taken], log.failed[taken], log.rows[taken], keys))
                self.requests += len(taken)
                if owned is self._mine:
                    self.tried += len(taken)
                    self.exposed += len(taken)
            self._mirror(table, recorded, window, split.challenger)
        self._hear(split.challenger, lambda metric, values, requests: values)

    def _mirror(self, table: int, recorded: int, window: slice, name: str) -> None:
        """What the shadow answered to the champion's requests of a window under one recorded table."""
        mirror = self._log.mirrored.get(self._challenger)
        if mirror is None:
            return
        first, last = (int(mirror.requests.searchsorted(end)) for end in (window.start, window.stop))
        asked = mirror.requests[first:last]
        taken = first + (self._champion[asked] & (self._log.epoch[asked] == recorded)).nonzero()[0]
        if len(taken):
            self.tried += len(taken)
            rows, alike = int(mirror.rows[taken].sum()), float(mirror.alike[taken].sum())
            self._add(table, name, _compared(len(taken), 0, rows, alike, self._keys(mirror.predictions, taken)))


class Harm(Protocol):
    """What is done to the requests of a planted challenger, given by their places in the recording."""

    def failed(self, requests: np.ndarray) -> np.ndarray: ...
    def bins(self, requests: np.ndarray, bins: np.ndarray) -> np.ndarray: ...
    def alike(self, requests: np.ndarray, rows: np.ndarray) -> np.ndarray: ...
    def moved(self, requests: np.ndarray) -> np.ndarray: ...
    def quality(self, metric: str, values: np.ndarray, requests: np.ndarray) -> np.ndarray: ...


class Planting:
    """The harm of a scenario, done to requests chosen by a seeded draw a request.

    Raises UsageError for a kind that cannot be planted.
    """

    def __init__(self, kind: Kind, size: float, recording: Recording, seed: Sequence[int]) -> None:
        if kind not in PLANTABLE:
            raise UsageError(f"{words(kind, size)} cannot be planted", hint=f"one of {', '.join(PLANTABLE)}")
        self._kind, self._size = kind, size
        self._draws = np.random.default_rng(list(seed)).random(len(recording))
        ordered = np.sort(recording.bins[~recording.failed])
        self._tail = int(ordered[int(TAIL * len(ordered))]) if len(ordered) else 0
        feedback = recording.feedback
        right = feedback.values.get("accuracy") if feedback is not None else None
        rows, hits, _ = (1.0, 1.0, 1.0) if right is None else right.sum(axis=1)
        self._accuracy = max(float(hits / max(rows, 1.0)), 1e-9)

    def failed(self, requests: np.ndarray) -> np.ndarray:
        """Which of the requests it fails besides those that were failed."""
        chance = self._size if self._kind == "error-rate" else 0.0
        found: np.ndarray = self._draws[requests] < chance
        return found

    def bins(self, requests: np.ndarray, bins: np.ndarray) -> np.ndarray:
        """Latency bins of its answers. A factor between two bins is the one or the other, by the draw."""
        if self._kind not in ("latency", "latency-tail"):
            return bins
        steps = math.log(self._size) / math.log(LATENCY_GROWTH)
        later = bins + math.floor(steps) + (self._draws[requests] < steps - math.floor(steps))
        return np.where(bins >= self._tail, later, bins) if self._kind == "latency-tail" else later

    def alike(self, requests: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """How many rows of mirrored requests it answers as the champion did."""
        chance = self._size if self._kind == "disagreement" else 0.0
        return np.where(self._draws[requests] < chance, 0, rows)

    def moved(self, requests: np.ndarray) -> np.ndarray:
        """Which of the requests are answered with the rarest prediction."""
        chance = self._size if self._kind == "prediction-shift" else 0.0
        found: np.ndarray = self._draws[requests] < chance
        return found

    def quality(self, metric: str, values: np.ndarray, requests: np.ndarray) -> np.ndarray:
        """What feedback says of its answers: moments, float64 [3, n]."""
        if self._kind == "accuracy" and metric == "accuracy":
            wrong = self._draws[requests] < self._size / self._accuracy
            return np.where(wrong, np.array([[1.0], [0.0], [0.0]]) * values, values)
        larger = np.array([[1.0], [self._size], [self._size**2]])
        return larger * values if self._kind.replace("-", "_") == metric else values


class Planted(_Player):
    """A champion's requests dealt by the plan's weights; harm is done to those of the challenger."""

    def __init__(self, recording: Recording, harm: Harm, salt: str, measured: Sequence[str]) -> None:
        super().__init__(recording, measured)
        self._harm = harm
        self._places = np.fromiter((position(salt, key) for key in recording.ids), np.float64, len(recording))
        self._mirrors: np.ndarray | None = None
        self._salt = salt
        self._dealt = recording.variant >= 0
        self._rarest = recording.predictions.rarest() if self._drift else ()

    def epochs(self, decided: Sequence[int]) -> tuple[int, ...]:
        """The tables of the evidence are those of the plan."""
        return tuple(decided)

    def flow(self, split: Split, seconds: float) -> None:
        """Let time pass under a table."""
        window = self._until(seconds)
        log = self._log
        places = window.start + np.flatnonzero(self._dealt[window])
        taken = self._places[places] < split.weight
        mine, others = places[taken], places[~taken]
        self._epoch[places] = split.epoch
        self._mine[mine] = True
        self.requests += len(places)
        keys = self._keys(log.predictions, others)
        self._add(split.epoch, CHAMPION, _answered(log.bins[others], log.failed[others], log.rows[others], keys))
        if split.shadow:
            self._mirror(split, others)
        elif len(mine):
            failed = log.failed[mine] | self._harm.failed(mine)
            bins = self._harm.bins(mine, log.bins[mine])
            counts = _answered(bins, failed, log.rows[mine], self._shifted(mine))
            self._add(split.epoch, split.challenger, counts)
            self.tried += len(mine)
            self.exposed += len(mine)
        self._hear(split.challenger, self._harm.quality)

    def _mirror(self, split: Split, requests: np.ndarray) -> None:
        """Mirrored requests: the shadow answers as the champion did, but for the harm."""
        if split.sampling < 1.0:
            if self._mirrors is None:
                salt = f"{self._salt}/{split.challenger}"
                self._mirrors = np.fromiter((position(salt, key) for key in self._log.ids), np.float64, len(self._log))
            requests = requests[self._mirrors[requests] < split.sampling]
        failed = self._harm.failed(requests)
        answered = requests[~failed]
        rows = self._log.rows[answered]
        alike = float(self._harm.alike(answered, rows).sum())
        counts = _compared(len(requests), int(failed.sum()), int(rows.sum()), alike, self._shifted(answered))
        self._add(split.epoch, split.challenger, counts)
        self.tried += len(requests)

    def _shifted(self, requests: np.ndarray) -> dict[str, int]:
        """Predictions of the challenger, some of which are the rarest one instead."""
        moved = self._harm.moved(requests)
        found = self._keys(self._log.predictions, requests[~moved])
        for rare in self._rarest:
            found[rare] = found.get(rare, 0) + int(self._log.rows[requests[moved]].sum())
        return found


def replay_recorded(plan: Rollout, recording: Recording, experiment: str, challenger: str) -> Rehearsal:
    """What a plan would have decided about a challenger of a recorded experiment.

    Raises UsageError where the log holds no such experiment or challenger.
    """
    if challenger not in recording.challengers(experiment):
        there = ", ".join(f"{name} ({' '.join(recording.challengers(name))})" for name in recording.experiments if name)
        hint = f"it holds {there}: --experiment ID --candidate NAME" if there else "mlkit replay RECIPE --plant aa"
        raise UsageError(f"the log holds no {challenger or 'challenger'} in experiment {experiment!r}", hint=hint)
    cut = recording.of(experiment)
    source = Recorded(cut, experiment, challenger, [metric.metric for metric in plan.metrics])
    every = max(SERVICE_LOOK, cut.seconds / MOST_LOOKS)
    return play(plan, source, every, until=cut.seconds, keep=True)


def replay_planted(
    plan: Rollout, recording: Recording, kind: Kind, size: float, rollouts: int, *, seed: int = 0,
    done: Callable[[int], None] = lambda count: None,
) -> tuple[Rehearsal, ...]:  # fmt: skip
    """Plant harm into a champion's recorded requests, so many times with other requests hit.

    Raises UsageError for a kind that cannot be planted, or that the log has nothing to be planted into.
    """
    measured = [metric.metric for metric in plan.metrics]
    played = []
    for number in range(rollouts):
        harm = Planting(kind, size, recording, (seed, crc32(words(kind, size).encode()), number))
        source = Planted(recording, harm, f"replay-{seed}-{number}", measured)
        played.append(play(plan, source, look_seconds(plan, recording.rate), until=recording.seconds))
        done(number + 1)
    return tuple(played)


def world_of(recording: Recording) -> World:
    """A world in which both variants behave as the recording's champion, as far as it was recorded."""
    champion = recording.variants.index(CHAMPION) if CHAMPION in recording.variants else -2
    own = recording.variant == champion
    if int(own.sum()) < LEAST_REQUESTS:
        raise DataError(
            f"the log holds {int(own.sum())} requests of the champion; {LEAST_REQUESTS} are needed",
            hint="wait for traffic, or mlkit simulate",
        )
    told = recording.feedback
    means = {} if told is None else {name: one.sum(axis=1) for name, one in told.values.items()}
    quality = {name: float(total / max(count, 1.0)) for name, (count, total, _) in means.items()}
    behaviour = Behaviour(
        error_rate=float(recording.failed[own].mean()),
        latency=normalised(_histogram(recording.bins[own])),
        predictions=binary_predictions(0.2),
        quality=quality,
        agreement=dict.fromkeys(SLICES, 1.0),
    )
    return World(recording.rate, behaviour, behaviour)


def possible(kind: Kind, recording: Recording, plan: Rollout) -> bool:
    """Whether a kind of harm can be done to what was recorded, and be seen."""
    metric = kind.replace("-", "_")
    if metric in QUALITY:
        return recording.feedback is not None and metric in recording.feedback.values
    if kind == "disagreement":
        return any(step.weight == 0 for step in plan.sequence)
    return kind in PLANTABLE
