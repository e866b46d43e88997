"""What is read of a service's files and shown of it: pure views, rates, words, metrics, damaged files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlflowkit.judging.online.evidence import Evidence, Moments, VariantCounts, latency_bin
from mlflowkit.judging.online.judge import MetricResult
from mlflowkit.rollout.admin import rollout_metrics
from mlflowkit.rollout.admin.build_view import (
    agreement_views,
    allowed_commands,
    build_service_view,
    latency_histogram,
    prediction_histogram,
    quantile_ms,
    rollout_view,
    waiting_for,
    weight_history,
)
from mlflowkit.rollout.admin.snapshot import EventCounter, ServiceMonitor, read_snapshot
from mlflowkit.rollout.admin.view_models import RequestSample, ServiceSnapshot
from mlflowkit.rollout.policy import PolicyCommand
from mlflowkit.rollout.settings import Rollout, RolloutMetric, RolloutStep
from mlflowkit.rollout.state import MetricReading, Observation, RolloutState, StepCounts
from mlflowkit.service_state.records import ServiceFiles, write_json
from mlflowkit.values import Measurement, Outcome, RoutingTable, Variant, Verdict
from tests.support.rollout_world import RolloutWorld

VARIANT = Variant("challenger", "2", "d", "b")
PLAN = Rollout(
    strategy="canary",
    steps=[RolloutStep(weight=5), RolloutStep(weight=50)],
    metrics=[
        RolloutMetric(metric="error_rate", margin=0.01),
        RolloutMetric(metric="latency_p99_ms", ratio=2, role="guardrail"),
    ],
    min_samples=500,
    bake_seconds=30,
    max_seconds=3600,
)
RUNNING = RolloutState(
    "e1", "lending", PLAN, replace(VARIANT, name="champion", version="1"), VARIANT, phase="running", begun=100.0
)


def finding(name: str, outcome: Outcome, value: float = 0.0, high: float = 0.1) -> MetricResult:
    measured = Measurement(name, value, -0.1, high, 100)
    return MetricResult(
        name, Verdict(name, outcome, "said", name, measured, 0.01, "max", change=True), 0.2, 0.4, (90, 10)
    )


def test_running_rollout_waits_for_what_it_lacks_of_requests_time_and_proof() -> None:
    state = replace(RUNNING, step=1, counts=StepCounts(champion=700, challenger=188), elapsed=12.0)
    state = replace(
        state, findings=(finding("error_rate", Outcome.INCONCLUSIVE), finding("latency_p99_ms", Outcome.PASSED))
    )
    assert waiting_for(state) == (
        "312 more requests of challenger",
        "18 s of baking",
        "1 metric inconclusive (error_rate)",
        "deadline in 59 min",
    )


def test_first_step_waits_for_no_proof_and_a_guardrail_is_never_waited_for() -> None:
    done = replace(RUNNING, counts=StepCounts(700, 700), elapsed=40.0)
    assert waiting_for(done) == ("deadline in 59 min",)
    last = replace(done, step=1, findings=(finding("error_rate", Outcome.PASSED), finding("x", Outcome.INCONCLUSIVE)))
    assert waiting_for(last) == ("deadline in 59 min",)


@pytest.mark.parametrize(
    ("phase", "word", "told"),
    [
        ("pending", "turn", ("abort",)),
        ("preparing", "load, verify and warm version 2", ("abort",)),
        ("paused", "mlkit rollout resume lending", ("promote", "resume", "abort", "rollback")),
        ("awaiting_approval", "mlkit rollout promote lending", ("promote", "pause", "abort", "rollback")),
        ("promoting", "version 2 alone", ()),
        ("rolling_back", "version 1 alone", ()),
    ],
)
def test_each_phase_says_what_it_waits_for_and_what_may_be_said(phase: str, word: str, told: tuple[str, ...]) -> None:
    state = replace(RUNNING, phase=phase)
    assert word in waiting_for(state)[0]
    assert allowed_commands(state) == told
    assert all("deadline" not in words for words in waiting_for(state))  # a deadline stands still where none is judged


@pytest.mark.parametrize("phase", ["promoted", "rolled_back", "aborted", "kept"])
def test_ended_rollout_waits_for_nothing(phase: str) -> None:
    state = replace(RUNNING, phase=phase, finished=200.0)
    assert (waiting_for(state), allowed_commands(state)) == ((), ())
    assert rollout_view(state, Evidence("e1")).deadline is None


def test_steps_say_where_the_rollout_is_and_where_it_ended() -> None:
    def states(state: RolloutState) -> list[str]:
        return [step.state for step in rollout_view(state, Evidence("")).steps]

    assert states(RUNNING) == ["now", "ahead"]
    assert states(replace(RUNNING, step=1)) == ["done", "now"]
    assert states(replace(RUNNING, phase="rolled_back", finished=1.0)) == ["ended", "left"]
    assert states(replace(RUNNING, step=1, phase="promoted", finished=1.0)) == ["done", "done"]


def test_weights_change_where_looks_say_and_end_with_the_rollout() -> None:
    looks = (
        Observation(110.0, 0, 0.05, "running"),
        Observation(111.0, 0, 0.05, "running"),
        Observation(150.0, 1, 0.5, "running"),
    )
    state = replace(RUNNING, history=looks, step=1, clock=160.0)
    assert weight_history(state) == ((100.0, 0.0), (110.0, 0.05), (150.0, 0.5), (160.0, 0.5))
    assert weight_history(replace(state, phase="promoted", finished=170.0))[-1] == (170.0, 1.0)
    assert weight_history(replace(state, phase="rolled_back", finished=170.0))[-1] == (170.0, 0.0)
    assert weight_history(replace(state, begun=0.0)) == ()


def test_what_is_not_finite_is_unknown_and_the_view_is_json(tmp_path: Path) -> None:
    reading = MetricReading("error_rate", Outcome.INCONCLUSIVE, 0.0, 0.0, math.nan, -math.inf, math.inf, 0, 0)
    state = replace(
        RUNNING,
        findings=(finding("error_rate", Outcome.INCONCLUSIVE, math.nan, math.inf),),
        history=(Observation(1.0, 0, 0.0, "running", (reading,)),),
    )
    shown = rollout_view(state, Evidence("e1"))
    assert (shown.findings[0].value, shown.findings[0].high, shown.findings[0].low) == (None, None, -0.1)
    assert (shown.history["error_rate"][0].value, shown.history["error_rate"][0].low) == (None, None)
    whole = build_service_view(ServiceSnapshot("lending", 1.0, rollout=state))
    write_json(tmp_path / "view.json", whole.to_json())  # refuses what is not JSON


def test_findings_have_the_roles_of_their_metrics() -> None:
    state = replace(
        RUNNING, findings=(finding("error_rate", Outcome.PASSED), finding("latency_p99_ms", Outcome.PASSED))
    )
    assert [finding.role for finding in rollout_view(state, Evidence("")).findings] == ["objective", "guardrail"]


def test_quantiles_come_from_bins_and_are_at_most_two_percent_small() -> None:
    latency = {latency_bin(0.002): 98, latency_bin(0.050): 2}
    assert quantile_ms(latency, 0.5) == pytest.approx(2.0, rel=0.02)
    assert quantile_ms(latency, 0.99) == pytest.approx(50.0, rel=0.02)


def test_latency_histogram_puts_both_arms_over_the_same_edges() -> None:
    histogram = latency_histogram({latency_bin(0.001): 5}, {latency_bin(0.002): 7, latency_bin(0.0021): 1})
    assert histogram is not None
    assert len(histogram.edges) == len(histogram.champion) + 1 == len(histogram.challenger) + 1
    assert (sum(histogram.champion), sum(histogram.challenger)) == (5, 8)
    assert histogram.champion[0] == 5
    assert histogram.edges[0] <= 1.0 < histogram.edges[1]
    assert latency_histogram({}, {}) is None


def test_prediction_histogram_takes_scores_before_classes_and_tenths_of_a_regression() -> None:
    scores = prediction_histogram({"score:49": 2, "label:good": 2}, {"score:0": 1})
    assert scores is not None
    assert (scores.champion[49], scores.challenger[0], scores.edges[-1]) == (2, 1, 1.0)
    tenths = prediction_histogram({"decile:3": 4}, {})
    assert tenths is not None
    assert tenths.champion[3] == 4
    classes = prediction_histogram({"label:a": 1, "label:b": 5}, {"label:c": 2})
    assert classes is not None
    assert (classes.names, classes.champion, classes.challenger) == (("b", "c", "a"), (5, 0, 1), (0, 2, 0))
    assert prediction_histogram({}, {}) is None


def test_least_agreeing_slice_comes_first_after_the_whole() -> None:
    counts = VariantCounts(
        agreement={
            "a=1": Moments(100, 99, 99),
            "a=2": Moments(100, 50, 50),
            "": Moments(200, 149, 149),
            "a=3": Moments(),
        }
    )
    assert [share.slice for share in agreement_views(counts)] == ["", "a=2", "a=1"]
    assert all(share.low <= share.value <= share.high for share in agreement_views(counts))


def test_rate_is_of_the_time_between_two_looks() -> None:
    table = RoutingTable("lending", 3, (Variant("champion", "1", "d", "b"),), "e1")
    evidence = Evidence("e1", {3: {"champion": VariantCounts(requests=130)}})
    now = ServiceSnapshot("lending", 12.0, table=table, evidence=evidence)
    assert build_service_view(now).variants[0].per_second is None
    assert build_service_view(now, RequestSample(10.0, 3, {"champion": 100})).variants[0].per_second == 15.0
    assert (
        build_service_view(now, RequestSample(10.0, 3, {"champion": 900})).variants[0].per_second is None
    )  # counts began anew


def test_new_champion_is_not_credited_with_what_the_one_before_answered(tmp_path: Path) -> None:
    world = RolloutWorld(tmp_path).begin().run(100)
    world.look((), PolicyCommand("promote", full=True))
    world.look(())
    world.answer(500)
    world.write_evidence()
    shown = ServiceMonitor(tmp_path).view("lending")
    assert shown is not None
    assert [(variant.name, variant.version, variant.requests) for variant in shown.variants] == [
        ("champion", "20261123-bb22", 500)
    ]


def test_snapshot_reads_a_running_rollout_whole(tmp_path: Path) -> None:
    world = RolloutWorld(tmp_path).controlled().begin().run(120)
    shown = ServiceMonitor(tmp_path).view("lending")
    assert shown is not None
    assert shown.problems == ()
    assert (shown.state, shown.epoch, shown.endpoint) == ("serving", world.table.epoch, "http://127.0.0.1:8080")
    assert shown.rollout is not None
    assert shown.rollout.summary == "canary, step 2 of 4 at 5 %"
    assert shown.controller is not None
    assert shown.controller.alive
    champion, challenger = shown.variants
    assert (champion.role, challenger.weight, challenger.mirrored) == ("champion", 0.05, 7200)
    assert champion.requests == sum(epoch["champion"].requests for epoch in world.counts.values())
    assert [share.slice for share in shown.agreement["challenger"]][:2] == ["", "grade=G"]


@pytest.mark.parametrize(
    "name", ["rollout.json", "table.json", "evidence/r1.json", "incidents/x.json", "webhooks.json", "admin.json"]
)
@pytest.mark.parametrize("content", ["{", "[1]", '{"version": 1}'])
def test_damaged_file_is_named_and_the_rest_is_shown(tmp_path: Path, name: str, content: str) -> None:
    world = RolloutWorld(tmp_path).begin().run(10)
    path = world.files.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    snapshot = read_snapshot(world.files)
    assert any(name in problem for problem in snapshot.problems)
    assert build_service_view(snapshot).endpoint == "http://127.0.0.1:8080"


def samples(page: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(page.decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_say_what_the_view_says(tmp_path: Path) -> None:
    RolloutWorld(tmp_path).controlled().begin().run(120)
    views = ServiceMonitor(tmp_path).views()
    values = samples(rollout_metrics.render_metrics(views, EventCounter()))
    rollout = views[0].rollout
    assert rollout is not None
    service = ("service", "lending")
    assert values["mlkit_rollout_phase", (("phase", "running"), service, ("strategy", "canary"))] == 1
    assert values["mlkit_rollout_phase", (("phase", "paused"), service, ("strategy", "canary"))] == 0
    assert values["mlkit_rollout_step", (service,)] == 2
    error = next(finding for finding in rollout.findings if finding.name == "error_rate")
    labels = (("metric", "error_rate"), ("role", "objective"), service)
    assert values["mlkit_rollout_harm", labels] == error.harm
    assert values["mlkit_rollout_proof", labels] == error.proof
    variant = (("role", "challenger"), service, ("variant", "challenger"), ("version", "20261123-bb22"))
    assert values["mlkit_variant_weight", variant] == 0.05
    assert values["mlkit_evidence_requests_total", variant] == views[0].variants[1].requests
    assert values["mlkit_controller_lease", ()] == 1
    assert values["mlkit_controller_fence", ()] == 1


def test_ends_and_deliveries_are_counted_once_and_only_as_they_happen(tmp_path: Path) -> None:
    world = RolloutWorld(tmp_path).begin()
    hooks = world.files.folder / "webhooks.json"
    delivery = {"id": "a", "event": "started", "url": "http://h", "time": 1.0, "ok": True, "status": 200, "attempts": 1}
    write_json(hooks, [delivery])
    counter = EventCounter()
    counter.update(world.files)
    assert (counter.ended, counter.delivered) == ({}, {})
    world.look((), PolicyCommand("rollback"))
    world.look(())
    write_json(hooks, [delivery, {**delivery, "id": "b", "ok": False}])
    for _ in range(3):
        counter.update(world.files)
    assert counter.ended == {("lending", "canary", "rolled_back"): 1}
    assert counter.delivered == {("lending", "failed"): 1}
    late = EventCounter()
    late.update(world.files)
    assert late.ended == {}
    page = samples(rollout_metrics.render_metrics(ServiceMonitor(tmp_path).views(), counter))
    assert page["mlkit_incidents_total", (("service", "lending"),)] == 1


def test_watch_knows_no_service_that_is_not_there(tmp_path: Path) -> None:
    assert ServiceMonitor(tmp_path).views() == ()
    assert ServiceMonitor(tmp_path).view("lending") is None
    ServiceFiles(tmp_path / "services" / "lending").folder.mkdir(parents=True)
    assert ServiceMonitor(tmp_path).view("lending") is None
