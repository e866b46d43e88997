"""A folder of Parquet files through data and validate: peak memory, and speed against a bare scan by Arrow.

Bars for 10^7 rows of 10 columns in 16 files: 300 MB beyond the imports, and the data version that the whole table in
memory has. Each figure is a process of its own. Before its clock starts, a process runs both stages on 1,600 rows, so
that what they import is there; memory is the kernel's high-water mark from then on, mapped files included, minus what
the process had then. The scan reads every batch of every file with ParquetFile.iter_batches and keeps
nothing. ``--memory`` adds the data stage with the whole table in memory.

    python -m benchmarks.streaming --rows 10000000 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.process import Spread, arguments, report, spread

FILES, BAR_MB = 16, 300
STEPS = ("scan", "data", "validate")
WHOLE = "data in memory"
CHECKS = [
    {"kind": "schema"},
    {"kind": "range", "column": "x0", "min": -100, "max": 100},
    {"kind": "nulls", "column": "gaps", "max_share": 0.2},
    {"kind": "allowed", "column": "grade", "values": list("ABCDEFG")},
    {"kind": "rows", "min_ratio": 0.5},
    {"kind": "drift"},
]


def write_files(folder: Path, rows: int) -> None:
    """A seeded table: five numbers, one with 10 % gaps, whole numbers, two texts, and a target of two classes."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as parquet

    folder.mkdir(parents=True)
    for number in range(FILES):
        size = rows // FILES + (number < rows % FILES)
        random = np.random.default_rng(number)
        columns: dict[str, Any] = {f"x{index}": random.normal(size=size) for index in range(5)}
        columns["gaps"] = pa.array(random.normal(size=size), mask=random.random(size) < 0.1)
        columns["n"] = random.integers(0, 1000, size)
        columns["city"] = pa.array([f"city{index:03}" for index in range(300)]).take(random.integers(0, 300, size))
        columns["grade"] = pa.array(list("ABCDEFG")).take(random.integers(0, 7, size))
        columns["y"] = (random.random(size) < 0.2).astype(np.int64)
        parquet.write_table(pa.table(columns), folder / f"part-{number:02}.parquet")


# ------------------------------------------------------------------------------------------------ in the measured child


def scan(folder: Path) -> None:
    """Read every batch of every file."""
    import pyarrow.parquet as parquet

    for file in sorted((folder / "t").iterdir()):
        with parquet.ParquetFile(file) as reader:
            for _ in reader.iter_batches():
                pass


def run_stage(name: str, folder: Path, *, whole: bool = False) -> str:
    """Run a stage; returns the data version. With ``whole`` the table is in memory."""
    from mlflowkit.ports import StageContext
    from mlflowkit.stages import data, validate
    from mlflowkit.stages.base import read_table_info
    from mlflowkit.values import Lineage
    from mlflowkit.wiring import Wiring

    ports = Wiring(folder / "state")
    if whole:
        type(ports.tables).on_disk = lambda self, folder: self  # type: ignore[method-assign,assignment]
    out = folder / name
    out.mkdir(exist_ok=True)
    lineage = Lineage(git_commit="", git_dirty=False, data_version="", recipe_digest="")
    inputs = {"data": folder / "data"} if name == "validate" else {}
    context = StageContext(inputs, out, folder / "scratch", folder, 7, lineage, "run", ports, lambda event: None)
    if name == "validate":
        validate.run(validate.Spec.model_validate({"checks": CHECKS}), context)
    else:
        source = {"kind": "parquet", "path": "t"}
        recipe = {
            "task": "classification",
            "source": source,
            "target": "y",
            "positive": None,
            "columns": {},
            "drop": [],
        }
        data.run(data.Spec.model_validate({**recipe, "split": {"kind": "stratified"}}), context)
    return read_table_info(folder / "data").data_version


def measure(step: str, folder: Path, small: Path) -> dict[str, Any]:
    """Seconds, the most memory (MB) beyond the imports, and the data version."""
    for name in ("data", "validate"):
        run_stage(name, small)
    before = _status("VmRSS")
    work: Callable[[], Any] = {
        "scan": lambda: scan(folder),
        "data": lambda: run_stage("data", folder),
        "validate": lambda: run_stage("validate", folder),
        WHOLE: lambda: run_stage("data", folder, whole=True),
    }[step]
    Path("/proc/self/clear_refs").write_text("5")
    cpu, start = time.process_time(), time.perf_counter()
    version = work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "peak_mb": _status("VmHWM") - before, "version": version}


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


# ---------------------------------------------------------------------------------------------------------- the command


def child(step: str, folder: Path, small: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.streaming", "--step", step, "--folder", str(folder)]
    done = subprocess.run([*command, "--small", str(small)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{step} failed:\n{done.stderr}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def benchmark(rows: int, rounds: int, steps: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each step; the ratio is of the scan's processor seconds to the step's, round by round."""
    with tempfile.TemporaryDirectory(prefix="mlkit-streaming-") as name:
        folder, small = Path(name) / "large", Path(name) / "small"
        write_files(folder / "t", rows)
        write_files(small / "t", 100 * FILES)
        found: dict[str, list[dict[str, Any]]] = {step: [] for step in steps}
        for _ in range(rounds):
            for step in steps:
                found[step].append(child(step, folder, small))
    versions = {figures["version"] for step in steps if step != "scan" for figures in found[step]}
    if len(versions) > 1:
        raise RuntimeError(f"the data versions differ: {versions}")
    results = []
    for step in steps:
        pairs = zip(found["scan"], found[step], strict=True)
        figures = {
            "wall": spread([figures["seconds"] for figures in found[step]]),
            "cpu": spread([figures["cpu"] for figures in found[step]]),
            "peak beyond imports": spread([figures["peak_mb"] for figures in found[step]], "MB"),
            "speed of a scan": spread([scanned["cpu"] / figures["cpu"] for scanned, figures in pairs], "x"),
        }
        results.append({"rows": rows, "step": step, **figures})
    return results


def main() -> int:
    parser = arguments(__doc__ or "", rounds=3)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--memory", action="store_true", help="also the data stage with the whole table in memory")
    for name in ("--step", "--folder", "--small"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(measure(options.step, Path(options.folder), Path(options.small))))
        return 0
    results = benchmark(options.rows, options.rounds, (*STEPS, WHOLE) if options.memory else STEPS)
    report("streaming", results, options.out)
    peaks: list[Spread] = [row["peak beyond imports"] for row in results if row["step"] in ("data", "validate")]
    return 0 if max(peak.high for peak in peaks) <= BAR_MB else 1


if __name__ == "__main__":
    sys.exit(main())
