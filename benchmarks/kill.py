"""One of two gateway replicas killed by SIGKILL every 10 seconds under a steady load: how many requests fail when the
client sends an idempotent request once more after its connection broke (bar: none), and how long until there are as
many replicas as before (bar: 15 s).

    python -m benchmarks.kill --seconds 300
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections import Counter

from benchmarks.process import arguments, report, spread
from benchmarks.service import Service, failed, quantile, service
from mlflowkit.service_state.records import ReplicaReport

RATE = 100.0
EVERY = 10.0
BAR = 15.0


def alive(lending: Service) -> tuple[ReplicaReport, ...]:
    """Replicas that answer with the present table."""
    files = lending.files
    return tuple(one for one in files.reports() if one.epoch >= lending.epoch and one.state == "serving")


def main() -> None:
    parser = arguments(__doc__ or "", rounds=1)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=300.0, help="of traffic")
    options = parser.parse_args()
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
