"""Rehearsals with synthetic traffic: the real policy and judges, seeded, in simulated time."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from mlflowkit.errors import UsageError
from mlflowkit.judging.online.evidence import Evidence
from mlflowkit.rollout.settings import Rollout, RolloutMetric
from mlflowkit.rollout.simulation import feasibility, scenarios
from mlflowkit.rollout.simulation.scenarios import ScenarioKind, TrafficFigures
from mlflowkit.rollout.simulation.simulator import (
    SimulatedRollout,
    SimulationEnd,
    analysis_interval,
    simulate_many,
    simulate_once,
    simulate_scenario,
    simulated_plan,
    summarise,
)
from mlflowkit.rollout.simulation.synthetic_traffic import (
    SyntheticTraffic,
    SyntheticWorld,
    TrafficSplit,
    lognormal,
    quantile,
    slower,
)

ERRORS = {"metric": "error_rate", "margin": 0.01}
CANARY: dict[str, Any] = {"strategy": "canary", "steps": [5, 50], "min_samples": 300, "metrics": [ERRORS]}
WORLD = scenarios.synthetic_world(TrafficFigures(), "classification")


def plan(**values: Any) -> Rollout:
    return Rollout.model_validate({**CANARY, **values})


def played(
    kind: ScenarioKind, size: float, rollouts: int, world: SyntheticWorld = WORLD, **values: Any
) -> tuple[SimulatedRollout, ...]:
    chosen = plan(**values)
    return simulate_many(chosen, scenarios.build_scenario(kind, size, world, chosen), rollouts, seed=11)


@cache
def equals() -> tuple[SimulatedRollout, ...]:
    """Forty rollouts of a challenger that is as good as the champion."""
    return played("aa", 0.0, 40)


# ---------------------------------------------------------------------------------------------------------- what comes


@pytest.mark.simulation
def test_equals_are_promoted_and_hardly_ever_rolled_back() -> None:
    ends = [rollout.end for rollout in equals()]
    assert ends.count(SimulationEnd.FAILED) <= binom.ppf(0.9999, len(ends), 0.05)
    assert ends.count(SimulationEnd.PROMOTED) >= 36


@pytest.mark.simulation
def test_a_challenger_on_its_limit_is_hardly_ever_rolled_back_as_failed() -> None:
    ends = [rollout.end for rollout in played("error-rate", 0.01, 24, steps=[50], max_seconds=600)]
    assert ends.count(SimulationEnd.FAILED) <= binom.ppf(0.9999, len(ends), 0.05)


@pytest.mark.parametrize(
    ("kind", "size", "metric", "values"),
    [
        ("error-rate", 0.05, "error_rate", {}),
        ("latency", 5.0, "latency_p99_ms", {"metrics": [{"metric": "latency_p99_ms", "ratio": 2}]}),
        ("latency-tail", 5.0, "latency_p99_ms", {"metrics": [{"metric": "latency_p99_ms", "margin": 10}]}),
        ("accuracy", 0.2, "accuracy", {"metrics": [{"metric": "accuracy", "margin": 0.02}], "steps": [50]}),
        ("log-loss", 3.0, "log_loss", {"metrics": [{"metric": "log_loss", "margin": 0.1}], "steps": [50]}),
        ("prediction-shift", 0.4, "prediction_drift", {"metrics": [{"metric": "prediction_drift", "max": 0.1}]}),
        ("disagreement", 0.3, "agreement", {"metrics": [{"metric": "agreement", "min": 0.9}], "steps": [0]}),
        (
            "disagreement-slice",
            0.6,
            "agreement",
            {"metrics": [{"metric": "agreement", "min": 0.8, "columns": ["term"]}], "steps": [0], "min_samples": 5000},
        ),
    ],
)
def test_planted_harm_is_found_by_the_metric_that_sees_it(
    kind: ScenarioKind, size: float, metric: str, values: dict[str, Any]
) -> None:
    rollouts = played(kind, size, 4, **values)
    assert {(rollout.end, rollout.by) for rollout in rollouts} == {(SimulationEnd.FAILED, metric)}
    assert all(metric in rollout.reason for rollout in rollouts)
    assert scenarios.build_scenario(kind, size, WORLD, plan(**values)).violated == (metric,)


def test_a_regression_is_found_in_its_errors_too() -> None:
    world = scenarios.synthetic_world(TrafficFigures(feedback=1.0, delay=5.0), "regression")
    metrics = [{"metric": "absolute_error", "margin": 0.1}]
    assert {rollout.end for rollout in played("absolute-error", 2.0, 3, world, metrics=metrics, steps=[50])} == {
        SimulationEnd.FAILED
    }


def test_larger_harm_is_found_with_fewer_requests() -> None:
    spreads = [summarise("", True, played("error-rate", size, 9)).found_tried for size in (0.03, 0.1, 0.4)]
    medians = [spread.median for spread in spreads if spread is not None]
    assert medians == sorted(medians, reverse=True)
    assert medians[0] > 4 * medians[-1]


def test_a_challenger_that_answers_nothing_is_taken_out_unseen_by_any_metric() -> None:
    world = replace(WORLD, challenger=replace(WORLD.champion, error_rate=1.0))
    chosen = plan(metrics=[{"metric": "latency_p99_ms", "ratio": 2}])
    scenario = replace(scenarios.build_scenario("aa", 0, WORLD, chosen), world=world)
    rollout = simulate_scenario(chosen, scenario, 0, 0)
    assert (rollout.end, rollout.by) == (SimulationEnd.FAILED, "almost no answers")
    assert rollout.exposed < 100


def test_too_little_traffic_ends_at_the_deadline_and_the_remedy_helps() -> None:
    slow = scenarios.synthetic_world(TrafficFigures(rate=2.0), "classification")
    rollouts = played("aa", 0.0, 3, slow, max_seconds=1200)
    assert {(rollout.end, rollout.step, rollout.seconds) for rollout in rollouts} == {
        (SimulationEnd.DEADLINE, 0, 1200.0)
    }
    times = feasibility.step_times(plan(max_seconds=1200), 2.0)
    assert [time.feasible for time in times] == [False, True]
    assert "300 of each variant take 50 min 00 s, and max_seconds is 1200: every rollout ends" in times[0].sentence
    fewer = int(times[0].sentence.partition("min_samples: ")[2].split()[0])
    assert all(time.feasible for time in feasibility.step_times(plan(max_seconds=1200, min_samples=fewer), 2.0))
    steps = [rollout.step for rollout in played("aa", 0.0, 10, slow, max_seconds=1200, min_samples=fewer)]
    assert steps.count(1) >= 8, steps  # so few requests may point to worse by chance, which holds the step


# --------------------------------------------------------------------------------------------------- kinds of rollouts


def test_a_shadow_exposes_nobody() -> None:
    metrics = [{"metric": "agreement", "min": 0.9}]
    values: dict[str, Any] = {"strategy": "shadow", "steps": [], "metrics": metrics, "sampling": 0.5}
    for kept, end in (("automatic", SimulationEnd.PROMOTED), ("never", SimulationEnd.KEPT)):
        rollouts = played("aa", 0.0, 2, promote=kept, **values)
        assert {rollout.end for rollout in rollouts} == {end}
        assert all(rollout.exposed == 0 and 0.4 < rollout.tried / rollout.requests < 0.6 for rollout in rollouts)


def test_all_traffic_at_once_is_judged_by_bounds() -> None:
    values: dict[str, Any] = {"strategy": "blue_green", "steps": [], "metrics": [{"metric": "error_rate", "max": 0.03}]}
    assert {rollout.end for rollout in played("aa", 0.0, 2, **values)} == {SimulationEnd.PROMOTED}
    worse = played("error-rate", 0.08, 2, **values)
    assert {rollout.end for rollout in worse} == {SimulationEnd.FAILED}
    assert all(rollout.exposed == rollout.requests for rollout in worse)


def test_an_ab_test_without_margin_promotes_what_is_better_only() -> None:
    values: dict[str, Any] = {"strategy": "ab", "steps": [50], "metrics": [{"metric": "accuracy"}]}
    better = replace(WORLD, challenger=replace(WORLD.champion, quality={**WORLD.champion.quality, "accuracy": 0.99}))
    chosen = plan(**values)
    assert (
        simulate_scenario(chosen, replace(scenarios.build_scenario("aa", 0, WORLD, chosen), world=better), 0, 0).end
        == SimulationEnd.PROMOTED
    )
    worse = scenarios.build_scenario("accuracy", 0.1, WORLD, chosen)
    assert worse.violated == ("accuracy",)
    assert simulate_scenario(chosen, worse, 0, 0).end == SimulationEnd.FAILED


def test_approval_is_given_at_once() -> None:
    steps = [{"weight": 5, "approval": True}, {"weight": 50}]
    assert {rollout.end for rollout in played("aa", 0.0, 2, steps=steps, promote="manual")} == {SimulationEnd.PROMOTED}


def test_what_cannot_be_rehearsed_is_refused_with_what_to_type() -> None:
    with pytest.raises(UsageError, match="direct") as direct:
        simulated_plan(Rollout())
    assert "+rollout=canary" in direct.value.hint
    query = {"metric": "prometheus", "query": "up", "url": "http://127.0.0.1:9090", "max": 1}
    with pytest.raises(UsageError, match="only Prometheus queries"):
        simulated_plan(plan(metrics=[query]))
    assert [metric.metric for metric in simulated_plan(plan(metrics=[ERRORS, query])).metrics] == ["error_rate"]


# ----------------------------------------------------------------------------------------------------- the same again


def test_a_seed_gives_the_same_rollouts_whatever_else_is_played() -> None:
    chosen = plan()
    worse = scenarios.build_scenario("error-rate", 0.05, WORLD, chosen)
    first = simulate_many(chosen, worse, 3, seed=1)
    simulate_many(chosen, scenarios.build_scenario("aa", 0.0, WORLD, chosen), 1, seed=1)
    assert simulate_many(chosen, worse, 3, seed=1) == first
    assert simulate_many(chosen, worse, 2, seed=1) == first[:2]
    assert simulate_many(chosen, worse, 3, seed=2) != first
    assert len({rollout.tried for rollout in first}) == 3


@pytest.mark.simulation
def test_several_processes_give_what_one_gives() -> None:
    chosen = plan()
    worse = scenarios.build_scenario("error-rate", 0.2, WORLD, chosen)
    told: list[int] = []
    assert simulate_many(chosen, worse, 4, seed=3, workers=2, done=told.append) == simulate_many(
        chosen, worse, 4, seed=3
    )
    assert told == [1, 2, 3, 4]


# ------------------------------------------------------------------------------------------------------------ traffic


def test_traffic_has_the_rates_that_the_world_states() -> None:
    world = scenarios.synthetic_world(
        TrafficFigures(rate=200, error_rate=0.05, feedback=0.5, delay=10), "classification"
    )
    traffic = SyntheticTraffic(
        world, np.random.default_rng(0), ("error_rate", "latency_p99_ms", "accuracy", "prediction_drift")
    )
    for _ in range(100):
        traffic.advance(TrafficSplit(1, 0.25), 2.0)
    traffic.advance(TrafficSplit(2, 0.0), 200.0)
    counts = traffic.evidence("e").of("challenger", [1])
    assert counts.requests == pytest.approx(200 * 200 * 0.25, rel=0.03)
    assert counts.errors / counts.requests == pytest.approx(0.05, rel=0.15)
    assert sum(counts.latency.values()) == counts.rows == counts.requests - counts.errors
    assert sum(n for key, n in counts.predictions.items() if key.startswith("label:")) == counts.rows
    accuracy = counts.quality["accuracy"]
    assert accuracy.count / counts.rows == pytest.approx(0.5, rel=0.05)
    assert accuracy.mean == pytest.approx(0.9, abs=0.02)
    shares = {index: count / counts.rows for index, count in counts.latency.items()}
    assert 1000 * quantile(shares, 0.5) == pytest.approx(5, rel=0.05)
    assert 1000 * quantile(shares, 0.99) == pytest.approx(20, rel=0.15)
    evidence = traffic.evidence("e")
    assert Evidence.from_json(json.loads(json.dumps(evidence.to_json()))) == evidence


def test_feedback_comes_late_and_counts_for_the_table_of_its_answer() -> None:
    world = replace(WORLD, feedback=1.0, delay=100.0)
    traffic = SyntheticTraffic(world, np.random.default_rng(0), ("accuracy",))
    traffic.advance(TrafficSplit(1, 0.5), 10.0)
    early = traffic.evidence("e").of("challenger").quality["accuracy"].count
    traffic.advance(TrafficSplit(2, 0.0), 2000.0)
    evidence = traffic.evidence("e")
    assert early < 0.3 * evidence.of("challenger", [1]).rows
    assert evidence.of("challenger", [1]).quality["accuracy"].count == evidence.of("challenger", [1]).rows
    assert not evidence.of("challenger", [2]).quality


def test_a_slow_tail_leaves_the_middle_alone() -> None:
    base = lognormal(0.005, 0.020)
    tail = slower(base, 1.5, beyond=0.9)
    assert math.fsum(tail.values()) == pytest.approx(1.0)
    assert quantile(tail, 0.5) == quantile(base, 0.5)
    assert quantile(tail, 0.99) == pytest.approx(1.5 * quantile(base, 0.99), rel=0.021)


# ---------------------------------------------------------------------------------------------------------- scenarios


def test_the_suite_tries_what_the_plan_can_see_up_to_what_it_forbids() -> None:
    chosen = plan(metrics=[ERRORS, {"metric": "latency_p50_ms", "ratio": 2}])
    suite = scenarios.default_scenarios(chosen, WORLD)
    assert [scenario.name for scenario in suite] == [
        "A/A",
        "error rate +0.5 points",
        "error rate +1 points",
        "error rate +2 points",
        "error rate +5 points",
        "latency x1.2",
        "latency x1.5",
        "latency x2",
        "latency x3",
        "latency x5",
        "A/A, 1/20 of the traffic",
    ]
    assert [bool(scenario.violated) for scenario in suite] == [False] * 3 + [True] * 2 + [False] * 3 + [True] * 2 + [
        False
    ]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("eror-rate=0.1", "no scenario 'eror-rate'", "error-rate"),
        ("zzz", "no scenario 'zzz'", "low-traffic"),
        ("error-rate=lots", "'lots' is no size", "error-rate=0.005"),
        ("error-rate=nan", "'nan' is no size", "error-rate=0.005"),
        ("error-rate=0.995", "error rate would be 1.005", "error-rate=0.005"),
        ("latency=0.5", "a factor at least 1", "latency=1.2"),
        ("absolute-error=2", "not measured for this task", "absolute-error=1.1"),
        ("low-traffic=0", "divided by 0", "low-traffic=20"),
        ("prediction-shift=0.9", "cannot grow by 0.9", "prediction-shift=0.05"),
    ],
)
def test_an_impossible_scenario_says_what_to_type(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        scenarios.parse_scenarios(text, plan(), WORLD)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("metric", "kind", "within", "beyond"),
    [
        ({"metric": "error_rate", "margin": 0.01}, "error-rate", 0.01, 0.011),
        ({"metric": "error_rate", "max": 0.02}, "error-rate", 0.01, 0.02),
        ({"metric": "error_rate"}, "error-rate", 0.0, 0.001),
        ({"metric": "latency_p99_ms", "margin": 20}, "latency", 1.9, 2.2),
        ({"metric": "accuracy", "margin": 0.05}, "accuracy", 0.05, 0.06),
        ({"metric": "accuracy", "min": 0.85}, "accuracy", 0.05, 0.06),
        ({"metric": "agreement", "margin": 0.1}, "disagreement", 0.09, 0.1),
        ({"metric": "prediction_drift", "max": 0.1}, "prediction-shift", 0.1, 0.11),
    ],
)
def test_what_is_beyond_a_limit_is_known(
    metric: dict[str, Any], kind: ScenarioKind, within: float, beyond: float
) -> None:
    for size, violated in ((within, False), (beyond, True)):
        scenario = scenarios.build_scenario(kind, size, WORLD, plan())
        assert scenarios.violates(RolloutMetric.model_validate(metric), scenario.world) is violated


@pytest.mark.parametrize(
    "figures",
    [TrafficFigures(rate=0), TrafficFigures(error_rate=1.5), TrafficFigures(p50_ms=30), TrafficFigures(positive=1)],
)
def test_impossible_figures_are_refused(figures: TrafficFigures) -> None:
    with pytest.raises(UsageError) as caught:
        scenarios.synthetic_world(figures, "classification")
    assert caught.value.hint.startswith("--") or "--" in caught.value.hint


# -------------------------------------------------------------------------------------------------------- feasibility


def test_the_proof_is_timed_by_challengers_that_are_as_good() -> None:
    chosen = plan()
    proof = feasibility.time_to_pass(chosen, scenarios.build_scenario("aa", 0.0, WORLD, chosen))
    assert proof.metric == "error_rate"
    assert proof.in_time == 1.0
    assert proof.tried is not None
    promoted = summarise("", False, equals()).promoted_seconds
    assert promoted is not None
    assert proof.seconds is not None
    assert proof.seconds.median < promoted.median


def test_a_proof_that_cannot_come_is_said_not_to() -> None:
    values: dict[str, Any] = {
        "strategy": "ab",
        "steps": [50],
        "metrics": [{"metric": "error_rate", "role": "objective"}],
    }
    chosen = plan(**values)
    world = replace(WORLD, rate=5000.0)
    proof = feasibility.time_to_pass(chosen, scenarios.build_scenario("aa", 0.0, world, chosen))
    assert proof.tried is None
    assert "no rollout is promoted" in proof.sentence
    guarded = plan(metrics=[{**ERRORS, "role": "guardrail"}])
    assert (
        "no objective has to pass"
        in feasibility.time_to_pass(guarded, scenarios.build_scenario("aa", 0, WORLD, guarded)).sentence
    )


@pytest.mark.simulation
def test_a_proof_that_takes_too_long_says_how_many_end_at_the_deadline() -> None:
    chosen = plan(steps=[5], max_seconds=400, metrics=[{"metric": "error_rate", "margin": 0.005}])
    proof = feasibility.time_to_pass(chosen, scenarios.build_scenario("aa", 0.0, WORLD, chosen))
    assert proof.in_time < 0.5
    missed = round((1 - proof.in_time) * feasibility.PILOT_ROLLOUTS)
    assert f"max_seconds is 400: {missed} of 9 end at the deadline" in proof.sentence


def test_looks_are_about_a_hundred_and_never_more_than_one_a_second() -> None:
    assert analysis_interval(plan(), 50.0) == pytest.approx((300 / 2.5 + 30) / 100)
    assert analysis_interval(plan(), 5000.0) == 1.0
    assert 30 <= summarise("", False, equals()).looks <= 200


def test_a_deadline_closer_than_the_clock_can_tell_is_reached() -> None:
    limits = {"min_samples": 1, "max_seconds": 26.435106914689232, "bake_seconds": 0.16792787652732177}
    metrics = [{"metric": "accuracy", "margin": 0.05}]
    plan = simulated_plan(
        Rollout.model_validate({"strategy": "canary", "steps": [0, 50, 100], "metrics": metrics, **limits})
    )
    scenario = scenarios.build_scenario(
        "aa", 0.0, scenarios.synthetic_world(TrafficFigures(rate=1.0), "classification"), plan
    )
    assert (
        simulate_once(plan, SyntheticTraffic(scenario.world, np.random.default_rng(6), ["accuracy"], ()), 1.0).looks
        < 1000
    )
