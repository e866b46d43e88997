"""Versions swapped and weights changed under a steady 200 requests a second: how many requests fail (bar: none), and
the 99th percentile while it happens against the 99th percentile before (bar: at most 3 times).

A swap hands the gateways another version, which they verify, load and warm before it answers; a weight change moves
part of the traffic between two loaded versions. Latency counts from the time at which each request was due.

    python -m benchmarks.swap --seconds 160
"""

from __future__ import annotations

import argparse
import time

from benchmarks.process import arguments, report, spread
from benchmarks.service import between, failed, quantile, service

QUIET = 20.0
RATE = 200.0
CHANGES = 100
RATIO, LEAST = 3.0, 30_000


def main() -> None:
    parser = arguments(__doc__ or "", rounds=1)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=160.0, help="of traffic")
    parser.add_argument("--swaps", type=int, default=10, help="versions swapped")
    options = parser.parse_args()
    with service() as lending:
        champion, other = lending.variant(lending.champion, "champion"), lending.variant(lending.other, "champion")
        with lending.steady(RATE, options.seconds, "--users", "1000") as lines:
            time.sleep(QUIET)
            begin = time.time()
            swaps = [lending.publish((other if number % 2 == 0 else champion,)) for number in range(options.swaps)]
            lending.split(0.0)
            weights = [lending.split((number % 20) / 20) for number in range(CHANGES)]
            end = time.time()
            found = lines()
    before, during = between(found, begin - QUIET + 3.0, begin), between(found, begin, end)
    ratio = quantile(during, 0.99) / quantile(before, 0.99)
    row = {
        "requests": len(found),
        "failed": len(failed(found)),
        "swaps": len(swaps),
        "a swap": spread(swaps),
        "weight changes": len(weights),
        "a change": spread(weights),
        "p99 before, ms": round(quantile(before, 0.99), 2),
        "p99 during, ms": round(quantile(during, 0.99), 2),
        "ratio": round(ratio, 2),
    }
    report(f"versions and weights changed under {RATE:g} requests a second", [row], options.out)
    print(f"  bar: 0 failed of at least {LEAST:,}; ratio at most {RATIO:g}; failed: {failed(found)[:5]}")
    raise SystemExit(int(bool(failed(found)) or ratio > RATIO or len(found) < LEAST))


if __name__ == "__main__":
    main()
