"""Whether `mlkit bench --compare` tells the truth: of twins, and of a slowdown of 5 % that was planted.

Twins (A/A) are two entries of one graph, lending's, asked real rows, each in processes of its own, made anew for every
comparison as the command makes them; "different" is a verdict of faster or slower. The peer is the same comparison
resting on one start of each: its intervals know nothing of what differs from process to process. For the slowdown
both sides run in processes that watch the clock after each answer, one of them until 5 % more time has gone by.

As many comparisons run at a time as there are cores, each on a core of its own. Shares have Clopper and Pearson's 95 %
interval; "holds the truth" counts the comparisons whose interval of the ratio holds 1, or 1.05.

    python -m benchmarks.comparisons [--rounds 200] [--planted 20] [--out FILE]
"""

from __future__ import annotations

import contextlib
import json
import queue
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from benchmarks.process import arguments, report

if TYPE_CHECKING:
    import numpy as np

    from mlflowkit.bench.pairwise import PairwiseComparison

RECIPE = Path(__file__).parent.parent / "recipes" / "lending.yaml"
SLOWER = 1.05
STARTS, SAMPLES = 10, 4000
"""Starts and requests of each side where a slowdown of 5 % is looked for: twice the defaults, which find it in eight
cases of ten."""
ROWS = 16
"""Of a request that is slowed down: it then takes so long that what the watching itself takes does not count."""
PAUSE_NS = 1000
"""After each answer on both sides, so that both watch the clock and what that takes is the same."""
BAR = 0.05
"""Twins may be called different in this share of comparisons."""


@dataclass(frozen=True)
class Asked:
    """A graph, and a file of rows to ask it."""

    model: Path
    rows: Path


def lending(folder: Path) -> Asked:
    """The graph of the recipe after one epoch, and its validation rows."""
    import numpy as np

    import mlflowkit as mk
    from mlflowkit.pipeline.bench_targets import resolve_target
    from mlflowkit.wiring import Wiring

    overrides = ["train.epochs=1", "optimize.candidates=[onnx]", "optimize.samples=200"]
    mk.run(mk.load(RECIPE, overrides), until="optimize", state=folder)
    found = resolve_target(RECIPE, Wiring, folder)
    rows = folder / "rows.npz"
    plain = {
        name: array.astype(str) if array.dtype == object else array for name, array in found.requests.arrays.items()
    }
    np.savez(rows, **plain)
    return Asked(found.model, rows)


def compared(asked: Asked, count: int, **how: Any) -> list[PairwiseComparison]:
    """``count`` comparisons of the graph with itself, as `mlkit bench MODEL --compare MODEL` makes them."""
    import mlflowkit as mk
    from mlflowkit.bench.environment import usable_cores
    from mlflowkit.bench.result import BenchSettings
    from mlflowkit.pipeline.bench_targets import InputSpec

    cores: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in usable_cores():
        cores.put(core)

    def one(_: int) -> PairwiseComparison:
        core = cores.get()
        try:
            settings = BenchSettings(cores=(core,), **how)
            result = mk.benchmark(asked.model, asked.model, settings=settings, asking=InputSpec(asked.rows))
        finally:
            cores.put(core)
        return result.comparisons[0]

    with ThreadPoolExecutor(len(usable_cores())) as pool:
        return list(pool.map(one, range(count)))


@contextlib.contextmanager
def planted() -> Iterator[None]:
    """Trials run in this module's `main`, which slows the second of two twins down."""
    from mlflowkit.adapters.trials import process

    before, process.ENTRY = process.ENTRY, "benchmarks.comparisons"
    try:
        yield
    finally:
        process.ENTRY = before


# ------------------------------------------------------------------------------------------ in the process of a trial


@dataclass(frozen=True)
class Slowed:
    """A session whose answers take a pause longer, and all of that ``factor`` times as long, by watching the clock."""

    session: Any
    factor: float

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        began = perf_counter_ns()
        answers: Mapping[str, np.ndarray] = self.session.run(inputs)
        until = began + (perf_counter_ns() - began + PAUSE_NS) * self.factor
        while perf_counter_ns() < until:
            pass
        return answers


@dataclass(frozen=True)
class SlowedEngines:
    """The Engines port, with every session slowed down."""

    engines: Any
    factor: float

    def missing(self, engine: Any) -> str:
        return str(self.engines.missing(engine))

    def load(self, *arguments: Any, **options: Any) -> Slowed:
        return Slowed(self.engines.load(*arguments, **options), self.factor)


def try_slowed(plan: Mapping[str, Any]) -> None:
    """Be the process of a trial, as `mlflowkit.processes.trial_main` is."""
    import os

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from mlflowkit.adapters.trials import child
    from mlflowkit.system import failpoint
    from mlflowkit.wiring import Wiring, device_clock

    wiring = Wiring(Path.cwd())
    factor = SLOWER if plan["candidate"]["name"].endswith("(2)") else 1.0
    engines = SlowedEngines(wiring.engines, factor)
    child.serve_requests(child.TrialWorker(plan, lambda: wiring.passes, engines, failpoint.hit, device_clock), answers)


# ------------------------------------------------------------------------------------------------------------ the table


def row(
    what: str, found: Sequence[PairwiseComparison], truth: float, hit: Callable[[PairwiseComparison], bool]
) -> dict[str, Any]:
    from scipy.stats import binomtest

    count, hits = len(found), sum(map(hit, found))
    low, high = binomtest(hits, count).proportion_ci(0.95, method="exact")
    verdicts = Counter(one.verdict for one in found)
    return {
        "what": what,
        "comparisons": count,
        "called different" if truth == 1 else "found slower": f"{hits} ({hits / count:.1%} [{low:.1%}, {high:.1%}])",
        "verdicts": ", ".join(f"{name} {number}" for name, number in sorted(verdicts.items())),
        "median interval": f"{median(one.low for one in found):.3f} to {median(one.high for one in found):.3f}",
        "holds the truth": f"{sum(one.low <= truth <= one.high for one in found) / count:.1%}",
    }


def main() -> None:
    parser = arguments(__doc__ or "", rounds=200)
    parser.add_argument("--planted", type=int, default=20, help="comparisons with a planted slowdown")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlkit-comparisons-") as folder:
        asked = lending(Path(folder))
        twins = compared(asked, options.rounds)
        single = compared(asked, max(1, options.rounds // 7), starts=1)
        with planted():
            slower = compared(asked, options.planted, starts=STARTS, samples=SAMPLES, batches=(ROWS,))
    rows = [
        row("twins, as mlkit bench compares", twins, 1.0, different),
        row("twins, one start each", single, 1.0, different),
        row(f"5 % slower, {STARTS} starts each", slower, SLOWER, lambda one: one.verdict == "slower"),
    ]
    rows[0]["within the bar"] = sum(map(different, twins)) <= BAR * len(twins)
    report("two entries of one graph (p50)", rows, options.out)


def different(one: PairwiseComparison) -> bool:
    return one.verdict in ("faster", "slower")


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        try_slowed(json.loads(sys.argv[1]))
    else:
        main()
