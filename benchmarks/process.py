"""Whole processes, timed from outside: interleaved rounds, median with spread, peak memory of the process tree."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CACHE = Path(__file__).parent / ".cache"


@dataclass(frozen=True, slots=True)
class Spread:
    """Median with minimum and maximum over rounds, in ``unit``."""

    median: float
    low: float
    high: float
    rounds: int
    unit: str = "s"

    def __str__(self) -> str:
        return f"{self.median:.3g} {self.unit} [{self.low:.3g}, {self.high:.3g}]"


def spread(values: Sequence[float], unit: str = "s") -> Spread:
    """Summarise the figures of several rounds.

    >>> str(spread([3.0, 1.0, 2.0]))
    '2 s [1, 3]'
    """
    return Spread(statistics.median(values), min(values), max(values), len(values), unit)


@dataclass(frozen=True, slots=True)
class Finished:
    seconds: float
    peak_mb: float
    output: str
    cpu_seconds: float = 0.0


def timed(command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Finished:
    """Run a command to its end: wall seconds, the largest sum of resident memory over its process tree (MB), and the
    processor seconds of the process and those that it waited for.

    Raises RuntimeError with the command's output when it fails.
    """
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **(env or {})}, stdout=output, stderr=subprocess.STDOUT
        )
        peak: list[float] = [0.0]
        watcher = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}:\n{text}")
    processor = usage.ru_utime + usage.ru_stime
    return Finished(seconds, max(peak[0], usage.ru_maxrss / 1024), text, processor)


def _watch(pid: int, peak: list[float]) -> None:
    import psutil

    try:
        root = psutil.Process(pid)
        while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
            total = 0.0
            for process in (root, *root.children(recursive=True)):
                try:
                    total += process.memory_info().rss / 2**20
                except psutil.NoSuchProcess:
                    continue
            peak[0] = max(peak[0], total)
            time.sleep(0.02)
    except psutil.NoSuchProcess:
        return


def interleaved(runs: Mapping[str, Callable[[], Finished]], rounds: int) -> dict[str, list[Finished]]:
    """A B A B ..., after one round that is not counted, so that drift of the machine hits all alike."""
    results: dict[str, list[Finished]] = {name: [] for name in runs}
    for index in range(rounds + 1):
        for name, run in runs.items():
            finished = run()
            if index:
                results[name].append(finished)
    return results


def ratios(results: Mapping[str, Sequence[Finished]], name: str, peer: str) -> Spread:
    """Ratio of wall seconds, round by round."""
    pairs = zip(results[name], results[peer], strict=True)
    return spread([a.seconds / b.seconds for a, b in pairs], "x")


def machine() -> str:
    """One line that says where figures were taken."""
    model = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or "unknown processor",
    )
    return f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}, {platform.system()}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def report(name: str, rows: Sequence[Mapping[str, Any]], out: Path | None) -> None:
    """Print a table of rows and, with ``out``, write them as JSON."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[str(row.get(key, "")) for key in keys] for row in rows]
    widths = [max(len(line[i]) for line in [keys, *cells]) for i in range(len(keys))]
    print(f"{name} ({machine()})")
    for line in [keys, *cells]:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if out is not None:
        document = {"benchmark": name, "machine": machine(), "rows": [_plain(row) for row in rows]}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=1) + "\n")


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: asdict(value) if isinstance(value, Spread) else value for key, value in row.items()}


def arguments(description: str, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help="counted rounds")
    parser.add_argument("--out", type=Path, help="write JSON here")
    return parser
