"""The page of a run: whatever a run came to has one, complete in itself."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.errors import StoreError
from mlflowkit.report.run.run_page import render
from mlflowkit.values import Outcome, Verdict
from tests.support import report_evidence

VOID = {"meta", "link", "br", "img", "input", "hr"}
SVG_EMPTY = {"path", "circle", "rect", "line"}


class Page(HTMLParser):
    """Text by section, attributes, and whether every element is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.absent: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.here = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        found = dict(attrs)
        if tag == "section":
            self.here = str(found["id"])
            self.sections[self.here] = ""
            if "data-absent" in found:
                self.absent.append(self.here)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG_EMPTY, f"<{tag}/> is not closed in HTML"
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "section":
            self.here = ""

    def handle_data(self, data: str) -> None:
        if self.here:
            self.sections[self.here] += data

    def values(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    root = tmp_path_factory.mktemp("runs")
    return {name: getattr(report_evidence, name)(root / name) for name in ("binary", "multiclass", "regression")}


@pytest.fixture
def altered(runs: Mapping[str, Any], tmp_path: Path) -> Any:
    """The folders of the binary run with one file written anew."""

    def alter(stage: str, file: str, content: str) -> dict[str, Path]:
        folder = tmp_path / stage
        folder.mkdir()
        for other in runs["binary"].folders[stage].iterdir():
            if other.is_file():
                (folder / other.name).write_bytes(other.read_bytes())
        (folder / file).write_text(content)
        return {**runs["binary"].folders, stage: folder}

    return alter


def page(run: Any) -> Page:
    return Page(render(run.record, run.folders))


def with_verdicts(run: Any, *verdicts: Verdict) -> Any:
    steps = [
        replace(step, result=replace(step.result, verdicts=verdicts)) if step.stage == "evaluate" else step
        for step in run.record.steps
    ]
    return replace(run.record, steps=tuple(steps))


@pytest.mark.parametrize("name", ["binary", "multiclass", "regression"])
def test_page_is_complete_in_itself_and_light(runs: Mapping[str, Any], name: str) -> None:
    text = render(runs[name].record, runs[name].folders)
    parsed = Page(text)
    assert all(value.startswith(("#", "data:")) for value in parsed.values("href", "src", "srcset", "action"))
    assert not re.search(r"<script|<iframe|@import|url\(", text)
    assert "default-src 'none'" in text
    assert len(text.encode()) < 1_000_000
    identities = parsed.values("id")
    assert len(identities) == len(set(identities))
    assert {value for value in parsed.values("href") if value[0] == "#"} <= {f"#{one}" for one in identities}


def test_same_record_and_folders_give_the_same_page(runs: Mapping[str, Any]) -> None:
    run = runs["binary"]
    assert render(run.record, run.folders) == render(run.record, run.folders)


def test_binary_page_says_what_the_run_found(runs: Mapping[str, Any]) -> None:
    run = runs["binary"]
    parsed = page(run)
    said = parsed.sections
    evaluation = json.loads((run.folders["evaluate"] / "evaluation.json").read_text())
    assert parsed.absent == []
    assert "the seed changed" in said["steps"]
    assert "same fingerprint" in said["steps"]
    assert f"{evaluation['metrics']['roc_auc']['value']:.4g}" in said["quality"]
    assert f"Expected calibration error {evaluation['calibration']['ece']:.4g}" in said["quality"]
    for verdict in run.record.steps[5].result.verdicts:
        assert verdict.message in said["gates"]
    assert {"PASSED", "INCONCLUSIVE"} <= set(re.findall("PASSED|INCONCLUSIVE", said["gates"]))
    assert "radius = large" in said["slices"]
    assert "cannot be told apart" in said["champion"]
    assert "float64 was picked for latency p99" in said["latency"]
    assert "no node of this graph can be quantised" in said["latency"]
    assert run.record.bundle in said["bundle"]
    assert "curl -s http://127.0.0.1:8080/predict" in said["serving"]
    assert run.record.lineage.git_commit in said["lineage"]
    assert "seed: 7" in said["recipe"]


def test_regression_page_shows_residuals_and_no_classes(runs: Mapping[str, Any]) -> None:
    said = page(runs["regression"]).sections
    assert "Actual minus predicted" in said["quality"]
    assert "Confusion" not in said["quality"]
    assert "there are no curves by epoch" in said["training"]
    assert "No gate of the recipe asks for slices" in said["slices"]
    assert "There was no champion" in said["champion"]


@pytest.mark.parametrize(
    ("stage", "status", "reached", "reason"),
    [
        ("train", "done", {"data", "training"}, "asked to go no further than train"),
        ("export", "failed", {"data", "training"}, "the run stopped at export"),
        ("validate", "interrupted", {"data"}, "the run stopped at validate"),
        ("data", "failed", set(), "the run stopped at data"),
    ],
)
def test_partial_run_has_a_page_that_says_where_it_stopped(
    runs: Mapping[str, Any], stage: str, status: str, reached: set[str], reason: str
) -> None:
    run = runs["binary"].until(stage, status, error="" if status == "done" else "DiskError: no <space>")
    parsed = page(run)
    assert set(parsed.sections) - set(parsed.absent) == reached | {"steps", "lineage", "recipe"}
    assert reason in parsed.sections["bundle"]
    if status != "done":
        assert "no &lt;space&gt;" in render(run.record, run.folders)


def test_run_without_a_service_is_not_called_cut_short(runs: Mapping[str, Any]) -> None:
    run = runs["binary"].until("package")
    record = replace(run.record, recipe={key: value for key, value in run.record.recipe.items() if key != "serve"})
    assert "the recipe has no serve section" in Page(render(record, run.folders)).sections["serving"]


def test_names_and_messages_from_data_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"
    run = report_evidence.binary(tmp_path, [f"{evil}{index}" for index in range(30)])
    record = replace(
        with_verdicts(run, Verdict(evil, Outcome.ERROR, evil, evil, slice=evil)),
        error=evil,
        name=evil,
        overrides=(evil,),
        recipe={"name": evil, evil: {evil: [evil]}},
    )
    text = render(record, run.folders)
    assert "<script" not in text
    assert "alert(1)&lt;/script&gt;" in text
    parsed = Page(text)
    assert f"{evil}7" in parsed.sections["data"]
    assert evil in parsed.sections["gates"]
    assert evil in parsed.sections["recipe"]


def test_gate_without_a_measurement_is_shown_without_a_drawing(runs: Mapping[str, Any]) -> None:
    verdict = Verdict(
        "roc_auc against champion, margin 0.01", Outcome.PASSED, "no champion yet", "roc_auc", change=True
    )
    text = render(with_verdicts(runs["binary"], verdict), runs["binary"].folders)
    said = Page(text).sections["gates"]
    assert "not measured" in said
    assert "no champion yet" in said
    assert 'class="forest passed"' not in text


def test_value_and_change_thresholds_of_one_metric_do_not_share_an_axis(runs: Mapping[str, Any]) -> None:
    said = Page(render(runs["binary"].record, runs["binary"].folders)).sections["gates"]
    assert said.index("roc_auc minus champion") > said.index("roc_auc against champion")


def test_recipe_without_gates_says_so(runs: Mapping[str, Any]) -> None:
    said = Page(render(with_verdicts(runs["binary"]), runs["binary"].folders)).sections
    assert "The recipe has no gates" in said["gates"]


def test_file_that_is_not_json_is_named(runs: Mapping[str, Any], altered: Any) -> None:
    with pytest.raises(StoreError, match=r"candidates\.json cannot be read") as caught:
        render(runs["binary"].record, altered("optimize", "candidates.json", "[{"))
    assert caught.value.hint


def test_undefined_metrics_and_a_broken_champion_are_explained(runs: Mapping[str, Any], altered: Any) -> None:
    evaluation = json.loads((runs["binary"].folders["evaluate"] / "evaluation.json").read_text())
    evaluation["metrics"]["roc_auc"].update(low=None, high=None)
    evaluation["undefined"] = {"macro_roc_auc": "one class only"}
    evaluation["champion"] = {"version": "ab", "rows": 0, "metrics": {}, "fault": "the champion cannot be opened"}
    evaluation["slices"][0]["metrics"]["accuracy"].update(low=None, high=None)
    folders = altered("evaluate", "evaluation.json", json.dumps(evaluation))
    said = Page(render(runs["binary"].record, folders)).sections
    assert "macro_roc_auc has no value: one class only" in said["quality"]
    assert "the champion cannot be opened" in said["champion"]
    assert "0.9902" in said["quality"]


def test_many_classes_are_shown_as_their_largest_confusions(runs: Mapping[str, Any], altered: Any) -> None:
    evaluation = json.loads((runs["binary"].folders["evaluate"] / "evaluation.json").read_text())
    counts = [[0] * 40 for _ in range(40)]
    counts[3][5], counts[7][1] = 12, 99
    evaluation["confusion"] = {"labels": [f"class {index}" for index in range(40)], "counts": counts}
    folders = altered("evaluate", "evaluation.json", json.dumps(evaluation))
    said = re.sub(r"\s+", " ", Page(render(runs["binary"].record, folders)).sections["quality"])
    assert "Largest confusions" in said
    assert said.index("class 7class 199") < said.index("class 3class 512")


def test_categorical_and_missing_values_are_described(runs: Mapping[str, Any], altered: Any) -> None:
    reference = json.loads((runs["binary"].folders["validate"] / "reference.json").read_text())
    table = json.loads((runs["binary"].folders["data"] / "table.json").read_text())
    name = table["features"][0]["name"]
    table["features"][0]["kind"] = "categorical"
    reference["columns"][name] = {
        "type": "categorical", "count": 200, "missing": 50, "unique": 2, "frequent": [["own", 100], ["rent", 50]],
    }  # fmt: skip
    folders = altered("validate", "reference.json", json.dumps(reference))
    folders["data"] = altered("data", "table.json", json.dumps(table))["data"]
    said = Page(render(runs["binary"].record, folders)).sections["data"]
    assert "50 (25 %)" in said
    assert "own 50 %, rent 25 %" in said


def test_curve_with_a_gap_is_drawn_around_it(runs: Mapping[str, Any], altered: Any) -> None:
    curves = {"epoch": [1, 2, 3], "train_loss": [1.0, None, 0.5], "val_loss": [None, None, None]}
    folders = altered("train", "curves.json", json.dumps(curves))
    assert "nan" not in render(runs["binary"].record, folders)


def test_report_package_imports_no_vendor_but_its_template_engine() -> None:
    import subprocess

    code = "import sys, mlflowkit.report.run.run_page; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"numpy", "pandas", "matplotlib", "jinja2", "yaml", "torch", "sklearn", "sqlalchemy", "pydantic"}
    assert heavy & set(loaded) == set()


def test_every_candidate_is_there_with_its_reason_its_parts_and_its_costs(runs: Mapping[str, Any]) -> None:
    said = page(runs["binary"]).sections["latency"]
    for reason in ("more than 0.005", "surely slower and no better", "there to be compared with", "SIGSEGV"):
        assert reason in said
    assert "latency p99 against accuracy" in said
    assert "int8 (calibration minmax, per channel, rows 512, keep 0)" in said
    assert "scripts/weight-only.py" in said
    assert "p99 needs 368 samples for an interval; there are 100" in said
    marks = re.findall(r"<title>(\d+)\. ([^:]+):", render(runs["binary"].record, runs["binary"].folders))
    assert dict(marks) == {"1": "float64", "2": "float32", "4": "int8(per_channel=true) ort-cpu", "5": "fp16 ort-cpu",
                           "6": "torch"}  # fmt: skip


def test_candidates_of_an_earlier_release_have_a_page_too(runs: Mapping[str, Any], altered: Any) -> None:
    new = (
        "passes",
        "engine",
        "size_bytes",
        "memory_bytes",
        "build_seconds",
        "cold_start_ms",
        "front",
        "script",
        "notes",
    )
    rows = json.loads((runs["binary"].folders["optimize"] / "candidates.json").read_text())
    old = [{key: value for key, value in row.items() if key not in new} for row in rows]
    said = Page(render(runs["binary"].record, altered("optimize", "candidates.json", json.dumps(old)))).sections[
        "latency"
    ]
    assert "float64 was picked for latency p99" in said
    assert "Cold start" not in said


@pytest.mark.parametrize("objective", ["throughput", "size"])
def test_an_objective_that_is_none_of_latency_is_shown_with_p99(runs: Mapping[str, Any], objective: str) -> None:
    run = runs["binary"]
    record = replace(run.record, recipe={**run.record.recipe, "optimize": {"objective": objective}})
    said = Page(render(record, run.folders)).sections["latency"]
    assert f"was picked for {objective}" in said
    assert "latency p99 against accuracy" in said


def test_one_slow_answer_does_not_flatten_the_latency_chart(runs: Mapping[str, Any], altered: Any) -> None:
    steady = [10.0 + index / 1000 for index in range(999)]
    folders = altered("optimize", "latency.json", json.dumps({"float64": {"samples_us": [*steady, 4_000_000.0]}}))
    text = render(runs["binary"].record, folders)
    labels = re.findall(r'text-anchor="end">([\d.]+)</text>', text.split("Latency by percentile</figcaption>")[1])
    assert max(map(float, labels)) <= 50
    assert "The slowest reply took 4 s (float64)" in Page(text).sections["latency"]
