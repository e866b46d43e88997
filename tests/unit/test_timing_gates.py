"""Gates on time: sampling goes on until they are decided, and no busy machine turns them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlflowkit.bench.sequential.disturbance import Disturbance, describe, observe
from mlflowkit.bench.sequential.sampling import LatencyBudget, spend
from mlflowkit.stages.evaluation.gating import Gate, judge_time, rivals, undecided_times
from mlflowkit.stages.evaluation.gating import _gate_specs as specs_of
from mlflowkit.stages.evaluation.timing import PICKED, TimingEvidence, is_of_class
from mlflowkit.values import Outcome, Verdict
from tests.support.fake_machine import CORES, FakeMachine, Requests

BUDGET = LatencyBudget(20.0, 1000)
MACHINE = "x86_64 Some Processor x2"
P99 = Gate(metric="latency_p99_ms", max=1.0)
RATIO = Gate(metric="latency_ratio", against="champion", max=1.5)


def about(milliseconds: float) -> Requests:
    """Requests of about this long."""
    return lambda generator, count: milliseconds / 1000 * generator.gamma(400, 1 / 400, size=count)


def verdict_on(
    machine: FakeMachine, gate: Gate, picked: float, champion: float = 1.0
) -> tuple[Verdict, TimingEvidence]:
    """The verdict after measuring graphs of these milliseconds as the evaluate stage does."""
    names = {PICKED: picked, **dict.fromkeys(rivals([gate]), champion)}
    evidence = TimingEvidence(MACHINE, budget=BUDGET, alike=frozenset(rivals([gate])))
    rounds = machine.measure(
        {name: machine.source(about(milliseconds)) for name, milliseconds in names.items()},
        lambda rounds: not undecided_times([gate], replace(evidence, rounds=rounds)),
        BUDGET,
    )
    evidence = replace(evidence, rounds=rounds)
    return judge_time(gate, next(specs_of(gate)), evidence), evidence


def test_on_a_quiet_machine_a_gate_is_decided_at_the_first_look() -> None:
    for picked, outcome in ((0.5, Outcome.PASSED), (2.0, Outcome.FAILED)):
        verdict, evidence = verdict_on(FakeMachine(), P99, picked)
        assert (verdict.outcome, verdict.remeasure) == (outcome, False)
        assert evidence.rounds is not None
        assert evidence.rounds.look == 1
        assert not evidence.rounds.disturbed


def test_sampling_goes_on_where_the_first_look_does_not_decide() -> None:
    near = Gate(metric="latency_p99_ms", max=1.0)
    verdict, evidence = verdict_on(FakeMachine(), near, 0.886)  # its p99 is 0.992
    assert verdict.outcome is Outcome.PASSED
    assert evidence.rounds is not None
    assert evidence.rounds.look > 1


@pytest.mark.parametrize("picked", [0.5, 2.0, 50.0])
def test_a_busy_machine_turns_no_absolute_gate(picked: float) -> None:
    verdict, evidence = verdict_on(FakeMachine(lambda now: 8.0), P99, picked)
    assert (verdict.outcome, verdict.remeasure) == (Outcome.INCONCLUSIVE, True)
    assert "the machine was disturbed" in verdict.message
    assert "9 processes at once for 2 cores" in verdict.message
    assert "of the time spent waiting for a core" in verdict.message
    assert evidence.rounds is not None
    assert evidence.rounds.last


def test_a_limit_that_holds_on_a_busy_machine_holds() -> None:
    verdict, _ = verdict_on(FakeMachine(lambda now: 8.0), Gate(metric="latency_p99_ms", max=1000.0), 0.5)
    assert verdict.outcome is Outcome.PASSED


def test_quiet_moments_of_a_busy_machine_are_judged() -> None:
    """Disturbed in its first seconds: what follows decides."""
    for picked, outcome in ((0.5, Outcome.PASSED), (2.0, Outcome.FAILED)):
        verdict, evidence = verdict_on(FakeMachine(lambda now: 8.0 if now < 8 else 0.0), P99, picked)
        assert verdict.outcome is outcome
        assert evidence.rounds is not None
        assert evidence.rounds.disturbed


@pytest.mark.parametrize("others", [0.0, 8.0])
def test_a_ratio_is_decided_on_any_machine(others: float) -> None:
    for picked, outcome in ((1.02, Outcome.PASSED), (3.0, Outcome.FAILED)):
        verdict, _ = verdict_on(FakeMachine(lambda now: others), RATIO, picked)
        assert verdict.outcome is outcome, verdict.message


def test_a_busy_machine_does_not_judge_graphs_that_run_on_unequal_threads() -> None:
    """Contention slows the one with more threads by more: the ratio would be the machine's."""
    verdict, evidence = verdict_on(FakeMachine(lambda now: 8.0), RATIO, 3.0)
    assert verdict.outcome is Outcome.FAILED
    for rounds in (3.0, 1.0):
        _, evidence = verdict_on(FakeMachine(lambda now: 8.0), RATIO, rounds)
        unlike = judge_time(RATIO, next(specs_of(RATIO)), replace(evidence, alike=frozenset()))
        assert (unlike.outcome, unlike.remeasure) == (Outcome.INCONCLUSIVE, True)


def test_a_limit_in_milliseconds_holds_for_its_class_of_machines() -> None:
    gate = P99.model_copy(update={"machine": "Another Processor"})
    verdict = judge_time(gate, next(specs_of(gate)), TimingEvidence(MACHINE))
    assert (verdict.outcome, verdict.remeasure) == (Outcome.INCONCLUSIVE, False)
    assert "'Another Processor'; this one is 'x86_64 Some Processor x2'" in verdict.message
    verdict, _ = verdict_on(FakeMachine(), P99.model_copy(update={"machine": "some  processor"}), 0.5)
    assert verdict.outcome is Outcome.PASSED
    assert not is_of_class(MACHINE, "Some Processor x4")


def test_what_is_settled_without_a_measurement() -> None:
    evidence = TimingEvidence(
        MACHINE, settled={"champion": (Outcome.PASSED, "no champion yet: nothing to compare with")}
    )
    verdict = judge_time(RATIO, next(specs_of(RATIO)), evidence)
    assert verdict.outcome is Outcome.PASSED
    assert "no champion yet" in verdict.message
    assert not undecided_times([RATIO], evidence)
    assert undecided_times([P99], evidence)


def test_counters_that_the_system_hides_disturb_nothing() -> None:
    before = replace(FakeMachine().read(), running=None, pressure_seconds=None, stolen_ticks=None, busy_ticks=None)
    after = replace(before, clock=before.clock + 1, thread_seconds=before.thread_seconds + 1, throttled_seconds=None)
    assert observe(before, after, CORES, single_threaded=True).causes == ()
    idle = replace(after, thread_seconds=before.thread_seconds)
    assert observe(before, idle, CORES, single_threaded=True).causes == ("waited",)
    assert observe(before, idle, CORES, single_threaded=False).causes == ()


@pytest.mark.parametrize(
    ("disturbance", "figure"),
    [
        (Disturbance(stolen=0.07), "7 % of the busy time given to other machines"),
        (Disturbance(throttled=0.25), "the container held at its limit for 0.25 s"),
        (Disturbance(pressure=0.5), "50 % of the time"),
    ],
)
def test_each_cause_is_told_with_its_figure(disturbance: Disturbance, figure: str) -> None:
    assert figure in describe([Disturbance(), disturbance])


def test_looks_spend_no_more_than_the_error_rate() -> None:
    assert sum(1 - spend(0.95, look) for look in range(1, 10_000)) <= 0.05
