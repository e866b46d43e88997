"""What one command measures, by name: subjects as they are, their candidates, on each runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mlflowkit.bench.inputs import GraphInput, make_requests
from mlflowkit.bench.target import BenchTarget, TargetChoice, entries
from mlflowkit.errors import UsageError
from mlflowkit.graphs.candidates import NAMED, Candidate, Engine

BUNDLE = BenchTarget(
    "lending", "bundle", Path("a"), Path("a/model.onnx"), Path("a/model.onnx"),
    make_requests([GraphInput("x", "float32", ("rows", 4))], 8), dict, Engine(threads=2), version="3",
)  # fmt: skip
RECIPE = replace(BUNDLE, name="loans", kind="recipe", version="", candidates=(NAMED["onnx"], NAMED["onnx-int8"]))


def names(*subjects: BenchTarget, **chosen: object) -> list[str]:
    return [entry.name for entry in entries(subjects, TargetChoice(**chosen))]  # type: ignore[arg-type]


def test_a_bundle_is_called_alike_in_every_version_so_that_it_can_be_held_against_an_earlier_one() -> None:
    assert names(BUNDLE) == names(replace(BUNDLE, version="4")) == ["lending"]
    assert names(BUNDLE, replace(BUNDLE, version="4")) == ["lending 3", "lending 4"]
    assert names(BUNDLE, BUNDLE) == ["lending 3", "lending 3 (2)"]
    assert names(BUNDLE, RECIPE) == ["lending", "loans"]


def test_candidates_and_runtimes_are_in_the_name_where_they_tell_apart() -> None:
    assert names(BUNDLE, names=("onnx-int8",)) == ["onnx-int8"]
    assert names(BUNDLE, runtimes=("ort-cpu", "torch")) == ["ort-cpu", "torch"]
    assert names(BUNDLE, names=("onnx",), runtimes=("ort-cpu", "torch")) == ["onnx ort-cpu", "onnx torch"]
    assert names(RECIPE, names=("all",)) == ["onnx", "onnx-int8"]
    assert names(BUNDLE, RECIPE, names=("onnx-int8",)) == ["lending onnx-int8", "loans onnx-int8"]


def test_a_subject_keeps_its_engine_unless_threads_or_a_runtime_are_asked_for() -> None:
    plain, asked = (
        entries([BUNDLE], choice)[0] for choice in (TargetChoice(), TargetChoice(runtimes=("torch",), threads=1))
    )
    assert (plain.candidate.engine.runtime, plain.candidate.engine.threads) == ("ort-cpu", 2)
    assert (asked.candidate.engine.runtime, asked.candidate.engine.threads) == ("torch", 1)


def test_passes_begin_with_the_float_graph_and_nothing_else_does() -> None:
    subject = replace(BUNDLE, source=Path("float.onnx"))
    assert entries([subject], TargetChoice())[0].model == Path("a/model.onnx")
    assert entries([subject], TargetChoice(("onnx-int8",)))[0].model == Path("float.onnx")


def test_a_candidate_that_nobody_knows_is_named_by_the_nearest() -> None:
    own = Candidate(name="mine")
    with pytest.raises(UsageError, match="no candidate 'onx'") as wrong:
        entries([replace(RECIPE, candidates=(own,))], TargetChoice(("onx",)))
    assert "did you mean --candidate onnx" in wrong.value.hint
    assert "mine" in wrong.value.message
    with pytest.raises(UsageError, match="only a recipe lists candidates"):
        entries([BUNDLE], TargetChoice(("all",)))
