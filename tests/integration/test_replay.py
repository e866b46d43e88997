"""Replays of prediction logs on disk: recorded experiments, planted harm, and what the real join makes of the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlflowkit.errors import DataError, UsageError
from mlflowkit.judging.online.evidence import latency_bin
from mlflowkit.rollout.settings import Rollout
from mlflowkit.rollout.simulation import log_replay
from mlflowkit.rollout.simulation.log_replay import (
    InjectedRegression,
    RecordedExperiment,
    RegressionInjector,
    replay_injected,
    replay_recorded,
)
from mlflowkit.rollout.simulation.recording import Recording, measured_figures, read_recording
from mlflowkit.rollout.simulation.scenarios import TrafficFigures
from mlflowkit.rollout.simulation.simulator import SimulationEnd
from mlflowkit.rollout.simulation.synthetic_traffic import TrafficSplit
from mlflowkit.serving.feedback.join import FeedbackJoin
from mlflowkit.serving.observer import prediction_log
from tests.support.simulation_log import BEGUN, Challenger, write_service

CANARY: dict[str, Any] = {
    "strategy": "canary",
    "steps": [10, 50],
    "min_samples": 200,
    "metrics": [{"metric": "error_rate", "margin": 0.01}, {"metric": "latency_p99_ms", "ratio": 2}],
}


def plan(**values: Any) -> Rollout:
    return Rollout.model_validate({**CANARY, **values})


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Ten thousand requests of a champion, feedback on 60 %."""
    return read_recording(write_service(tmp_path_factory.mktemp("champion"), 10_000, feedback=0.6))


def recorded(folder: Path, challenger: Challenger, requests: int = 8000, **values: Any) -> Recording:
    return read_recording(write_service(folder, requests, challenger=challenger, experiment="e1", **values))


# ---------------------------------------------------------------------------------------------------- what is recorded


def test_a_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    recording = recorded(tmp_path, Challenger(more_errors=0.1), 900, rows=3, feedback=0.5, rate=10.0)
    table = next(iter(prediction_log.read_log(tmp_path / "predictions")))
    assert len(recording) == 900
    assert recording.begun == BEGUN
    assert recording.rate == pytest.approx(10.0, rel=0.01)
    assert set(recording.rows.tolist()) == {3}
    assert recording.ids[:2] == ["r0", "r1"]
    assert recording.challengers("e1") == ("challenger",)
    assert recording.bins[0] == latency_bin(table["seconds"][0].as_py())
    counted = recording.predictions.counted(np.arange(900))
    assert sum(n for key, n in counted.items() if key.startswith("label:")) == 2700
    assert {key for key in counted if key.startswith("score:")} == {"score:45", "score:5"}
    assert recording.failed.any()
    later = read_recording(tmp_path, since=BEGUN + 50.0)
    assert (len(later), later.begun) == (400, BEGUN + 50.0)


def test_feedback_comes_to_what_the_join_makes_of_it(tmp_path: Path) -> None:
    folder = write_service(
        tmp_path, 2000, challenger=Challenger(more_errors=0.1, less_accurate=0.2), experiment="e1", feedback=0.7, rows=2
    )
    join = FeedbackJoin(folder)
    expected = join.step("e1")
    join.close()
    recording = read_recording(folder)
    source = RecordedExperiment(recording, "e1", "challenger", ["accuracy", "log_loss"])
    source.advance(TrafficSplit(1, 0.3), recording.seconds)
    evidence = source.evidence("e1")
    for name in ("champion", "challenger"):
        for metric in ("accuracy", "log_loss"):
            ours, theirs = evidence.of(name).quality[metric], expected.of(name).quality[metric]
            assert ours.count == theirs.count > 0
            assert (ours.total, ours.squares) == pytest.approx((theirs.total, theirs.squares))


def test_figures_are_those_of_the_champion(tmp_path: Path) -> None:
    folder = write_service(tmp_path, 4000, rate=20.0)
    figures = measured_figures(folder, TrafficFigures(accuracy=0.7))
    assert figures.rate == pytest.approx(20.0)
    assert figures.error_rate == pytest.approx(0.01)
    assert figures.p50_ms == pytest.approx(5.0, rel=0.1)
    assert figures.p99_ms == pytest.approx(5.0 * np.exp(0.5 * 2.326), rel=0.15)
    assert figures.accuracy == 0.7
    assert figures.latency is not None


def test_a_folder_without_a_log_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no prediction log") as caught:
        read_recording(tmp_path)
    assert "services" in caught.value.hint
    write_service(tmp_path / "few", 20)
    with pytest.raises(DataError, match="20 answers of the champion"):
        measured_figures(tmp_path / "few", TrafficFigures())


# ---------------------------------------------------------------------------------------------------------- recorded


def test_a_recorded_challenger_that_failed_requests_would_have_been_rolled_back(tmp_path: Path) -> None:
    recording = recorded(tmp_path, Challenger(more_errors=0.06))
    played = replay_recorded(plan(), recording, "e1", "challenger")
    assert (played.end, played.by) == (SimulationEnd.FAILED, "error_rate")
    assert played.seconds < recording.seconds
    assert 0.25 < played.exposed / played.requests < 0.35
    assert replay_recorded(plan(), recording, "e1", "challenger") == played
    allowed = plan(metrics=[{"metric": "error_rate", "margin": 0.2}])
    assert replay_recorded(allowed, recording, "e1", "challenger").end == SimulationEnd.PROMOTED


def test_a_recorded_challenger_that_was_as_good_would_have_been_promoted(tmp_path: Path) -> None:
    recording = recorded(tmp_path, Challenger(), feedback=0.5)
    wide = [{"metric": "error_rate", "margin": 0.02}, {"metric": "accuracy", "margin": 0.15}]
    assert replay_recorded(plan(metrics=wide), recording, "e1", "challenger").end == SimulationEnd.PROMOTED
    strict = plan(metrics=[{"metric": "error_rate", "margin": 0.0001}])
    played = replay_recorded(strict, recording, "e1", "challenger")
    assert (played.end, played.seconds) == (SimulationEnd.UNDECIDED, recording.seconds)


@pytest.mark.simulation
@pytest.mark.parametrize(
    ("challenger", "metric"),
    [
        (Challenger(slower=6.0), {"metric": "latency_p99_ms", "ratio": 2}),
        (Challenger(less_accurate=0.3), {"metric": "accuracy", "margin": 0.05}),
    ],
)
def test_recorded_harm_is_found(tmp_path: Path, challenger: Challenger, metric: dict[str, Any]) -> None:
    recording = recorded(tmp_path, challenger, feedback=0.9)
    played = replay_recorded(plan(metrics=[metric]), recording, "e1", "challenger")
    assert (played.end, played.by) == (SimulationEnd.FAILED, metric["metric"])


def test_a_recorded_shadow_is_judged_by_its_agreement(tmp_path: Path) -> None:
    shadow = Challenger("shadow-7", mirror=True, agrees=0.7)
    recording = recorded(tmp_path, shadow, 3000, rows=2)
    mirrored = recording.mirrored["shadow-7"]
    assert mirrored.rows.sum() == 6000
    assert mirrored.alike.sum() / 6000 == pytest.approx(0.7, abs=0.03)
    judged = plan(strategy="shadow", steps=[0], metrics=[{"metric": "agreement", "min": 0.9}])
    played = replay_recorded(judged, recording, "e1", "shadow-7")
    assert (played.end, played.by, played.exposed) == (SimulationEnd.FAILED, "agreement", 0)
    kept = plan(strategy="shadow", steps=[0], promote="never", metrics=[{"metric": "agreement", "min": 0.5}])
    assert replay_recorded(kept, recording, "e1", "shadow-7").end == SimulationEnd.KEPT


def test_recorded_tables_are_never_pooled(tmp_path: Path) -> None:
    recording = recorded(tmp_path, Challenger(), 2000)
    recording.epoch[1000:] = 9
    source = RecordedExperiment(recording, "e1", "challenger", ["error_rate"])
    source.advance(TrafficSplit(4, 0.1), 10.0)
    source.advance(TrafficSplit(5, 0.5), recording.seconds)
    assert len(source.epochs([4])) == 1
    assert len(source.epochs([5])) == 2
    assert len(source.epochs([4, 5])) == 3
    evidence = source.evidence("e")
    total = evidence.of("champion").requests + evidence.of("challenger").requests
    assert total == source.requests == 2000


def test_an_experiment_that_is_not_there_is_named(tmp_path: Path, champion: Recording) -> None:
    recording = recorded(tmp_path, Challenger(), 200)
    with pytest.raises(UsageError, match="no challenger in experiment 'e2'") as caught:
        replay_recorded(plan(), recording, "e2", "challenger")
    assert "e1 (challenger)" in caught.value.hint
    with pytest.raises(UsageError, match="no challenger"):
        replay_recorded(plan(), champion, "", "challenger")


# ----------------------------------------------------------------------------------------------------------- planted


def test_planted_harm_is_found_in_recorded_traffic_and_equals_are_left_alone(champion: Recording) -> None:
    ends = {
        (kind, size): {rollout.end for rollout in replay_injected(plan(), champion, kind, size, 3)}
        for kind, size in (("aa", 0.0), ("error-rate", 0.1), ("latency", 6.0))
    }
    assert ends["aa", 0.0] <= {SimulationEnd.PROMOTED, SimulationEnd.UNDECIDED}
    assert ends["error-rate", 0.1] == ends["latency", 6.0] == {SimulationEnd.FAILED}


@pytest.mark.parametrize(
    ("kind", "size", "metric", "steps"),
    [
        ("accuracy", 0.3, {"metric": "accuracy", "margin": 0.05}, [50]),
        ("log-loss", 4.0, {"metric": "log_loss", "margin": 0.1}, [50]),
        ("prediction-shift", 0.5, {"metric": "prediction_drift", "max": 0.1}, [50]),
        ("disagreement", 0.3, {"metric": "agreement", "min": 0.9}, [0]),
        ("latency-tail", 5.0, {"metric": "latency_p99_ms", "ratio": 2}, [50]),
    ],
)
def test_every_kind_of_harm_can_be_planted(
    champion: Recording, kind: Any, size: float, metric: dict[str, Any], steps: list[int]
) -> None:
    chosen = plan(metrics=[metric], steps=steps)
    assert log_replay.can_inject(kind, champion, chosen)
    played = replay_injected(chosen, champion, kind, size, 2)
    assert {(rollout.end, rollout.by) for rollout in played} == {(SimulationEnd.FAILED, metric["metric"])}


def test_planting_deals_by_the_router_and_is_the_same_again(champion: Recording) -> None:
    first = replay_injected(plan(), champion, "error-rate", 0.05, 3, seed=4)
    assert replay_injected(plan(), champion, "error-rate", 0.05, 3, seed=4) == first
    assert replay_injected(plan(), champion, "error-rate", 0.05, 3, seed=5) != first
    assert len({rollout.tried for rollout in first}) > 1


def test_a_raised_weight_moves_nobody_back_and_nothing_is_lost(champion: Recording) -> None:
    harm = RegressionInjector("aa", 0.0, champion, (0,))
    source = InjectedRegression(champion, harm, "salt", ["error_rate", "accuracy", "prediction_drift"])
    source.advance(TrafficSplit(1, 0.1), 100.0)
    few = {champion.ids[place] for place in np.flatnonzero(source._challenger_requests)}
    source.advance(TrafficSplit(2, 0.5), champion.seconds)
    evidence = source.evidence("e")
    counts = evidence.of("champion") + evidence.of("challenger")
    assert counts.requests == source.requests == len(champion)
    assert counts.rows == sum(counts.latency.values()) == int(champion.rows.sum())
    assert champion.feedback is not None
    assert counts.quality["accuracy"].count == len(champion.feedback.times)
    assert source.exposed == evidence.of("challenger").requests
    again = InjectedRegression(champion, harm, "salt", ["error_rate"])
    again.advance(TrafficSplit(2, 0.5), 100.0)
    assert few < {champion.ids[place] for place in np.flatnonzero(again._challenger_requests)}


def test_harm_that_the_log_cannot_show_is_refused(champion: Recording) -> None:
    with pytest.raises(UsageError, match="cannot be injected"):
        RegressionInjector("low-traffic", 20.0, champion, (0,))
    assert not log_replay.can_inject("absolute-error", champion, plan())
    assert not log_replay.can_inject("disagreement", champion, plan())
