"""One command's measurement: every entry in a process of its own, all of one batch size in turns, the first one the
standard that the others are held against; all of it several times, each time in new processes.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.bench import validity
from mlflowkit.bench.analysis import GROUPS, STARTS
from mlflowkit.bench.environment import Moment, description, moment, pinned, usable
from mlflowkit.bench.load import pattern as loads
from mlflowkit.bench.load.pattern import Load
from mlflowkit.bench.measure import pooled
from mlflowkit.bench.pairwise import Comparison, compare_all
from mlflowkit.bench.result import Result, Row, Settings
from mlflowkit.bench.target import Entry
from mlflowkit.errors import EngineError, TrialError
from mlflowkit.system.digests import digest_file, digest_json

if TYPE_CHECKING:
    import numpy as np

    from mlflowkit.ports import Engines, Trial, Trials

Progress = Callable[[str, float], None]
"""Told what is being done and which share of the whole is done."""

GLANCE = 20
"""Requests of each caller that an estimate of the time rests on."""
FEW_STARTS = (
    f"fewer than {STARTS} starts: comparisons hold of these very processes; others of the same graphs differ by more"
)


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
        machine = description()
        cores = cores_for(entries, settings, machine.affinity)
        with _kept_on(cores):
            moments = [moment()]
            found = [self._batch(entries, settings, index, moments) for index in range(len(settings.batches))]
        comparisons = tuple(one for batch in found for one in _compared(batch, settings))
        notes = [words for batch in found for words in _said(batch, settings)]
        if comparisons and settings.starts < STARTS:
            notes.append(FEW_STARTS)
        return Result(
            settings, machine, cores, tuple({id(entry.subject): entry.subject for entry in entries}.values()),
            tuple(row for batch in found for row in batch), comparisons,
            (*notes, *validity.disturbances(moments, os.cpu_count() or 1)), tuple(moments),
        )  # fmt: skip

    def glance(self, entries: Sequence[Entry], settings: Settings) -> list[tuple[Row, float | None]]:
        """What would be measured, and about how many seconds each would take: a few requests of each are asked."""
        found: list[tuple[Row, float | None]] = []
        with _kept_on(cores_for(entries, settings, usable())):
            for batch in settings.batches:
                rows = [Row(entry, batch, "ok") for entry in entries]
                with self._begun(rows, settings.load, self.progress) as begun:
                    found += [_glanced(row, trial, settings) for row, trial in begun]
        return found

    # ------------------------------------------------------------------------------------------------------ one batch

    def _batch(
        self, entries: Sequence[Entry], settings: Settings, index: int, moments: list[Moment]
    ) -> list[Row]:  # fmt: skip
        """Start all entries, measure them in turns, end them; again, for those that did not fail meanwhile."""
        rows = {entry.name: Row(entry, settings.batches[index], "ok") for entry in entries}
        share = 1 / (len(settings.batches) * settings.starts)
        for start in range(settings.starts):
            going = [row for row in rows.values() if row.status == "ok"]
            turn = start % max(1, len(going))
            told = _within(self.progress, (index * settings.starts + start) * share, share)
            found = self._start(going[turn:] + going[:turn], settings, start, told, moments)
            rows |= {row.entry.name: row for row in found}
        return list(rows.values())

    def _start(
        self, rows: Sequence[Row], settings: Settings, start: int, progress: Progress, moments: list[Moment]
    ) -> list[Row]:  # fmt: skip
        """The rows with one start more, or with why there is none; and the machine's moment when it was measured."""
        with self._begun(rows, settings.load, _within(progress, 0.0, 0.4)) as begun:
            found = {row.entry.name: row for row, _ in begun}
            sources = {row.entry.name: trial for row, trial in begun if trial is not None}
            told = _within(progress, 0.4, 0.6)
            stretches = GROUPS if settings.starts < STARTS else loads.STRETCHES
            while sources:
                watched = {name: _Watched(name, trial) for name, trial in sources.items()}
                try:
                    taken = loads.take(
                        watched, settings.load, settings.each, stretches=stretches, seed=settings.seed + 1000 * start,
                        progress=lambda done: told(f"batch {rows[0].batch}: measuring", done),
                    )  # fmt: skip
                except _LostError as lost:
                    found[lost.name] = _failed(found[lost.name], lost.error)
                    del sources[lost.name]
                    continue
                moments.append(moment())
                return [
                    replace(row, taken=(*row.taken, taken[name])) if name in taken else row
                    for name, row in found.items()
                ]
        return list(found.values())

    @contextlib.contextmanager
    def _begun(self, rows: Sequence[Row], load: Load, progress: Progress) -> Iterator[list[tuple[Row, Trial | None]]]:
        """Every entry built and loaded, one after the other, with its process; None for what cannot be measured."""
        with contextlib.ExitStack() as open_trials:
            begun: list[tuple[Row, Trial | None]] = []
            for index, row in enumerate(rows):
                progress(f"batch {row.batch}: making {row.entry.name}", index / len(rows))
                begun.append(self._begin(row, load, open_trials))
            yield begun

    def _begin(self, row: Row, load: Load, open_trials: contextlib.ExitStack) -> tuple[Row, Trial | None]:
        from mlflowkit.ports import TrialJob

        entry = row.entry
        requests = entry.subject.requests
        lacks = requests.refuses(row.batch) or self.engines.missing(entry.candidate.engine)
        if lacks:
            return replace(row, status="unavailable", reason=lacks), None
        job = TrialJob(
            candidate=entry.candidate, model=entry.model, rows=self._rows(entry), batch=row.batch,
            requests=requests.rows, scratch=self.work / "scratch", scripts=self.scripts, callers=load.callers,
        )  # fmt: skip
        trial = self.trials.start(job)
        open_trials.callback(trial.close)
        try:
            built = trial.build()
            if built.reason:
                return replace(row, built=built, status="unavailable", reason=built.reason), None
            row = replace(row, built=built, graph=row.graph or digest_json([digest_file(one) for one in built.files]))
            return replace(row, loaded=(*row.loaded, trial.load())), trial
        except EngineError as error:
            return _failed(row, error), None

    def _rows(self, entry: Entry) -> Path:
        """The file of what a subject is asked, written once; with rows for calibration where a pass needs them."""
        from mlflowkit.system import arrays

        needed = any(one.kind == "int8" for one in entry.candidate.passes)
        path = self.work / f"rows-{id(entry.subject):x}{'-calibrated' if needed else ''}.npz"
        if not path.exists():
            asked = {f"inputs/{name}": array for name, array in entry.subject.requests.arrays.items()}
            calibration = entry.subject.calibration() if needed else {}
            arrays.write(path, {**asked, **{f"calibration/{name}": array for name, array in calibration.items()}})
        return path


def _compared(rows: Sequence[Row], settings: Settings) -> tuple[Comparison, ...]:
    """Every entry of one batch size against the first; none where the first was not measured."""
    if not rows[0].taken:
        return ()
    blocks = {row.entry.name: row.blocks for row in rows if row.taken}
    return compare_all(
        blocks, settings.quantile, batch=rows[0].batch, label=settings.label, families=len(settings.batches)
    )


def _said(rows: Sequence[Row], settings: Settings) -> list[str]:
    """What must be known to believe one batch size's figures, in words."""
    said = []
    where = f"batch {rows[0].batch}"
    if len(rows) > 1 and not rows[0].taken and any(row.taken for row in rows):
        said.append(f"{where}: {rows[0].entry.name} is what the others are compared with, and was not measured")
    blocks = {row.entry.name: pooled(row.starts).microseconds for row in rows if row.taken}
    if blocks and settings.load.rate is None and (words := validity.throttling(blocks)):
        said.append(f"{where}: {words}")
    return said


class _LostError(Exception):
    """A source raised while it was measured."""

    def __init__(self, name: str, error: EngineError) -> None:
        super().__init__(name)
        self.name, self.error = name, error


@dataclass(frozen=True, slots=True)
class _Watched:
    """A source that says whose it is when it raises."""

    name: str
    source: loads.Offering

    def block(self, start: int, count: int) -> Sequence[int]:
        try:
            return self.source.block(start, count)
        except EngineError as error:
            raise _LostError(self.name, error) from error

    def offered(self, rate: float, count: int, seed: int) -> np.ndarray:
        try:
            return self.source.offered(rate, count, seed)
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
    return tuple(may_use[-threads * settings.load.callers :])


@contextlib.contextmanager
def _kept_on(cores: Sequence[int]) -> Iterator[None]:
    """Keep this process, and those that it starts, on some cores; on none in particular where there are none."""
    with pinned(cores) if cores and hasattr(os, "sched_setaffinity") else contextlib.nullcontext():
        yield


def _glanced(row: Row, trial: Trial | None, settings: Settings) -> tuple[Row, float | None]:
    """A row, and about how many seconds its measurement takes; None for one that cannot be measured."""
    if trial is None:
        return row, None
    try:
        began = time.monotonic()
        trial.block(0, GLANCE * settings.load.callers)
        request = (time.monotonic() - began) / (GLANCE * settings.load.callers)
    except EngineError as error:
        return _failed(row, error), None
    return row, settings.starts * _seconds(request, settings)


def _seconds(request: float, settings: Settings) -> float:
    """About how long one start of one entry takes at one batch size: its requests, their lead-in, a usual warm-up."""
    usual = 10 * settings.load.block
    if settings.load.rate is None:
        return request * (1.1 * settings.each + usual)
    return max(request, 1 / settings.load.rate) * settings.each + request * usual


def _failed(row: Row, error: EngineError) -> Row:
    script = error.script if isinstance(error, TrialError) else None
    return replace(row, status="failed", reason=error.message, script=str(script or ""), taken=())


def _within(progress: Progress, start: float, share: float) -> Progress:
    """Progress of a part as progress of the whole."""
    return lambda words, done: progress(words, start + share * done)
