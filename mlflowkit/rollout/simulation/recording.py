"""A service's prediction log and feedback as arrays with one entry per request, sorted by time, for replays."""

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

from mlflowkit.errors import DataError, ServiceError, UsageError
from mlflowkit.judging.online.evidence import LATENCY_GROWTH, SCORE_BINS, Evidence, Moments
from mlflowkit.rollout.simulation.scenarios import TrafficFigures
from mlflowkit.rollout.simulation.synthetic_traffic import CHAMPION, normalised, quantile
from mlflowkit.service_state.file_records import FileRecords
from mlflowkit.serving.feedback import intake, scoring
from mlflowkit.serving.observer import paired_answers, prediction_log, shadow_comparison
from mlflowkit.serving.observer.paired_answers import RequestMeans

ASSIGNED_AS_MIRROR = "mirror"
_log = logging.getLogger("mlflowkit.rollout")
MIN_REQUESTS = 50
"""Minimum number of the champion's requests in a usable log."""


@dataclass(frozen=True, slots=True)
class RecordedFeedback:
    """Feedback on logged requests, sorted by arrival: arrays of length m.

    times     seconds since the recording's first request
    requests  indices of requests
    values    moments of each metric, float64 [3, m]: rows, sum, sum of squares
    """

    times: np.ndarray
    requests: np.ndarray
    values: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predicted keys of rows, grouped by request: rows ``starts[i]`` to ``starts[i + 1]`` belong to request i.

    ``families`` has, for each way of counting, the keys and each row's index into them.
    """

    starts: np.ndarray
    families: tuple[tuple[tuple[str, ...], np.ndarray], ...] = ()

    def counted(self, requests: np.ndarray) -> dict[str, int]:
        """Rows of some requests by predicted key."""
        rows = self._rows(requests)
        counts: dict[str, int] = {}
        for keys, codes in self.families:
            counts |= dict(zip(keys, np.bincount(codes[rows], minlength=len(keys)).tolist(), strict=True))
        return {key: count for key, count in counts.items() if count}

    def shared(self, requests: np.ndarray) -> dict[str, float]:
        """As `counted`, by requests: each counts 1, shared equally among its rows."""
        rows, lengths = self._rows(requests), self.starts[requests + 1] - self.starts[requests]
        weights = np.repeat(1.0 / np.maximum(lengths, 1), lengths)
        counts: dict[str, float] = {}
        for keys, codes in self.families:
            shares = np.bincount(codes[rows], weights, minlength=len(keys)).round(9).tolist()
            counts |= dict(zip(keys, shares, strict=True))
        return {key: count for key, count in counts.items() if count}

    def rarest(self) -> tuple[str, ...]:
        return tuple(keys[int(np.bincount(codes, minlength=len(keys)).argmin())] for keys, codes in self.families)

    def _rows(self, requests: np.ndarray) -> np.ndarray:
        lengths = self.starts[requests + 1] - self.starts[requests]
        if (lengths == 1).all():
            firsts: np.ndarray = self.starts[requests]
            return firsts
        before = np.cumsum(lengths) - lengths
        rows: np.ndarray = np.arange(int(lengths.sum())) + np.repeat(self.starts[requests] - before, lengths)
        return rows


@dataclass(frozen=True, slots=True)
class RecordedMirror:
    """A shadow's answers to logged requests, in request order: arrays of length m.

    ``requests`` are indices of requests; ``rows`` were compared, of which ``alike`` agree; ``predictions`` are those of
    the m mirrored requests, and ``means`` both answers to each, for kappa.
    """

    requests: np.ndarray
    rows: np.ndarray
    alike: np.ndarray
    predictions: Predictions
    means: RequestMeans


@dataclass(frozen=True, slots=True)
class Recording:
    """The requests of a log, sorted by time: arrays of length n.

    begun       time of the first request, in seconds since the epoch; ``times`` are seconds since then
    variant     index into ``variants`` of the variant that the split chose; -1 if a tester or a client chose it, which
                is no evidence
    experiment  index into ``experiments``; ``epoch`` is the routing table's
    bins        latency bins
    failed      whether the variant failed the request
    rows        answered rows
    mirrored    answers of shadows, by name
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
    mirrored: Mapping[str, RecordedMirror] = field(default_factory=dict)
    feedback: RecordedFeedback | None = None

    def __len__(self) -> int:
        return len(self.times)

    @property
    def seconds(self) -> float:
        """From the first request to the last, or to the last feedback."""
        feedback = () if self.feedback is None else self.feedback.times[-1:]
        return max(map(float, (self.times[-1], *feedback)))

    @property
    def rate(self) -> float:
        return len(self) / max(float(self.times[-1]), 1e-9)

    def of_variant(self, name: str) -> np.ndarray:
        """Mask of the requests that the split gave a variant."""
        mask: np.ndarray = self.variant == (self.variants.index(name) if name in self.variants else -2)
        return mask

    def challengers(self, experiment: str) -> tuple[str, ...]:
        """Names of an experiment's challengers and shadows."""
        if experiment not in self.experiments:
            return ()
        mask = self.experiment == self.experiments.index(experiment)
        split = {self.variants[code] for code in np.unique(self.variant[mask]) if code >= 0}
        shadows = {name for name, mirror in self.mirrored.items() if mask[mirror.requests].any()}
        return tuple(sorted((split | shadows) - {CHAMPION}))

    def of(self, experiment: str) -> Recording:
        """The part from the first request of an experiment to its last, with its feedback."""
        requests = np.flatnonzero(self.experiment == self.experiments.index(experiment))
        first, last = int(requests[0]), int(requests[-1]) + 1
        began = float(self.times[first])
        feedback = self.feedback
        if feedback is not None:
            mask = (feedback.requests >= first) & (feedback.requests < last)
            values = {name: moments[:, mask] for name, moments in feedback.values.items()}
            feedback = RecordedFeedback(feedback.times[mask] - began, feedback.requests[mask] - first, values)
        return Recording(
            self.begun + began, self.times[first:last] - began, self.ids[first:last], self.variants,
            self.variant[first:last], self.experiments, self.experiment[first:last], self.epoch[first:last],
            self.bins[first:last], self.failed[first:last], self.rows[first:last],
            replace(self.predictions, starts=self.predictions.starts[first : last + 1]),
            {name: _cut_mirror(mirror, first, last) for name, mirror in self.mirrored.items()}, feedback,
        )  # fmt: skip


def _cut_mirror(mirror: RecordedMirror, first: int, last: int) -> RecordedMirror:
    start, stop = (int(mirror.requests.searchsorted(end)) for end in (first, last))
    starts = mirror.predictions.starts[start : stop + 1]
    return RecordedMirror(
        mirror.requests[start:stop] - first, mirror.rows[start:stop], mirror.alike[start:stop],
        replace(mirror.predictions, starts=starts), mirror.means[slice(start, stop)],
    )  # fmt: skip


def read_recording(folder: Path, *, since: float = 0.0, until: float = math.inf) -> Recording:
    """Read the prediction log in ``folder`` (a service's or the log's own) with the service's feedback.

    Times are seconds since the epoch. Raises UsageError without a log, DataError for a log without requests.
    """
    own = folder if folder.name == "predictions" else folder / "predictions"
    tables = list(_tables(own, since, until))
    if not tables:
        hint = "give the service's folder: .mlkit/services/NAME"
        raise UsageError(f"there is no prediction log in {folder}", hint=hint)
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    return _RecordingBuilder(table).build(_read_feedback(own.parent / "feedback"))


def _tables(folder: Path, since: float, until: float) -> Iterator[pa.Table]:
    names: dict[str, None] = {}
    for segment in prediction_log.segments(folder):
        try:
            names |= dict.fromkeys(parquet.read_schema(folder / segment.name).names)
        except FileNotFoundError:  # merged meanwhile into a segment with the same columns
            continue
    columns = [name for name in names if not name.startswith("input.")]
    return prediction_log.read_log(folder, since, until, columns)


def _read_feedback(folder: Path) -> dict[str, list[tuple[float, intake.Feedback]]]:
    """(time received, feedback) by request id; damaged lines are skipped."""
    feedback: dict[str, list[tuple[float, intake.Feedback]]] = {}
    cursor: dict[str, int] = {}
    while True:
        before = dict(cursor)
        for name, position, lines in intake.read_since(folder, cursor):
            cursor[name] = position
            for item, received in intake.parse_lines(lines):
                feedback.setdefault(item.id, []).append((received, item))
        if cursor == before:
            return feedback


class _RecordingBuilder:
    def __init__(self, table: pa.Table) -> None:
        own = compute.not_equal(table["how"], ASSIGNED_AS_MIRROR)
        order = [("time", "ascending"), ("id", "ascending"), ("row", "ascending")]
        self._rows = table.filter(own).sort_by(order)
        self._shadows = table.filter(compute.invert(own)).sort_by(order)
        if self._rows.num_rows == 0:
            hint = "mlkit predict, or wait for traffic"
            raise DataError("the prediction log holds no requests of clients", hint=hint)
        self._classes = [name for name in table.column_names if name.startswith("probability.")]
        self._edges: tuple[float, ...] = ()
        self._labels = tuple(name.partition(".")[2] for name in self._classes)
        self._first, self._starts = _requests(self._rows)
        if "prediction" in table.column_names:
            champion = self._rows.filter(compute.equal(self._rows["answered"], CHAMPION))["prediction"]
            self._edges = shadow_comparison.decile_edges(champion.drop_null().to_numpy())

    def build(self, feedback: Mapping[str, Sequence[tuple[float, intake.Feedback]]]) -> Recording:
        heads = self._rows.take(self._first)
        times = heads["time"].cast("int64").to_numpy() / 1e6
        variants, variant = _coded(heads["variant"])
        experiments, experiment = _coded(heads["experiment"])
        assigned_by = np.asarray(heads["how"].to_pylist(), dtype=object)
        seconds = heads["seconds"].to_numpy()
        recording = Recording(
            begun=float(times[0]),
            times=times - times[0],
            ids=heads["id"].to_pylist(),
            variants=variants,
            variant=np.where(assigned_by == "hash", variant, -1),
            experiments=experiments,
            experiment=experiment,
            epoch=heads["epoch"].to_numpy().astype(np.int64),
            bins=latency_bins(seconds),
            failed=np.asarray(heads["error"].to_pylist(), dtype=object) != "",
            rows=np.diff(self._starts),
            predictions=self._predictions(self._rows, self._starts),
        )
        recorded_feedback = self._recorded_feedback(recording, feedback)
        return replace(recording, mirrored=self._mirrors(recording), feedback=recorded_feedback)

    def _predictions(self, rows: pa.Table, starts: np.ndarray) -> Predictions:
        """Predicted keys of rows, in the observer's form."""
        families = []
        if "label" in rows.column_names:
            labels, codes = _coded(rows["label"].fill_null(""))
            families.append((tuple(f"label:{label}" for label in labels), codes))
        if len(self._classes) == 2:
            scores = np.nan_to_num(rows[self._classes[1]].to_numpy())
            codes = np.clip((scores * SCORE_BINS).astype(np.int64), 0, SCORE_BINS - 1)
            families.append((tuple(f"score:{index}" for index in range(SCORE_BINS)), codes))
        if self._edges:
            codes = np.searchsorted(self._edges, np.nan_to_num(rows["prediction"].to_numpy()), side="right")
            families.append((tuple(f"decile:{index}" for index in range(10)), codes))
        return Predictions(starts, tuple(families))

    def _mirrors(self, recording: Recording) -> dict[str, RecordedMirror]:
        """Each shadow's answers, compared with the answers that the clients got for the same rows."""
        request_of = {id: index for index, id in enumerate(recording.ids)}
        answer = "label" if "label" in self._rows.column_names else "prediction"
        ours = self._rows[answer].to_numpy(zero_copy_only=False)
        mirrors = {}
        for name in _coded(self._shadows["variant"])[0] if self._shadows.num_rows else ():
            rows = self._shadows.filter(compute.equal(self._shadows["variant"], name))
            request = np.array([request_of.get(id, -1) for id in rows["id"].to_pylist()], dtype=np.int64)
            at = self._starts[request] + rows["row"].to_numpy()
            paired = np.flatnonzero((request >= 0) & (at < self._starts[request + 1]))
            paired = paired[np.lexsort((rows["row"].to_numpy()[paired], request[paired]))]
            theirs = rows[answer].to_numpy(zero_copy_only=False)[paired]
            within = shadow_comparison.tolerance(self._edges) if self._edges else 0.0
            same = np.abs(theirs - ours[at[paired]]) <= within if self._edges else theirs == ours[at[paired]]
            requests, first, counts = np.unique(request[paired], return_index=True, return_counts=True)
            alike = np.add.reduceat(same.astype(np.int64), first) if len(first) else counts
            starts = np.concatenate([first, [len(paired)]]).astype(np.int64)
            predictions = self._predictions(rows.take(paired), starts)
            points = self._points(self._rows.take(at[paired])), self._points(rows.take(paired))
            means = paired_answers.request_means(request[paired], *points)
            mirrors[name] = RecordedMirror(requests, counts, alike, predictions, means)
        return mirrors

    def _points(self, rows: pa.Table) -> np.ndarray:
        """The answers to some rows as points, in the observer's form; an answer that is missing is as good as any."""
        if self._edges:
            return paired_answers.as_deciles(np.nan_to_num(rows["prediction"].to_numpy()), self._edges)
        if len(self._classes) == 2:
            return paired_answers.as_angles(np.nan_to_num(rows[self._classes[1]].to_numpy()))
        labels = np.asarray(rows["label"].fill_null("").to_pylist(), dtype=object)
        return paired_answers.as_corners(labels, self._labels)

    def _recorded_feedback(
        self, recording: Recording, feedback: Mapping[str, Sequence[tuple[float, intake.Feedback]]]
    ) -> RecordedFeedback | None:
        """Feedback on the variants' own answers, at the time of its first arrival."""
        observed: list[tuple[float, int, Mapping[str, Moments]]] = []
        for index, id in enumerate(recording.ids):
            items = feedback.get(id)
            if items and not recording.failed[index]:
                answered = recording.begun + float(recording.times[index])
                later = [received for received, _ in items if received >= answered]
                quality = scoring.join_request(self._answers(index), items, answered).quality
                if later:
                    observed.append((min(later) - recording.begun, index, quality))
        if not observed:
            return None
        observed.sort(key=lambda item: item[:2])
        metrics = sorted({metric for *_, quality in observed for metric in quality})
        values = {}
        for metric in metrics:
            moments = [quality.get(metric, Moments()) for *_, quality in observed]
            triples = [(value.count, value.total, value.squares) for value in moments]
            values[metric] = np.array(triples, dtype=np.float64).T
        times = np.array([when for when, *_ in observed])
        return RecordedFeedback(times, np.array([index for _, index, _ in observed], dtype=np.int64), values)

    def _answers(self, request: int) -> list[scoring.AnsweredRequest]:
        first, last = int(self._starts[request]), int(self._starts[request + 1])
        answers = []
        for row in self._rows.slice(first, last - first).to_pylist():
            shares = {name.partition(".")[2]: row[name] for name in self._classes if row[name] is not None}
            answers.append(scoring.AnsweredRequest(row.get("label"), shares, row.get("prediction")))
        return answers


def _requests(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each request of sorted rows; and the same followed by the number of rows."""
    _, codes = _coded(rows["id"])
    times = rows["time"].cast("int64").to_numpy()
    new = np.ones(rows.num_rows, dtype=bool)
    new[1:] = (codes[1:] != codes[:-1]) | (times[1:] != times[:-1])
    first = np.flatnonzero(new)
    return first, np.append(first, rows.num_rows)


def _coded(column: pa.ChunkedArray) -> tuple[tuple[str, ...], np.ndarray]:
    """The distinct texts of a column, and each row's index into them."""
    encoded = column.combine_chunks().dictionary_encode()
    return tuple(encoded.dictionary.to_pylist()), encoded.indices.to_numpy().astype(np.int64)


def latency_bins(seconds: np.ndarray) -> np.ndarray:
    """`judging.online.evidence.latency_bin`, vectorised.

    >>> import numpy as np
    >>> latency_bins(np.array([0.0, 0.001])).tolist()
    [0, 348]
    """
    microseconds = np.maximum(np.nan_to_num(seconds) * 1e6, 1.0)
    bins: np.ndarray = (np.log(microseconds) / math.log(LATENCY_GROWTH)).astype(np.int64)
    return bins


def histogram(bins: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(bins, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def measured_figures(folder: Path, figures: TrafficFigures) -> TrafficFigures:
    """The figures with the request rate, error rate and latencies of a service's champion.

    Errors come from the gateways' evidence, as the log has none of the champion's. Raises UsageError without a log,
    DataError for a log with too few requests.
    """
    recording = read_recording(folder)
    own = recording.of_variant(CHAMPION) & ~recording.failed
    if own.sum() < MIN_REQUESTS:
        problem = f"the log in {folder} holds {own.sum()} answers of the champion; {MIN_REQUESTS} are needed"
        raise DataError(problem, hint="leave out --from-log, or wait for traffic")
    latency = normalised(histogram(recording.bins[own]))
    return replace(
        figures, rate=float(f"{recording.rate:.3g}"), error_rate=_error_rate(folder),
        p50_ms=1000 * quantile(latency, 0.5), p99_ms=1000 * quantile(latency, 0.99), latency=latency,
    )  # fmt: skip


def _error_rate(folder: Path) -> float:
    """The champion's error rate in the gateways' evidence; 0 without evidence."""
    records = FileRecords(folder.parent if folder.name == "predictions" else folder)  # files: it may be a copy
    requests = errors = 0
    for entry in records.list("evidence/*.json"):
        try:
            record = records.get(entry.key)
            evidence = Evidence("") if record is None else Evidence.from_json(json.loads(record.value))
        except (ServiceError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"{records.location(entry.key)} cannot be read: {error!r}"
            raise DataError(problem, hint="leave out --from-log") from error
        counts = evidence.of(CHAMPION)
        requests, errors = requests + counts.requests, errors + counts.errors
    return errors / requests if requests else 0.0
