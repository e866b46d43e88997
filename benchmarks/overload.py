"""Five times as many requests as a service can answer, for a minute: what is still answered as a share of its capacity
(bar: 80 %), how soon the rest is refused (bar: 50 ms, its 99th percentile), and how much memory the gateway takes on
(bar: 100 MB).

The model is made slow (a chain of matrix products before its answer), so that a client on the same machine can ask for
five times its capacity. Capacity is what a closed loop of 16 connections gets, in the same run.

    python -m benchmarks.overload --seconds 60
"""

from __future__ import annotations

import argparse
import threading
import time

import psutil

from benchmarks import planted
from benchmarks.infer import load
from benchmarks.process import arguments, report
from benchmarks.service import quantile, service

TIMES = 5.0
GOODPUT, REFUSED_MS, MEMORY_MB = 0.8, 50.0, 100.0
PRODUCTS = 20


def main() -> None:
    parser = arguments(__doc__ or "", rounds=1)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    options = parser.parse_args()
    with service() as lending:
        slow = planted.latency(lending.champion, lending.folder / "slow", PRODUCTS)
        lending.publish((lending.variant(slow, "champion"),))
        capacity = load(lending.url, lending.body, 16, 10.0)["per_second"]
        files = lending.files
        gateway = psutil.Process(files.reports()[0].pid)
        memory, done = [gateway.memory_info().rss], threading.Event()
        watcher = threading.Thread(target=watch, args=(gateway, memory, done))
        with lending.steady(TIMES * capacity, options.seconds) as lines:
            watcher.start()
            found = lines()
            done.set()
        watcher.join()
    good = [line for line in found if line.status == 200]
    refused = [line for line in found if line.status in (429, 503)]
    lost = len(found) - len(good) - len(refused)
    share = len(good) / options.seconds / capacity
    grown = (max(memory) - memory[0]) / 2**20
    row = {
        "capacity, 1/s": round(capacity, 1),
        "asked for, 1/s": round(TIMES * capacity, 1),
        "answered of capacity": round(share, 3),
        "p99 of the answered, ms": round(quantile(good, 0.99), 1),
        "refused": len(refused),
        "p99 of the refused, ms": round(quantile(refused, 0.99), 1),
        "neither": lost,
        "memory, MB": round(grown, 1),
    }
    report(f"{TIMES:g} times the capacity for {options.seconds:g} s", [row], options.out)
    print(f"  bar: {GOODPUT:.0%} of capacity answered, refused within {REFUSED_MS:g} ms, {MEMORY_MB:g} MB")
    raise SystemExit(int(share < GOODPUT or quantile(refused, 0.99) > REFUSED_MS or grown > MEMORY_MB or lost > 0))


def watch(process: psutil.Process, memory: list[int], done: threading.Event) -> None:
    """Resident memory of a process, ten times a second."""
    while not done.is_set():
        memory.append(process.memory_info().rss)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
