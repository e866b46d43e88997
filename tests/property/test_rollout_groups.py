"""The shipped rollout groups in simulation: what they promote, and the error rates of kappa."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import mlflowkit
from mlflowkit.judging.online.evidence import PairMoments, VariantCounts
from mlflowkit.judging.online.judge import MetricSpec
from mlflowkit.rollout.settings import Rollout
from mlflowkit.rollout.simulation import scenarios
from mlflowkit.rollout.simulation.simulator import simulate_many, summarise
from mlflowkit.rollout.simulation.synthetic_answers import answer_pairs, kappa_of, ranked_answers
from mlflowkit.values import Outcome
from tests.support.chance import least, most
from tests.support.online_evidence import look

pytestmark = pytest.mark.simulation

GROUPS = Path(mlflowkit.__file__).parent / "recipe" / "conf" / "rollout"
RARE = scenarios.TrafficFigures(positive=0.09)
LEVEL, RUNS = 0.05, 200


def group(name: str) -> Rollout:
    return Rollout.model_validate(yaml.safe_load((GROUPS / f"{name}.yaml").read_text()))


def outcomes(plan: Rollout, kind: Any, size: float, rollouts: int) -> Any:
    world = scenarios.synthetic_world(RARE, "classification")
    scenario = scenarios.build_scenario(kind, size, world, plan)
    return summarise(scenario.name, bool(scenario.violated), simulate_many(plan, scenario, rollouts))


@pytest.mark.parametrize("name", ["canary", "shadow", "blue_green"])
def test_a_model_that_is_worse_than_chance_is_promoted_by_no_group(name: str) -> None:
    """Its AUC is 0.41 and the champion's 0.75, with 9 % positive rows; it fails no request and is as fast."""
    summary = outcomes(group(name), "auc", 0.41, 100)
    wrong = f"{summary.promoted} of {summary.rollouts} promoted"
    assert summary.harmful
    assert summary.promoted <= most(100, LEVEL), wrong
    assert summary.exposed.p90 == 0  # before a client got an answer
    assert (summary.promoted, dict(summary.by)) == (0, {"kappa": 100}), wrong


def test_agreement_errors_and_latency_alone_let_that_model_pass() -> None:
    """What the canary group judged before: most rows get the same answer from any model."""
    metrics = [
        {"metric": "agreement", "min": 0.8, "role": "guardrail"},
        {"metric": "error_rate", "margin": 0.01},
        {"metric": "latency_p99_ms", "ratio": 2},
    ]
    plan = Rollout.model_validate({"strategy": "canary", "steps": [0, 5, 25, 50], "metrics": metrics})
    assert outcomes(plan, "auc", 0.41, 10).promoted == 10


@pytest.mark.parametrize("name", ["canary", "shadow", "blue_green"])
def test_a_version_as_good_as_the_champion_is_promoted(name: str) -> None:
    summary = outcomes(group(name), "aa", 0.0, 20)
    assert summary.failed <= most(20, LEVEL)
    assert summary.promoted >= least(20, 1 - LEVEL), summary


@pytest.mark.parametrize("answers", ["copula", "rare class", "labels"])
def test_kappa_decides_wrongly_no_more_often_than_its_level(answers: str) -> None:
    """The truth is exactly on the limit, so that each decision is wrong."""
    if answers == "labels":  # one answer in fifty is the rare one
        random = np.random.default_rng(3)
        first, noise = random.random((2, 2, 4000)) < 0.02
        second = np.where(random.random((2, 4000)) < 0.5, first, noise)
        apart = (first != second).mean(axis=0)
        chance = ((first[0] != second[1]) * 0.5 + (first[1] != second[0]) * 0.5).astype(float)
        pairs = np.stack([apart, chance], axis=1)
    else:
        pairs = np.array(answer_pairs(0.4) if answers == "copula" else ranked_answers(0.09, 0.75, 0.6).pairs)
    limit = kappa_of(tuple(map(tuple, pairs.tolist())))
    failed = passed = 0
    for run in range(RUNS):
        random, traces, total = np.random.default_rng([7, run]), {}, PairMoments()
        verdict = None
        for _ in range(25):
            apart, chance = pairs[random.integers(0, len(pairs), 100)].T
            sums = (apart, chance, apart**2, chance**2, apart * chance)
            total = total + PairMoments(100, *(float(values.sum()) for values in sums))
            spec = MetricSpec("kappa", "kappa", min=limit)
            (result,), traces = look([spec], {1: (VariantCounts(), VariantCounts(pairs=total))}, traces, LEVEL)
            verdict = result.verdict.outcome
            passed_now = verdict is Outcome.PASSED
            if verdict is not Outcome.INCONCLUSIVE:
                break
        failed += verdict is Outcome.FAILED
        passed += passed_now
    shares = f"{answers}: FAILED {failed / RUNS:.3f}, PASSED {passed / RUNS:.3f} at level {LEVEL}"
    assert max(failed, passed) <= most(RUNS, LEVEL, tests=6), shares
