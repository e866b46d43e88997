"""The same clean windows judged by the shift test and, at their defaults, by Evidently and by NannyML.

    python -m benchmarks.drift_peers [--months 5]

100 columns of normal values; 14 windows to learn from, then 30 that are judged.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import clients
from benchmarks.drift_rates import EDGES, Array, effect_deviation, simulate
from mlflowkit.judging.shift.shift_settings import ShiftSettings

COLUMNS, LEARNED, JUDGED = 100, 14, 30
PEERS = ("evidently", "nannyml")
SIZES = (100, 2000)
EFFECTS = (1.0, 30.0)


def clean_values(rng: np.random.Generator, rows: int, effect: float) -> Array:
    """(windows, rows, columns): normal values, whose location differs between windows by the design effect."""
    deviation = effect_deviation(effect, rows) if effect > 1 else 0.0
    places = rng.normal(0, 1, (LEARNED + JUDGED, 1, COLUMNS)) * deviation
    values: Array = rng.normal(0, 1, (LEARNED + JUDGED, rows, COLUMNS)) + places
    return values


def judge_by_peer(name: str, file: Path) -> list[int]:
    """Columns that the peer alarms for in each judged window."""
    script = Path(__file__).with_name(f"drift_{name}.py")
    quiet = {"DO_NOT_TRACK": "1", "NML_DISABLE_USAGE_LOGGING": "1", "PYTHONWARNINGS": "ignore"}
    command = [clients.make(name) / "bin" / "python", script, file]
    result = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True, check=True)
    counts: list[int] = json.loads(result.stdout.strip().splitlines()[-1])
    return counts


def judge_by_us(values: Array) -> list[int]:
    """Columns with an alarm in each judged window, of the counts in the cells of the learned values."""
    flat = values[:LEARNED].reshape(-1, COLUMNS)
    edges = np.quantile(flat, [0, *np.arange(1, 10) / 10, 1], axis=0)
    cells = [np.searchsorted(edges[:, column], values[:, :, column]) for column in range(COLUMNS)]
    width = len(EDGES) + 1
    counts = np.stack([[np.bincount(row, minlength=width) for row in part] for part in cells], axis=1).astype(float)
    settings = ShiftSettings(min_rows=min(300.0, values.shape[1]))
    simulated = simulate(lambda window: counts[window], 1, COLUMNS, len(values), settings)
    numbers: list[int] = simulated.failed[LEARNED:, 0].sum(axis=1).tolist()
    return numbers


def compare_peers(runs: int) -> Iterator[dict[str, Any]]:
    """A result for each size of window and design effect: by judge, the share of columns and windows with an alarm, the
    share of windows with any, and that of months with any."""
    for rows in SIZES:
        for effect in EFFECTS:
            alarms: dict[str, list[list[int]]] = {name: [] for name in ("mlflowkit", *PEERS)}
            for run in range(runs):
                values = clean_values(np.random.default_rng((23, rows, int(effect), run)), rows, effect)
                alarms["mlflowkit"].append(judge_by_us(values))
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder, "windows.npz")
                    np.savez(file, reference=values[:LEARNED].reshape(-1, COLUMNS), windows=values[LEARNED:])
                    for name in PEERS:
                        alarms[name].append(judge_by_peer(name, file))
            yield {"rows": rows, "design effect": effect, "runs": runs, **{n: _rates(c) for n, c in alarms.items()}}


def _rates(counts: list[list[int]]) -> dict[str, float]:
    windows = np.array(counts)
    return {
        "columns and windows": round(float(windows.mean() / COLUMNS), 4),
        "windows with any": round(float((windows > 0).mean()), 4),
        "months with any": round(float((windows > 0).any(axis=1).mean()), 4),
        "alarms a month": round(float(windows.sum(axis=1).mean()), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--months", type=int, default=5)
    for result in compare_peers(parser.parse_args().months):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
