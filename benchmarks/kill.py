"""One of two gateway replicas killed by SIGKILL every 10 seconds under a steady load: how many requests fail when the
client sends an idempotent request once more after its connection broke (bar: none), and how long until there are as
many replicas as before (bar: 15 s).

    python -m benchmarks.kill --seconds 300

With ``--all``, one process of each kind below a service of two replicas is killed in turn (raylet, GCS, Serve's
controller, a replica, the supervisor, the reconciler): how many requests fail (bar: none), and how long until Ray, the
supervision and both replicas are there again and nothing of an earlier Ray is (bar: 60 s). Nothing is done by hand.

    python -m benchmarks.kill --all
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections import Counter
from pathlib import Path

from benchmarks.process import arguments, report, spread
from benchmarks.service import Service, failed, quantile, service
from mlflowkit.adapters.ray_serve import cluster as clusters
from mlflowkit.adapters.ray_serve import ownership
from mlflowkit.adapters.ray_serve.cluster import SUPERVISOR
from mlflowkit.adapters.ray_serve.supervisor import KEEPER, RECONCILER
from mlflowkit.service_state.records import ReplicaReport, process_started
from mlflowkit.system.machine import command_line

RATE = 100.0
EVERY = 10.0
BAR = 15.0
ALL_BAR = 60.0
WINDOW = 75.0
"""Seconds of traffic for each kind of process."""
TITLES = {
    "raylet": "raylet/raylet", "GCS": "gcs_server", "controller": "ray::ServeController",
    "replica": "ray::ServeReplica", "supervisor": SUPERVISOR, "reconciler": RECONCILER,
}  # fmt: skip
"""What the command line or title of each kind contains."""


def alive(lending: Service) -> tuple[ReplicaReport, ...]:
    """Replicas that answer with the present table."""
    files = lending.files
    return tuple(one for one in files.reports() if one.epoch >= lending.epoch and one.state == "serving")


def process_of(lending: Service, kind: str) -> int:
    """The process of a kind; 0 while there is none."""
    cluster = clusters.read(lending.folder / "state")
    if cluster is None or cluster.state != "ready":
        return 0
    if kind == "supervisor":
        return cluster.pid
    family = sorted(ownership.descendants({cluster.pid}))
    titles = {pid: " ".join(command_line(pid)) for pid in family if process_started(pid) is not None}
    return next((pid for pid, title in titles.items() if TITLES[kind] in title and KEEPER not in title), 0)


def at_full_strength(lending: Service) -> bool:
    """Whether two replicas answer by the present table, on a Ray that is supervised, and none of an earlier one."""
    cluster = clusters.read(lending.folder / "state")
    if cluster is None or cluster.state != "ready" or cluster.previous or len(alive(lending)) != 2:
        return False
    family = ownership.descendants({cluster.pid})
    return all(pid in family for pid, _ in clusters.process_group(cluster))


def await_strength(lending: Service, kind: str, killed: int) -> float:
    """Seconds until the service is at full strength without the killed process; ends the benchmark after WINDOW."""
    begin = time.monotonic()
    while not (at_full_strength(lending) and process_of(lending, kind) not in (0, killed)):
        if time.monotonic() - begin > WINDOW:
            raise SystemExit(f"not at full strength {WINDOW:g} s after the end of the {kind}")
        time.sleep(0.05)
    return time.monotonic() - begin


def kill_each_kind(out: Path | None) -> int:
    """Kill a process of each kind in turn under a steady load; returns the exit code."""
    rows: list[dict[str, object]] = []
    with service(replicas=2) as lending:
        for kind in TITLES:
            with lending.steady(RATE, WINDOW, "--retries", "1") as lines:
                time.sleep(2.0)
                victim = process_of(lending, kind)
                os.kill(victim, signal.SIGKILL)
                seconds = await_strength(lending, kind, victim)
                answers = lines()
            rows.append(
                {
                    "killed": kind,
                    "full strength in, s": round(seconds, 1),
                    "requests": len(answers),
                    "failed": len(failed(answers)),
                    "p50, ms": round(quantile(answers, 0.5), 2),
                    "p99, ms": round(quantile(answers, 0.99), 2),
                }
            )
    report(f"a process of each kind killed in turn, {RATE:g} requests a second, each retried once", rows, out)
    print(f"  bar: 0 failed; full strength in {ALL_BAR:g} s")
    return int(any(row["failed"] or float(str(row["full strength in, s"])) > ALL_BAR for row in rows))


def main() -> None:
    parser = arguments(__doc__ or "", rounds=1)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=300.0, help="of traffic")
    parser.add_argument("--all", action="store_true", help="kill a process of each kind instead")
    options = parser.parse_args()
    if options.all:
        raise SystemExit(kill_each_kind(options.out))
    back: list[float] = []
    with service(replicas=2) as lending, lending.steady(RATE, options.seconds, "--retries", "1") as lines:
        end = time.monotonic() + options.seconds - EVERY
        time.sleep(2.0)
        while time.monotonic() < end:
            killed = time.monotonic()
            victim = alive(lending)[len(back) % 2]
            os.kill(victim.pid, signal.SIGKILL)
            while len(found := alive(lending)) < 2 or any(one.pid == victim.pid for one in found):
                if time.monotonic() - killed > 60:
                    raise SystemExit("a replica did not come back within 60 s")
                time.sleep(0.05)
            back.append(time.monotonic() - killed)
            time.sleep(max(0.0, killed + EVERY - time.monotonic()))
        found_lines = lines()
    row = {
        "requests": len(found_lines),
        "failed": len(failed(found_lines)),
        "kills": len(back),
        "capacity back in": spread(back),
        "p50, ms": round(quantile(found_lines, 0.5), 2),
        "p99, ms": round(quantile(found_lines, 0.99), 2),
    }
    report(f"a replica of two killed every {EVERY:g} s, {RATE:g} requests a second", [row], options.out)
    print(f"  bar: 0 failed; back in {BAR:g} s; by status: {dict(Counter(line.status for line in found_lines))}")
    raise SystemExit(int(bool(failed(found_lines)) or max(back) > BAR))


if __name__ == "__main__":
    main()
