"""Searching 40 candidates: what early stopping and Optuna save, and whether they end at the same front.

Lending's network, widened so that a request takes half a millisecond; the space has five ways through the passes,
four graph levels, one or two threads. Each round tries all of it with every candidate measured to the end (the peer),
then as a recipe's search does by default, then by Optuna with 16 trials; nothing that one has made is there for the
next. Fronts are held against one another in the peer's own figures: ``epsilon`` is the factor by which the front found
is worse at most, in latency, size or memory, than the peer's (the multiplicative epsilon indicator of Zitzler et al.,
IEEE Transactions on Evolutionary Computation 2003); 1 is a front as good. Names need not be the same, since candidates
tie: fronts are the same where each member of the peer's has one in the other that ties with it or is better (`TIES`).

    python -m benchmarks.search --rounds 2
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlflowkit as mk
from benchmarks.process import arguments, report
from mlflowkit.optimization.trial_outcome import MEMORY_STEP

RECIPE = Path(__file__).parent.parent / "recipes" / "lending.yaml"
SPACE = (
    "{passes: [[],[{kind: int8}],[{kind: int8-dynamic}],[{kind: weight-only,bits: 8}],[{kind: fp16}]],"
    "graph_level: ['off',basic,extended,all],threads: [1,2]}"
)
METHODS: Mapping[str, tuple[str, ...]] = {
    "all of it, to the end": ("++optimize.search.stop_early=false",),
    "as a recipe does": (),
    "Optuna, 16 trials": ("++optimize.search.method=optuna", "++optimize.search.trials=16"),
}
PEER = next(iter(METHODS))
TIES: Mapping[str, float] = {"latency": 1.05, "size_bytes": 1.05, "memory_bytes": MEMORY_STEP}
"""By what factor two candidates may differ and tie: a pick asks as much of a difference (`analysis.MIN_GAIN`), and
peaks of memory are compared in such steps."""

Row = dict[str, Any]


class Farthest(NamedTuple):
    """The member of the peer's front that a front is farthest from: by what factor, in ties and as it is."""

    ties: float
    factor: float
    goal: str
    quantity: str


def searched(state: Path, width: int, samples: int, overrides: Sequence[str]) -> tuple[float, list[Row]]:
    """Seconds of the search, and its candidates.json."""
    shutil.rmtree(state / "trials", ignore_errors=True)
    asked = [
        f"model.args.hidden=[{width},{width}]", "train.epochs=1", "optimize.candidates=[onnx]",
        "optimize.objective=latency_p50", f"optimize.samples={samples}", "optimize.max_metric_drop=1.0",
        f"++optimize.search.space={SPACE}", *overrides,
    ]  # fmt: skip
    answer = mk.run(mk.load(RECIPE, asked), until="optimize", force=["optimize"], state=state).answer
    step = next(step for step in answer["steps"] if step["stage"] == "optimize")
    rows: list[Row] = json.loads((state / "objects" / step["digest"] / "candidates.json").read_bytes())
    return float(step["seconds"]), rows


def farthest(found: Sequence[str], rows: Sequence[Row]) -> Farthest:
    """Where a front is worst against the one of ``rows``, in the figures of ``rows``."""
    figures = {row["name"]: _figures(row) for row in rows if row["samples"]}
    mine = [name for name in found if name in figures]

    def behind(name: str, goal: str) -> Farthest:
        ratios = {key: figures[name][key] / figures[goal][key] for key in TIES}
        worst = max(ratios, key=lambda key: ratios[key] / TIES[key])
        return Farthest(ratios[worst] / TIES[worst], ratios[worst], goal, worst)

    goals = [row["name"] for row in rows if row["front"]]
    return max(min(behind(name, goal) for name in mine) for goal in goals)


def _figures(row: Row) -> dict[str, float]:
    return {"latency": row["p50_us"], "size_bytes": row["size_bytes"], "memory_bytes": row["memory_bytes"]}


def main() -> None:
    parser = arguments(__doc__ or "", rounds=2)
    parser.add_argument("--width", type=int, default=1024, help="units of each of the two hidden layers")
    parser.add_argument("--samples", type=int, default=5000, help="requests of a candidate that is measured to the end")
    options = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory(prefix="mlkit-search-") as folder:
        for index in range(options.rounds):
            whole: tuple[float, list[Row]] | None = None
            for method, overrides in METHODS.items():
                seconds, rows = searched(Path(folder), options.width, options.samples, overrides)
                whole = whole or (seconds, rows)
                lines.append(line_of(method, index, seconds, rows, whole))
    report(f"searching 40 candidates (hidden layers of {options.width})", lines, options.out)


def line_of(method: str, index: int, seconds: float, rows: Sequence[Row], whole: tuple[float, list[Row]]) -> Row:
    """One search as a line of the table."""
    front = [row["name"] for row in rows if row["front"]]
    worst = farthest(front, whole[1])
    goal = {row["name"] for row in whole[1] if row["front"]}
    return {
        "round": index + 1,
        "method": method,
        "seconds": round(seconds, 1),
        "of all": round(seconds / whole[0], 2),
        "tried": len(rows),
        "requests": sum(row["samples"] for row in rows),
        "stopped": sum("stopped after" in row["reason"] for row in rows),
        "front": len(front),
        "of its front": f"{len(goal & set(front))}/{len(goal)}",
        "epsilon": round(worst.factor, 3),
        "where": "" if worst.factor <= 1 else f"{worst.quantity} of {worst.goal}",
        "same front": worst.ties <= 1,
        "picked": next(row["name"] for row in rows if row["picked"]),
    }


if __name__ == "__main__":
    main()
