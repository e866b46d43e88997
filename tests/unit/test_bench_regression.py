"""A run against a baseline: FAILED only where it is surely slower than may be, and never across machines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from mlflowkit.bench.measure import Samples
from mlflowkit.bench.regression import compare, worst
from mlflowkit.bench.result_file import SavedResults
from mlflowkit.errors import UsageError
from mlflowkit.values import Outcome

MACHINE: Mapping[str, Any] = {
    "processor": "AMD EPYC", "architecture": "x86_64", "cores": 2, "cpu_limit": None, "governor": "performance",
    "gpus": None, "libraries": {"onnxruntime": "1.20"}, "kernel": "6.1", "python": "3.11.7",
}  # fmt: skip
PLACED = 0.018
"""How much processes of one graph differ, as a standard deviation of the log."""


def starts(seed: int, ratio: float = 1.0, *, count: int = 10, blocks: int = 8) -> tuple[Samples, ...]:
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        times = 30.0 * ratio * (1 + generator.gamma(2, 0.05, size=(blocks, 50)))
        found.append(Samples(times * math.exp(PLACED * generator.normal()), 4, True))
    return tuple(found)


def results(
    measured: Mapping[tuple[str, int], tuple[Samples, ...]], *, quantile: float = 0.5,
    rows: Mapping[tuple[str, int], Mapping[str, Any]] | None = None, **machine: Any,
) -> SavedResults:  # fmt: skip
    told = {key: {"status": "ok", "reason": ""} for key in measured} | dict(rows or {})
    return SavedResults(quantile, {**MACHINE, **machine}, told, measured)


ONNX = ("onnx", 1)


@pytest.mark.parametrize(
    ("ratio", "outcome", "says"),
    [
        (1.3, Outcome.FAILED, "more than the limit 1.1"),
        (1.0, Outcome.PASSED, "within the limit 1.1"),
        (0.5, Outcome.PASSED, "within the limit 1.1"),
        (1.1, Outcome.INCONCLUSIVE, "may or may not be more than 1.1"),
    ],
)
def test_a_slowdown_is_told_from_its_interval(ratio: float, outcome: Outcome, says: str) -> None:
    found = compare(results({ONNX: starts(1)}), results({ONNX: starts(2, ratio)}), 0.1)
    change = found.changes[0]
    assert (found.outcome, change.outcome) == (outcome, outcome)
    assert change.low is not None
    assert change.high is not None
    assert change.low <= ratio <= change.high
    assert says in change.words
    json.dumps(found.to_json())


def test_the_same_bundle_measured_again_fails_in_few_runs() -> None:
    """The limit is what it was: its chance of a false alarm is half of one minus the confidence. 200 runs tell 0.06."""
    failed = sum(
        compare(results({ONNX: starts(seed)}), results({ONNX: starts(seed + 5000)}), 0.0).outcome is Outcome.FAILED
        for seed in range(200)
    )
    assert failed / 200 <= 0.06


def test_one_start_a_side_says_what_its_interval_lacks() -> None:
    found = compare(results({ONNX: starts(1, count=1)}), results({ONNX: starts(2, count=1)}), 0.5)
    assert any("fewer than 3 starts a side" in note for note in found.notes)


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        ({"processor": "Intel Xeon"}, "the processor was AMD EPYC and is Intel Xeon"),
        ({"cores": 1}, "the number of cores was 2 and is 1"),
        ({"governor": "powersave"}, "the governor was performance and is powersave"),
        ({"gpus": [{"name": "H100"}]}, "the GPUs were none and are H100"),
    ],
)
def test_another_machine_is_never_judged(machine: dict[str, Any], says: str) -> None:
    found = compare(results({ONNX: starts(1)}), results({ONNX: starts(2, 9.0)}, **machine), 0.05)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert says in found.changes[0].words
    assert found.changes[0].low is None


def test_other_versions_and_graphs_are_noted_and_judged() -> None:
    before = results({ONNX: starts(1)}, rows={ONNX: {"status": "ok", "reason": "", "graph": "a"}})
    now = results(
        {ONNX: starts(2)}, rows={ONNX: {"status": "ok", "reason": "", "graph": "b"}}, libraries={"onnxruntime": "1.21"}
    )
    found = compare(before, now, 0.2)
    assert found.outcome is Outcome.PASSED
    assert "onnx: another graph than the baseline's" in found.notes
    assert "onnxruntime was 1.20 and is 1.21" in found.notes


def test_too_few_samples_for_the_quantile_are_said_and_starts_count_together() -> None:
    few = results({ONNX: starts(1, count=3, blocks=2)}, quantile=0.99)
    found = compare(few, few, 0.5)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "p99 needs 368 samples for an interval; there are 300" in found.changes[0].words
    enough = results({ONNX: starts(1, count=5, blocks=4)}, quantile=0.99)
    assert compare(enough, enough, 0.5).outcome is Outcome.PASSED, "200 of each start are 1,000"


def test_a_candidate_that_is_gone_is_a_doubt_and_a_new_one_is_named() -> None:
    lost = {ONNX: {"status": "failed", "reason": "ended by SIGSEGV"}}
    now = results({("onnx-int8", 8): starts(2)}, rows=lost)
    found = compare(results({ONNX: starts(1)}), now, 0.05)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "not measured now (failed: ended by SIGSEGV)" in found.changes[0].words
    assert found.new == ("onnx-int8 (batch 8)",)


def test_another_load_is_not_compared() -> None:
    row = {"status": "ok", "reason": "", "load": {"kind": "closed", "callers": 8, "rate": None}}
    found = compare(results({ONNX: starts(1)}), results({ONNX: starts(2)}, rows={ONNX: row}), 0.05)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "the load was one caller and is 8 callers" in found.changes[0].words


def test_a_regression_comes_before_a_doubt_and_all_intervals_hold_together() -> None:
    both = results({ONNX: starts(1), ("int8", 1): starts(3)})
    found = compare(both, results({ONNX: starts(2, 2.0)}), 0.05)
    assert found.outcome is Outcome.FAILED
    assert found.confidence == pytest.approx(0.975)
    assert worst([Outcome.PASSED, Outcome.FAILED, Outcome.INCONCLUSIVE]) is Outcome.FAILED


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be the limit"):
        compare(results({ONNX: starts(1)}), results({ONNX: starts(1)}), -0.1)
