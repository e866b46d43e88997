"""Replays days of card transactions against the fraud service, and the outcomes as they become known.

    python recipes/drive_fraud.py --days 60 --day 5s --scenario ring

A window of 5 seconds stands for a day. Deploys fraud.yaml with its durations scaled, then sends a sample of each
day's transactions one by one, and their outcomes through the feedback API when they are due. A calendar file tells the
recipe which day it is, so that a retraining sees what is known by then. Prints what the monitor decides; the page that
it names shows why. The service stays up: mlkit down stops it.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fraud
import numpy as np
from traffic import Row, Sender, call, next_window, run_recipe, say, wait_until

RECIPE = Path(__file__).parent / "fraud.yaml"
LABELS_AT_ONCE = 500
EVENTS = ("alarm", "retrain", "canary", "promotion")
LATE = 0.1
"""The part of a day by which its last answer may be late and the next day still follow at once."""
HISTORY = 12
"""Days of transactions that a training looks back on."""


@dataclass(frozen=True)
class Plan:
    """What is replayed. ``rows`` of each day are sent; outcomes are known after ``median_delay`` days in the median."""

    days: int = 60
    day_seconds: float = 5.0
    scenario: str = "ring"
    onset: int = 12
    size: float | None = None
    rows: int = 2000
    seed: int = 7
    median_delay: float = 3.0
    until: str = ""
    """End on the day on which this was seen: one of EVENTS."""

    @property
    def world(self) -> fraud.World:
        return fraud.World(self.seed, self.scenario, self.onset, self.size, median_delay=self.median_delay)

    def duration(self, days: float) -> str:
        """Days as a duration of the replay.

        >>> Plan(day_seconds=5).duration(3), Plan(day_seconds=86400).duration(1)
        ('15s', '86400s')
        """
        return f"{max(1.0, days * self.day_seconds):g}s"


@dataclass(frozen=True)
class Transaction:
    """A request, when it is sent (in days from day 0), and its outcome with the day on which it is known."""

    request: Row
    at: float
    outcome: str
    due: float


def transactions_of(day: int, plan: Plan, nonce: str = "") -> list[Transaction]:
    """A sample of a day's transactions in any order, spread evenly: a part of the window then looks like all of it."""
    drawn = fraud.draw(day, plan.world)
    chosen = np.random.default_rng([plan.seed, day]).choice(len(drawn.table), plan.rows, replace=False)
    rows = json.loads(drawn.table.loc[chosen, list(fraud.FEATURES)].to_json(orient="records"))
    cards = drawn.table["card"].to_numpy()[chosen]
    result = []
    for number, (row, place) in enumerate(zip(rows, chosen, strict=True)):
        at = day + number / plan.rows
        result.append(
            Transaction(
                Row(f"{nonce}d{day}-{place}", json.dumps({"rows": [row]}).encode(), {"x-card": str(cards[number])}),
                at=at,
                outcome=fraud.OUTCOMES[int(drawn.fraud[place])],
                due=at + float(drawn.delay[place]),
            )
        )
    return result


def overrides(plan: Plan, calendar: Path) -> list[str]:
    """Overrides of fraud.yaml: its durations in replayed days, and data that arrive."""
    return [
        f"data.source.args.days={HISTORY}",
        "model.args.max_iter=40",
        f"+data.source.args.median_delay={plan.median_delay:g}",
        f"+data.source.args.calendar={calendar}",
        f"data.source.files=[{calendar}]",
        f"monitor.window={plan.duration(1)}",
        "monitor.grace=1s",
        f"monitor.performance.realised.mature={plan.duration(5)}",
        f"monitor.performance.realised.min_labels={plan.rows}",
        f"retrain.cooldown={plan.duration(10)}",
        f"retrain.budget.per={plan.duration(60)}",
        "serve.rollout.steps=[0,50]",
        "serve.rollout.bake_seconds=5",
        "serve.rollout.min_samples=300",
        "serve.rollout.cooldown_seconds=10",
    ]


def write_calendar(path: Path, plan: Plan, until: int) -> None:
    """Let the data of the days before ``until`` arrive."""
    value = {"until": until, "scenario": plan.scenario, "onset": plan.onset, "size": plan.size}
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(value))
    os.replace(temporary, path)


@dataclass
class Labels:
    """Outcomes that are not known yet, by the day they are due."""

    endpoint: str
    waiting: list[tuple[float, int, str, str]] = field(default_factory=list)
    order: Iterator[int] = field(default_factory=itertools.count)

    def expect(self, item: Transaction) -> None:
        if item.due != float("inf"):
            heapq.heappush(self.waiting, (item.due, next(self.order), item.request.id, item.outcome))

    def post_due(self, day: float) -> int:
        """Send what is known by now; returns how many."""
        due = []
        while self.waiting and self.waiting[0][0] <= day:
            _, _, id, outcome = heapq.heappop(self.waiting)
            due.append({"id": id, "label": outcome})
        for start in range(0, len(due), LABELS_AT_ONCE):
            body = json.dumps({"feedback": due[start : start + LABELS_AT_ONCE]}).encode()
            call(f"{self.endpoint}/v2/feedback", body)
        return len(due)


class Watcher:
    """Reads what the monitor and the rollout say from the admin server, and tells what is new in it."""

    def __init__(self, admin: str) -> None:
        address, _, service = admin.partition("/services/")
        self.service_url, self.page = f"{address}/api/services/{service}", f"{admin}/monitor"
        self.state, self.seen, self.rollout, self.champion = "", set[tuple[float, str]](), "", ""
        self.events: dict[str, int] = {}

    def look(self, day: int) -> list[str]:
        """Lines about what has changed since the last look."""
        lines = []
        view = call(f"{self.service_url}/monitor") or {}
        for decision in view.get("decisions", ()):
            key = decision["time"], decision["text"]
            if key not in self.seen:
                self.seen.add(key)
                lines.append(f"monitor: {decision['text']}")
        self.state = view.get("state", "")
        if any(alert["state"] == "firing" for alert in view.get("alerts", ())):
            self.events.setdefault("alarm", day)
        if view.get("retrain", {}).get("runs"):
            self.events.setdefault("retrain", day)
        service = call(self.service_url) or {}
        return lines + self._look_at_rollout(service, day)

    def _look_at_rollout(self, service: Mapping[str, Any], day: int) -> list[str]:
        lines = []
        rollout = service.get("rollout") or {}
        told = f"{rollout.get('phase', '')}, {100 * rollout.get('weight', 0):g} % of the traffic" if rollout else ""
        if told != self.rollout:
            lines.append(f"rollout of {rollout.get('candidate_version', '')}: {told}")
            self.events.setdefault("canary", day)
        champions = [one["version"] for one in service.get("variants", ()) if one["role"] == "champion"]
        if champions and champions[0] != self.champion:
            if self.champion:
                lines.append(f"version {champions[0]} is the champion now")
                self.events.setdefault("promotion", day)
            self.champion = champions[0]
        self.rollout = told
        return lines


def replay(plan: Plan, service: Mapping[str, Any], calendar: Path) -> Watcher:
    """Send all days, in the time that they take; returns what was seen.

    Where the service answers more slowly, the next day waits for the window that begins after the last answer.
    """
    sender, labels, watcher = (
        Sender(service["endpoint"], "fraud"),
        Labels(service["endpoint"]),
        Watcher(service["admin"]),
    )
    say(f"\npage  {watcher.page}\n")
    watcher.look(0)
    watcher.events.clear()
    nonce = f"{int(time.time())}-"
    begin = next_window(plan.day_seconds)
    for day in range(plan.days):
        write_calendar(calendar, plan, day)
        items = transactions_of(day, plan, nonce)
        for item in items:
            labels.expect(item)
            wait_until(begin + item.at * plan.day_seconds)
            sender.work.put(item.request)
        sender.work.join()
        if time.monotonic() > begin + (day + 1 + LATE) * plan.day_seconds:
            begin = next_window(plan.day_seconds) - (day + 1) * plan.day_seconds
        known = labels.post_due(day + 1)
        tell(day, sender, known, watcher)
        if plan.until in watcher.events:
            break
    sender.close()
    return watcher


def tell(day: int, sender: Sender, known: int, watcher: Watcher) -> None:
    """Print the day in a line, and what is new under it."""
    lines = watcher.look(day)
    answered, alerts, failed = sender.take_counts()
    trouble = f", {failed} failed: {sender.problem}" if failed else ""
    say(f"day {day:3d}  {answered:,} answered, {alerts} reported, {known:,} outcomes known{trouble}  {watcher.state}")
    for line in lines:
        say(f"         {line}")


def parse(arguments: Sequence[str]) -> tuple[Plan, Path, list[str]]:
    """The plan, the state folder and further overrides of the recipe from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=int, default=Plan.days, help="days to replay")
    parser.add_argument("--day", default="5s", help="how long a day takes; at least 5s")
    parser.add_argument("--scenario", choices=list(fraud.SCENARIOS), default=Plan.scenario)
    parser.add_argument("--onset", type=int, default=Plan.onset, help="first day of the scenario")
    parser.add_argument("--size", type=float, help="how much changes; each scenario has its own default")
    parser.add_argument("--rows", type=int, default=Plan.rows, help="transactions that are sent a day")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument(
        "--delay", type=float, default=Plan.median_delay, help="days until half of the outcomes are known"
    )
    parser.add_argument("--until", choices=EVENTS, default="", help="end when this was seen")
    parser.add_argument("--state", type=Path, default=RECIPE.parent / ".mlkit", help="state folder")
    parser.add_argument("overrides", nargs="*", help="further overrides of the recipe, such as serve.port=0")
    given = parser.parse_args(arguments)
    seconds = float(given.day.removesuffix("s"))
    plan = Plan(
        given.days, seconds, given.scenario, given.onset, given.size, given.rows, given.seed, given.delay, given.until
    )
    return plan, given.state.resolve(), given.overrides


def main(arguments: Sequence[str]) -> None:
    plan, state, more = parse(arguments)
    scenario = fraud.SCENARIOS[plan.scenario]
    say(f"synthetic transactions; scenario {plan.scenario} from day {plan.onset} on: {scenario.text}")
    state.mkdir(parents=True, exist_ok=True)
    calendar = state / "fraud_calendar.json"
    write_calendar(calendar, plan, 0)
    service = run_recipe(RECIPE, [*overrides(plan, calendar), *more], state)
    watcher = replay(plan, service, calendar)
    say("\n" + " · ".join(f"{event} on day {day}" for event, day in watcher.events.items() or {"nothing": 0}.items()))
    say(f"the service stays up: {watcher.page}; mlkit down --state {state} stops it")


if __name__ == "__main__":
    main(sys.argv[1:])
