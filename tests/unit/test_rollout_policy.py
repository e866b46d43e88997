"""The policy, observation by observation: strategies, commands, deadlines, baking, approvals, clocks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from mlflowkit.judging.online.evidence import Evidence, VariantCounts
from mlflowkit.judging.online.judge import MetricResult
from mlflowkit.rollout import conditions, policy
from mlflowkit.rollout.policy import PolicyCommand
from mlflowkit.rollout.settings import Rollout
from mlflowkit.rollout.state import (
    Notify,
    Promote,
    Request,
    RollBack,
    SavedRollout,
    SetTable,
    StepCounts,
    read,
    write,
)
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.values import Measurement, Outcome, RoutingTable
from tests.support.rolling import (
    CANDIDATE,
    CHAMPION,
    ERRORS,
    FAILED,
    OPEN,
    PASSED,
    PLENTY,
    TABLE,
    Rolling,
    estimate,
    finding,
)


def test_a_canary_goes_up_its_steps_and_is_promoted() -> None:
    rolling = Rolling(steps=[5, 50])
    assert rolling.state.phase == "running"
    assert rolling.shares == {"champion": 0.95, "challenger": 0.05}
    assert rolling.look(OPEN, after=10) == "running"
    assert rolling.shares == {"champion": 0.5, "challenger": 0.5}
    assert rolling.look(OPEN, after=10) == "running"  # the last step needs its objectives shown
    assert rolling.look(PASSED, after=1) == "promoting"
    assert rolling.end() == "promoted"
    (only,) = rolling.tables[-1].variants
    assert (only.name, only.role, only.version, only.weight) == ("champion", "champion", "2", 1.0)
    assert [table.epoch for table in rolling.tables] == [7, 8, 9, 10]
    assert {table.salt for table in rolling.tables[1:]} == {"e1"}
    assert rolling.events == ["started", "step", "promoted"]
    promoted = [action for action in rolling.actions if isinstance(action, Promote)]
    assert [(action.candidate.version, action.champion.version) for action in promoted] == [("2", "1")]


def test_a_step_without_steps_in_the_recipe_has_the_default_ones() -> None:
    assert [step.weight for step in Rolling().state.steps] == [5, 25, 50]
    assert [step.weight for step in Rolling("shadow").state.steps] == [0]
    assert [step.weight for step in Rolling("ab").state.steps] == [50]
    assert [step.weight for step in Rolling("blue_green").state.steps] == [100]


def test_a_failed_finding_takes_all_traffic_away_in_that_look() -> None:
    rolling = Rolling(steps=[5, 50])
    assert rolling.look(FAILED, after=1) == "rolling_back"
    assert rolling.shares == {"champion": 1.0}
    (blame,) = [action for action in rolling.actions if isinstance(action, RollBack)]
    assert (blame.blamed.version, blame.findings) == ("2", (FAILED,))
    assert "+3 points" in blame.reason
    assert rolling.end() == "rolled_back"
    assert rolling.events == ["started", "rolled_back"]
    assert rolling.look(PASSED, after=500) == "rolled_back"


@pytest.mark.parametrize("held", ["pause", "approval"])
def test_a_failed_finding_ends_also_what_is_held(held: str) -> None:
    rolling = Rolling(steps=[{"weight": 5, "approval": True}, 50])
    phase = rolling.say("pause", OPEN) if held == "pause" else rolling.look(OPEN, after=10)
    assert phase == ("paused" if held == "pause" else "awaiting_approval")
    assert rolling.look(FAILED) == "rolling_back"


def test_a_failed_finding_is_stronger_than_a_person_who_says_promote() -> None:
    assert Rolling().say("promote", FAILED, full=True) == "rolling_back"


def test_a_candidate_that_answers_nothing_is_out_whatever_it_is_judged_by() -> None:
    rolling = Rolling(metrics=[{"metric": "accuracy", "margin": 0.1}])
    assert rolling.look(counts=StepCounts(500, 19, 0, 19)) == "running"
    assert rolling.look(counts=StepCounts(500, 20, 0, 20)) == "rolling_back"
    assert "failed 20 of 20 requests" in rolling.state.reason


def test_a_candidate_is_not_blamed_for_what_the_champion_fails_too() -> None:
    assert Rolling().look(counts=StepCounts(500, 25, 480, 24)) == "running"


def test_no_step_ends_before_both_variants_were_seen_and_it_baked() -> None:
    rolling = Rolling(steps=[5, 50])
    assert rolling.look(PASSED, after=50, counts=StepCounts(9_000, 99)) == "running"
    assert rolling.look(PASSED, counts=StepCounts(99, 9_000)) == "running"
    assert rolling.state.step == 0
    rolling = Rolling(steps=[5, 50])
    rolling.look(PASSED, after=9.9)
    assert rolling.state.step == 0
    rolling.look(PASSED, after=0.1)
    assert rolling.state.step == 1


def test_what_is_not_shown_at_the_deadline_is_rolled_back() -> None:
    rolling = Rolling(steps=[5])
    assert rolling.look(OPEN, after=99) == "running"
    assert rolling.look(OPEN, after=1) == "rolling_back"
    assert "100 s" in rolling.state.reason
    assert "error_rate" in rolling.state.reason


def test_no_data_holds_and_is_rolled_back_at_the_deadline() -> None:
    rolling = Rolling(steps=[5])
    for _ in range(9):
        assert rolling.look(after=11, counts=StepCounts()) == "running"
    assert rolling.shares["challenger"] == 0.05
    assert rolling.look(after=11, counts=StepCounts()) == "rolling_back"
    assert "0 of 100 requests of the challenger" in rolling.state.reason


def test_each_step_has_its_own_limits() -> None:
    rolling = Rolling(steps=[{"weight": 5, "bake_seconds": 0, "min_samples": 1}, {"weight": 50, "max_seconds": 20}])
    assert rolling.look(OPEN, counts=StepCounts(1, 1)) == "running"
    assert rolling.state.step == 1
    assert rolling.look(OPEN, after=20) == "rolling_back"


def test_guardrails_need_not_be_shown_to_hold() -> None:
    guard = {"metric": "latency_p99_ms", "ratio": 2, "role": "guardrail"}
    rolling = Rolling(steps=[50], metrics=[ERRORS, guard])
    assert rolling.look(PASSED, finding(Outcome.INCONCLUSIVE, "latency_p99_ms"), after=10) == "promoting"
    rolling = Rolling(steps=[50], metrics=[ERRORS, guard])
    assert rolling.look(PASSED, finding(Outcome.FAILED, "latency_p99_ms"), after=10) == "rolling_back"


WORSE, WITHIN = estimate(0.03), estimate(0.005)


def test_a_step_is_held_while_a_metric_points_to_worse() -> None:
    rolling = Rolling(steps=[5, 50])
    for _ in range(3):
        assert rolling.look(WORSE, after=20) == "running"
    assert (rolling.state.step, rolling.shares["challenger"]) == (0, 0.05)
    pending = conditions.pending_conditions(rolling.state)
    assert (pending.held_by, str(pending)) == (("error_rate",), "error_rate, which points to worse")
    assert rolling.look(WITHIN, after=1) == "running"  # still undecided, and no longer beyond its limit
    assert rolling.state.step == 1


def test_a_guardrail_that_points_to_worse_holds_the_promotion_as_well() -> None:
    guard = {"metric": "latency_p99_ms", "ratio": 2, "role": "guardrail"}
    slow = estimate(2.5, "latency_p99_ms", 2.0)
    rolling = Rolling(steps=[50], metrics=[ERRORS, guard])
    assert rolling.look(PASSED, slow, after=10) == "running"
    assert rolling.look(PASSED, estimate(1.9, "latency_p99_ms", 2.0), after=1) == "promoting"


def test_a_held_step_is_rolled_back_at_its_deadline_or_after_the_longest_hold() -> None:
    rolling = Rolling(steps=[5, 50])
    assert rolling.look(WORSE, after=99) == "running"
    assert rolling.look(WORSE, after=1) == "rolling_back"
    assert "took 100 s and still waits for error_rate, which points to worse" in rolling.state.reason
    rolling = Rolling(steps=[5, 50], max_hold_seconds=30)
    assert rolling.look(WORSE, after=9) == "running"  # it bakes
    assert rolling.look(WORSE, after=1) == "running"  # from here on it is held
    assert rolling.look(WORSE, after=29) == "running"
    assert rolling.look(WORSE, after=1) == "rolling_back"
    assert rolling.state.reason == "step 1 was held for 30 s by error_rate, which points to worse"


def test_a_hold_begins_anew_after_it_was_lifted_and_in_each_step() -> None:
    rolling = Rolling(steps=[5, 25, 50], max_hold_seconds=30)
    rolling.look(WORSE, after=10)
    rolling.look(WORSE, after=29)
    assert rolling.look(WITHIN, after=0.5) == "running"
    assert (rolling.state.step, rolling.state.held_from) == (1, None)
    rolling.look(WORSE, after=10)
    rolling.look(WORSE, after=20, counts=StepCounts(10_000, 10))  # fewer than min_samples: not held, but not ready
    assert rolling.state.held_from is None
    rolling.look(WORSE, after=20)
    assert rolling.look(WORSE, after=20) == "running"
    assert rolling.look(WORSE, after=10) == "rolling_back"


def test_a_person_goes_on_although_a_step_is_held() -> None:
    rolling = Rolling(steps=[5, 50])
    rolling.look(WORSE, after=20)
    rolling.say("promote", WORSE)
    assert rolling.state.step == 1


@pytest.mark.parametrize(
    ("finding", "worse"),
    [
        (WORSE, True),
        (WITHIN, False),
        (estimate(0.01), False),  # at its limit
        (replace(WORSE, evidence_worse=0.0), False),  # too few requests to say anything
        (replace(WORSE, evidence_not_worse=0.3), False),
        (estimate(-0.05, "accuracy", -0.02, direction="min"), True),
        (estimate(-0.01, "accuracy", -0.02, direction="min"), False),
        (estimate(0.7, "agreement", 0.9, direction="min", change=False), True),
        (estimate(0.3, "prediction_drift", 0.0, change=False), True),  # max: 0 allows none
        (estimate(0.3, threshold=0.0), False),  # a margin of 0: one of two equal versions is always worse
        (estimate(math.nan), False),
        (estimate(0.3, measurement=None), False),
        (finding(Outcome.PASSED), False),
        (finding(Outcome.FAILED), False),
        (estimate(0.0, "prometheus", measurement=None), True),  # one measurement beyond its bound
    ],
)
def test_what_points_to_worse_is_an_estimate_beyond_the_limit(finding: MetricResult, worse: bool) -> None:
    assert conditions.points_to_worse(finding) is worse


def test_what_only_mirrored_requests_show_is_shown_before_a_client_is_answered() -> None:
    metrics = [ERRORS, {"metric": "agreement", "min": 0.9}]
    alike = finding(Outcome.PASSED, "agreement")
    rolling = Rolling(steps=[0, 50], metrics=metrics)
    assert rolling.look(PASSED, finding(Outcome.INCONCLUSIVE, "agreement"), after=20) == "running"
    assert (rolling.state.step, rolling.shares["champion"]) == (0, 1.0)
    assert rolling.look(OPEN, alike, after=1) == "running"
    assert rolling.state.step == 1
    guard = {"metric": "agreement", "min": 0.9, "role": "guardrail"}
    rolling = Rolling(steps=[0, 50], metrics=[ERRORS, guard])
    rolling.look(OPEN, finding(Outcome.INCONCLUSIVE, "agreement"), after=20)
    assert rolling.state.step == 1
    rolling = Rolling(steps=[{"weight": 0, "sampling": 0.1}, 0, 50], metrics=metrics)
    rolling.look(OPEN, OPEN, after=20)
    assert rolling.state.step == 1  # the next step mirrors as well


def test_every_objective_has_to_be_shown() -> None:
    rolling = Rolling(steps=[50], metrics=[ERRORS, {"metric": "agreement", "min": 0.9}])
    assert rolling.look(PASSED, finding(Outcome.INCONCLUSIVE, "agreement"), after=10) == "running"
    assert rolling.look(PASSED, after=1) == "running"  # no finding at all is none that passed
    assert rolling.look(PASSED, finding(Outcome.PASSED, "agreement"), after=1) == "promoting"


def test_a_clock_that_goes_back_neither_bakes_nor_skips_a_deadline() -> None:
    rolling = Rolling(steps=[5])
    rolling.look(OPEN, after=60)
    rolling.look(OPEN, after=-5000)
    assert rolling.state.elapsed == 60
    assert rolling.look(OPEN, after=39) == "running"
    assert rolling.look(OPEN, after=1) == "rolling_back"


def test_an_approval_waits_for_a_person_beyond_the_deadline() -> None:
    rolling = Rolling(steps=[{"weight": 5, "approval": True}, 50])
    assert rolling.look(OPEN, after=10) == "awaiting_approval"
    assert rolling.look(OPEN, after=10_000) == "awaiting_approval"
    assert rolling.say("promote", OPEN) == "running"
    assert rolling.state.step == 1


def test_manual_promotion_waits_at_the_end_and_can_be_refused() -> None:
    rolling = Rolling(steps=[50], promote="manual")
    assert rolling.look(PASSED, after=10) == "awaiting_approval"
    assert rolling.say("abort", PASSED, reason="not today") == "rolling_back"
    assert (rolling.end(), rolling.state.reason, rolling.state.by) == ("aborted", "not today", "person")


def test_promote_goes_on_without_waiting_and_full_skips_all_steps() -> None:
    rolling = Rolling(steps=[5, 25, 50])
    rolling.look(OPEN, counts=StepCounts(), command=PolicyCommand("promote"))
    assert (rolling.state.step, rolling.state.phase) == (1, "running")
    rolling.look(OPEN, counts=StepCounts(), command=PolicyCommand("promote", full=True))
    assert rolling.end() == "promoted"


def test_a_pause_holds_everything_but_a_rollback_and_its_time_does_not_count() -> None:
    rolling = Rolling(steps=[5])
    rolling.look(OPEN, after=5)
    assert rolling.say("pause", PASSED, reason="lunch") == "paused"
    assert rolling.look(PASSED, after=10_000) == "paused"
    assert rolling.say("pause", PASSED) == "paused"
    assert rolling.say("resume", PASSED) == "running"
    assert rolling.state.elapsed == 5
    assert rolling.look(OPEN, after=95) == "rolling_back"
    assert rolling.events.count("paused") == 1


def test_each_pause_is_an_event_of_its_own() -> None:
    rolling = Rolling(steps=[5])
    for command in ("pause", "resume", "pause"):
        rolling.look(OPEN, after=1)
        rolling.say(command, OPEN)
    keys = [action.key for action in rolling.actions if isinstance(action, Notify) and action.event == "paused"]
    assert len(keys) == len(set(keys)) == 2


@pytest.mark.parametrize("kind", ["abort", "rollback"])
def test_a_person_can_end_it_at_any_time(kind: Any) -> None:
    rolling = Rolling(steps=[5, 50])
    assert rolling.say(kind, PASSED) == "rolling_back"
    assert rolling.shares == {"champion": 1.0}
    assert rolling.end() == ("aborted" if kind == "abort" else "rolled_back")


def test_a_version_that_does_not_load_is_rolled_back() -> None:
    rolling = Rolling()
    fresh = policy.begin(Request("e2", "lending", CANDIDATE, rolling.state.plan, 0.0), TABLE, now=0.0)
    preparing, _ = policy.advance(fresh, now=0.0)
    assert preparing.phase == "preparing"
    failed, actions = policy.advance(preparing, command=PolicyCommand("failed", "the graph does not load"), now=1.0)
    assert (failed.phase, failed.reason) == ("rolling_back", "the graph does not load")
    assert [type(action) for action in actions] == [SetTable, RollBack]


def test_a_table_of_somebody_else_ends_it_and_stays() -> None:
    rolling = Rolling()
    before = len(rolling.tables)
    assert rolling.say("overtaken", OPEN, reason="a deploy") == "aborted"
    assert len(rolling.tables) == before


def test_a_shadow_sees_mirrored_requests_only_and_is_then_promoted() -> None:
    rolling = Rolling("shadow", metrics=[{"metric": "agreement", "min": 0.9}], sampling=0.2)
    champion, shadow = rolling.tables[-1].variants
    assert (champion.weight, shadow.weight, shadow.role, shadow.sampling) == (1.0, 0.0, "shadow", 0.2)
    assert rolling.look(finding(Outcome.PASSED, "agreement"), after=10) == "promoting"


def test_a_step_of_weight_zero_mirrors_and_the_next_takes_traffic_under_the_same_name() -> None:
    rolling = Rolling(steps=[0, 10])
    assert rolling.tables[-1].variants[1].role == "shadow"
    rolling.look(OPEN, after=10)
    assert [(variant.name, variant.role, variant.start) for variant in rolling.tables[-1].variants] == [
        ("champion", "champion", 0.0),
        ("challenger", "challenger", 0.0),
    ]
    assert rolling.state.epochs == (8, 9)
    assert rolling.state.step_epochs == (9,)


def test_a_shadow_that_is_never_promoted_stays_and_later_rollouts_keep_it() -> None:
    rolling = Rolling("shadow", metrics=[{"metric": "agreement", "min": 0.9}], promote="never")
    table = rolling.tables[-1]
    assert [variant.name for variant in table.variants] == ["champion", "shadow-2"]
    assert rolling.look(finding(Outcome.INCONCLUSIVE, "agreement"), after=100) == "kept"
    assert rolling.tables[-1] is table
    third = replace(CANDIDATE, version="3", digest="d3")
    later = policy.begin(Request("e2", "lending", third, Rollout(strategy="canary"), 0.0), table, now=0.0)
    later, (swap, *_) = policy.advance(later, now=0.0)
    assert isinstance(swap, SetTable)
    assert [variant.name for variant in swap.table.variants] == ["champion", "challenger", "shadow-2"]
    running, _ = policy.advance(later, now=0.0)
    running, actions = policy.advance(running, command=PolicyCommand("remove", variant="shadow-2"), now=1.0)
    (swap,) = [action for action in actions if isinstance(action, SetTable)]
    assert [variant.name for variant in swap.table.variants] == ["champion", "challenger"]
    assert running.step_epochs == (8 + 1, 8 + 2)


def test_a_shadow_that_fails_is_taken_out_also_where_it_was_to_stay() -> None:
    rolling = Rolling("shadow", metrics=[{"metric": "agreement", "min": 0.9}], promote="never")
    assert rolling.look(finding(Outcome.FAILED, "agreement")) == "rolling_back"
    assert rolling.shares == {"champion": 1.0}


def test_an_ab_test_decides_by_its_objective_or_leaves_things_as_they_are() -> None:
    rolling = Rolling("ab", metrics=[{"metric": "accuracy"}])
    assert rolling.shares == {"champion": 0.5, "challenger": 0.5}
    assert rolling.look(finding(Outcome.PASSED, "accuracy"), after=10) == "promoting"
    rolling = Rolling("ab", metrics=[{"metric": "accuracy"}])
    assert rolling.look(finding(Outcome.INCONCLUSIVE, "accuracy"), after=100) == "rolling_back"


def test_blue_green_takes_all_traffic_and_keeps_the_old_version_to_go_back_to() -> None:
    rolling = Rolling("blue_green", metrics=[{"metric": "error_rate", "max": 0.02}])
    assert rolling.shares == {"champion": 0.0, "challenger": 1.0}
    assert (
        rolling.look(OPEN, after=10, counts=StepCounts(0, 500)) == "running"
    )  # nobody waits for the champion's requests
    assert rolling.look(FAILED) == "rolling_back"
    assert rolling.shares == {"champion": 1.0}
    rolling = Rolling("blue_green", metrics=[{"metric": "error_rate", "max": 0.02}])
    assert rolling.look(PASSED, after=10, counts=StepCounts(0, 500)) == "promoting"


def test_an_isolated_candidate_moves_in_when_it_is_champion() -> None:
    rolling = Rolling(steps=[50])
    isolated = replace(rolling.state, candidate=replace(CANDIDATE, placement="isolated"))
    assert policy.routing_table(isolated).variants[1].placement == "isolated"
    promoting, _ = policy.advance(isolated, (PASSED,), PLENTY, now=rolling.now + 10)
    assert policy.routing_table(promoting).champion.placement == "colocated"


def test_going_back_turns_the_present_champion_down() -> None:
    table = RoutingTable("lending", 12, (replace(CHAMPION, version="2", digest="d2"),))
    state, actions = policy.roll_back_to(
        table, replace(CHAMPION, name="old"), id="back-1", reason="", now=5.0, origin={"name": "lending"}
    )
    assert [type(action) for action in actions] == [SetTable, Promote, RollBack]
    assert policy.routing_table(state).epoch == 13
    assert policy.routing_table(state).champion.digest == "d1"
    state, _ = policy.advance(state, now=6.0)
    assert (state.phase, state.candidate.digest) == ("rolled_back", "d2")


def test_names_of_questions_differ() -> None:
    metrics = [{"metric": "agreement", "min": 0.9}, {"metric": "agreement", "min": 0.5, "columns": ["grade"]}]
    assert [spec.name for spec in conditions.metric_specs(Rolling(metrics=metrics).state)] == [
        "agreement",
        "agreement 2",
    ]


def test_a_state_is_read_as_it_was_written(tmp_path: Any) -> None:
    rolling = Rolling(steps=[5, 50], webhooks=[{"url": "https://example.org/x"}])
    nothing = Measurement("error_rate", math.nan, -math.inf, math.inf, samples=0)
    rolling.look(replace(OPEN, verdict=replace(OPEN.verdict, measurement=nothing)), after=3)
    rolling.look(FAILED, after=3)
    saved = SavedRollout(replace(rolling.state, traces={"error_rate": [1, 2.5]}), tuple(rolling.actions))
    files = ServiceFiles(tmp_path / "services" / "lending")
    write(files, saved)
    restored = read(files)
    assert restored is not None
    assert restored.state.findings == saved.state.findings
    assert restored.todo == saved.todo
    assert replace(restored.state, history=()) == replace(saved.state, history=())
    low = restored.state.history[0].readings[0].low
    assert math.isnan(low)


def test_manual_promotion_asks_after_the_last_step_only() -> None:
    rolling = Rolling(steps=[5, 25, 50], promote="manual")
    assert rolling.look(PASSED, after=10) == "running"
    assert rolling.state.step == 1
    assert rolling.look(PASSED, after=10) == "running"
    assert rolling.state.step == 2
    assert rolling.look(PASSED, after=10) == "awaiting_approval"
    assert rolling.say("promote", PASSED) == "promoting"


@pytest.mark.parametrize("full", [False, True])
def test_an_operator_can_promote_a_shadow_that_would_stay(full: bool) -> None:
    rolling = Rolling("shadow", metrics=[{"metric": "agreement", "min": 0.9}], promote="never")
    assert rolling.say("promote", finding(Outcome.INCONCLUSIVE, "agreement"), full=full) == "promoting"
    assert rolling.end() == "promoted"
    (champion,) = rolling.tables[-1].variants
    assert (champion.name, champion.role, champion.version, champion.weight) == ("champion", "champion", "2", 1.0)


def test_dropped_mirrored_requests_are_not_counted() -> None:
    rolling = Rolling("shadow", metrics=[{"metric": "agreement", "min": 0.9}])
    (epoch,) = rolling.state.step_epochs

    def counts(dropped: int) -> StepCounts:
        variants = {
            "champion": VariantCounts(500, 3),
            "challenger": VariantCounts(errors=1, mirrored=150, dropped=dropped),
        }
        return policy.count_requests(rolling.state, Evidence("e1", {epoch: variants, epoch + 1: variants}))

    assert counts(dropped=51) == StepCounts(500, 99, 3, 1)
    assert counts(dropped=200).challenger == 0
    passed = finding(Outcome.PASSED, "agreement")
    assert rolling.look(passed, after=10, counts=counts(dropped=51)) == "running"
    assert rolling.look(passed, after=1, counts=counts(dropped=50)) == "promoting"


def test_each_step_bakes_from_its_own_beginning() -> None:
    rolling = Rolling(steps=[5, 25, 50])
    assert rolling.look(OPEN, after=60, counts=StepCounts(99, 99)) == "running"
    assert (rolling.state.step, rolling.state.elapsed) == (0, 60)
    rolling.look(OPEN, after=5)
    assert (rolling.state.step, rolling.state.elapsed) == (1, 0)
    rolling.look(OPEN, after=9)
    assert rolling.state.step == 1  # 9 s of its own 10 s, whatever the step before took
    rolling.look(OPEN, after=1)
    assert rolling.state.step == 2
    assert rolling.look(OPEN, after=99) == "running"  # nor does its deadline inherit time
    assert rolling.look(OPEN, after=1) == "rolling_back"


@pytest.mark.parametrize(("weight", "role"), [(20, "challenger"), (0, "shadow")])
def test_a_step_gives_the_candidate_its_role_whatever_it_came_with(weight: float, role: str) -> None:
    candidate = replace(CANDIDATE, role="champion", start=0.7, weight=0.9, sampling=0.3)
    rolling = Rolling(steps=[weight, 50], candidate=candidate)
    champion, variant = rolling.tables[-1].variants
    assert (variant.name, variant.role, variant.weight, variant.start) == ("challenger", role, weight / 100, 0.0)
    assert champion.weight == 1 - weight / 100
