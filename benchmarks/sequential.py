"""The error rates, power and delays of the judges of a rollout, by simulation through
`mlflowkit.judging.online.judge.judge`.

A/A: rollouts whose truth lies exactly on the limit, looked at over and over until FAILED or PASSED is said; the truth
being on the limit, each may be said in at most a share ``level`` of the rollouts. A/B: planted regressions (how many
are found, and after how many requests of the challenger), and challengers as good as the champion (how many requests
until that is shown). A last group breaks the assumption that requests are independent, to say how much that matters.
Traffic: weights grow 5 -> 25 -> 50 percent in thirds of the rollout where it says "steps", otherwise 5 percent
throughout.

    python -m benchmarks.sequential --rollouts 1000 --out benchmarks/results/sequential.json
    python -m benchmarks.sequential --rollouts 1000 --only "error_rate|accuracy"  # keeps the other rows
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlflowkit.judging.online.evidence import LATENCY_GROWTH, Evidence, Moments, VariantCounts
from mlflowkit.judging.online.judge import MetricSpec, judge
from mlflowkit.values import Outcome

LEVEL = 0.05
Draw = Callable[[np.random.Generator, int, int, float], VariantCounts]
"""(random, requests, arm: 0 champion or 1 challenger, share of the rollout that is over) -> counts."""


@dataclass(frozen=True)
class Case:
    """Rollouts of one kind."""

    name: str
    questions: Sequence[MetricSpec]
    draw: Draw
    requests: int = 20_000
    looks: int = 60
    steps: Sequence[float] = (0.05,)
    rollouts: float = 1.0
    """Share of the rollouts asked for: fewer where each takes long."""


@dataclass
class Counted:
    """One arm's cumulative counts under each table."""

    epochs: dict[int, VariantCounts] = field(default_factory=dict)

    def add(self, epoch: int, counts: VariantCounts) -> None:
        self.epochs[epoch] = self.epochs[epoch] + counts if epoch in self.epochs else counts


@dataclass(frozen=True)
class Told:
    """What was said first in one rollout, and after how many requests of the challenger and of both."""

    outcome: Outcome
    challenger: int
    total: int


def rollout(case: Case, seed: int, stop: Sequence[Outcome] = (Outcome.FAILED, Outcome.PASSED)) -> list[Told]:
    """Look until the traffic is over; one entry for each outcome in ``stop`` that was said, at its first time."""
    random = np.random.default_rng(seed)
    arms = Counted(), Counted()
    traces: Mapping[str, Any] = {}
    told: dict[Outcome, Told] = {}
    requests = [0, 0]
    for look in range(case.looks):
        size = (look + 1) * case.requests // case.looks - look * case.requests // case.looks
        done = look / case.looks
        step = int(done * len(case.steps))
        challengers = int(random.binomial(size, case.steps[step]))
        for arm, count in enumerate((size - challengers, challengers)):
            if count:
                arms[arm].add(step + 1, case.draw(random, count, arm, done))
                requests[arm] += count
        epochs = range(1, step + 2)
        seen = {
            epoch: {
                name: arm.epochs[epoch]
                for name, arm in zip(("champion", "challenger"), arms, strict=True)
                if epoch in arm.epochs
            }
            for epoch in epochs
        }
        findings, traces = judge(
            case.questions,
            Evidence("simulated", seen),
            champion="champion",
            challenger="challenger",
            epochs=tuple(epochs),
            level=LEVEL,
            traces=traces,
        )
        outcomes = [finding.verdict.outcome for finding in findings]
        for outcome, said in (
            (Outcome.FAILED, Outcome.FAILED in outcomes),
            (Outcome.PASSED, all(outcome is Outcome.PASSED for outcome in outcomes)),
        ):
            if said and outcome not in told:
                told[outcome] = Told(outcome, requests[1], sum(requests))
        if all(outcome in told for outcome in stop):
            break
    return list(told.values())


# ------------------------------------------------------------------------------------------------------- what is drawn


def errors(champion: float, challenger: float, swing: float = 0.0) -> Draw:
    """Failures at these rates; with a swing both go up and down together between 0 and twice their rate."""

    def draw(random: np.random.Generator, count: int, arm: int, done: float) -> VariantCounts:
        rate = (champion, challenger)[arm] * (1 + swing * math.sin(40 * done))
        return VariantCounts(requests=count, errors=int(random.binomial(count, rate)), rows=count)

    return draw


def users(champion: float, careless: float = 0.05, each: int = 20) -> Draw:
    """Failures that users cause: each sends 20 requests to one variant, and 5 % of them cause 20 times the failures."""

    def draw(random: np.random.Generator, count: int, arm: int, done: float) -> VariantCounts:
        people = max(round(count / each), 1)
        usual = champion / (1 + 19 * careless)
        rates = np.where(random.random(people) < careless, 20 * usual, usual)
        return VariantCounts(requests=people * each, errors=int(random.binomial(each, rates).sum()), rows=count)

    return draw


def quality(metric: str, values: Callable[[np.random.Generator, int, int], Any]) -> Draw:
    def draw(random: np.random.Generator, count: int, arm: int, done: float) -> VariantCounts:
        found = values(random, count, arm)
        moments = Moments(count, float(found.sum()), float((found * found).sum()))
        return VariantCounts(requests=count, rows=count, quality={metric: moments})

    return draw


def right(champion: float, challenger: float) -> Draw:
    return quality("accuracy", lambda random, count, arm: random.random(count) < (champion, challenger)[arm])


def latencies(factor: float = 1.0, tail: bool = False, swing: float = 0.0) -> Draw:
    """Log-normal latencies around 4 ms, the challenger's ``factor`` times as long; a heavy tail has 2 % Pareto of
    infinite variance; with a swing the load on both stretches them up to 1 + swing times within the rollout."""

    def draw(random: np.random.Generator, count: int, arm: int, done: float) -> VariantCounts:
        seconds = 0.004 * random.lognormal(0, 0.5, count)
        if tail:
            seconds = np.where(random.random(count) < 0.02, 0.01 * (1 + random.pareto(1.2, count)), seconds)
        seconds = seconds * (factor if arm else 1.0) * (1 + swing * math.sin(20 * done) ** 2)
        bins, found = np.unique((np.log(seconds * 1e6) / math.log(LATENCY_GROWTH)).astype(int), return_counts=True)
        return VariantCounts(requests=count, rows=count, latency=dict(zip(bins.tolist(), found.tolist(), strict=True)))

    return draw


def labels(shift: float) -> Draw:
    """Three classes; the challenger takes ``shift`` from the first and gives it to the second."""

    def draw(random: np.random.Generator, count: int, arm: int, done: float) -> VariantCounts:
        found = random.multinomial(count, [0.7 - shift * arm, 0.2 + shift * arm, 0.1])
        return VariantCounts(
            requests=count, rows=count, predictions={f"label:{i}": int(n) for i, n in enumerate(found) if n}
        )

    return draw


def scores(shift: float) -> Draw:
    """Scores in 50 bins; the challenger takes ``shift`` from the lower half of the range and gives it to the upper."""
    base = np.where(np.arange(50) < 25, 0.8 / 25, 0.2 / 25)
    moved = base + np.where(np.arange(50) < 25, -shift / 25, shift / 25)

    def draw(random: np.random.Generator, count: int, arm: int, done: float) -> VariantCounts:
        found = random.multinomial(count, moved if arm else base)
        return VariantCounts(
            requests=count, rows=count, predictions={f"score:{i}": int(n) for i, n in enumerate(found) if n}
        )

    return draw


def agreeing(rate: float) -> Draw:
    def draw(random: np.random.Generator, count: int, arm: int, done: float) -> VariantCounts:
        same = int(random.binomial(count, rate)) if arm else 0
        return VariantCounts(requests=count, rows=count, agreement={"": Moments(count, same, same)} if arm else {})

    return draw


def together(*draws: Draw) -> Draw:
    """Several metrics of the same requests."""

    def draw(random: np.random.Generator, count: int, arm: int, done: float) -> VariantCounts:
        parts = [one(random, count, arm, done) for one in draws]
        quality = {name: moments for part in parts for name, moments in part.quality.items()}
        latency = next((part.latency for part in parts if part.latency), {})
        failed = sum(part.errors for part in parts)
        return VariantCounts(requests=count, errors=failed, rows=count, latency=latency, quality=quality)

    return draw


def log_losses(random: np.random.Generator, count: int, arm: int) -> Any:
    return random.exponential(0.4, count)


def heavy(random: np.random.Generator, count: int, arm: int) -> Any:
    """Squares of errors from Student's t with 5 degrees of freedom: of a finite mean, and barely of a variance."""
    return random.standard_t(5, count) ** 2


STEPS = (0.05, 0.25, 0.5)


def asked(metric: str, **limits: Any) -> MetricSpec:
    return MetricSpec(metric, metric, **limits)


FIVE = (
    asked("error_rate"),
    asked("latency_p50_ms"),
    asked("latency_p99_ms"),
    asked("accuracy"),
    asked("log_loss"),
)

ON_THE_LIMIT = (
    Case("error_rate, equal", [asked("error_rate")], errors(0.01, 0.01)),
    Case("error_rate, equal, 20 looks", [asked("error_rate")], errors(0.01, 0.01), looks=20),
    Case("error_rate, equal, 20,000 looks", [asked("error_rate")], errors(0.01, 0.01), looks=20_000, rollouts=0.1),
    Case("error_rate at margin 0.005", [asked("error_rate", margin=0.005)], errors(0.01, 0.015)),
    Case("error_rate 0 to 5 %, steps", [asked("error_rate")], errors(0.025, 0.025, 1.0), steps=STEPS),
    Case("error_rate at max 0.02", [asked("error_rate", max=0.02)], errors(0.01, 0.02), steps=STEPS),
    Case("accuracy, equal, steps", [asked("accuracy")], right(0.9, 0.9), steps=STEPS),
    Case("accuracy at margin 0.02", [asked("accuracy", margin=0.02)], right(0.9, 0.88)),
    Case("log_loss, equal, steps", [asked("log_loss")], quality("log_loss", log_losses), steps=STEPS),
    Case("squared_error, heavy tail", [asked("squared_error")], quality("squared_error", heavy)),
    Case("latency_p99, equal", [asked("latency_p99_ms")], latencies()),
    Case("latency_p99 at ratio 1.2, steps", [asked("latency_p99_ms", ratio=1.2)], latencies(1.2), steps=STEPS),
    Case("latency_p99 at 1.2, heavy tail", [asked("latency_p99_ms", ratio=1.2)], latencies(1.2, tail=True)),
    Case("latency_p99 at 1.2, load x1 to x3", [asked("latency_p99_ms", ratio=1.2)], latencies(1.2, swing=2.0)),
    Case("latency_p50 at ratio 1.1", [asked("latency_p50_ms", ratio=1.1)], latencies(1.1)),
    Case("prediction_drift at 0.1, labels", [asked("prediction_drift", max=0.1)], labels(0.1)),
    Case("prediction_drift at 0.1, scores", [asked("prediction_drift", max=0.1)], scores(0.1)),
    Case("agreement at min 0.95", [asked("agreement", min=0.95)], agreeing(0.95)),
    Case(
        "five questions, equal, steps",
        FIVE,
        together(errors(0.01, 0.01), latencies(), right(0.9, 0.9), quality("log_loss", log_losses)),
        looks=40,
        steps=STEPS,
    ),
)

DEPENDENT = (
    Case("error_rate, users of 20 requests", [asked("error_rate")], users(0.01), steps=STEPS),
    Case("error_rate, such users, margin 0.005", [asked("error_rate", margin=0.005)], users(0.01), steps=STEPS),
)
"""What is assumed does not hold: requests of one user share their fate. Equal arms; PASSED is right with a margin."""

PLANTED = (
    Case("error_rate 1 % -> 3 %", [asked("error_rate")], errors(0.01, 0.03), 60_000, 300),
    Case("error_rate 1 % -> 3 %, margin 0.005", [asked("error_rate", margin=0.005)], errors(0.01, 0.03), 60_000, 300),
    Case("latency_p99 x1.5, ratio 1.2", [asked("latency_p99_ms", ratio=1.2)], latencies(1.5), 60_000, 100),
    Case("latency_p99 x1.5", [asked("latency_p99_ms")], latencies(1.5), 60_000, 100),
    Case("latency_p50 x1.2, ratio 1.1", [asked("latency_p50_ms", ratio=1.1)], latencies(1.2), 60_000, 100),
    Case("accuracy -5 points", [asked("accuracy")], right(0.9, 0.85), 60_000, 300),
    Case("accuracy -5 points, margin 0.02", [asked("accuracy", margin=0.02)], right(0.9, 0.85), 120_000, 300),
    Case("prediction_drift 0.25, max 0.1", [asked("prediction_drift", max=0.1)], labels(0.25), 60_000, 100),
    Case("agreement 0.90, min 0.95", [asked("agreement", min=0.95)], agreeing(0.9), 60_000, 300),
    Case(
        "error_rate 1 % -> 3 % among five",
        [replace(FIVE[0], margin=0.005), *FIVE[1:]],
        together(errors(0.01, 0.03), latencies(), right(0.9, 0.9), quality("log_loss", log_losses)),
        60_000,
        100,
        rollouts=0.3,
    ),
)

AS_GOOD = (
    Case("error_rate 1 %, margin 0.005", [asked("error_rate", margin=0.005)], errors(0.01, 0.01), 400_000, 200),
    Case("error_rate 1 %, margin 0.01", [asked("error_rate", margin=0.01)], errors(0.01, 0.01), 200_000, 200),
    Case("latency_p99, ratio 1.2", [asked("latency_p99_ms", ratio=1.2)], latencies(), 200_000, 100, rollouts=0.3),
    Case("latency_p50, ratio 1.1", [asked("latency_p50_ms", ratio=1.1)], latencies(), 200_000, 100, rollouts=0.3),
    Case("accuracy 0.9, margin 0.02", [asked("accuracy", margin=0.02)], right(0.9, 0.9), 400_000, 200),
    Case("prediction_drift 0, max 0.1", [asked("prediction_drift", max=0.1)], labels(0.0), 60_000, 100),
    Case("agreement 0.98, min 0.95", [asked("agreement", min=0.95)], agreeing(0.98), 60_000, 300),
)


# ----------------------------------------------------------------------------------------------------------- the report


def upper_bound(count: int, runs: int, confidence: float = 0.95) -> float:
    """Clopper and Pearson's upper bound on a rate."""
    from scipy.stats import beta

    return 1.0 if count == runs else float(beta.ppf(confidence, count + 1, runs - count))


def false_rates(case: Case, rollouts: int) -> dict[str, Any]:
    """How often FAILED and PASSED are said of a truth that lies on the limit."""
    runs = max(int(rollouts * case.rollouts), 1)
    told = [one.outcome for seed in range(runs) for one in rollout(case, seed)]
    found: dict[str, Any] = {"case": case.name, "rollouts": runs, "looks": case.looks, "requests": case.requests}
    for outcome in (Outcome.FAILED, Outcome.PASSED):
        count = told.count(outcome)
        found[outcome.lower()] = count / runs
        found[f"{outcome.lower()}_upper"] = round(upper_bound(count, runs), 4)
    return found


def delays(case: Case, rollouts: int, outcome: Outcome) -> dict[str, Any]:
    """How often ``outcome`` is said, and after how many requests: of the challenger, and of both."""
    runs = max(int(rollouts * case.rollouts), 1)
    told = [one for seed in range(runs) for one in rollout(case, seed, (outcome,)) if one.outcome is outcome]
    found: dict[str, Any] = {"case": case.name, "rollouts": runs, "looks": case.looks, "said": len(told) / runs}
    for name in ("challenger", "total"):
        values = sorted(getattr(one, name) for one in told)
        if values:
            found[name] = {"median": statistics.median(values), "p90": values[int(0.9 * (len(values) - 1))]}
    return found


def look_seconds() -> dict[str, Any]:
    """CPU time of one look at five questions with histograms of 1,000 bins in each arm."""
    histogram = {index: int(1000 * math.exp(-((index - 400) ** 2) / 1e4)) + 1 for index in range(100, 1100)}

    def counts(size: int, look: int) -> VariantCounts:
        quality = {"accuracy": Moments(size, 0.9 * size, 0.9 * size), "log_loss": Moments(size, 0.4 * size, 0.4 * size)}
        return VariantCounts(size, size // 100, size, {**histogram, 400: histogram[400] + look}, quality=quality)

    times = []
    traces: Mapping[str, Any] = {}
    for look in range(400):
        arms = {"champion": counts(100_000 + 1900 * look, look), "challenger": counts(10_000 + 100 * look, look)}
        start = time.process_time()
        _, traces = judge(
            FIVE,
            Evidence("simulated", {1: arms}),
            champion="champion",
            challenger="challenger",
            epochs=(1,),
            level=LEVEL,
            traces=traces,
        )
        times.append(time.process_time() - start)
    return {"questions": 5, "bins": 1000, "median_ms": 1000 * statistics.median(times), "looks": len(times)}


def kept(path: Path | None, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with those of an earlier run that this one did not ask for."""
    if path is None or not path.exists():
        return list(rows)
    new = {(row["kind"], row["case"]): row for row in rows}
    old = {(row["kind"], row["case"]): row for row in json.loads(path.read_text())["rows"]}
    return list({**old, **new}.values())


def main() -> None:
    from benchmarks.process import report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=1000)
    parser.add_argument("--only", default="", help="cases whose names match this expression")
    parser.add_argument("--out", type=Path, help="write JSON here")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"{'case':40} {'rollouts':>8} {'looks':>7}  FAILED  (upper)  PASSED  (upper)   level {LEVEL}")
    kinds = [("on the limit", case) for case in ON_THE_LIMIT] + [("dependent", case) for case in DEPENDENT]
    for kind, case in kinds:
        if re.search(options.only, case.name):
            row = {"kind": kind, **false_rates(case, options.rollouts)}
            rows.append(row)
            print(
                f"{case.name:40} {row['rollouts']:8} {case.looks:7}  {row['failed']:6.3f}  ({row['failed_upper']:.3f})"
                f"  {row['passed']:6.3f}  ({row['passed_upper']:.3f})",
                flush=True,
            )
    for kind, cases, outcome in (("planted", PLANTED, Outcome.FAILED), ("as good", AS_GOOD, Outcome.PASSED)):
        print(f"{kind + ' at 5 % weight':40} {'rollouts':>8}  {outcome}  requests of the challenger: median, 90 %")
        for case in cases:
            if re.search(options.only, case.name):
                row = {"kind": kind, **delays(case, options.rollouts // 5, outcome)}
                rows.append(row)
                part = row.get("challenger", {"median": math.nan, "p90": math.nan})
                shown = f"{part['median']:10,.0f} {part['p90']:10,.0f}"
                print(f"{case.name:40} {row['rollouts']:8}  {row['said']:6.3f}  {shown}", flush=True)
    timing = look_seconds()
    print(f"a look at five questions, histograms of 1,000 bins: {timing['median_ms']:.2f} ms of CPU")
    rows.append({"kind": "look", "case": "five questions", **timing})
    report("sequential", kept(options.out, rows) if options.only else rows, options.out)


if __name__ == "__main__":
    main()
