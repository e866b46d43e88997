"""Transcripts of rollouts: what the policy decides at each observation, the actions, and the state as it is saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from mlflowkit.rollout import conditions, policy
from mlflowkit.rollout.policy import PolicyCommand
from mlflowkit.rollout.state import StepCounts
from mlflowkit.values import Affinity, Outcome, RoutingTable
from tests.support.golden import Golden
from tests.support.rolling import CANDIDATE, CHAMPION, FAILED, OPEN, PASSED, Rolling, estimate, finding

FEW = StepCounts(champion=99, challenger=99)
SHADOW = {"metrics": [{"metric": "agreement", "min": 0.9}]}
SHADOWS = RoutingTable(
    "lending",
    7,
    (
        CHAMPION,
        replace(CANDIDATE, name="shadow-0", digest="d0", version="0", role="shadow", sampling=0.5),
        replace(CANDIDATE, name="shadow-2", role="shadow"),
    ),
    affinity=Affinity("header", "x-user"),
    override_header="x-test",
)


def order(command: str, **more: Any) -> Callable[[Rolling], None]:
    return lambda rolling: (rolling.say(command, OPEN, **more), None)[1]


def at(*findings: Any, after: float = 0.0, counts: StepCounts | None = None) -> Callable[[Rolling], None]:
    return lambda rolling: (rolling.look(*findings, after=after, **({"counts": counts} if counts else {})), None)[1]


def end(rolling: Rolling) -> None:
    rolling.end()


def scenarios() -> dict[str, tuple[Rolling, list[Callable[[Rolling], None]]]]:
    return {
        "canary": (
            Rolling(steps=[0, 5, 100]),
            [at(after=5, counts=FEW), at(after=5), at(after=9), at(after=1), at(PASSED, after=10), end],
        ),
        "deadline": (
            Rolling(steps=[5, 50]),
            [at(OPEN, after=99, counts=FEW), at(OPEN, after=1, counts=FEW), end, at()],
        ),
        "held": (
            Rolling(steps=[0, 5], max_hold_seconds=30),
            [at(estimate(0.005), after=10), at(estimate(0.02), after=10), at(estimate(0.02), after=29),
             at(estimate(0.02), after=1), end],
        ),
        "objectives missing": (Rolling(steps=[5]), [at(OPEN, after=99), at(OPEN, after=1), end]),
        "failed": (Rolling(steps=[5, 50]), [*[at(OPEN, after=0.4)] * 3, at(FAILED), end]),
        "unresponsive": (
            Rolling(steps=[5]),
            [at(OPEN, counts=StepCounts(400, 20, 200, 20)), at(OPEN, counts=StepCounts(0, 20, 0, 18)), end],
        ),
        "approval": (
            Rolling(steps=[{"weight": 5, "approval": True}, 50]),
            [at(OPEN, after=10), at(OPEN, after=500), order("promote", reason="ok"), at(OPEN, after=3)],
        ),
        "manual": (
            Rolling(steps=[5], promote="manual"),
            [at(PASSED, after=10), at(PASSED, after=1), at(OPEN, after=1), order("promote"), end],
        ),
        "pause": (
            Rolling(),
            [order("resume"), order("pause", reason="lunch"), order("pause"), at(after=50), order("resume"),
             at(after=1), order("pause"), order("promote", full=True), end],
        ),
        "abort": (Rolling(), [order("abort"), order("abort"), end]),
        "rollback with a reason": (Rolling(), [order("rollback", reason="complaints"), end]),
        "publication failed": (Rolling(), [order("failed", reason="replica r1 cannot load it"), end]),
        "overtaken": (Rolling(), [order("overtaken", reason="table 12 of another writer"), at(FAILED)]),
        "shadow": (Rolling("shadow", **SHADOW), [at(finding(Outcome.PASSED, "agreement"), after=10), end]),
        "shadow that stays": (
            Rolling("shadow", SHADOWS, promote="never", **SHADOW),
            [at(OPEN, after=99), at(OPEN, after=1), at()],
        ),
        "shadow that sees too little": (
            Rolling("shadow", SHADOWS, promote="never", **SHADOW),
            [at(OPEN, after=99, counts=FEW), at(OPEN, after=1, counts=FEW)],
        ),
        "shadow, promoted": (
            Rolling("shadow", promote="never", steps=[{"weight": 0, "sampling": 0.25}], **SHADOW),
            [order("promote", reason="good"), end],
        ),
        "others": (
            Rolling("canary", SHADOWS, steps=[5, 50]),
            [order("remove", variant="nobody"), order("remove", variant="shadow-0"), at(after=10)],
        ),
        "ab": (
            Rolling("ab", metrics=[{"metric": "accuracy"}, {"metric": "accuracy", "min": 0.5, "role": "guardrail"}]),
            [at(finding(Outcome.PASSED, "accuracy"), after=10), end],
        ),
        "blue_green": (
            Rolling("blue_green", metrics=[{"metric": "error_rate", "max": 0.02}]),
            [at(OPEN, after=10, counts=StepCounts(0, 500)), at(PASSED, counts=StepCounts(0, 500)), end],
        ),
        "clock": (Rolling(), [at(after=-50), at(after=9), at(after=1)]),
    }  # fmt: skip


def plain(value: Any) -> str:
    return json.dumps(value, default=str, sort_keys=True)


def saved(rolling: Rolling) -> dict[str, Any]:
    """The state as JSON, without the plan and the findings; of the history, its length and its end."""
    state = rolling.state.to_json()
    del state["plan"], state["findings"]
    return {**state, "history": [len(state["history"]), *state["history"][-1:]]}


def test_rollouts(golden: Golden) -> None:
    lines = []
    for title, (rolling, moves) in scenarios().items():
        lines += [f"# {title}", *(f"{type(action).__name__} {plain(asdict(action))}" for action in rolling.actions)]
        state = saved(rolling)
        lines.append(plain(state))
        for number, move in enumerate(moves):
            before = len(rolling.actions)
            move(rolling)
            pending = conditions.pending_conditions(rolling.state)
            lines.append(f"{number}: {policy.describe(rolling.state)} | waits for {pending} | {plain(asdict(pending))}")
            lines += [f"  {type(action).__name__} {plain(asdict(action))}" for action in rolling.actions[before:]]
            after = saved(rolling)
            lines.append(f"  {plain({key: value for key, value in after.items() if value != state[key]})}")
            state = after
        lines.append(plain([asdict(spec) for spec in conditions.metric_specs(rolling.state, [[1.0, 2.0]])]))
    golden("rollout_decisions.txt", "\n".join(lines) + "\n")


def test_the_way_back(golden: Golden) -> None:
    lines = []
    for reason in ("", "complaints"):
        state, actions = policy.roll_back_to(
            SHADOWS, CHAMPION, id="back-1", reason=reason, now=5.0, origin={"run": "r"}
        )
        lines += [f"{type(action).__name__} {plain(asdict(action))}" for action in actions]
        lines.append(plain(state.to_json()))
        state, actions = policy.advance(state, now=6.0)
        lines += [plain(state.to_json()), plain([asdict(action) for action in actions])]
    rolling = Rolling(metrics=[{"metric": "prometheus", "query": "up", "max": 1.0}, {"metric": "error_rate"}])
    lines.append(plain([asdict(spec) for spec in conditions.metric_specs(rolling.state, [[1.0, 2.0]])]))
    lines.append(plain([asdict(spec) for spec in conditions.metric_specs(rolling.state)]))
    golden("rollout_way_back.txt", "\n".join(lines) + "\n")


def test_commands_before_the_first_table_is_live(golden: Golden) -> None:
    lines = []
    for kind in ("abort", "rollback", "failed", "pause"):
        rolling = Rolling()
        for phase in ("pending", "preparing", "rolling_back"):
            state = replace(rolling.state, phase=phase)
            state, actions = policy.advance(state, command=PolicyCommand(kind), now=1001.0)  # type: ignore[arg-type]
            names = [type(action).__name__ for action in actions]
            lines.append(f"{kind} while {phase}: {state.phase}, {state.ending}, {state.reason!r}, {state.by}, {names}")
    golden("rollout_early_commands.txt", "\n".join(lines) + "\n")
