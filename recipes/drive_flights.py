"""Replays the months of 2013 against the flights service; the monitor's page shows which of them moved.

    python recipes/drive_flights.py --month 10s

The model is trained on January and February, and they are the baseline; a window of 10 seconds stands for a month. A
sample of each month's flights is sent one by one, and at its end whether they were late.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from traffic import Row, Sender, call, next_window, run_recipe, say, wait_until

RECIPE = Path(__file__).parent / "flights.yaml"
FEATURES = ("carrier", "origin", "dest", "distance", "hour", "dep_delay", "air_time")
MONTHS = range(3, 13)
LABELS_AT_ONCE = 500


def requests_of(month: int, rows: int, nonce: str = "") -> tuple[list[Row], list[str]]:
    """A sample of a month's flights in the order of time, and whether each was late."""
    table = datasets.flights(month, month)
    chosen = np.sort(np.random.default_rng(month).choice(len(table), min(rows, len(table)), replace=False))
    records = json.loads(table.loc[chosen, list(FEATURES)].to_json(orient="records"))
    bodies = [json.dumps({"rows": [record]}).encode() for record in records]
    requests = [Row(f"{nonce}m{month}-{number}", body) for number, body in zip(chosen, bodies, strict=True)]
    return requests, table.loc[chosen, "late"].tolist()


def overrides(seconds: float) -> list[str]:
    """Overrides of flights.yaml: a month lasts some seconds."""
    return [
        f"monitor.window={seconds:g}s",
        "monitor.grace=1s",
        f"monitor.performance.realised.mature={seconds:g}s",
    ]


def replay(service: Mapping[str, Any], seconds: float, rows: int) -> None:
    """Send all months, each within its window."""
    sender, nonce = Sender(service["endpoint"], "late"), f"{int(time.time())}-"
    begin = next_window(seconds)
    for number, month in enumerate(MONTHS):
        requests, outcomes = requests_of(month, rows, nonce)
        wait_until(begin + number * seconds)
        for place, request in enumerate(requests):
            wait_until(begin + (number + 0.9 * place / len(requests)) * seconds)
            sender.work.put(request)
        sender.work.join()
        items = [{"id": row.id, "label": late} for row, late in zip(requests, outcomes, strict=True)]
        for start in range(0, len(items), LABELS_AT_ONCE):
            body = json.dumps({"feedback": items[start : start + LABELS_AT_ONCE]}).encode()
            call(f"{service['endpoint']}/v2/feedback", body)
        answered, late, failed = sender.take_counts()
        trouble = f", {failed} failed: {sender.problem}" if failed else ""
        say(f"month {month:2d}  {answered:,} answered, {late} of them late{trouble}")
    sender.close()


def moved(view: Mapping[str, Any], months: Sequence[int]) -> list[str]:
    """Which columns were beyond their margin in which of the last windows, in words."""
    starts = [window["start"] for window in view["windows"]]
    names = dict(zip(starts[-len(months) :], months, strict=False))
    lines = []
    for column in view["columns"]:
        far = [
            f"{names[start]} ({value:.3f})"
            for start, value, _ in column["history"]
            if value is not None and value > column["margin"] and start in names
        ]
        if far and column["aspect"] == "distribution" and not column["segment"]:
            lines.append(f"{column['column']}: beyond {column['margin']:g} in month {', '.join(far)}")
    return lines


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--month", default="10s", help="how long a month takes; at least 5s")
    parser.add_argument("--rows", type=int, default=2500, help="flights that are sent a month")
    parser.add_argument("--state", type=Path, default=RECIPE.parent / ".mlkit", help="state folder")
    parser.add_argument("overrides", nargs="*", help="further overrides of the recipe, such as serve.port=0")
    given = parser.parse_args(arguments)
    seconds, state = float(given.month.removesuffix("s")), given.state.resolve()
    service = run_recipe(RECIPE, [*overrides(seconds), *given.overrides], state)
    address, _, name = service["admin"].partition("/services/")
    say(f"\npage  {service['admin']}/monitor\n")
    replay(service, seconds, given.rows)
    time.sleep(seconds + 3)  # the last window closes
    view = call(f"{address}/api/services/{name}/monitor") or {"windows": [], "columns": []}
    say("\n" + "\n".join(moved(view, MONTHS) or ["no column was beyond its margin"]))
    say(f"the service stays up: {service['admin']}/monitor; mlkit down --state {state} stops it")


if __name__ == "__main__":
    main(sys.argv[1:])
