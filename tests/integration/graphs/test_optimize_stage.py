"""Candidates are made in processes of their own, measured in turns and judged; the pick serves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflowkit.adapters.trials import ProcessTrials
from mlflowkit.adapters.trials.process import ProcessTrial
from mlflowkit.bench.environment import machine_info
from mlflowkit.errors import EngineError
from mlflowkit.graphs.candidates import Candidate
from mlflowkit.judging import metrics
from mlflowkit.optimization import early_stopping, selection, tournament
from mlflowkit.optimization.objective import CandidateFigures
from mlflowkit.optimization.trial_outcome import TrialOutcome
from mlflowkit.ports import TrialJob
from mlflowkit.stages import optimize
from mlflowkit.values import Event
from tests.support import trial_processes
from tests.support.export_world import ExportWorld
from tests.support.fake_machine import FakeMachine

Make = Callable[[str], ExportWorld]
BOTH = ["onnx", "onnx-int8"]
MLP = "network, strings, gaps, three classes"


@pytest.fixture
def copy(exported: Make, tmp_path: Path) -> Make:
    """A case's world, copied so that the stage can write beside it."""

    def make(case: str) -> ExportWorld:
        world = exported(case)
        for stage in ("data", "train", "export"):
            shutil.copytree(world.base / stage, tmp_path / stage)
        return ExportWorld(tmp_path, world.task)

    return make


def published(world: ExportWorld, name: str) -> Any:
    return json.loads((world.base / "optimize" / name).read_text())


def row_of(world: ExportWorld, name: str) -> dict[str, Any]:
    return next(row for row in published(world, "candidates.json") if row["name"] == name)


def test_the_stage_publishes_the_pick_and_what_was_measured(copy: Make) -> None:
    world = copy(MLP)
    search = {"stop_early": False}
    result = world.optimize(candidates=BOTH, max_metric_drop=1.0, metric="accuracy", samples=240, search=search)
    rows = published(world, "candidates.json")
    assert [row["name"] for row in rows] == BOTH
    assert [row["status"] for row in rows] == ["ok", "ok"]
    (picked,) = [row for row in rows if row["picked"]]
    (other,) = [row for row in rows if not row["picked"]]
    assert "times that of" in other["reason"]
    assert result.summary["picked"] == picked["name"]
    latency = published(world, "latency.json")
    evidence = published(world, "machine.json")
    assert (evidence["machine"]["processor"], len(evidence["moments"])) == (machine_info().processor, 2)
    assert all(isinstance(words, str) for words in evidence["notes"])
    for row in rows:
        assert (row["runtime"], row["batch"], row["samples"]) == ("ort-cpu", 1, 240)
        assert row["size_bytes"] > 1000
        assert row["memory_bytes"] > 0
        assert row["cold_start_ms"] > 0
        assert row["p50_us"] <= row["p95_us"] <= row["p99_us"]
        assert row["interval"][0] <= row["p99_us"] <= row["interval"][1]
        assert row["metric"]["name"] == "accuracy"
        samples = latency[row["name"]]
        assert (len(samples["samples_us"]), samples["block"]) == (240, 12)
        gate = metrics.latency("latency_p50_ms", np.array(samples["samples_us"]), samples["block"])
        assert gate.value == pytest.approx(row["p50_us"] / 1000, abs=1e-4), "what evaluate judges is what was measured"
    assert rows[0]["metric_drop"] is None
    assert rows[1]["metric_drop"]["low"] <= rows[1]["metric_drop"]["value"] <= rows[1]["metric_drop"]["high"]
    assert result.metrics["latency_p99_ms"] == picked["p99_us"] / 1000
    exported = (world.base / "export/model.onnx").read_bytes()
    assert ((world.base / "optimize/model.onnx").read_bytes() == exported) == (picked["name"] == "onnx")
    assert (world.base / "optimize/signature.json").read_bytes() == (world.base / "export/signature.json").read_bytes()


def test_a_candidate_that_loses_too_much_is_rejected_with_its_numbers(copy: Make) -> None:
    world = copy(MLP)
    world.optimize(candidates=["onnx-int8", "onnx"], max_metric_drop=0.0, metric="log_loss")
    first, second = published(world, "candidates.json")
    assert (first["status"], first["picked"]) == ("rejected", False)
    assert "log_loss drops by" in first["reason"]
    assert "max_metric_drop 0" in first["reason"]
    assert 0 < first["samples"] < second["samples"], "measured all the same for the report, though not to the end"
    assert not first["front"]
    assert (second["status"], second["picked"]) == ("ok", True)


def test_no_candidate_left_is_an_error_that_says_why(copy: Make) -> None:
    world = copy(MLP)
    with pytest.raises(EngineError, match="onnx-int8: log_loss drops by") as caught:
        world.optimize(candidates=["onnx-int8"], max_metric_drop=0.0, metric="log_loss")
    assert "optimize.candidates" in caught.value.hint
    assert not (world.base / "optimize" / "model.onnx").exists()


def test_a_candidate_that_cannot_be_made_is_listed_with_the_reason(copy: Make) -> None:
    world = copy("boosting, two classes")
    result = world.optimize(candidates=["onnx-int8", "onnx"])
    first, second = published(world, "candidates.json")
    assert (first["status"], first["samples"], first["p99_us"]) == ("unavailable", 0, None)
    assert "no matrix product" in first["reason"]
    assert second["picked"]
    assert second["metric"]["name"] == "roc_auc"
    assert result.metrics["validation_roc_auc"] == second["metric"]["value"]
    assert list(published(world, "latency.json")) == ["onnx"]


def test_a_regression_is_held_to_its_error(copy: Make) -> None:
    world = copy("network, strings, gaps, regression")
    world.optimize(candidates=BOTH, max_metric_drop=100.0, objective="latency_p50", batch=16)
    rows = published(world, "candidates.json")
    assert {row["metric"]["name"] for row in rows} == {"rmse"}
    assert {row["batch"] for row in rows} == {16}
    worse = rows[1]["metric"]["value"] - rows[0]["metric"]["value"]
    assert rows[1]["metric_drop"]["value"] == pytest.approx(worse), "a larger error is a drop"


def test_rows_that_cannot_say_reject_all_but_the_float_graph(copy: Make) -> None:
    world = copy(MLP)
    path = world.base / "data" / "validation.parquet"
    pd.read_parquet(path).assign(homeownership="RENT").to_parquet(path)
    result = world.optimize(candidates=["onnx-int8", "onnx"], metric="balanced_accuracy")
    rough, exact = published(world, "candidates.json")
    assert (rough["status"], rough["picked"]) == ("rejected", False)
    assert "do not determine its loss" in rough["reason"]
    assert (exact["picked"], exact["metric"]) == (True, None)
    assert not [name for name in result.metrics if name.startswith("validation_")]


KEYS = [
    "name", "runtime", "passes", "engine", "batch", "samples", "p50_us", "p95_us", "p99_us", "interval", "throughput",
    "status", "reason", "metric", "metric_drop", "size_bytes", "memory_bytes", "build_seconds", "cold_start_ms",
    "front", "picked", "script", "notes",
]  # fmt: skip
"""The format of candidates.json, which `mlkit bench --json` prints too."""


def test_an_engine_that_is_picked_is_written_down_and_one_that_lacks_is_said_so(copy: Make) -> None:
    world = copy(MLP)
    engine = {"runtime": "ort-cpu", "graph_level": "basic"}
    world.optimize(candidates=[{"name": "basic", "engine": engine}, "onnx-cuda"], objective="size", samples=200)
    assert [list(row) for row in published(world, "candidates.json")] == [KEYS, KEYS]
    assert published(world, "engine.json") == row_of(world, "basic")["engine"]
    assert (world.base / "optimize/model.onnx").read_bytes() == (world.base / "export/model.onnx").read_bytes()
    lacking = row_of(world, "onnx-cuda")
    assert (lacking["status"], lacking["samples"]) == ("unavailable", 0)
    assert "CUDA" in lacking["reason"]


def test_a_smaller_graph_wins_by_size_and_a_limit_rejects_a_larger_one(copy: Make) -> None:
    world = copy(MLP)
    world.optimize(candidates=BOTH, objective="size", max_metric_drop=1.0, metric="accuracy")
    assert row_of(world, "onnx-int8")["picked"]
    small, large = (row_of(world, name)["size_bytes"] for name in ("onnx-int8", "onnx"))
    world.optimize(candidates=BOTH, max_size_mb=(small + large) / 2e6, max_metric_drop=1.0, metric="accuracy")
    assert row_of(world, "onnx")["status"] == "rejected"
    assert "max_size_mb" in row_of(world, "onnx")["reason"]
    assert row_of(world, "onnx-int8")["picked"]


def test_a_latency_that_is_not_borne_leaves_no_candidate_and_is_not_remembered(
    copy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Busy, it says so; the limit of its hint lets the same graph serve, since it is measured anew."""
    world = copy(MLP)
    monkeypatch.setattr(optimize, "read_moment", FakeMachine(lambda now: 8.0).read)
    with pytest.raises(
        EngineError, match=r"more than max_latency_ms 1e-06.*the machine was disturbed: up to 9"
    ) as busy:
        world.optimize(candidates=["onnx"], max_latency_ms=1e-6, samples=240)
    assert busy.value.hint.startswith(
        "mlkit run RECIPE measures again, when the machine is quieter, or mlkit run RECIPE"
    )
    assert not list(world.base.rglob("measured-*.npz"))
    monkeypatch.setattr(optimize, "read_moment", FakeMachine().read)
    with pytest.raises(EngineError, match=r"more than max_latency_ms 1e-06 *$") as quiet:
        world.optimize(candidates=["onnx"], max_latency_ms=1e-6, samples=240)
    assert quiet.value.hint.startswith("mlkit run RECIPE optimize.max_latency_ms=")


def test_a_rejection_by_a_disturbed_machine_is_doubtful() -> None:
    fast = TrialOutcome(Candidate(name="fast"))
    slow = TrialOutcome(Candidate(name="slow"), "rejected", "latency_p99 is 3 to 9 ms: more than max_latency_ms 2")
    worse = TrialOutcome(Candidate(name="worse"), "rejected", "roc_auc drops by 0.1")
    warning = optimize.doubtful_rejections([fast, slow, worse], "up to 9 processes at once for 2 cores")
    assert warning.startswith("max_latency_ms rejected slow while the machine was disturbed: up to 9 processes")
    assert optimize.doubtful_rejections([fast, slow], "") == ""
    assert optimize.doubtful_rejections([fast, worse], "up to 9 processes at once for 2 cores") == ""


def test_what_an_answer_costs_is_said(copy: Make) -> None:
    world = copy(MLP)
    world.optimize(candidates=["onnx"], objective="cost", cost_per_hour=2.0)
    row = row_of(world, "onnx")
    note = next(note for note in row["notes"] if "a million rows cost" in note)
    assert float(note.split()[4]) == pytest.approx(2.0 / 3600 * 1e6 / row["throughput"], rel=1e-3)


def test_a_graph_of_fixed_rows_may_serve_and_answers_all_rows(copy: Make) -> None:
    world = copy(MLP)
    fixed = {"name": "fixed", "passes": [{"kind": "rows", "rows": 7}]}
    world.optimize(candidates=["onnx", fixed], batch=7, metric="accuracy")
    row = row_of(world, "fixed")
    assert row["status"] in ("ok", "dominated")
    assert row["metric"] == row_of(world, "onnx")["metric"], "answers are put together again, the last part cut"


def test_a_space_is_searched_whole_and_the_float_graph_is_added_where_it_lacks(copy: Make) -> None:
    world = copy(MLP)
    space = {"passes": [[], [{"kind": "int8-dynamic"}]], "graph_level": ["off", "basic"]}
    events: list[str] = []
    spec = optimize.Spec.model_validate(
        {"task": world.task, "optimize": {"candidates": ["onnx-int8"], "samples": 200, "search": {"space": space}}}
    )
    context = replace(
        world.context("optimize", ("data", "export")), progress=lambda event: events.append(event.message)
    )
    optimize.run(spec, context)
    names = [row["name"] for row in published(world, "candidates.json")]
    assert names == ["onnx", "onnx-int8", "float ort-cpu(graph_level=off)", "float ort-cpu(graph_level=basic)",
                     "int8-dynamic ort-cpu(graph_level=off)", "int8-dynamic ort-cpu(graph_level=basic)"]  # fmt: skip
    assert any("onnx is added" in event for event in events)


@pytest.mark.slow
def test_a_search_by_optuna_keeps_to_its_trials_and_measures_the_best_together(
    copy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tournament, "MAX_GROUP", 3)
    world = copy(MLP)
    space = {"graph_level": ["off", "basic", "extended", "all"], "threads": [1, 2, 3, 4]}
    world.optimize(candidates=["onnx"], samples=200, search={"method": "optuna", "trials": 5, "space": space})
    rows = published(world, "candidates.json")
    assert len(rows) == 1 + 5, "of the space of 16, one is the graph that is listed"
    (picked,) = [row for row in rows if row["picked"]]
    assert picked["status"] == "ok"


@pytest.mark.slow
def test_what_a_cut_run_made_and_measured_is_not_made_again(copy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world = copy(MLP)
    options = {"candidates": BOTH, "max_metric_drop": 1.0, "metric": "accuracy", "search": {"stop_early": False}}
    world.optimize(**options)
    first = published(world, "latency.json")
    shutil.rmtree(world.base / "optimize")
    monkeypatch.setenv("MLKIT_FAILPOINT", "segv:trial.passing")
    world.optimize(**options)
    assert published(world, "latency.json") == first, "the samples are those of the run before"
    assert row_of(world, "onnx-int8")["status"] == "ok", "no pass was applied"
    shutil.rmtree(world.base / "scratch")
    shutil.rmtree(world.base / "optimize")
    world.optimize(**options)
    assert published(world, "latency.json") != first
    assert row_of(world, "onnx-int8")["status"] == "ok", "another run takes the graph that this one made"


@pytest.mark.slow
def test_another_search_takes_what_is_known_of_a_candidate_and_measures_anew_only_what_may_be_picked(
    copy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = copy(MLP)
    dynamic = {"name": "dynamic", "passes": [{"kind": "int8-dynamic"}]}
    options = {"max_metric_drop": 1.0, "metric": "accuracy", "search": {"stop_early": False}}
    world.optimize(candidates=["onnx", "onnx-int8", dynamic], **options)
    (world.base / "scratch").rename(world.base / "first")
    tries, events = [], []
    start = ProcessTrials.start

    def counted(self: ProcessTrials, job: TrialJob) -> ProcessTrial:
        tries.append(job.candidate.name)
        return start(self, job)

    monkeypatch.setattr(ProcessTrials, "start", counted)
    second = replace(
        world.context("optimize", ("data", "export")),
        scratch=world.base / "second", progress=lambda event: events.append(event.message),
    )  # fmt: skip
    second.scratch.mkdir()
    basic = {"name": "basic", "engine": {"graph_level": "basic"}}
    section = {
        "candidates": ["onnx", "onnx-int8", {**dynamic, "name": "renamed"}, basic],
        **options, "samples": 200, "max_metric_drop": 0.0,
    }  # fmt: skip
    optimize.run(optimize.Spec.model_validate({"task": world.task, "optimize": section}), second)
    assert "3 of 4 candidates are known from an earlier search" in events
    rows = {row["name"]: row for row in published(world, "candidates.json")}
    earlier = {name for name, row in rows.items() if any("by an earlier search" in note for note in row["notes"])}
    rejected = {name for name, row in rows.items() if row["status"] == "rejected"}
    assert rejected, "of 100 rows nobody can tell that INT8 loses nothing"
    assert rejected <= earlier
    assert not rejected & {*tries}, "it cannot be picked: nobody measured it again"
    (picked,) = [name for name, row in rows.items() if row["picked"]]
    assert picked not in earlier
    assert rows["basic"]["samples"] == 200


def test_early_stopping_leaves_the_pick_alone_and_says_who_was_better(copy: Make) -> None:
    world = copy(MLP)
    slow = {"name": "slow", "passes": [], "engine": {"graph_level": "off", "threads": 4}}
    world.optimize(candidates=["onnx", slow], objective="latency_p50", samples=3000)
    assert row_of(world, "onnx")["picked"]
    row = row_of(world, "slow")
    assert row["status"] in ("dominated", "ok")
    assert row["samples"] <= 3000
    if row["status"] == "dominated":
        assert "times that of onnx, which is no worse in the rest" in row["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("at", ["segv:trial.passing", "trial.measuring", "segv:trial.loading"])
def test_a_candidate_that_crashes_is_marked_and_the_others_go_on(
    at: str, copy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = copy(MLP)
    monkeypatch.setenv("MLKIT_FAILPOINT", f"{at}@onnx-int8")
    candidates = ["onnx", "onnx-int8", "onnx-int8-dynamic"]
    world.optimize(candidates=candidates, max_metric_drop=1.0, metric="accuracy", search={"stop_early": False})
    row = row_of(world, "onnx-int8")
    assert (row["status"], row["picked"], row["front"], row["samples"]) == ("failed", False, False, 0)
    assert row["reason"].startswith("ended by SIG")
    assert (world.base / "optimize" / row["script"]).is_file()
    assert row_of(world, "onnx-int8-dynamic")["status"] == "ok"
    assert row_of(world, "onnx-int8-dynamic")["samples"] == 200
    assert "onnx-int8" not in published(world, "latency.json")
    assert not trial_processes.running()


def test_without_the_float_graph_there_is_nothing_to_hold_others_against(
    copy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = copy(MLP)
    monkeypatch.setenv("MLKIT_FAILPOINT", "segv:trial.loading@onnx")
    with pytest.raises(EngineError, match="the float graph itself: ended by SIGSEGV while loading"):
        world.optimize(candidates=BOTH)
    assert not trial_processes.running()


@pytest.mark.slow
@pytest.mark.parametrize("begun", ["building", "measuring"])
def test_an_interrupt_leaves_no_process_behind(begun: str, copy: Make) -> None:
    world = copy(MLP)

    def interrupt(event: Event) -> None:
        if begun in event.message:
            raise KeyboardInterrupt

    spec = optimize.Spec.model_validate({"task": world.task, "optimize": {"candidates": BOTH, "samples": 2000}})
    with pytest.raises(KeyboardInterrupt):
        optimize.run(spec, replace(world.context("optimize", ("data", "export")), progress=interrupt))
    assert not trial_processes.running()


def test_a_float_graph_that_nobody_asked_for_stops_no_candidate(copy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every candidate is surely slower than whatever it is held against."""
    world = copy(MLP)
    monkeypatch.setattr(early_stopping, "ratio", lambda *_, **__: (2.0, 3.0))
    basic = {"name": "basic", "engine": {"graph_level": "basic"}}
    world.optimize(candidates=[basic], samples=400)
    assert row_of(world, "basic")["picked"]
    assert row_of(world, "basic")["samples"] == 400


def test_what_was_faster_by_luck_of_one_start_is_not_picked(copy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first time that two candidates are held against one another, the later one seems to be twice as fast."""
    world, objectives = copy(MLP), []

    def lucky(
        objective: str, later: CandidateFigures, earlier: CandidateFigures, *, confidence: float
    ) -> tuple[float, float]:
        objectives.append(objective)
        return (0.4, 0.5) if len(objectives) == 1 else (0.9, 1.1)

    monkeypatch.setattr(selection, "ratio", lucky)
    basic = {"name": "basic", "engine": {"graph_level": "basic"}}
    world.optimize(candidates=["onnx", basic], search={"stop_early": False})
    assert len(objectives) == 2
    assert row_of(world, "onnx")["picked"]
    assert row_of(world, "basic")["reason"] == "faster than onnx at first, but not in processes that were started anew"
