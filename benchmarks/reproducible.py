"""Whether what `mlkit bench` says is said again: the same command twice, in two processes, one after the other.

Measured are lending's graph and its rewriting to dynamic INT8, asked real rows. "Overlap" counts the pairs of runs
whose intervals share a value: those of each candidate's p50, and those of the ratio of the two, which were measured in
turns. The second run has the first for its baseline: nothing changed between them, so FAILED is false each time. Shares
have Clopper and Pearson's 95 % interval. Two right 95 % intervals of one truth overlap in more than 95 of 100 pairs.

The p50 of a machine that others use moves from minute to minute, and no interval of one run knows of that; the ratio
is what one run can promise of another.

    python -m benchmarks.reproducible [--rounds 20] [--samples 2000] [--starts 5] [--out FILE]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.comparisons import Asked, lending
from benchmarks.process import arguments, report, spread

MLKIT = (sys.executable, "-c", "from mlflowkit.cli import main; main()")
CANDIDATES = ("onnx", "onnx-int8-dynamic")
FAIL_ABOVE = "5%"
EXPECTED = (0, 1, 4)
"""Exit codes of a measurement: the gate's verdicts."""
BAR = 0.95

Interval = tuple[float, float]


@dataclass(frozen=True)
class Pair:
    """The same command twice: intervals of the first run and of the second, and the gate's verdict on the second."""

    p50: Sequence[tuple[Interval, Interval]]
    """Of each candidate."""
    ratio: tuple[Interval, Interval]
    moved: Sequence[float]
    """The second run's p50 over the first's, of each candidate."""
    verdict: str


def measured(asked: Asked, folder: Path, options: Sequence[str]) -> dict[str, Any]:
    """What one run of the command said."""
    chosen = [part for name in CANDIDATES for part in ("--candidate", name)]
    command = [*MLKIT, "bench", str(asked.model), *chosen, "--inputs", str(asked.rows), "--state", str(folder)]
    done = subprocess.run([*command, *options, "--json"], capture_output=True, text=True, check=False)
    if done.returncode not in EXPECTED:
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def pair(asked: Asked, folder: Path, options: Sequence[str]) -> Pair:
    kept = folder / "first.json"
    first = measured(asked, folder, [*options, "--out", str(kept)])
    second = measured(asked, folder, [*options, "--baseline", str(kept), "--fail-above", FAIL_ABOVE])
    both = list(zip(first["candidates"], second["candidates"], strict=True))
    ratios = [value["comparisons"][0] for value in (first, second)]
    return Pair(
        p50=[(_interval(one["interval"]), _interval(two["interval"])) for one, two in both],
        ratio=(_interval([ratios[0]["low"], ratios[0]["high"]]), _interval([ratios[1]["low"], ratios[1]["high"]])),
        moved=[two["p50_us"] / one["p50_us"] for one, two in both],
        verdict=str(second["baseline"]["outcome"]),
    )


def _interval(ends: Sequence[float]) -> Interval:
    return ends[0], ends[1]


def overlap(one: Interval, two: Interval) -> bool:
    """
    >>> overlap((1.0, 2.0), (2.0, 3.0)), overlap((1.0, 2.0), (2.1, 3.0))
    (True, False)
    """
    return one[0] <= two[1] and two[0] <= one[1]


def shared(found: Sequence[bool]) -> str:
    """How many are true, with Clopper and Pearson's interval of the share."""
    from scipy.stats import binomtest

    low, high = binomtest(sum(found), len(found)).proportion_ci(0.95, method="exact")
    return f"{sum(found)} of {len(found)} ({sum(found) / len(found):.0%} [{low:.0%}, {high:.0%}])"


def rows(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    made = []
    for place, name in enumerate(CANDIDATES):
        wide = [high / low - 1 for one in pairs for low, high in one.p50[place]]
        made.append({
            "what": f"p50 of {name}",
            "intervals overlap": shared([overlap(*one.p50[place]) for one in pairs]),
            "width of an interval": str(spread([100 * width for width in wide], "%")),
            "second over first": str(spread([one.moved[place] for one in pairs], "x")),
        })  # fmt: skip
    wide = [high / low - 1 for one in pairs for low, high in one.ratio]
    made.append({
        "what": f"ratio of {CANDIDATES[1]} to {CANDIDATES[0]}",
        "intervals overlap": shared([overlap(*one.ratio) for one in pairs]),
        "width of an interval": str(spread([100 * width for width in wide], "%")),
        "bar": f">= {BAR:.0%}",
    })  # fmt: skip
    verdicts = Counter(one.verdict for one in pairs)
    made.append({
        "what": f"the gate at {FAIL_ABOVE}, nothing changed",
        "falsely FAILED": shared([one.verdict == "FAILED" for one in pairs]),
        "verdicts": ", ".join(f"{name} {count}" for name, count in sorted(verdicts.items())),
    })  # fmt: skip
    return made


def main() -> None:
    parser = arguments(__doc__ or "", rounds=20)
    parser.add_argument("--samples", type=int, default=2000, help="requests of each candidate in a run")
    parser.add_argument("--starts", type=int, default=5, help="starts of each candidate's process in a run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlkit-reproducible-") as made:
        folder = Path(made)
        asked = lending(folder)
        asking = ["--samples", str(options.samples), "--starts", str(options.starts)]
        measured(asked, folder, [*asking, "--starts", "1"])  # the rewritten graph is made and kept
        pairs = [pair(asked, folder, asking) for _ in range(options.rounds)]
    report("mlkit bench, run twice", rows(pairs), options.out)


if __name__ == "__main__":
    main()
