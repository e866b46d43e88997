"""Suites of plugins: sources, metrics, passes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mlflowkit.errors import MlkitError
from mlflowkit.judging.metric_plugins import Metric
from mlflowkit.judging.metrics import LabelledPredictions
from mlflowkit.judging.stats import Estimate, UndefinedMetricError
from mlflowkit.system.digests import digest_file
from mlflowkit.testing.concurrency import refusal

# ------------------------------------------------------------------------------------------------------------ sources


class SourceContract:
    """What every data source must do. Override `source`, `prepare` and `change`."""

    def source(self) -> Any:
        """The source: a `mlflowkit.plugins.DataSource`."""
        raise NotImplementedError

    def prepare(self, folder: Path) -> None:
        """Put the data into a recipe's folder."""
        raise NotImplementedError

    def change(self, folder: Path) -> None:
        """Change the data."""
        raise NotImplementedError

    def tables(self) -> Any:
        """The `ports.Tables` that `read` is given; needed by sources that read files through it."""
        return None

    def read(self, folder: Path, skip: Sequence[str] = ()) -> tuple[list[str], list[dict[str, Any]]]:
        """The names of the columns, and the rows."""
        table = self.source().read(folder, self.tables(), skip=skip)
        frame = table.to_pandas() if hasattr(table, "to_pandas") else table
        return list(frame.columns), frame.astype(object).where(frame.notna(), None).to_dict("records")

    def identity(self, folder: Path) -> dict[str, str]:
        """The content of the source: a digest of each file, and the versions of remote data."""
        content = self.source().resolve(folder)
        return {**{str(path): digest_file(path) for path in content.files}, **content.versions}

    def test_a_table_has_rows_and_named_columns(self, tmp_path: Path) -> None:
        self.prepare(tmp_path)
        columns, rows = self.read(tmp_path)
        assert rows
        assert len(set(columns)) == len(columns)
        assert all(isinstance(name, str) and name for name in columns)

    def test_the_same_content_is_the_same_table(self, tmp_path: Path) -> None:
        self.prepare(tmp_path)
        before = self.identity(tmp_path)
        assert self.read(tmp_path) == self.read(tmp_path)
        assert self.identity(tmp_path) == before, "reading changes nothing"

    def test_changed_data_changes_the_content(self, tmp_path: Path) -> None:
        self.prepare(tmp_path)
        before, table = self.identity(tmp_path), self.read(tmp_path)
        self.change(tmp_path)
        assert self.identity(tmp_path) != before, "else a run reuses the old table"
        assert self.read(tmp_path) != table

    def test_skipped_columns_may_be_left_out_and_others_are_not(self, tmp_path: Path) -> None:
        self.prepare(tmp_path)
        columns, _ = self.read(tmp_path)
        kept, _ = self.read(tmp_path, skip=columns[:1])
        assert [name for name in kept if name != columns[0]] == columns[1:]

    def test_missing_data_is_an_error_with_a_hint(self, tmp_path: Path) -> None:
        error = refusal(MlkitError, lambda: self.read(tmp_path))
        assert error.hint

    def test_its_keys_are_plain_values(self) -> None:
        source = self.source()
        assert type(source).model_validate_json(source.model_dump_json()) == source
        assert source.describe()


# ------------------------------------------------------------------------------------------------------------ metrics


class MetricContract:
    """What every metric must do. Override `metric`, and `predictions` where its rows are special."""

    coverage_trials = 0
    """Samples of `test_the_interval_holds_the_true_value_as_often_as_it_says`; 0 skips it."""

    def metric(self) -> Metric:
        raise NotImplementedError

    def predictions(self, rows: int, seed: int) -> LabelledPredictions:
        """The answers of a fair model on rows drawn with a seed; by default for the metric's task, of two classes."""
        return random_predictions(self.metric().task, rows, seed)

    def other_model(self, predictions: LabelledPredictions, seed: int) -> LabelledPredictions:
        """The answers of another model on the same rows."""
        other = self.predictions(predictions.rows, seed)
        return replace(other, actual=predictions.actual)

    def estimate(self, predictions: LabelledPredictions) -> Estimate:
        return self.metric().estimate(predictions)

    def difference(self, candidate: LabelledPredictions, champion: LabelledPredictions) -> Estimate:
        return self.metric().difference(candidate, champion)

    def test_it_is_finite_and_within_its_limits(self) -> None:
        metric = self.metric()
        for seed, rows in enumerate((20, 200, 2000)):
            value = self.estimate(self.predictions(rows, seed)).value
            assert math.isfinite(value)
            assert metric.floor <= value <= metric.ceiling

    def test_the_interval_holds_the_value_and_grows_with_confidence(self) -> None:
        for seed, rows in enumerate((20, 200, 2000)):
            made = self.estimate(self.predictions(rows, seed))
            narrow, wide = made.at(0.8), made.at(0.99)
            assert wide.low - 1e-9 <= narrow.low <= made.value <= narrow.high <= wide.high + 1e-9
            assert math.isfinite(wide.low + wide.high)

    def test_more_rows_tell_more(self) -> None:
        few, many = (self.estimate(self.predictions(rows, 1)).at(0.95) for rows in (100, 10_000))
        assert many.high - many.low < few.high - few.low

    def test_the_order_of_rows_makes_no_difference(self) -> None:
        predictions = self.predictions(200, 1)
        order = np.random.default_rng(2).permutation(predictions.rows)
        here, there = self.estimate(predictions).at(0.95), self.estimate(predictions.take(order)).at(0.95)
        assert math.isclose(here.value, there.value, rel_tol=1e-9, abs_tol=1e-12)
        assert math.isclose(here.low, there.low, rel_tol=1e-9, abs_tol=1e-9)

    def test_a_model_does_not_differ_from_itself(self) -> None:
        predictions = self.predictions(200, 1)
        assert self.difference(predictions, predictions.take(np.arange(predictions.rows))).value == 0

    def test_a_difference_is_the_difference_and_turns_round(self) -> None:
        candidate = self.predictions(400, 1)
        champion = self.other_model(candidate, 2)
        there, back = self.difference(candidate, champion).at(0.9), self.difference(champion, candidate).at(0.9)
        expected = self.estimate(candidate).value - self.estimate(champion).value
        assert math.isclose(there.value, expected, rel_tol=1e-9, abs_tol=1e-12)
        assert math.isclose(there.low, -back.high, rel_tol=1e-6, abs_tol=1e-9)
        assert there.low <= there.value <= there.high

    def test_rows_that_do_not_determine_it_are_told(self) -> None:
        predictions = self.predictions(200, 1)
        same = predictions.take(np.zeros(2, np.int64))
        try:
            made = self.estimate(same)
            low, high = made.bounds(0.95)
        except UndefinedMetricError:
            return
        assert math.isfinite(made.value)
        assert low <= made.value <= high

    def test_the_interval_holds_the_true_value_as_often_as_it_says(self) -> None:
        if not self.coverage_trials:
            return
        truth = self.estimate(self.predictions(400_000, 10_000)).value
        trials = range(self.coverage_trials)
        intervals = [self.estimate(self.predictions(300, seed)).at(0.95) for seed in trials]
        held = sum(measured.low <= truth <= measured.high for measured in intervals) / self.coverage_trials
        assert held >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / self.coverage_trials)


def random_predictions(task: str, rows: int, seed: int) -> LabelledPredictions:
    """The answers of a fair model: two classes, of which one has a third of the rows, or numbers with normal errors."""
    random = np.random.default_rng(seed)
    if task == "regression":
        actual = random.normal(10, 3, rows)
        return LabelledPredictions("regression", actual, actual + random.normal(0, 1, rows))
    actual = (random.random(rows) < 1 / 3).astype(np.int64)
    positive = 1 / (1 + np.exp(-random.normal(2.0 * actual - 1, 1)))
    scores = np.stack([1 - positive, positive], axis=1)
    return LabelledPredictions("classification", actual, (positive > 0.5).astype(np.int64), scores)


# ------------------------------------------------------------------------------------------------------------- passes


class PassContract:
    """What every graph pass must do. Override `graph_pass`, and `model` and `rows` for a graph of its own."""

    tolerance = 0.05
    """Largest difference of a float answer from the original graph's."""
    agreement = 0.8
    """Smallest share of answers of other types, such as labels, that stay the same."""

    def graph_pass(self) -> Any:
        """The pass: a `mlflowkit.plugins.GraphPass`."""
        raise NotImplementedError

    def model(self, folder: Path) -> Path:
        """The graph to rewrite; by default two dense layers, x [rows, 8] to y [rows, 3]."""
        return dense_graph(folder / "dense.onnx")

    def rows(self) -> Mapping[str, np.ndarray]:
        """Calibration rows by input name."""
        return {"x": np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)}

    def apply(self, model: Path, out: Path, rows: Mapping[str, np.ndarray]) -> str:
        return str(self.graph_pass().apply(model, out, rows))

    def test_the_graph_is_valid_and_keeps_its_inputs_and_outputs(self, tmp_path: Path) -> None:
        import onnx

        model, out = self.model(tmp_path), tmp_path / "out.onnx"
        assert self.apply(model, out, self.rows()) == ""
        onnx.checker.check_model(str(out), full_check=True)
        assert graph_interface(out) == graph_interface(model)

    def test_answers_are_nearly_the_same(self, tmp_path: Path) -> None:
        model, out, rows = self.model(tmp_path), tmp_path / "out.onnx", self.rows()
        assert self.apply(model, out, rows) == ""
        few = {name: array[:32] for name, array in rows.items()}
        expected, rewritten = run_graph(model, few), run_graph(out, few)
        assert set(rewritten) == set(expected)
        for name, values in expected.items():
            assert rewritten[name].shape == values.shape
            if values.dtype.kind == "f":
                assert np.abs(rewritten[name] - values).max() <= self.tolerance
            else:
                assert (rewritten[name] == values).mean() >= self.agreement

    def test_the_same_input_gives_the_same_bytes(self, tmp_path: Path) -> None:
        model = self.model(tmp_path)
        before, rows = model.read_bytes(), self.rows()
        for name in ("first.onnx", "second.onnx"):
            assert self.apply(model, tmp_path / name, rows) == ""
        assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()
        assert model.read_bytes() == before, "the graph that it is given stays as it is"


def dense_graph(path: Path) -> Path:
    """Write a graph of two dense layers with a Relu: x float [rows, 8] to y float [rows, 3]."""
    import onnx
    from onnx import helper, numpy_helper

    random = np.random.default_rng(1)
    shapes = {"first/weight": (8, 16), "first/bias": (16,), "second/weight": (16, 3), "second/bias": (3,)}
    weights = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Gemm", ["x", "first/weight", "first/bias"], ["hidden"], name="first"),
        helper.make_node("Relu", ["hidden"], ["active"], name="relu"),
        helper.make_node("Gemm", ["active", "second/weight", "second/bias"], ["y"], name="second"),
    ]
    sizes = {"x": 8, "y": 3}
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["rows", size]) for n, size in sizes.items())
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "dense", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def graph_interface(path: Path) -> list[tuple[str, int, int]]:
    """Name, element type and number of axes of all inputs and outputs."""
    import onnx

    graph = onnx.load(path).graph
    entries = [*graph.input, *graph.output]
    return [(entry.name, entry.type.tensor_type.elem_type, len(entry.type.tensor_type.shape.dim)) for entry in entries]


def run_graph(path: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a graph by name, from ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))
