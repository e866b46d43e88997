"""10^4, 10^5 and 10^6 rows through data, validate and fingerprint: seconds and peak memory.

Bars: neither grows faster than linearly, and the table is not held twice. Each figure is a process of its own; peak
memory is what a step adds to the process after its imports, and "tables held" divides it by the size of the table in
Arrow. Growth is of the processor seconds, which neighbours on the machine disturb less than wall seconds. The peers,
in the same run, are pandas.read_csv and pyarrow's of the same file (15 numbers, 4 strings, 5 % gaps, a target).

    python -m benchmarks.rows --sizes 10000,100000,1000000 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.process import Spread, arguments, report, spread

STEPS = ("data", "validate", "fingerprint", "pandas.read_csv", "pyarrow.csv")


def write_table(path: Path, rows: int) -> None:
    """A seeded table in the usual proportions, written as CSV in blocks."""
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(7)
    for start in range(0, rows, 100_000):
        size = min(100_000, rows - start)
        numbers = random.lognormal(3, 1, size=(size, 15)).round(4)
        numbers[random.random(numbers.shape) < 0.05] = np.nan
        block = pd.DataFrame(numbers, columns=[f"n{i:02d}" for i in range(15)])
        for i, levels in enumerate((3, 10, 50, 500)):
            block[f"s{i}"] = np.char.add("level-", random.integers(0, levels, size).astype(str))
        block["y"] = np.where(random.random(size) < 0.1, "bad", "good")
        block.to_csv(path, index=False, mode="a" if start else "w", header=not start)


def recipe_of(file: Path) -> dict[str, Any]:
    checks = [{"kind": "schema"}, {"kind": "range", "column": "n00", "min": 0}, {"kind": "nulls", "column": "y"}]
    return {
        "name": "rows",
        "task": "classification",
        "data": {
            "source": {"kind": "csv", "path": str(file)},
            "target": "y",
            "split": {"kind": "stratified"},
            "checks": checks,
        },
        "model": {"kind": "torch"},
    }


# ------------------------------------------------------------------------------------------------ in the measured child


def steps(file: Path, folder: Path) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """For each step what to do before the clock starts (imports), and what is measured."""
    from mlflowkit.ports import StageContext
    from mlflowkit.recipe.schema import RecipeSchema, stage_specs
    from mlflowkit.stages import data, validate
    from mlflowkit.values import Lineage
    from mlflowkit.wiring import Wiring

    specs, ports = stage_specs(RecipeSchema.model_validate(recipe_of(file))), Wiring(folder)

    def context(name: str) -> StageContext:
        out = folder / name
        out.mkdir(exist_ok=True)
        lineage = Lineage(git_commit="", git_dirty=False, data_version="", recipe_digest="")
        inputs = {} if name == "data" else {"data": folder / "data"}
        return StageContext(inputs, out, folder, folder, 7, lineage, "run", ports, lambda event: None)

    def imports(name: str) -> Callable[[], Any]:
        return lambda: [__import__(module, fromlist=["_"]) for module in name.split()]

    def digest() -> str:
        from mlflowkit.system.digests import digest_file

        return digest_file(file)

    def pandas() -> Any:
        import pandas

        return pandas.read_csv(file)

    def pyarrow() -> Any:
        import pyarrow.csv

        return pyarrow.csv.read_csv(file)

    checks = "pandas mlflowkit.adapters.arrow pandera.pandas mlflowkit.adapters.whylogs whylogs.core"
    return {
        "data": (imports("mlflowkit.adapters.arrow numpy pandas"), lambda: data.run(specs["data"], context("data"))),
        "validate": (imports(checks), lambda: validate.run(specs["validate"], context("validate"))),
        "fingerprint": (imports("hashlib"), digest),
        "pandas.read_csv": (imports("pandas"), pandas),
        "pyarrow.csv": (imports("pyarrow.csv"), pyarrow),
    }


def measure(step: str, file: Path, folder: Path) -> dict[str, float]:
    """Seconds, and the most memory (MB) added by a step. The kernel's high-water mark is reset after the imports."""
    prepare, run = steps(file, folder)[step]
    prepare()
    Path("/proc/self/clear_refs").write_text("5")
    before, cpu, start = _status("VmRSS"), time.process_time(), time.perf_counter()
    kept = run()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    figures = {"seconds": seconds, "cpu": cpu, "peak_mb": _status("VmHWM") - before}
    if step == "pyarrow.csv":
        figures["table_mb"] = kept.nbytes / 2**20
    return figures


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


# ---------------------------------------------------------------------------------------------------------- the command


def child(step: str, file: Path, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.rows", "--step", step, "--file", str(file), "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{step} failed:\n{done.stderr}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def benchmark(sizes: list[int], rounds: int) -> list[dict[str, Any]]:
    """One row for each size and step; growth is against the size before, per tenfold of rows."""
    rows: list[dict[str, Any]] = []
    before: dict[str, tuple[int, float, float]] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="mlkit-rows-") as name:
            folder = Path(name)
            write_table(folder / "t.csv", size)
            found: dict[str, list[dict[str, float]]] = {step: [] for step in STEPS}
            for _ in range(rounds):
                for step in STEPS:
                    found[step].append(child(step, folder / "t.csv", folder))
        table = found["pyarrow.csv"][0]["table_mb"]
        peer = statistics.median(one["cpu"] for one in found["pandas.read_csv"])
        for step in STEPS:
            wall, cpu = (spread([one[key] for one in found[step]]) for key in ("seconds", "cpu"))
            memory = spread([one["peak_mb"] for one in found[step]], "MB")
            row = {"rows": size, "step": step, "wall": wall, "cpu": cpu, "peak added": memory}
            row |= {"tables held": round(memory.median / table, 2), "cpu of read_csv": round(cpu.median / peer, 1)}
            rows.append(row | _growth(before.get(step), size, cpu, memory))
            before[step] = (size, cpu.median, memory.median)
    return rows


def _growth(before: tuple[int, float, float] | None, size: int, cpu: Spread, memory: Spread) -> dict[str, str]:
    if before is None:
        return {}
    rows, seconds, megabytes = before
    times = f"cpu {cpu.median / seconds:.1f}x, memory {memory.median / max(megabytes, 1):.1f}x"
    return {"growth": f"{times} for {size / rows:.0f}x rows"}


def main() -> None:
    parser = arguments(__doc__ or "", rounds=3)
    parser.add_argument("--sizes", default="10000,100000,1000000", help="rows, comma-separated")
    for name in ("--step", "--file", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(measure(options.step, Path(options.file), Path(options.folder))))
        return
    report("rows", benchmark([int(size) for size in options.sizes.split(",")], options.rounds), options.out)


if __name__ == "__main__":
    main()
