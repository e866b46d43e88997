"""What measuring costs: a request of 10 µs timed by `measure_blocks`, and by one pair of clock readings around a loop.

Both are taken in turns, the same request in each; ``over the bare loop`` is the interval of ours over it, by the paired
comparison that candidates are compared with. ``wall`` is all that a block took, its lead-in apart, over the bare loop.

python -m benchmarks.overhead [--rounds N] [--out FILE]
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import numpy as np

from benchmarks.process import arguments, report
from mlflowkit.bench.analysis import mean_ratio_interval, quantile, ratio_interval
from mlflowkit.bench.environment import pinned_to, usable_cores
from mlflowkit.bench.measure import BLOCK, LEAD_IN, timed_source

TARGET_NS = 10_000
BAR = 1.05


def busy(steps: int) -> Callable[[int], object]:
    """A request that always does the same work in Python."""

    def request(index: int) -> object:
        return sum(range(steps))

    return request


def calibrated() -> int:
    """Steps of `busy` that take about TARGET_NS."""
    steps = 100
    for _ in range(20):
        times = timed_source(busy(steps))(0, 500)
        steps = max(1, round(steps * TARGET_NS / float(np.median(times))))
    return steps


def bare(request: Callable[[int], object], count: int) -> int:
    """Nanoseconds of ``count`` requests and of nothing else."""
    before = perf_counter_ns()
    for index in range(count):
        request(index)
    return perf_counter_ns() - before


def measured(rounds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Microseconds: of each request as we time it [rounds, BLOCK]; of a request, by our block's wall time and by the
    bare loop's [rounds, 1]."""
    request = busy(calibrated())
    source = timed_source(request)
    ours, wall, loop = [], [], []

    def by_us() -> None:
        source(-LEAD_IN, LEAD_IN)
        before = perf_counter_ns()
        times = source(0, BLOCK)
        wall.append([(perf_counter_ns() - before) / BLOCK])
        ours.append(times)

    def by_loop() -> None:
        bare(request, LEAD_IN)
        loop.append([bare(request, BLOCK) / BLOCK])

    for index in range(rounds):
        gc.collect(0)
        for turn in (by_us, by_loop) if index % 2 else (by_loop, by_us):
            turn()
    return np.array(ours) / 1000, np.array(wall) / 1000, np.array(loop) / 1000


def row(name: str, value: float, interval: tuple[float, float]) -> dict[str, Any]:
    low, high = interval
    return {
        "what": name,
        "us a request": round(value, 3),
        "over the bare loop": f"{low:.4f} to {high:.4f}",
        "within 5 %": bool(high <= BAR),
    }


def main() -> None:
    options = arguments(__doc__ or "", rounds=4000).parse_args()
    gc.disable()
    with pinned_to(usable_cores()[-1:]):
        measured(200)
        ours, wall, loop = measured(options.rounds)
    means = ours.mean(axis=1, keepdims=True)
    rows = [
        row("bare loop", quantile(loop, 0.5), (1.0, 1.0)),
        row("median that we report", quantile(ours, 0.5), ratio_interval(np.median(ours, axis=1)[:, None], loop, 0.5)),
        row("mean that we report", float(ours.mean()), mean_ratio_interval(means, loop)),
        row("wall time that we take", quantile(wall, 0.5), ratio_interval(wall, loop, 0.5)),
    ]
    report("what measuring costs", rows, options.out)


if __name__ == "__main__":
    main()
