"""Every request mirrored to one shadow: what it costs the champion's throughput when the shadow has a core to run on
(bar: 15 %), and what a hung shadow costs (bar: nothing that can be told from noise).

The gateway is kept to one core and everything else (the load generator, the shadow's process) to the others, so the
gateway is what limits. The three services are measured in turns: without a shadow, with one, with one whose process is
stopped (SIGSTOP). 16 connections.

    python -m benchmarks.mirror --rounds 5 --seconds 3
"""

from __future__ import annotations

import argparse
import os
import signal
from typing import Any

import psutil

from benchmarks.infer import load
from benchmarks.process import arguments, report, spread
from benchmarks.service import Service, service
from mlflowkit.adapters.ray_serve.isolated import read_addresses

COST = 0.15
CONNECTIONS = 16


def keep_apart(lending: Service) -> None:
    """The gateway on the last core, whatever else belongs to its Ray on the others, and this process's children too."""
    cores = list(range(os.cpu_count() or 1))
    gateways = {report.pid for report in lending.files.reports()}
    ours = [one for one in psutil.process_iter(["username"]) if one.info["username"] == psutil.Process().username()]
    for process in ours:
        if process.pid in gateways:
            affine(process, cores[-1:])
        elif any("ray::" in part or "mlflowkit" in part for part in cmdline(process)):
            affine(process, cores[:-1])
    os.sched_setaffinity(0, cores[:-1])


def affine(process: psutil.Process, cores: list[int]) -> None:
    for thread in process.threads():
        os.sched_setaffinity(thread.id, cores)


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def shadow_processes(lending: Service) -> list[psutil.Process]:
    """The processes of the other bundle, which runs isolated."""
    reports = read_addresses(lending.files, lending.other.manifest.identity)
    if not reports:
        raise RuntimeError("no process of an isolated variant is there")
    return [psutil.Process(report.pid) for report in reports.values()]


def measured(lending: Service, seconds: float, shadow: str) -> dict[str, float]:
    """One measurement: without a shadow, with one, or with one that is stopped."""
    champion = lending.variant(lending.champion, "champion")
    mirrored = lending.variant(lending.other, "shadow", role="shadow", weight=0.0, placement="isolated")
    lending.publish((champion,) if shadow == "none" else (champion, mirrored))
    keep_apart(lending)
    stopped = shadow_processes(lending) if shadow == "hung" else []
    try:
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        return load(lending.url, lending.body, CONNECTIONS, seconds)
    finally:
        for process in stopped:
            process.send_signal(signal.SIGCONT)


def main() -> None:
    parser = arguments(__doc__ or "", rounds=5)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {"none": [], "one": [], "hung": []}
    with service() as lending:
        for number in range(options.rounds + 1):
            turn = number % len(results)
            names = [*results]
            for shadow in names[turn:] + names[:turn]:  # so that none always comes after the one that leaves most work
                one = measured(lending, options.seconds, shadow)
                if number:
                    results[shadow].append(one)
    rows: list[dict[str, Any]] = [
        {
            "shadow": shadow,
            "requests": spread([one["per_second"] for one in found], "/s"),
            "of none": spread(
                [a["per_second"] / b["per_second"] for a, b in zip(found, results["none"], strict=True)], "x"
            ),
            "p99": spread([one["p99_us"] for one in found], "µs"),
        }
        for shadow, found in results.items()
    ]
    report("100 % mirroring to one isolated shadow, 16 connections", rows, options.out)
    print(f"  bar: with one, at least {1 - COST:.2f} of none; hung, 1.00 within its spread")
    one, hung = rows[1]["of none"], rows[2]["of none"]
    raise SystemExit(int(one.median < 1 - COST or hung.high < 1.0))


if __name__ == "__main__":
    main()
