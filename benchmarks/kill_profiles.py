"""A gateway and its observer killed by SIGKILL under traffic, at every failpoint and at random times: are the rows in
the profiles and the rows counted as lost together the rows answered (bar: exactly), and is no row in them twice?

    python -m benchmarks.kill_profiles --kills 200
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.process import arguments, report
from mlflowkit.system.failpoint import PANE_POINTS
from tests.support.pane_kills import KillDrill

OBSERVER_SHARE = 0.7
"""Share of the random kills that are the observer's; the others are the gateway's."""

WRITTEN_SHARE = 0.5
"""Share of the random kills before which the observer has written something since the last one."""


def at_point(folder: Path, point: str) -> dict[str, Any]:
    """Kill one process at a failpoint, go on with a new one, and compare."""
    with KillDrill(folder) as drill:
        gateway = point.startswith("ledger")
        drill.start(f"{point}:{1 if point == 'ledger.created' else 25 if gateway else 2}")
        first = drill.observer
        if gateway:
            while drill.ask(50):
                pass
            drill.kill_gateway()
        else:
            while first is not None and first.is_running() and first.status() != "zombie":
                drill.ask(5)
            drill.stop()
        drill.start()
        drill.ask(20)
        drill.stop()
        return figures(drill, point, 1)


def at_random(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill one of the two at random times, again and again, on the same state."""
    chance, counted = random.Random(seed), Counter[str]()
    with KillDrill(folder) as drill:
        drill.start()
        for number in range(kills):
            if chance.random() < WRITTEN_SHARE:
                drill.ask_until_written()
            drill.ask(chance.randrange(60))
            time.sleep(chance.uniform(0, 0.2))
            if chance.random() < OBSERVER_SHARE:
                drill.kill_observer()
                counted["observer"] += 1
            else:
                drill.kill_gateway()
                counted["gateway"] += 1
                drill.check()
                drill.start()
            if number % 20 == 19:
                print(f"{number + 1} kills: {drill.replied.total()} rows answered", file=sys.stderr, flush=True)
        drill.stop()
        return figures(drill, "random times", kills) | dict(counted)


def figures(drill: KillDrill, point: str, kills: int) -> dict[str, Any]:
    """What was answered and what was counted; `KillDrill.check` raises unless both agree."""
    windows = drill.check().windows
    return {
        "killed at": point,
        "kills": kills,
        "rows replied": drill.replied.total(),
        "rows cut off": drill.cut.total(),
        "rows answered": sum(window.answered for window in windows),
        "in profiles": sum(window.total.rows for window in windows),
        "lost": sum(window.lost for window in windows),
        "exact": True,
    }


def main() -> int:
    parser = arguments(__doc__ or "", rounds=1)
    parser.add_argument("--kills", type=int, default=200, help="kills at random times")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="10 random kills, three failpoints")
    options = parser.parse_args()
    points = PANE_POINTS[::3] if options.quick else PANE_POINTS
    rows = []
    for point in points:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(at_point(Path(folder), point))
    with tempfile.TemporaryDirectory() as folder:
        rows.append(at_random(Path(folder), 10 if options.quick else options.kills, options.seed))
    report("kill_profiles", rows, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
