"""A service's prediction log and feedback as arrays, a request each, in the order of time: what replays draw on."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet

from mlflowkit.errors import DataError, UsageError
from mlflowkit.judging.online.evidence import LATENCY_GROWTH, SCORE_BINS, Evidence, Moments
from mlflowkit.rollout.simulation.scenarios import Figures
from mlflowkit.rollout.simulation.synthetic_traffic import CHAMPION, normalised, quantile
from mlflowkit.serving.feedback import intake as told
from mlflowkit.serving.feedback import join
from mlflowkit.serving.observer import prediction_log, shadow_comparison

MIRROR = "mirror"
_log = logging.getLogger("mlflowkit.rollout")
LEAST_REQUESTS = 50
"""A log with fewer requests of the champion says nothing about it."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What feedback said of logged requests, in the order in which it came in: arrays of one length m.

    ``times`` are seconds since the recording's first request; ``requests`` are indices of requests; ``values`` are the
    moments of each metric, float64 [3, m]: rows, their sum, their sum of squares.
    """

    times: np.ndarray
    requests: np.ndarray
    values: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predicted keys of rows, which lie together by request: row ``starts[i]`` to ``starts[i + 1]`` are of request i.

    ``families`` has a way of counting each: the keys, and the code of each row's key.
    """

    starts: np.ndarray
    families: tuple[tuple[tuple[str, ...], np.ndarray], ...] = ()

    def counted(self, requests: np.ndarray) -> dict[str, int]:
        """How many rows of some requests were predicted to be of each key."""
        rows = self._rows(requests)
        found = {}
        for keys, codes in self.families:
            for key, count in zip(keys, _bincount(codes[rows], len(keys)), strict=True):
                if count:
                    found[key] = int(count)
        return found

    def rarest(self) -> tuple[str, ...]:
        """The key of each family that is predicted least."""
        return tuple(keys[int(_bincount(codes, len(keys)).argmin())] for keys, codes in self.families)

    def _rows(self, requests: np.ndarray) -> np.ndarray:
        lengths = self.starts[requests + 1] - self.starts[requests]
        if (lengths == 1).all():
            only: np.ndarray = self.starts[requests]
            return only
        before = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(lengths) else lengths
        rows: np.ndarray = np.arange(int(lengths.sum())) + np.repeat(self.starts[requests] - before, lengths)
        return rows


def _bincount(codes: np.ndarray, keys: int) -> np.ndarray:
    return np.bincount(codes, minlength=keys)


@dataclass(frozen=True, slots=True)
class Mirrored:
    """A shadow's answers to logged requests, in the order of the requests: arrays of one length m.

    ``requests`` are indices of requests; ``rows`` were compared and ``alike`` agree; ``predictions`` are of requests
    0 to m - 1.
    """

    requests: np.ndarray
    rows: np.ndarray
    alike: np.ndarray
    predictions: Predictions


@dataclass(frozen=True, slots=True)
class Recording:
    """The requests of a log in the order of their times: arrays of one length n.

    begun       time of the first, in seconds since the epoch; ``times`` are seconds since then
    variant     that the split gave the request to, by its place in ``variants``; -1 for what a tester or a client
                chose, which is no evidence
    experiment  by its place in ``experiments``; ``epoch`` is that of the routing table
    bins        of the latencies
    failed      whether the variant failed it
    rows        answered rows
    mirrored    what shadows answered, by name
    """

    begun: float
    times: np.ndarray
    ids: Sequence[str]
    variants: tuple[str, ...]
    variant: np.ndarray
    experiments: tuple[str, ...]
    experiment: np.ndarray
    epoch: np.ndarray
    bins: np.ndarray
    failed: np.ndarray
    rows: np.ndarray
    predictions: Predictions
    mirrored: Mapping[str, Mirrored] = field(default_factory=dict)
    feedback: Observed | None = None

    def __len__(self) -> int:
        return len(self.times)

    @property
    def seconds(self) -> float:
        """From the first request to the last, or to the last feedback."""
        told = self.feedback
        return max(float(self.times[-1]), float(told.times[-1]) if told is not None and len(told.times) else 0.0)

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self) / max(float(self.times[-1]), 1e-9)

    def challengers(self, experiment: str) -> tuple[str, ...]:
        """Names that requests of an experiment were given or mirrored to, the champion's apart."""
        if experiment not in self.experiments:
            return ()
        here = self.experiment == self.experiments.index(experiment)
        dealt = {self.variants[place] for place in np.unique(self.variant[here]) if place >= 0}
        shadows = {name for name, mirror in self.mirrored.items() if here[mirror.requests].any()}
        return tuple(sorted((dealt | shadows) - {CHAMPION}))

    def of(self, experiment: str) -> Recording:
        """From the first request of an experiment to its last, with the feedback on them."""
        here = np.flatnonzero(self.experiment == self.experiments.index(experiment))
        first, last = int(here[0]), int(here[-1]) + 1
        began = float(self.times[first])
        told = self.feedback
        if told is not None:
            kept = (told.requests >= first) & (told.requests < last)
            values = {name: one[:, kept] for name, one in told.values.items()}
            told = Observed(told.times[kept] - began, told.requests[kept] - first, values)
        return Recording(
            self.begun + began, self.times[first:last] - began, self.ids[first:last], self.variants,
            self.variant[first:last], self.experiments, self.experiment[first:last], self.epoch[first:last],
            self.bins[first:last], self.failed[first:last], self.rows[first:last],
            replace(self.predictions, starts=self.predictions.starts[first : last + 1]),
            {name: _between(mirror, first, last) for name, mirror in self.mirrored.items()}, told,
        )  # fmt: skip


def _between(mirror: Mirrored, first: int, last: int) -> Mirrored:
    start, stop = (int(mirror.requests.searchsorted(end)) for end in (first, last))
    starts = mirror.predictions.starts[start : stop + 1]
    return Mirrored(
        mirror.requests[start:stop] - first, mirror.rows[start:stop], mirror.alike[start:stop],
        replace(mirror.predictions, starts=starts),
    )  # fmt: skip


def read_recording(folder: Path, *, since: float = 0.0, until: float = math.inf) -> Recording:
    """The prediction log in ``folder``, a service's or the log's own, with the service's feedback.

    Times are seconds since the epoch. Raises UsageError where there is no log, DataError where it has no requests.
    """
    own = folder if folder.name == "predictions" else folder / "predictions"
    tables = list(_tables(own, since, until))
    if not tables:
        raise UsageError(
            f"there is no prediction log in {folder}", hint="give the service's folder: .mlkit/services/NAME"
        )
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    return _Reader(table).recording(_said(own.parent / "feedback"))


def _tables(folder: Path, since: float, until: float) -> Iterator[pa.Table]:
    """The log's tables without what went into the graph."""
    names: dict[str, None] = {}
    for segment in prediction_log.segments(folder):
        try:
            names |= dict.fromkeys(parquet.read_schema(folder / segment.name).names)
        except FileNotFoundError:  # merged meanwhile: its columns are those of the merged one
            continue
    wanted = [name for name in names if not name.startswith("input.")]
    for table, _, _ in prediction_log.read_since(folder, {}, wanted):
        seconds = compute.divide(table["time"].cast("int64"), 1e6)
        rows = table.filter(compute.and_(compute.greater_equal(seconds, since), compute.less(seconds, until)))
        if rows.num_rows:
            yield rows


def _said(folder: Path) -> dict[str, list[tuple[float, told.Feedback]]]:
    """What feedback said of each request's id, and when it was received; damaged lines are left out."""
    found: dict[str, list[tuple[float, told.Feedback]]] = {}
    cursor: dict[str, int] = {}
    while True:
        before = dict(cursor)
        for name, place, lines in told.read_since(folder, cursor):
            cursor[name] = place
            for line in lines:
                try:
                    item, received = told.Feedback.from_line(line)
                except (ValueError, KeyError, TypeError) as error:
                    _log.warning("a line of %s is left out: %r", name, error)
                    continue
                found.setdefault(item.id, []).append((received, item))
        if cursor == before:
            return found


class _Reader:
    """Makes a recording of a log's rows."""

    def __init__(self, table: pa.Table) -> None:
        own = compute.not_equal(table["how"], MIRROR)
        order = [("time", "ascending"), ("id", "ascending"), ("row", "ascending")]
        self._rows = table.filter(own).sort_by(order)
        self._shadows = table.filter(compute.invert(own)).sort_by(order)
        if self._rows.num_rows == 0:
            raise DataError(
                "the prediction log holds no requests of clients", hint="mlkit predict, or wait for traffic"
            )
        self._classes = [name for name in table.column_names if name.startswith("probability.")]
        self._edges: tuple[float, ...] = ()
        self._first, self._starts = _requests(self._rows)
        if "prediction" in table.column_names:
            champion = self._rows.filter(compute.equal(self._rows["answered"], CHAMPION))["prediction"]
            self._edges = shadow_comparison.tenths(champion.drop_null().to_numpy())

    def recording(self, said: Mapping[str, Sequence[tuple[float, told.Feedback]]]) -> Recording:
        """The whole."""
        heads = self._rows.take(self._first)
        times = heads["time"].cast("int64").to_numpy() / 1e6
        variants, variant = _coded(heads["variant"])
        experiments, experiment = _coded(heads["experiment"])
        how = np.asarray(heads["how"].to_pylist(), dtype=object)
        seconds = heads["seconds"].to_numpy()
        found = Recording(
            begun=float(times[0]),
            times=times - times[0],
            ids=heads["id"].to_pylist(),
            variants=variants,
            variant=np.where(how == "hash", variant, -1),
            experiments=experiments,
            experiment=experiment,
            epoch=heads["epoch"].to_numpy().astype(np.int64),
            bins=bins_of(seconds),
            failed=np.asarray(heads["error"].to_pylist(), dtype=object) != "",
            rows=np.diff(self._starts),
            predictions=self._predictions(self._rows, self._starts),
        )
        return replace(found, mirrored=self._mirrors(found), feedback=self._feedback(found, said))

    def _predictions(self, rows: pa.Table, starts: np.ndarray) -> Predictions:
        """Keys of rows, as the observer counts them."""
        families = []
        if "label" in rows.column_names:
            labels, codes = _coded(rows["label"].fill_null(""))
            families.append((tuple(f"label:{label}" for label in labels), codes))
        if len(self._classes) == 2:
            scores = np.nan_to_num(rows[self._classes[1]].to_numpy())
            codes = np.clip((scores * SCORE_BINS).astype(np.int64), 0, SCORE_BINS - 1)
            families.append((tuple(f"score:{place}" for place in range(SCORE_BINS)), codes))
        if self._edges:
            codes = np.searchsorted(self._edges, np.nan_to_num(rows["prediction"].to_numpy()), side="right")
            families.append((tuple(f"decile:{place}" for place in range(10)), codes))
        return Predictions(starts, tuple(families))

    def _mirrors(self, found: Recording) -> dict[str, Mirrored]:
        """Each shadow's answers, held against what the client got for the same row."""
        client = {number: place for place, number in enumerate(found.ids)}
        answer = "label" if "label" in self._rows.column_names else "prediction"
        ours = self._rows[answer].to_numpy(zero_copy_only=False)
        made = {}
        for name in _coded(self._shadows["variant"])[0] if self._shadows.num_rows else ():
            rows = self._shadows.filter(compute.equal(self._shadows["variant"], name))
            place = np.array([client.get(number, -1) for number in rows["id"].to_pylist()], dtype=np.int64)
            at = self._starts[place] + rows["row"].to_numpy()
            known = np.flatnonzero((place >= 0) & (at < self._starts[place + 1]))
            known = known[np.lexsort((rows["row"].to_numpy()[known], place[known]))]
            theirs = rows[answer].to_numpy(zero_copy_only=False)[known]
            within = shadow_comparison.tolerance(self._edges) if self._edges else 0.0
            same = np.abs(theirs - ours[at[known]]) <= within if self._edges else theirs == ours[at[known]]
            requests, first, counts = np.unique(place[known], return_index=True, return_counts=True)
            alike = np.add.reduceat(same.astype(np.int64), first) if len(first) else counts
            starts = np.concatenate([first, [len(known)]]).astype(np.int64)
            predictions = self._predictions(rows.take(known), starts)
            made[name] = Mirrored(requests, counts, alike, predictions)
        return made

    def _feedback(self, found: Recording, said: Mapping[str, Sequence[tuple[float, told.Feedback]]]) -> Observed | None:
        """What became known of answers that the variant gave itself, when it was first received."""
        observed: list[tuple[float, int, Mapping[str, Moments]]] = []
        for place, number in enumerate(found.ids):
            items = said.get(number)
            if items and not found.failed[place]:
                quality = join.settle(self._answers(place), items).quality
                when = min(received for received, _ in items) - found.begun
                observed.append((max(when, float(found.times[place])), place, quality))
        if not observed:
            return None
        observed.sort(key=lambda one: one[:2])
        metrics = sorted({metric for *_, quality in observed for metric in quality})
        values = {
            metric: np.array(
                [(one.count, one.total, one.squares) for *_, quality in observed
                 for one in (quality.get(metric, Moments()),)], dtype=np.float64,
            ).T
            for metric in metrics
        }  # fmt: skip
        times = np.array([when for when, *_ in observed])
        return Observed(times, np.array([place for _, place, _ in observed], dtype=np.int64), values)

    def _answers(self, request: int) -> list[join.Answer]:
        """What a request was answered, a row each."""
        first, last = int(self._starts[request]), int(self._starts[request + 1])
        found = []
        for row in self._rows.slice(first, last - first).to_pylist():
            shares = {name.partition(".")[2]: row[name] for name in self._classes if row[name] is not None}
            found.append(join.Answer(row.get("label"), shares, row.get("prediction")))
        return found


def _requests(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each request, and where each begins and the last one ends, of sorted rows."""
    _, codes = _coded(rows["id"])
    times = rows["time"].cast("int64").to_numpy()
    new = np.ones(rows.num_rows, dtype=bool)
    new[1:] = (codes[1:] != codes[:-1]) | (times[1:] != times[:-1])
    first = np.flatnonzero(new)
    return first, np.append(first, rows.num_rows)


def _coded(column: pa.ChunkedArray) -> tuple[tuple[str, ...], np.ndarray]:
    """The distinct texts of a column, and the place of each row's among them."""
    encoded = column.combine_chunks().dictionary_encode()
    return tuple(encoded.dictionary.to_pylist()), encoded.indices.to_numpy().astype(np.int64)


def bins_of(seconds: np.ndarray) -> np.ndarray:
    """`judging.online.evidence.latency_bin` of many latencies.

    >>> import numpy as np
    >>> bins_of(np.array([0.0, 0.001])).tolist()
    [0, 348]
    """
    microseconds = np.maximum(np.nan_to_num(seconds) * 1e6, 1.0)
    bins: np.ndarray = (np.log(microseconds) / math.log(LATENCY_GROWTH)).astype(np.int64)
    return bins


def figures_of(folder: Path, figures: Figures) -> Figures:
    """The figures with rate, share of errors and latencies as a service's champion had them.

    Errors are those that the gateways counted (``evidence/``), as the log holds none of the champion's. Raises
    UsageError where there is no log, DataError where it holds too few requests.
    """
    recording = read_recording(folder)
    champion = recording.variants.index(CHAMPION) if CHAMPION in recording.variants else -2
    own = (recording.variant == champion) & ~recording.failed
    if int(own.sum()) < LEAST_REQUESTS:
        raise DataError(
            f"the log in {folder} holds {int(own.sum())} answers of the champion; {LEAST_REQUESTS} are needed",
            hint="leave out --from-log, or wait for traffic",
        )
    bins, counts = np.unique(recording.bins[own], return_counts=True)
    latency = normalised(dict(zip(bins.tolist(), counts.tolist(), strict=True)))
    return replace(
        figures, rate=float(f"{recording.rate:.3g}"), error_rate=_error_rate(folder),
        p50_ms=1000 * quantile(latency, 0.5), p99_ms=1000 * quantile(latency, 0.99), latency=latency,
    )  # fmt: skip


def _error_rate(folder: Path) -> float:
    """The share of its requests that the champion failed, by the gateways' counts; 0 where there are none."""
    own = folder.parent if folder.name == "predictions" else folder
    requests = errors = 0
    for path in sorted((own / "evidence").glob("*.json")):
        if path.name.startswith("."):
            continue
        try:
            evidence = Evidence.from_json(json.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} cannot be read: {error!r}", hint="leave out --from-log") from error
        counts = evidence.of(CHAMPION)
        requests, errors = requests + counts.requests, errors + counts.errors
    return errors / requests if requests else 0.0
