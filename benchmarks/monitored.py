"""What monitoring costs a gateway: throughput and p99 latency with live traffic counted by columns and profiled, as a
share of those without (bars: throughput 0.97, p99 1.05). The same gateway, its setting changed between measurements, in
turns: on, off, off, on. The prediction log is written in both.

The gateway is kept to one core, the load generator and the observer to the others. 16 connections, requests of one row.

    python -m benchmarks.monitored --rounds 15 --seconds 3
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.infer import load
from benchmarks.process import Spread, arguments, report, spread
from mlflowkit.serving.observer.panes import read_windows
from tests.support.lending_bundle import ROWS
from tests.support.pane_kills import KillDrill

CONNECTIONS = 16
PAUSE_SECONDS = 0.5
LEAST_THROUGHPUT, MOST_P99 = 0.97, 1.05
WHYLOGS = "mlflowkit.adapters.whylogs:WhylogsProfiler"


def pin_to_cores(drill: KillDrill) -> None:
    """Pin the gateway to the last core; its observer, and the children of this process, to the others."""
    cores = list(range(os.cpu_count() or 1))
    observer = drill.observer
    for process, own in ((drill.gateway, cores[-1:]), (observer, cores[:-1])):
        for thread in process.threads() if process is not None and len(cores) > 1 else ():
            os.sched_setaffinity(thread.id, own)
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[:-1])


def measured(drill: KillDrill, body: Path, seconds: float, *, monitored: bool) -> dict[str, float]:
    """One measurement."""
    drill.change(profile=monitored)
    time.sleep(PAUSE_SECONDS)
    pin_to_cores(drill)
    return load(drill.url, body, CONNECTIONS, seconds)


def ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]], key: str) -> Spread:
    """Round by round."""
    return spread([a[key] / b[key] for a, b in zip(ours, theirs, strict=True)], "x")


def main() -> int:
    parser = arguments(__doc__ or "", rounds=15)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--quick", action="store_true", help="three rounds of a second each")
    options = parser.parse_args()
    rounds, seconds = (3, 1.0) if options.quick else (options.rounds, options.seconds)
    results: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    with (
        tempfile.TemporaryDirectory() as folder,
        KillDrill(Path(folder), pane_seconds=60, profiler=WHYLOGS, log=True) as drill,
    ):
        body = Path(folder) / "body.json"
        body.write_text(json.dumps({"rows": ROWS[:1]}))
        drill.start()
        for number in range(rounds + 1):
            for monitored in (True, False) if number % 2 else (False, True):
                result = measured(drill, body, seconds, monitored=monitored)
                if number:
                    results[monitored].append(result)
        observer = drill.observer
        used = 0.0 if observer is None else sum(psutil.Process(observer.pid).cpu_times()[:2])
        drill.stop()
        windows = read_windows(drill.profiles, drill.version)
        rows = [
            {
                "monitoring": "on" if monitored else "off",
                "requests": spread([result["per_second"] for result in measurements], "/s"),
                "of off": ratio(measurements, results[False], "per_second"),
                "p99": spread([result["p99_us"] for result in measurements], "µs"),
                "p99 of off": ratio(measurements, results[False], "p99_us"),
            }
            for monitored, measurements in results.items()
        ]
    report("monitored: one gateway, monitoring on and off in turns, 16 connections", rows, options.out)
    answered, lost = sum(window.answered for window in windows), sum(window.lost for window in windows)
    print(f"  rows answered {answered:,}, lost {lost:,}; the observer used {used:.1f} s of CPU")
    print(f"  bars: throughput {LEAST_THROUGHPUT} of off, p99 {MOST_P99} of off")
    throughput, p99 = rows[0]["of off"], rows[0]["p99 of off"]
    return int(throughput.median < LEAST_THROUGHPUT or p99.median > MOST_P99)


if __name__ == "__main__":
    sys.exit(main())
