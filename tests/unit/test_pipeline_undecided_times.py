"""A time that did not decide a gate is evidence of one moment: the next run measures it anew, and only that."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.errors import GateFailedError, GateInconclusiveError
from mlflowkit.pipeline import noop_cache
from mlflowkit.pipeline.noop_cache import NoopKey, look_up, snapshot_inputs, write
from mlflowkit.pipeline.plan import plan_steps
from mlflowkit.pipeline.run import raise_for
from mlflowkit.pipeline.run_summary import summarize
from mlflowkit.ports import StageContext
from mlflowkit.values import Measurement, Outcome, RunRecord, StageResult, Verdict
from tests.support.pipeline_world import PipelineWorld, lay_out, load

GATES = [{"metric": "accuracy", "min": 0.5}, {"metric": "latency_p99_ms", "max": 5.0}]
CHANGES = {"gates": GATES}
REASON = "its latency evidence was inconclusive"
UNDECIDED = Verdict(
    "latency_p99_ms <= 5", Outcome.INCONCLUSIVE, "the machine was disturbed", "latency_p99_ms",
    threshold=5.0, direction="max", remeasure=True,
)  # fmt: skip
PASSED = Verdict("latency_p99_ms <= 5", Outcome.PASSED, "1 ms", "latency_p99_ms", threshold=5.0, direction="max")


class TimedWorld(PipelineWorld):
    """A world whose evaluate stage measures a time: other bytes and, as the test says, another verdict each time."""

    def __init__(self, folder: Path, *verdicts: Verdict) -> None:
        super().__init__(folder)
        self.verdicts = list(verdicts)
        self.stages["evaluate"] = self.timed

    def timed(self, spec: Any, context: StageContext) -> StageResult:
        result = self.evaluate(spec, context)
        (context.out / "latency.json").write_text(json.dumps(len(self.calls())))
        return StageResult(metrics=result.metrics, verdicts=(self.verdicts.pop(0),))

    def ran(self, act: Callable[[], RunRecord]) -> tuple[RunRecord, list[str]]:
        before = len(self.calls())
        return act(), self.calls()[before:]

    def reasons(self) -> dict[str, str]:
        steps = plan_steps(load(self.folder, CHANGES), self, services=self.status)
        return {step.stage: step.reason for step in steps if step.action == "run"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(noop_cache, "SETTLED_NS", 0)
    lay_out(tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: tiny\n")
    return tmp_path


def test_a_time_that_blocked_is_measured_anew_and_only_that(folder: Path) -> None:
    world = TimedWorld(folder, UNDECIDED, UNDECIDED, PASSED)
    record, _ = world.ran(lambda: world.run(CHANGES))
    assert record.status == "inconclusive"
    assert world.reasons()["evaluate"] == REASON
    assert list(world.reasons()) == ["evaluate", "package", "deploy"]
    again, calls = world.ran(lambda: world.run(CHANGES))
    assert (again.status, calls) == ("inconclusive", ["evaluate"])
    assert again.run != record.run
    decided, calls = world.ran(lambda: world.run(CHANGES))
    assert (decided.status, calls) == ("done", ["evaluate", "package", "deploy"])
    assert world.reasons() == {}
    assert world.ran(lambda: world.run(CHANGES))[1] == []


def test_a_time_that_was_allowed_is_measured_anew_too(folder: Path) -> None:
    from dataclasses import replace

    world = TimedWorld(folder, replace(UNDECIDED, blocking=False), PASSED)
    record, _ = world.ran(lambda: world.run(CHANGES))
    assert (record.status, record.blessed) == ("done", True)
    assert world.reasons()["evaluate"] == REASON
    decided, calls = world.ran(lambda: world.run(CHANGES))
    assert (decided.status, calls[0], decided.bundle) == ("done", "evaluate", record.bundle)
    assert world.reasons() == {}


def test_nothing_to_do_does_not_cover_it(folder: Path) -> None:
    from dataclasses import replace

    def keep(world: TimedWorld) -> bool:
        key = NoopKey(folder / "recipe.yaml", (), "", folder / ".mlkit")
        snapshot = snapshot_inputs(folder / "recipe.yaml")
        summary = summarize(world.run(CHANGES), folder / ".mlkit")
        kept = write(key, snapshot, load(folder, CHANGES), summary)
        assert (look_up(key, world.status) is not None) is kept
        return kept

    world = TimedWorld(folder, replace(UNDECIDED, blocking=False), PASSED)
    assert not keep(world)
    assert keep(world)


def test_candidates_that_a_busy_machine_rejected_are_measured_anew(folder: Path) -> None:
    """The optimize stage has no gates: its summary says that its times did not decide."""
    world = TimedWorld(folder, PASSED, PASSED)
    plain = world.stages["optimize"]
    busy = [True]

    def optimize(spec: Any, context: StageContext) -> StageResult:
        plain(spec, context)
        return StageResult(summary={"remeasure": busy.pop()} if busy else {})

    world.stages["optimize"] = optimize
    assert world.run(CHANGES).status == "done"
    assert world.reasons()["optimize"] == REASON
    _, calls = world.ran(lambda: world.run(CHANGES))
    assert calls[0] == "optimize"
    assert "train" not in calls
    assert world.reasons() == {}


def test_a_failed_time_is_remembered(folder: Path) -> None:
    """It rests on undisturbed evidence, and a run that asks again gets the same answer at once."""
    failed = Verdict("latency_p99_ms <= 5", Outcome.FAILED, "9 ms", "latency_p99_ms", threshold=5.0, direction="max")
    world = TimedWorld(folder, failed)
    assert world.run(CHANGES).status == "gate-failed"
    record, calls = world.ran(lambda: world.run(CHANGES))
    assert (record.status, calls) == ("gate-failed", [])


def hint_of(world: TimedWorld, kind: type[Exception], options: Sequence[str] = ()) -> list[list[str]]:
    """The commands of the hint, split as a shell does."""
    with pytest.raises(kind) as raised:
        raise_for(world.run(CHANGES), options)
    hint: str = raised.value.hint  # type: ignore[attr-defined]
    return [shlex.split(part) for part in hint.split("; ")]


def test_the_hint_measures_again_or_lets_it_take_longer(folder: Path) -> None:
    options = ["--state", "a folder", "--until", "package"]
    commands = hint_of(TimedWorld(folder, UNDECIDED), GateInconclusiveError, options)
    start = ["mlkit", "run", str(folder / "recipe.yaml"), *options]
    assert commands[0][: len(start)] == start
    assert commands[1][: len(start) + 2] == [*start, "latency.seconds=120", "latency.rounds=8000"]


def test_the_hint_loosens_a_gate_that_failed_by_its_position(folder: Path) -> None:
    measured = Measurement("latency_p99_ms", 9.0, 8.0, 10.0, 2000, unit="ms")
    failed = Verdict("latency_p99_ms <= 5", Outcome.FAILED, "9 ms", "latency_p99_ms", measured, 5.0, "max")
    commands = hint_of(TimedWorld(folder, failed), GateFailedError)
    assert [command[3] for command in commands] == ["--force", "gates.1.max=11"]
