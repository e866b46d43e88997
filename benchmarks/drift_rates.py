"""How often the shift test alarms: simulated months of clean and of shifted traffic, through the product's own arrays.

    python -m benchmarks.drift_rates [--runs 1000] [--quick] [--scenario NAME] [--jobs 2] [--out FILE]

Each run is 100 columns of normal values in deciles of the reference. What is simulated are the counts of each window.
A scenario says how the location of each column moves from window to window, in standard deviations. Each column's
distribution and its share of values out of range are tested, in one family with as many streams again for missing
values: 300 hypotheses a run. An alarm of any of them counts.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import betaincinv, ndtr, ndtri

from mlflowkit.judging.shift.design_effects import Baselines
from mlflowkit.judging.shift.detector import (
    DetectorState,
    Streams,
    advance_streams,
    conclude,
    discoveries,
    lasting,
    start,
    suspects,
)
from mlflowkit.judging.shift.shift_settings import LEARN, ShiftSettings

Array = np.ndarray[Any, np.dtype[np.float64]]
Draw = Callable[[int], Array]
"""Counts (streams, cells) of the window of that number."""

REFERENCE_ROWS = 7000
EDGES = ndtri(np.array([0.5 / REFERENCE_ROWS, *np.arange(1, 10) / 10, 1 - 0.5 / REFERENCE_ROWS]))
RANGE = np.array([False, True])


@dataclass(frozen=True)
class Simulated:
    """What happened in (windows, runs, columns): alarms held, the distribution's share of the evidence it takes, and
    PASSED."""

    failed: Array
    evidence: Array
    passed: Array
    detectable: Array

    @property
    def alarms(self) -> Array:
        """The number of alarms raised, by run and column."""
        raised = self.failed[1:] & ~self.failed[:-1]
        return np.asarray(self.failed[0].astype(int) + raised.sum(axis=0))


class Detector:
    """The state of one aspect of all columns of all runs."""

    def __init__(self, streams: int, cells: int, fixed: Array | None = None) -> None:
        self.state: DetectorState = start(streams, cells)
        self.base = np.zeros((streams, 0, cells))
        self.fixed = fixed


def simulate(
    draw: Draw,
    runs: int,
    columns: int,
    windows: int,
    settings: ShiftSettings,
    batches: Callable[[int], Array] | None = None,
) -> Simulated:
    """The alarms of ``windows`` windows, with the live baseline that `advance` learns."""
    streams = runs * columns
    whole, outside = Detector(streams, len(EDGES) + 1), Detector(streams, 2, RANGE)
    histories = np.zeros(streams, dtype=int)
    records: list[tuple[Array, ...]] = []
    base_batches = np.ones((streams, settings.baseline_windows + settings.sustained))
    for window in range(windows):
        counts = draw(window)
        design = np.ones(streams) if batches is None else batches(window)
        parts = (counts, np.stack([counts[:, 1:-1].sum(axis=1), counts[:, 0] + counts[:, -1]], axis=1))
        failed, share, passed, suspected, detectable = _advance(
            (whole, outside), parts, design, histories, base_batches, (runs, columns), settings
        )
        used = np.minimum(histories, np.maximum(LEARN, histories - settings.sustained))
        histories = np.where(suspected, used, histories)
        complete = settings.baseline_windows + settings.sustained
        grows = ~suspected & (histories < complete) & (counts.sum(axis=1) > 0)
        for detector, part in zip((whole, outside), parts, strict=True):
            if grows.any() and histories[grows].max() >= detector.base.shape[1]:
                detector.base = np.concatenate([detector.base, np.zeros((streams, 1, part.shape[1]))], axis=1)
            detector.base[grows, histories[grows]] = part[grows]
        base_batches[grows, histories[grows]] = design[grows]
        histories = histories + grows
        records.append(tuple(values.reshape(runs, columns) for values in (failed, share, passed, detectable)))
    return Simulated(*(np.stack(values) for values in zip(*records, strict=True)))


def _advance(
    detectors: tuple[Detector, ...],
    parts: tuple[Array, ...],
    design: Array,
    histories: Array,
    base_batches: Array,
    shape: tuple[int, int],
    settings: ShiftSettings,
) -> tuple[Array, ...]:
    """One window: `mlflowkit.judging.shift.shift_test.advance` without values and messages."""
    runs, columns = shape
    threshold = math.log(3 * columns / settings.level)
    limits, results = (settings.margin, settings.range), []
    for detector, part, limit in zip(detectors, parts, limits, strict=True):
        depth = detector.base.shape[1]
        used = np.minimum(histories, np.maximum(LEARN, histories - settings.sustained))
        present = np.arange(depth)[None, :] < used[:, None]
        base = Baselines(detector.base * present[:, :, None], base_batches[:, :depth], np.zeros(present.shape), present)
        judged = (histories >= LEARN) & (part.sum(axis=1) / design >= settings.min_rows)
        ordered = np.full(len(part), detector.fixed is None)
        streams = Streams(part, design, ordered, np.full(len(part), limit), judged, detector.fixed)
        state, assessment = advance_streams(
            detector.state, streams, base, settings.level, threshold, settings.sustained
        )
        results.append((state, assessment, judged))
    evidence = [lasting(assessment.evidence, state, settings.sustained) for state, assessment, _ in results]
    family = np.concatenate([*(part.reshape(runs, columns) for part in evidence), np.full(shape, -math.inf)], axis=1)
    alarms = discoveries(family, settings.level)
    failed, suspected = np.zeros(runs * columns, dtype=bool), np.zeros(runs * columns, dtype=bool)
    for index, (detector, (state, assessment, judged)) in enumerate(zip(detectors, results, strict=True)):
        own = alarms[:, index * columns : (index + 1) * columns].reshape(-1)
        detector.state, within = conclude(state, assessment, judged, own, settings.rearm)
        failed |= detector.state.failed
        suspected |= suspects(assessment, judged)
        if not index:
            passed, share = within & (detector.state.support == 0), assessment.evidence / threshold
            detectable = assessment.detectable
    return failed, share, passed, suspected, detectable


def cell_shares_of(shift: Array) -> Array:
    """The shares of the cells (streams, cells) for standard normal values moved by ``shift``."""
    below = ndtr(EDGES[None, :] - np.asarray(shift).reshape(-1, 1))
    return np.diff(below, axis=1, prepend=0.0, append=1.0)


def location(distance: float) -> float:
    """The shift of a normal distribution, in standard deviations, at a Kolmogorov-Smirnov distance.

    >>> round(location(0.2), 3)
    0.507
    """
    return float(2 * ndtri((1 + distance) / 2))


def draw_counts(rng: np.random.Generator, shift: Array, rows: int) -> Array:
    """Multinomial counts of ``rows`` rows."""
    counts: Array = rng.multinomial(rows, cell_shares_of(shift)).astype(float)
    return counts


def effect_deviation(effect: float, rows: int) -> float:
    """The standard deviation of a window's location that gives its share below the median this design effect."""
    return math.sqrt((effect - 1) * 0.25 / rows) / (1 / math.sqrt(2 * math.pi))


ROWS = 2000


def iid(rng: np.random.Generator, shape: tuple[int, int], rows: int = ROWS) -> Draw:
    return lambda window: draw_counts(rng, np.zeros(shape), rows)


def day_effects(rng: np.random.Generator, shape: tuple[int, int], effect: float = 30.0) -> Draw:
    deviation = effect_deviation(effect, ROWS)
    return lambda window: draw_counts(rng, rng.normal(0, deviation, shape), ROWS)


def weekends(rng: np.random.Generator, shape: tuple[int, int]) -> Draw:
    moved = np.arange(shape[1]) < shape[1] / 5
    return lambda window: draw_counts(rng, np.broadcast_to(0.35 * moved * (window % 7 >= 5), shape), ROWS)


def shock(rng: np.random.Generator, shape: tuple[int, int]) -> Draw:
    """A shift of one standard deviation in all columns, on one day that is any of the 30."""
    day = rng.integers(0, 30, shape[0])
    return lambda window: draw_counts(rng, np.broadcast_to((day == window)[:, None] * 1.0, shape), ROWS)


def autoregressive(rng: np.random.Generator, shape: tuple[int, int], rho: float = 0.9) -> Draw:
    """Values of a first-order autoregression, within windows and from one to the next."""
    from scipy.signal import lfilter

    streams = shape[0] * shape[1]
    last = rng.normal(size=streams).astype(np.float32)
    table = np.searchsorted(EDGES, (np.arange(4001) - 2000) / 400.0)

    def draw(window: int) -> Array:
        counts = np.zeros((streams, len(EDGES) + 1))
        for first in range(0, streams, 2000):
            part = slice(first, min(first + 2000, streams))
            noise = rng.standard_normal((part.stop - first, ROWS), dtype=np.float32) * np.float32(math.sqrt(1 - rho**2))
            noise[:, 0] += np.float32(rho) * last[part]
            values = lfilter([1.0], [1.0, -rho], noise, axis=1).astype(np.float32)
            last[part] = values[:, -1]
            cells = table[np.clip(values * 400 + 2000, 0, 4000).astype(np.int32)]
            cells += (np.arange(len(cells)) * (len(EDGES) + 1))[:, None]
            counts[part] = np.bincount(cells.ravel(), minlength=len(cells) * (len(EDGES) + 1)).reshape(len(cells), -1)
        return counts

    return draw


def stepped(rng: np.random.Generator, shape: tuple[int, int], shifts: Array, day: int, effect: float = 1.0) -> Draw:
    """Columns moved by ``shifts`` from a day on."""
    deviation = effect_deviation(effect, ROWS) if effect > 1 else 0.0
    return lambda window: draw_counts(
        rng, np.broadcast_to(shifts * (window >= day), shape) + rng.normal(0, 1, shape) * deviation, ROWS
    )


Scenario = Callable[[np.random.Generator, tuple[int, int]], Draw]
CLEAN: dict[str, Scenario] = {
    "independent rows": iid,
    "day effects, design effect 30": partial(day_effects, effect=30.0),
    "day effects, design effect 230": partial(day_effects, effect=230.0),
    "weekends +0.35 sigma in 20 columns": weekends,
    "one-day shock of 1 sigma in all columns": shock,
    "autoregression, rho 0.9": autoregressive,
}


def interval(hits: int, count: int, level: float = 0.05) -> tuple[float, float]:
    """Clopper and Pearson's interval."""
    low = float(betaincinv(hits, count - hits + 1, level / 2)) if hits else 0.0
    high = float(betaincinv(hits + 1, count - hits, 1 - level / 2)) if hits < count else 1.0
    return low, high


def in_chunks(make: Scenario, runs: int, columns: int, windows: int, seed: int, chunk: int = 100) -> list[Simulated]:
    """The scenario's runs, in chunks that fit the caches."""
    parts = []
    for index, first in enumerate(range(0, runs, chunk)):
        rng = np.random.default_rng((seed, index))
        size = min(chunk, runs - first)
        parts.append(simulate(make(rng, (size, columns)), size, columns, windows, ShiftSettings()))
    return parts


def rate_of_clean(name: str, runs: int, days: int = 30, columns: int = 100) -> dict[str, Any]:
    parts = in_chunks(CLEAN[name], runs, columns, days, seed=11)
    hits = sum(int((part.alarms > 0).any(axis=1).sum()) for part in parts)
    return {"runs": runs, "alarmed": hits, "share": hits / runs, "interval": interval(hits, runs)}


def moved(distances: Sequence[float], day: int, effect: float = 1.0) -> Scenario:
    """Columns at Kolmogorov-Smirnov distances from a day on."""
    shifts = np.array([location(distance) for distance in distances])
    return lambda rng, shape: stepped(rng, shape, shifts, day, effect)


def lasting_shift(runs: int, distance: float, day: int, effect: float = 1.0) -> dict[str, Any]:
    """One column moves on ``day`` and stays; followed for 20 windows."""
    columns, wait = 100, 6
    parts = in_chunks(moved([distance] + [0.0] * (columns - 1), day, effect), runs, columns, day + 20, seed=12)
    failed = np.concatenate([part.failed[:, :, 0] for part in parts], axis=1)
    alarms = np.concatenate([part.alarms for part in parts])
    delay = np.where(failed.any(axis=0), failed.argmax(axis=0) - day + 1, 99)
    soon = (delay >= 1) & (delay <= wait) & (alarms[:, 0] == 1)
    detectable = np.concatenate([part.detectable[day - 1, :, 0] for part in parts])
    return {
        "runs": runs,
        f"within {wait} windows, one alarm": int(soon.sum()),
        "share": float(soon.mean()),
        "interval": interval(int(soon.sum()), runs),
        "median windows": float(np.median(delay)),
        "found in 20 windows": float((delay < 99).mean()),
        "other columns alarmed": int((alarms[:, 1:] > 0).any(axis=1).sum()),
        "said detectable before": float(np.median(detectable)),
    }


def discovery_proportion(runs: int) -> dict[str, Any]:
    """10 of 100 columns at 0.25 and 30 just inside of the margin, at 0.09, from day 17 on."""
    parts = in_chunks(moved([0.25] * 10 + [0.09] * 30 + [0.0] * 60, 17), runs, 100, 47, seed=13)
    alarms = np.concatenate([part.alarms for part in parts]) > 0
    false = alarms[:, 10:].sum(axis=1) / np.maximum(alarms.sum(axis=1), 1)
    return {
        "runs": runs,
        "false discovery proportion": float(false.mean()),
        "inside columns alarmed": float(alarms[:, 10:40].mean()),
        "moved columns alarmed": float(alarms[:, :10].mean()),
    }


def at_the_margin(runs: int, distance: float, effect: float = 1.0) -> dict[str, Any]:
    """Every column at one distance from day 17 on, for 30 windows."""
    parts = in_chunks(moved([distance] * 100, 17, effect), runs, 100, 47, seed=14)
    alarms = np.concatenate([part.alarms for part in parts]) > 0
    passed = np.concatenate([part.passed[-1] for part in parts])
    hits, count = int(alarms.sum()), alarms.size
    return {
        "columns": count,
        "alarmed": hits,
        "share": hits / count,
        "interval": interval(hits, count),
        "PASSED at the end": float(passed.mean()),
    }


def ramp(runs: int, windows: int = 60) -> dict[str, Any]:
    """One column moves evenly from 0 to a distance of 0.3 over 60 windows, from the first window of the baseline on."""

    def slow(rng: np.random.Generator, shape: tuple[int, int]) -> Draw:
        first = np.arange(shape[1]) < 1
        return lambda day: draw_counts(rng, np.broadcast_to(location(0.3 * day / windows) * first, shape), ROWS)

    parts = in_chunks(slow, runs, 100, windows + 1, seed=15)
    failed = np.concatenate([part.failed[:, :, 0] for part in parts], axis=1)
    at = np.where(failed.any(axis=0), 0.3 * failed.argmax(axis=0) / windows, math.inf)
    return {
        "runs": runs,
        "median distance when found": float(np.median(at)),
        "found before 0.25": float((at < 0.25).mean()),
    }


def window_sizes(runs: int, rows: int) -> dict[str, Any]:
    """30 clean windows of ``rows`` rows."""
    parts = in_chunks(partial(iid, rows=rows), runs, 100, 30, seed=16)
    alarmed = sum(int((part.alarms > 0).any(axis=1).sum()) for part in parts)
    passed = float(np.mean([part.passed[-1].mean() for part in parts]))
    return {"runs": runs, "alarmed": alarmed, "interval": interval(alarmed, runs), "PASSED at the end": passed}


MOVED: dict[str, Callable[[int], dict[str, Any]]] = {
    "lasting distance 0.2 in one column from day 10": partial(lasting_shift, distance=0.2, day=10),
    "lasting distance 0.2 in one column from day 17": partial(lasting_shift, distance=0.2, day=17),
    "lasting distance 0.15 in one column from day 17": partial(lasting_shift, distance=0.15, day=17),
    "lasting distance 0.35, design effect 30": partial(lasting_shift, distance=0.35, day=17, effect=30.0),
    "lasting distance 0.5, design effect 116": partial(lasting_shift, distance=0.5, day=17, effect=116.0),
    "10 columns at 0.25, 30 at 0.09": discovery_proportion,
    "all columns at the margin": partial(at_the_margin, distance=0.1),
    "all columns at the margin, design effect 30": partial(at_the_margin, distance=0.1, effect=30.0),
    "all columns at the margin, design effect 230": partial(at_the_margin, distance=0.1, effect=230.0),
    "all columns at half of the margin": partial(at_the_margin, distance=0.05),
    "slow ramp to 0.3 over 60 windows": ramp,
    **{f"windows of {rows:,} rows": partial(window_sizes, rows=rows) for rows in (10, 50, 300, 5_000_000)},
}


def run_scenario(name: str, runs: int) -> dict[str, Any]:
    """The result of one scenario; those that move have a fifth of the runs."""
    began = time.perf_counter()
    result = rate_of_clean(name, runs) if name in CLEAN else MOVED[name](max(runs // 5, 10))
    return {"scenario": name, **result, "seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="of each clean scenario; of others a fifth")
    parser.add_argument("--quick", action="store_true", help="50 runs of each clean scenario, and no peers")
    parser.add_argument("--scenario", default="", help="only those whose name holds this text, and no peers")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--peers", type=int, default=5, help="months that Evidently and NannyML judge too; 0: none")
    parser.add_argument("--out", type=Path, help="a file for the results as JSON")
    options = parser.parse_args()
    runs = 50 if options.quick else options.runs
    names = [name for name in (*CLEAN, *MOVED) if options.scenario in name]
    results = []
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        for result in pool.map(run_scenario, names, [runs] * len(names)):
            print(json.dumps(result), flush=True)
            results.append(result)
    if options.peers and not options.quick and not options.scenario:
        from benchmarks.drift_peers import compare_peers

        for result in compare_peers(options.peers):
            print(json.dumps(result), flush=True)
            results.append(result)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
