"""A version that nobody judges is blessed and promoted, and that is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlflowkit.cli.fast_path import format_run
from mlflowkit.judging.coverage import gate_warnings, recipe_warnings, rollout_warnings
from mlflowkit.pipeline.run_summary import summarize
from tests.support.pipeline_world import PipelineWorld, lay_out
from tests.support.rolling import ERRORS, Rolling

LATENCY = {"metric": "latency_p99_ms", "max": 5}


@pytest.mark.parametrize(
    ("gates", "says"),
    [
        ([], "no gate: nothing is asked of the model"),
        ([{"metric": "accuracy", "min": 0.9, "dry_run": True}], "every gate is a dry run"),
        ([LATENCY, {"metric": "accuracy", "min": 0.9, "dry_run": True}], "only latency_p99_ms"),
        ([LATENCY, {"metric": "latency_ratio", "max": 2}], "only latency_p99_ms, latency_ratio"),
        ([LATENCY, {"metric": "accuracy", "min": 0.9}], ""),
    ],
)
def test_gates_that_cannot_refuse_a_wrong_model_are_told(gates: list[dict[str, Any]], says: str) -> None:
    told = gate_warnings("classification", gates)
    assert len(told) == bool(says)
    assert all(says in warning for warning in told)
    assert all("add gates: [{metric: accuracy, against: champion, margin: 0.01}]" in warning for warning in told)


@pytest.mark.parametrize(
    ("strategy", "metrics", "says"),
    [
        ("canary", ["error_rate", "latency_p99_ms"], "only error_rate, latency_p99_ms"),
        ("shadow", ["agreement", "error_rate"], "agreement alone says little"),
        ("canary", ["error_rate", "prediction_drift"], ""),
        ("canary", ["error_rate", "kappa"], ""),
        ("ab", ["accuracy", "error_rate"], ""),
        ("direct", [], ""),
    ],
)
def test_a_rollout_that_judges_no_answers_is_told(strategy: str, metrics: list[str], says: str) -> None:
    told = rollout_warnings(strategy, metrics)
    assert len(told) == bool(says)
    assert all(says in warning for warning in told)


def test_a_rollout_tells_it_as_long_as_it_runs() -> None:
    from mlflowkit.rollout import policy

    (warning,) = policy.warnings(Rolling(metrics=[ERRORS]).state)
    assert warning.startswith("no metric judges the answers, only error_rate")


def test_the_end_of_a_run_says_that_no_gate_blessed_it(tmp_path: Path) -> None:
    lay_out(tmp_path)
    world = PipelineWorld(tmp_path)
    value = summarize(world.run(), tmp_path / ".mlkit")
    assert (value["warnings"], "blessed by no gate" in format_run(value)) == ([], False)
    value = summarize(world.run({"gates": []}), tmp_path / ".mlkit")
    (warning,) = value["warnings"]
    assert f"  warning      {warning}" in format_run(value).splitlines()


def test_a_recipe_is_read_as_it_is_composed() -> None:
    rollout = {"strategy": "canary", "metrics": [{"metric": "error_rate"}]}
    told = recipe_warnings({"task": "regression", "gates": None, "serve": {"rollout": rollout}})
    assert len(told) == 2
    assert "metric: rmse" in told[0]
    assert recipe_warnings({"task": "regression", "gates": [{"metric": "rmse", "max": 1}], "serve": None}) == ()
