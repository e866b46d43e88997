"""Execution of a bench run: every entry in its own process, all entries of one batch size in turns, several starts."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlflowkit.bench import validity
from mlflowkit.bench.analysis import GROUPS, STARTS
from mlflowkit.bench.environment import MachineMoment, machine_info, pinned_to, read_moment, usable_cores
from mlflowkit.bench.load import pattern as loads
from mlflowkit.bench.load.pattern import LoadPattern
from mlflowkit.bench.measure import pool_samples
from mlflowkit.bench.pairwise import PairwiseComparison, compare_all
from mlflowkit.bench.result import BenchResult, BenchRow, BenchSettings
from mlflowkit.bench.target import BenchEntry
from mlflowkit.errors import EngineError, TrialError
from mlflowkit.ports import Engines, Trial, TrialJob, Trials
from mlflowkit.system import arrays
from mlflowkit.system.digests import digest_file, digest_json

Progress = Callable[[str, float], None]
"""Called with the current activity and the completed share of the whole."""

PILOT_REQUESTS = 20
"""Requests of each caller for an estimate of the duration."""
FEW_STARTS = f"fewer than {STARTS} starts: comparisons hold for these processes only; others of the same graphs differ"


@dataclass(frozen=True, slots=True)
class BenchSuite:
    """Dependencies of a bench run; ``work`` is a folder for files passed between processes."""

    trials: Trials
    engines: Engines
    work: Path
    scripts: Path
    progress: Progress

    def measure(self, entries: Sequence[BenchEntry], settings: BenchSettings) -> BenchResult:
        """Measure all entries at all batch sizes.

        Raises StoreError if files cannot be written, UsageError for a core that may not be used.
        """
        machine = machine_info()
        cores = cores_for(entries, settings, machine.affinity)
        with _pinned(cores):
            moments = [read_moment()]
            batches = [self._measure_batch(entries, settings, index, moments) for index in range(len(settings.batches))]
        comparisons = tuple(comparison for rows in batches for comparison in _compare(rows, settings))
        notes = [note for rows in batches for note in _batch_notes(rows, settings)]
        if comparisons and settings.starts < STARTS:
            notes.append(FEW_STARTS)
        return BenchResult(
            settings, machine, cores, tuple({id(entry.target): entry.target for entry in entries}.values()),
            tuple(row for rows in batches for row in rows), comparisons,
            (*notes, *validity.disturbances(moments, os.cpu_count() or 1)), tuple(moments),
        )  # fmt: skip

    def estimate(self, entries: Sequence[BenchEntry], settings: BenchSettings) -> list[tuple[BenchRow, float | None]]:
        """Return each row with its estimated seconds, from a few requests of each; None if it cannot be measured."""
        estimates: list[tuple[BenchRow, float | None]] = []
        with _pinned(cores_for(entries, settings, usable_cores())):
            for batch in settings.batches:
                rows = [BenchRow(entry, batch, "ok") for entry in entries]
                with self._start_trials(rows, settings.load, self.progress) as started:
                    estimates += [_estimate_row(row, trial, settings) for row, trial in started]
        return estimates

    # ------------------------------------------------------------------------------------------------------ one batch

    def _measure_batch(
        self, entries: Sequence[BenchEntry], settings: BenchSettings, index: int, moments: list[MachineMoment]
    ) -> list[BenchRow]:
        """Start all entries, measure them in turns, and end them, once for each start; skip those that failed."""
        rows = {entry.name: BenchRow(entry, settings.batches[index], "ok") for entry in entries}
        share = 1 / (len(settings.batches) * settings.starts)
        for start in range(settings.starts):
            active = [row for row in rows.values() if row.status == "ok"]
            turn = start % max(1, len(active))
            progress = _sub_progress(self.progress, (index * settings.starts + start) * share, share)
            started = self._measure_start(active[turn:] + active[:turn], settings, start, progress, moments)
            rows |= {row.entry.name: row for row in started}
        return list(rows.values())

    def _measure_start(
        self, active: Sequence[BenchRow], settings: BenchSettings, start: int, progress: Progress,
        moments: list[MachineMoment],
    ) -> list[BenchRow]:  # fmt: skip
        """Return the rows with the samples of one start, or with a failure; append the machine's state."""
        with self._start_trials(active, settings.load, _sub_progress(progress, 0.0, 0.4)) as started:
            rows = {row.entry.name: row for row, _ in started}
            trials = {row.entry.name: trial for row, trial in started if trial is not None}
            measuring = _sub_progress(progress, 0.4, 0.6)
            stretches = GROUPS if settings.starts < STARTS else loads.STRETCHES
            while trials:
                try:
                    samples = loads.take_samples(
                        {name: _NamedSource(name, trial) for name, trial in trials.items()},
                        settings.load, settings.requests_per_start, stretches=stretches,
                        seed=settings.seed + 1000 * start,
                        progress=lambda done: measuring(f"batch {active[0].batch}: measuring", done),
                    )  # fmt: skip
                except _SourceError as failure:
                    rows[failure.name] = _failed(rows[failure.name], failure.error)
                    del trials[failure.name]
                    continue
                moments.append(read_moment())
                for name in samples:
                    rows[name] = replace(rows[name], measured=(*rows[name].measured, samples[name]))
                break
        return list(rows.values())

    @contextlib.contextmanager
    def _start_trials(
        self, rows: Sequence[BenchRow], load: LoadPattern, progress: Progress
    ) -> Iterator[list[tuple[BenchRow, Trial | None]]]:
        """Build and load every entry in its own process, in sequence; None if it cannot be measured."""
        with contextlib.ExitStack() as open_trials:
            started: list[tuple[BenchRow, Trial | None]] = []
            for index, row in enumerate(rows):
                progress(f"batch {row.batch}: building {row.entry.name}", index / len(rows))
                started.append(self._start_trial(row, load, open_trials))
            yield started

    def _start_trial(
        self, row: BenchRow, load: LoadPattern, open_trials: contextlib.ExitStack
    ) -> tuple[BenchRow, Trial | None]:
        entry = row.entry
        requests = entry.target.requests
        reason = requests.reason_to_reject(row.batch) or self.engines.missing(entry.candidate.engine)
        if reason:
            return replace(row, status="unavailable", reason=reason), None
        job = TrialJob(
            candidate=entry.candidate, model=entry.model, rows=self._write_rows(entry), batch=row.batch,
            requests=requests.rows, scratch=self.work / "scratch", scripts=self.scripts, callers=load.callers,
        )  # fmt: skip
        trial = self.trials.start(job)
        open_trials.callback(trial.close)
        try:
            built = trial.build()
            if built.reason:
                return replace(row, built=built, status="unavailable", reason=built.reason), None
            graph = row.graph or digest_json([digest_file(file) for file in built.files])
            row = replace(row, built=built, graph=graph)
            return replace(row, loaded=(*row.loaded, trial.load())), trial
        except EngineError as error:
            return _failed(row, error), None

    def _write_rows(self, entry: BenchEntry) -> Path:
        """Write a target's request rows once, with calibration rows if a pass needs them; return the file."""
        target = entry.target
        calibrated = any(graph_pass.calibration_rows for graph_pass in entry.candidate.passes)
        path = self.work / f"rows-{id(target):x}{'-calibrated' if calibrated else ''}.npz"
        if not path.exists():
            tensors = {f"inputs/{name}": array for name, array in target.requests.arrays.items()}
            if calibrated:
                tensors |= {f"calibration/{name}": array for name, array in target.calibration().items()}
            arrays.write(path, tensors)
        return path


def _compare(rows: Sequence[BenchRow], settings: BenchSettings) -> tuple[PairwiseComparison, ...]:
    """Compare every entry of one batch size with the first; empty if the first was not measured."""
    if not rows[0].measured:
        return ()
    blocks = {row.entry.name: row.blocks for row in rows if row.measured}
    return compare_all(
        blocks, settings.quantile, batch=rows[0].batch, label=settings.label, families=len(settings.batches)
    )


def _batch_notes(rows: Sequence[BenchRow], settings: BenchSettings) -> list[str]:
    """Return the caveats of one batch size as sentences."""
    notes = []
    where = f"batch {rows[0].batch}"
    if len(rows) > 1 and not rows[0].measured and any(row.measured for row in rows):
        notes.append(f"{where}: {rows[0].entry.name}, the baseline of the comparisons, was not measured")
    blocks = {row.entry.name: pool_samples(row.starts).microseconds for row in rows if row.measured}
    if blocks and settings.load.rate is None and (throttling := validity.throttling(blocks)):
        notes.append(f"{where}: {throttling}")
    return notes


class _SourceError(Exception):
    """A source failed while it was measured."""

    def __init__(self, name: str, error: EngineError) -> None:
        super().__init__(name)
        self.name, self.error = name, error


@dataclass(frozen=True, slots=True)
class _NamedSource:
    """A source whose errors carry its name."""

    name: str
    source: loads.LoadSource

    def block(self, start: int, count: int) -> Sequence[int]:
        try:
            return self.source.block(start, count)
        except EngineError as error:
            raise _SourceError(self.name, error) from error

    def offered(self, rate: float, count: int, seed: int) -> np.ndarray:
        try:
            return self.source.offered(rate, count, seed)
        except EngineError as error:
            raise _SourceError(self.name, error) from error


def cores_for(entries: Sequence[BenchEntry], settings: BenchSettings, affinity: Sequence[int]) -> tuple[int, ...]:
    """Return the cores to pin to: the configured ones, else the last ones, which the system uses least.

    >>> cores_for([], BenchSettings(), (0, 1, 2)), cores_for([], BenchSettings(cores=(0,)), (0, 1, 2))
    ((2,), (0,))
    """
    if settings.cores is not None:
        return settings.cores
    threads = max((entry.candidate.engine.threads for entry in entries), default=1)
    return tuple(affinity[-threads * settings.load.callers :])


@contextlib.contextmanager
def _pinned(cores: Sequence[int]) -> Iterator[None]:
    """Pin this process and its children to cores, if there are any and the system can."""
    with pinned_to(cores) if cores and hasattr(os, "sched_setaffinity") else contextlib.nullcontext():
        yield


def _estimate_row(row: BenchRow, trial: Trial | None, settings: BenchSettings) -> tuple[BenchRow, float | None]:
    """Return the row and the estimated seconds of its measurement; None if it cannot be measured."""
    if trial is None:
        return row, None
    pilot = PILOT_REQUESTS * settings.load.callers
    try:
        began = time.monotonic()
        trial.block(0, pilot)
        request = (time.monotonic() - began) / pilot
    except EngineError as error:
        return _failed(row, error), None
    warm_up = 10 * settings.load.block
    if settings.load.rate is None:
        seconds = request * (1.1 * settings.requests_per_start + warm_up)
    else:
        seconds = max(request, 1 / settings.load.rate) * settings.requests_per_start + request * warm_up
    return row, settings.starts * seconds


def _failed(row: BenchRow, error: EngineError) -> BenchRow:
    script = error.script if isinstance(error, TrialError) else None
    return replace(row, status="failed", reason=error.message, script=str(script or ""), measured=())


def _sub_progress(progress: Progress, start: float, share: float) -> Progress:
    """Map the progress of a part to the progress of the whole."""
    return lambda activity, done: progress(activity, start + share * done)
