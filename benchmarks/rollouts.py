"""Rollouts played with the real policy and judges: false rollbacks under continuous looking, how soon harm is found.

Bars: of challengers within their limits, as many as the level says are rolled back at most, also of those that lie on
a limit exactly; two points more errors at 5 % of the traffic are found within the requests that are stated here, and
within as many in a service under load (tests/e2e). Each rollout is looked at about a hundred times.

A limit that is lain on is the worst case: `A/A, no margin` asks whether equals are told apart, `error rate +1 points`
has exactly the errors that the margin allows, `latency x2` exactly the ratio.

    python -m benchmarks.rollouts --rollouts 1000 --workers 2     (with --only 0 3 the others stay as they were)
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.process import arguments, report
from mlflowkit.rollout.settings import Rollout
from mlflowkit.rollout.simulation.scenarios import (
    ScenarioKind,
    TrafficFigures,
    build_scenario,
    scenario_name,
    synthetic_world,
)
from mlflowkit.rollout.simulation.simulator import Summary, simulate_many, summarise

OUT = Path(__file__).parent / "results" / "rollouts.json"
ERRORS = {"metric": "error_rate", "margin": 0.01}
LATENCY = {"metric": "latency_p99_ms", "ratio": 2.0}
PLANS: Mapping[str, Mapping[str, Any]] = {
    "canary": {
        "strategy": "canary",
        "steps": [0, 5, 25, 50],
        "metrics": [{"metric": "agreement", "min": 0.8, "role": "guardrail"}, ERRORS, LATENCY],
    },
    "no margin": {
        "strategy": "canary",
        "steps": [5, 25, 50],
        "max_seconds": 600,
        "metrics": [{"metric": "error_rate"}, {"metric": "latency_p99_ms"}, {"metric": "accuracy"}],
    },
    "errors only, 5 %": {"strategy": "canary", "steps": [5], "metrics": [ERRORS]},
    "errors only, no margin, 5 %": {"strategy": "canary", "steps": [5], "metrics": [{"metric": "error_rate"}]},
    "latency only, 5 %": {"strategy": "canary", "steps": [5], "metrics": [LATENCY]},
    "feedback, 50 %": {"strategy": "ab", "steps": [50], "metrics": [{"metric": "accuracy", "margin": 0.01}]},
}
ROWS: tuple[tuple[str, ScenarioKind, float], ...] = (
    ("canary", "aa", 0.0),
    ("no margin", "aa", 0.0),
    ("errors only, 5 %", "error-rate", 0.01),
    ("latency only, 5 %", "latency", 2.0),
    ("errors only, 5 %", "error-rate", 0.02),
    ("errors only, 5 %", "error-rate", 0.03),
    ("errors only, 5 %", "error-rate", 0.05),
    ("errors only, no margin, 5 %", "error-rate", 0.02),
    ("latency only, 5 %", "latency", 3.0),
    ("latency only, 5 %", "latency-tail", 3.0),
    ("feedback, 50 %", "accuracy", 0.05),
    ("canary", "error-rate", 0.02),
    ("canary", "error-rate", 0.05),
)


def main() -> None:
    parser = arguments(__doc__ or "", rounds=1)
    parser.add_argument("--rollouts", type=int, default=1000, help="of each row")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--only", type=int, nargs="*", help="rows, from 0")
    options = parser.parse_args()
    out = options.out or OUT
    rows = {} if options.only is None else _before(out)
    for number, (name, kind, size) in enumerate(ROWS):
        if options.only is None or number in options.only:
            made = row(name, kind, size, options.rollouts, options.workers)
            rows[made["plan"], made["scenario"]] = made
            print(f"{number + 1} of {len(ROWS)}: {name}, {made['scenario']} in {made['seconds']} s", flush=True)
    order = {(name, scenario_name(kind, size)): number for number, (name, kind, size) in enumerate(ROWS)}
    report("rollouts", [rows[key] for key in sorted(rows, key=lambda key: order.get(key, len(order)))], out)


def _before(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of an earlier run."""
    found = json.loads(out.read_text())["rows"] if out.exists() else []
    return {(one["plan"], one["scenario"]): one for one in found}


def row(name: str, kind: ScenarioKind, size: float, rollouts: int, workers: int) -> dict[str, Any]:
    """One scenario under one plan: 50 requests a second, 1 % of them failed by the champion."""
    plan = Rollout.model_validate(PLANS[name])
    one = build_scenario(kind, size, synthetic_world(TrafficFigures(), "classification"), plan)
    start = time.perf_counter()
    played = simulate_many(plan, one, rollouts, workers=workers)
    seconds = time.perf_counter() - start
    found = summarise(one.name, bool(one.violated), played)
    return {
        "plan": name, "scenario": one.name, "limits": "beyond" if found.harmful else "within", "level": plan.level,
        "rollouts": rollouts, "failed": found.failed, "share": round(found.share, 4),
        "interval": [round(max(found.low, 0.0), 4), round(found.high, 4)], "promoted": found.promoted,
        "deadline": found.deadline, "looks": round(found.looks), **_spreads(found), "seconds": round(seconds, 1),
    }  # fmt: skip


def _spreads(found: Summary) -> dict[str, Any]:
    """Median and 90th percentile of what it took to find the harm."""
    parts = {"challenger_requests": found.found_tried, "all_requests": found.found_requests}
    return {name: "" if one is None or not found.harmful else [one.median, one.p90] for name, one in parts.items()}


if __name__ == "__main__":
    main()
