"""Whatever the evidence, the people and the clock do: what must hold at every look of a rollout."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mlflowkit.judging.online.judge import MetricResult
from mlflowkit.rollout import policy
from mlflowkit.rollout.policy import PolicyCommand
from mlflowkit.rollout.settings import Rollout
from mlflowkit.rollout.state import Promote, Request, RollBack, RolloutState, SetTable, StepCounts
from mlflowkit.serving.inference.variants import check_table
from mlflowkit.values import Outcome, RoutingTable, Variant, Verdict

CHAMPION = Variant("champion", "1", "d1", "/bundles/1")
SHADOW = Variant("shadow-0", "0", "d0", "/bundles/0", role="shadow", weight=0.0)
CANDIDATE = Variant("challenger", "2", "d2", "/bundles/2", role="challenger", weight=0.0)
METRICS = [
    {"metric": "error_rate", "margin": 0.01},
    {"metric": "agreement", "min": 0.9},
    {"metric": "latency_p99_ms", "ratio": 2, "role": "guardrail"},
]
OBJECTIVES = {"error_rate", "agreement"}

steps = st.lists(
    st.builds(
        lambda weight, approval, bake: {"weight": weight, "approval": approval, "bake_seconds": bake},
        st.sampled_from([0, 1, 5, 25, 50, 99.9, 100]),
        st.booleans(),
        st.sampled_from([0, 3]),
    ),
    max_size=4,
).map(lambda steps: sorted(steps, key=lambda step: step["weight"]))
plans = st.builds(
    lambda strategy, steps, promote: Rollout.model_validate(
        {
            "strategy": strategy,
            "steps": steps,
            "promote": promote,
            "metrics": METRICS,
            "min_samples": 10,
            "max_seconds": 30,
        }
    ),
    st.sampled_from(["shadow", "canary", "ab", "blue_green"]),
    steps,
    st.sampled_from(["automatic", "manual", "never"]),
)
outcomes = st.sampled_from([Outcome.PASSED, Outcome.PASSED, Outcome.INCONCLUSIVE, Outcome.ERROR, Outcome.FAILED])
findings = st.lists(st.tuples(st.sampled_from([metric["metric"] for metric in METRICS]), outcomes), max_size=3)
commands = st.none() | st.builds(
    PolicyCommand,
    st.sampled_from(["promote", "pause", "resume", "abort", "rollback", "remove", "failed"]),
    st.just("said"),
    st.booleans(),
    st.sampled_from(["", "shadow-0", "nobody"]),
)
counts = st.builds(StepCounts, st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 300), st.integers(0, 300))
looks = st.lists(st.tuples(findings, counts, commands, st.floats(-40, 40)), max_size=25)


def metric_results(pairs: list[tuple[str, Outcome]]) -> tuple[MetricResult, ...]:
    return tuple(MetricResult(name, Verdict(name, outcome, "", name), 0.0, 0.0, (1, 1)) for name, outcome in pairs)


def check(before: RolloutState, after: RolloutState, actions: Any, look: Any) -> None:
    seen, _, command, _ = look
    tables = [action.table for action in actions if isinstance(action, SetTable)]
    for table in tables:
        check_table(table)
        shares = [variant.weight for variant in table.variants if variant.role != "shadow"]
        assert abs(sum(shares) - 1) < 1e-9
        assert all(0 <= share <= 1 for share in shares)
        assert table.epoch == before.epoch + 1
        assert all(variant.start == 0.0 for variant in table.variants)
    assert len(tables) <= 1
    assert after.elapsed >= before.elapsed or after.step_epochs != before.step_epochs or before.phase == "preparing"
    live = before.phase in ("running", "paused", "awaiting_approval")
    if live and any(outcome == Outcome.FAILED for _, outcome in seen):
        assert after.phase == "rolling_back"
        assert [variant.digest for variant in tables[0].variants if variant.role != "shadow"] == ["d1"]
        assert any(isinstance(action, RollBack) for action in actions)
    if live and after.phase in ("running", "paused", "awaiting_approval"):
        assert after.step in (before.step, before.step + 1)
        assert after.weight >= before.weight
    if after.phase == "promoting" and before.phase != "promoting":
        asked = command is not None and command.kind == "promote"
        passed = {name for name, outcome in seen if outcome == Outcome.PASSED}
        assert asked or passed >= OBJECTIVES
    if any(isinstance(action, Promote) for action in actions):
        assert after.phase == "promoting"


@settings(max_examples=300, deadline=None)
@given(plans, looks, st.booleans())
def test_what_must_hold_at_every_look(plan: Rollout, looks: Any, shadow: bool) -> None:
    table = RoutingTable("lending", 4, (CHAMPION, SHADOW) if shadow else (CHAMPION,))
    state = policy.begin(Request("e", "lending", CANDIDATE, plan, 0.0), table, now=0.0)
    now, restored = 0.0, state
    for look in looks:
        seen, counted, command, after = look
        now += after
        new, actions = policy.advance(state, metric_results(seen), counted, command, now)
        assert (new, actions) == policy.advance(restored, metric_results(seen), counted, command, now)
        if state.ended:
            assert (new, actions) == (state, ())
        else:
            check(state, new, actions, look)
        state = new
        restored = RolloutState.from_json(state.to_json())
        if plan.promote == "never":
            assert state.phase not in ("promoting", "promoted") or state.by == "person"


@settings(max_examples=50, deadline=None)
@given(plans, st.lists(counts, max_size=5))
def test_a_rollout_that_nobody_attends_to_comes_to_an_end(plan: Rollout, seen: list[StepCounts]) -> None:
    state = policy.begin(Request("e", "lending", CANDIDATE, plan, 0.0), RoutingTable("lending", 4, (CHAMPION,)), now=0)
    now = 0.0
    for number in range(60):
        now += 31.0
        state, _ = policy.advance(state, (), seen[number % len(seen)] if seen else StepCounts(), None, now)
        if state.ended or state.phase == "awaiting_approval":
            return
    raise AssertionError(f"still {state.phase}")
