"""One command's measurement: every entry in a process of its own, all of one batch size in turns, the first one the
standard that the others are held against.

What a machine lacks and what fails is a row with its status and reason: nothing is replaced by something else.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.bench import analysis, soundness
from mlflowkit.bench.comparing import Comparison, compare_all
from mlflowkit.bench.environment import Machine, Moment, description, moment, pinned, usable
from mlflowkit.bench.measure import BLOCK, BlockSource, Samples, measure_blocks, pooled
from mlflowkit.bench.subject import Entry, Subject
from mlflowkit.errors import EngineError, TrialError
from mlflowkit.values import Json

if TYPE_CHECKING:
    from mlflowkit.ports import Built, Engines, Loaded, Trial, Trials

Progress = Callable[[str, float], None]
"""Told what is being done and which share of the whole is done."""

GLANCE = 20
"""Requests that an estimate of the time rests on."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure."""

    batches: tuple[int, ...] = (1,)
    samples: int = 2000
    """Requests of each entry at each batch size, in all its starts together."""
    starts: int = 5
    """How often each entry's process is started anew: two processes of one graph differ by a few percent for as long
    as they live, which only other processes show (`analysis.started_ratio_interval`)."""
    quantile: float = 0.5
    """What intervals and comparisons are of."""
    cores: tuple[int, ...] | None = None
    """Cores that everything is kept on; None: as many as the largest entry has threads. Empty: the system chooses.

    Entries take turns, so all can have the same cores. Left to the system, each process stays where it began, and a
    core whose sibling is busy is slower: an entry then seems slower than a copy of itself (seen: 1.7 times)."""

    @property
    def label(self) -> str:
        return soundness.percentile(self.quantile)


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one entry at one batch size. ``status`` is ok, unavailable (the machine lacks it) or failed."""

    entry: Entry
    batch: int
    status: str
    reason: str = ""
    built: Built | None = None
    loaded: Loaded | None = None
    starts: tuple[Samples, ...] = ()
    """Of each start of its process; start i of all entries was measured in the same rounds."""
    script: str = ""
    notes: tuple[str, ...] = ()

    @property
    def samples(self) -> Samples | None:
        """Of all starts together."""
        return pooled(self.starts) if self.starts else None

    def to_json(self, settings: Settings) -> dict[str, Json]:
        """As candidates.json lists a candidate; times in microseconds, throughput in rows a second of one caller."""
        candidate = self.entry.candidate
        row: dict[str, Json] = {
            "name": self.entry.name,
            "runtime": candidate.engine.runtime,
            "batch": self.batch,
            "samples": 0,
            "starts": 0,
            **dict.fromkeys(("p50_us", "p95_us", "p99_us", "quantile_us", "interval", "throughput")),
            "status": self.status,
            "reason": self.reason,
            "metric": None,
            "metric_drop": None,
            "picked": False,
            "passes": [one.model_dump(mode="json") for one in candidate.passes],
            "engine": candidate.engine.model_dump(mode="json"),
            "size_bytes": None if self.built is None else self.built.size_bytes,
            "memory_bytes": None if self.loaded is None else self.loaded.memory_bytes,
            "build_seconds": None if self.built is None else self.built.build_seconds,
            "cold_start_ms": None if self.loaded is None else self.loaded.cold_start_ms,
            "front": False,
            "script": self.script,
            "notes": list(self.notes),
        }
        return row | _figures(self.starts, self.batch, settings) if self.starts else row


def _figures(starts: Sequence[Samples], batch: int, settings: Settings) -> dict[str, Json]:
    blocks = pooled(starts).microseconds
    return {
        "samples": int(blocks.size),
        "starts": len(starts),
        "p50_us": analysis.quantile(blocks, 0.50),
        "p95_us": analysis.quantile(blocks, 0.95),
        "p99_us": analysis.quantile(blocks, 0.99),
        "quantile_us": analysis.quantile(blocks, settings.quantile),
        "interval": list(analysis.quantile_interval(blocks, settings.quantile, starts=len(starts))),
        "throughput": batch * blocks.size / float(blocks.sum()) * 1e6,
    }


@dataclass(frozen=True, slots=True)
class Result:
    """Everything that one command measured."""

    settings: Settings
    machine: Machine
    subjects: tuple[Subject, ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = field(default=())
    moments: tuple[Moment, ...] = ()
    """The machine before the first request, and after the last one of each start while its processes lived."""

    def to_json(self) -> dict[str, Json]:
        """The shape of ``mlkit bench --json``."""
        subjects = [
            {"name": one.name, "kind": one.kind, "path": str(one.path), "notes": list(one.notes)}
            for one in self.subjects
        ]
        return {
            "machine": self.machine.to_json(),
            "quantile": self.settings.label,
            "subjects": subjects,
            "candidates": [row.to_json(self.settings) for row in self.rows],
            "comparisons": [asdict(one) for one in self.comparisons],
            "notes": list(self.notes),
            "moments": [one.to_json() for one in self.moments],
        }


@dataclass(frozen=True, slots=True)
class Bench:
    """What measuring needs of the world; ``work`` is a folder for what passes between processes."""

    trials: Trials
    engines: Engines
    work: Path
    scripts: Path
    progress: Progress

    def measure(self, entries: Sequence[Entry], settings: Settings) -> Result:
        """Measure all entries at all batch sizes.

        Raises StoreError when the disk refuses what it must write, UsageError for a core that may not be used.
        """
        with _kept_on(cores_for(entries, settings, usable())):
            return self._measured(entries, settings)

    def _measured(self, entries: Sequence[Entry], settings: Settings) -> Result:
        machine, moments = description(), [moment()]
        rows: list[Row] = []
        comparisons: list[Comparison] = []
        notes: list[str] = []
        for index, batch in enumerate(settings.batches):
            share = 1 / len(settings.batches)
            told = _within(self.progress, index * share, share)
            found = self._batch(entries, batch, settings, told, moments)
            rows += found
            starts = {row.entry.name: [one.microseconds for one in row.starts] for row in found if row.starts}
            comparisons += compare_all(starts, settings.quantile, batch=batch, label=settings.label)
            blocks = {row.entry.name: row.samples.microseconds for row in found if row.samples is not None}
            if blocks and (said := soundness.throttling(blocks)):
                notes.append(f"batch {batch}: {said}")
        if comparisons and settings.starts < analysis.STARTS:
            notes.append(
                f"fewer than {analysis.STARTS} starts: comparisons hold of these very processes; others of the same "
                "graphs differ by more"
            )
        notes += soundness.disturbances(moments)
        subjects = tuple({id(entry.subject): entry.subject for entry in entries}.values())
        return Result(settings, machine, subjects, tuple(rows), tuple(comparisons), tuple(notes), tuple(moments))

    def glance(self, entries: Sequence[Entry], settings: Settings) -> list[tuple[Row, float | None]]:
        """What would be measured, and about how many seconds each would take: a few requests of each are asked."""
        found: list[tuple[Row, float | None]] = []
        with _kept_on(cores_for(entries, settings, usable())):
            for batch in settings.batches:
                with self._begun(entries, batch, self.progress) as begun:
                    found += [_glanced(row, trial, settings) for row, trial in begun]
        return found

    # ------------------------------------------------------------------------------------------------------ one batch

    def _batch(
        self, entries: Sequence[Entry], batch: int, settings: Settings, progress: Progress, moments: list[Moment]
    ) -> list[Row]:
        """Start all entries, measure them in turns, end them; again, for those that did not fail meanwhile."""
        rows = {entry.name: Row(entry, batch, "ok") for entry in entries}
        for start in range(settings.starts):
            going = [entry for entry in entries if rows[entry.name].status == "ok"]
            turn = start % max(1, len(going))
            told = _within(progress, start / settings.starts, 1 / settings.starts)
            for row in self._started(going[turn:] + going[:turn], batch, settings, told, moments):
                rows[row.entry.name] = _joined(rows[row.entry.name], row)
        return [_noted(row, settings) for row in rows.values()]

    def _started(
        self, entries: Sequence[Entry], batch: int, settings: Settings, progress: Progress, moments: list[Moment]
    ) -> list[Row]:
        """One start of each entry."""
        samples = -(-settings.samples // settings.starts)
        with self._begun(entries, batch, _within(progress, 0.0, 0.3)) as begun:
            rows = {row.entry.name: row for row, _ in begun}
            sources = {row.entry.name: trial.block for row, trial in begun if trial is not None}
            told = _within(progress, 0.3, 0.7)
            while sources:
                watched = {name: _Watched(name, source) for name, source in sources.items()}
                try:
                    taken = measure_blocks(
                        watched, samples, progress=lambda done: told(f"batch {batch}: measuring", done)
                    )
                except _LostError as lost:
                    rows[lost.name] = _failed(rows[lost.name], lost.error)
                    del sources[lost.name]
                    continue
                moments.append(moment())
                return [replace(row, starts=(taken[name],)) if name in taken else row for name, row in rows.items()]
        return list(rows.values())

    @contextlib.contextmanager
    def _begun(
        self, entries: Sequence[Entry], batch: int, progress: Progress
    ) -> Iterator[list[tuple[Row, Trial | None]]]:
        """Every entry built and loaded, one after the other, with its process; None for what cannot be measured."""
        with contextlib.ExitStack() as open_trials:
            begun = []
            for index, entry in enumerate(entries):
                progress(f"batch {batch}: making {entry.name}", index / len(entries))
                begun.append(self._begin(entry, batch, open_trials))
            yield begun

    def _begin(self, entry: Entry, batch: int, open_trials: contextlib.ExitStack) -> tuple[Row, Trial | None]:
        from mlflowkit.ports import TrialJob

        lacks = entry.subject.requests.refuses(batch) or self.engines.missing(entry.candidate.engine)
        if lacks:
            return Row(entry, batch, "unavailable", lacks), None
        requests = entry.subject.requests
        job = TrialJob(
            candidate=entry.candidate, model=entry.model, rows=self._rows(entry), batch=batch, requests=requests.rows,
            scratch=self.work / "scratch", scripts=self.scripts,
        )  # fmt: skip
        trial = self.trials.start(job)
        open_trials.callback(trial.close)
        row = Row(entry, batch, "ok")
        try:
            row = replace(row, built=(built := trial.build()))
            if built.reason:
                return replace(row, status="unavailable", reason=built.reason), None
            return replace(row, loaded=trial.load()), trial
        except EngineError as error:
            return _failed(row, error), None

    def _rows(self, entry: Entry) -> Path:
        """The file of what a subject is asked, written once; with rows for calibration where a pass needs them."""
        from mlflowkit import arrays

        needed = any(one.kind == "int8" for one in entry.candidate.passes)
        path = self.work / f"rows-{id(entry.subject):x}{'-calibrated' if needed else ''}.npz"
        if not path.exists():
            asked = {f"inputs/{name}": array for name, array in entry.subject.requests.arrays.items()}
            calibration = entry.subject.calibration() if needed else {}
            arrays.write(path, {**asked, **{f"calibration/{name}": array for name, array in calibration.items()}})
        return path


class _LostError(Exception):
    """A source raised while it was measured."""

    def __init__(self, name: str, error: EngineError) -> None:
        super().__init__(name)
        self.name, self.error = name, error


@dataclass(frozen=True, slots=True)
class _Watched:
    """A source that says whose it is when it raises."""

    name: str
    source: BlockSource

    def __call__(self, start: int, count: int) -> Sequence[int]:
        try:
            return self.source(start, count)
        except EngineError as error:
            raise _LostError(self.name, error) from error


def cores_for(entries: Sequence[Entry], settings: Settings, may_use: Sequence[int]) -> tuple[int, ...]:
    """The cores that entries are kept on: those asked for, else the last ones, where the system has least to do.

    >>> cores_for([], Settings(), (0, 1, 2)), cores_for([], Settings(cores=(0,)), (0, 1, 2))
    ((2,), (0,))
    """
    if settings.cores is not None:
        return settings.cores
    threads = max((entry.candidate.engine.threads for entry in entries), default=1)
    return tuple(may_use[-threads:])


@contextlib.contextmanager
def _kept_on(cores: Sequence[int]) -> Iterator[None]:
    """Keep this process, and those that it starts, on some cores; on none in particular where there are none."""
    with pinned(cores) if cores and hasattr(os, "sched_setaffinity") else contextlib.nullcontext():
        yield


def _glanced(row: Row, trial: Trial | None, settings: Settings) -> tuple[Row, float | None]:
    """A row, and about how many seconds its measurement takes; None for one that cannot be measured."""
    try:
        times = None if trial is None else sorted(trial.block(0, GLANCE))
    except EngineError as error:
        return _failed(row, error), None
    return row, None if times is None else _seconds(times[GLANCE // 2] / 1e9, settings)


def _failed(row: Row, error: EngineError) -> Row:
    script = error.script if isinstance(error, TrialError) else None
    return replace(row, status="failed", reason=error.message, script=str(script or ""), starts=())


def _joined(before: Row, started: Row) -> Row:
    """A row with one start more; what building and loading took is of the first one."""
    if before.built is None or started.status != "ok":
        return started
    return replace(before, starts=(*before.starts, *started.starts))


def _noted(row: Row, settings: Settings) -> Row:
    if row.samples is None:
        return row
    said = soundness.notes(row.samples, sorted({0.5, 0.95, 0.99, settings.quantile}))
    return replace(row, notes=tuple(said))


def _seconds(request: float, settings: Settings) -> float:
    """About how long one entry takes at one batch size: its blocks, their lead-in, and a usual warm-up."""
    return request * (settings.samples + settings.starts * 10 * BLOCK) * 1.1


def _within(progress: Progress, start: float, share: float) -> Progress:
    """Progress of a part as progress of the whole."""
    return lambda words, done: progress(words, start + share * done)


def starts_of(rows: Sequence[Row]) -> Mapping[tuple[str, int], tuple[Samples, ...]]:
    """Samples of each start by name and batch size, of what was measured."""
    return {(row.entry.name, row.batch): row.starts for row in rows if row.starts}
