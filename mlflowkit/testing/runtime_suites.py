"""Suites of runtimes and of profilers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mlflowkit.errors import EngineError
from mlflowkit.ports import Runtime, Session
from mlflowkit.testing.concurrency import in_threads, refusal

# ----------------------------------------------------------------------------------------------------------- runtimes


class RuntimeContract:
    """What every adapter of `ports.Runtime` must do. Override `runtime`."""

    def runtime(self) -> Runtime:
        raise NotImplementedError

    def session(self, folder: Path) -> Session:
        return self.runtime().load(runtime_graph(folder / "model.onnx"))

    def test_answers_come_by_name_with_strings_both_ways(self, tmp_path: Path) -> None:
        outputs = self.session(tmp_path).run(runtime_inputs(2))
        assert set(outputs) == {"total", "echo", "fours"}
        assert outputs["total"].tolist() == [1.0, 5.0]
        assert outputs["total"].dtype == np.float32
        assert outputs["echo"].tolist() == [["é0"], ["é1"]]
        assert outputs["echo"].dtype == object

    def test_a_session_answers_several_threads_at_once(self, tmp_path: Path) -> None:
        session = self.session(tmp_path)

        def ask(rows: int) -> None:
            inputs = runtime_inputs(rows)
            for _ in range(50):
                outputs = session.run(inputs)
                assert outputs["total"].tolist() == inputs["numeric"].sum(axis=1).tolist()
                assert outputs["echo"].tolist() == inputs["categorical"].tolist()

        in_threads([partial(ask, rows) for rows in range(2, 18, 2)])

    def test_sessions_of_one_runtime_are_independent(self, tmp_path: Path) -> None:
        runtime, model = self.runtime(), runtime_graph(tmp_path / "model.onnx")
        first, second = runtime.load(model), runtime.load(model, threads=2)
        inputs = runtime_inputs(2)
        assert first.run(inputs)["total"].tolist() == second.run(inputs)["total"].tolist()

    def test_a_bad_request_is_an_engine_error_that_names_it(self, tmp_path: Path) -> None:
        session = self.session(tmp_path)
        changes: Sequence[tuple[dict[str, Any], str]] = [
            ({"numeric": None}, "numeric is missing"),
            ({"extra": np.zeros(1)}, "extra"),
            ({"numeric": np.zeros((2, 2))}, "numeric is float64"),
            ({"numeric": np.zeros((2, 3), np.float32)}, "numeric"),
            ({"numeric": np.zeros(2, np.float32)}, "numeric has shape [2]"),
            ({"numeric": [[0.0, 1.0]]}, "numeric is a list"),
            ({"categorical": np.array([["a"], [None]], dtype=object)}, "not a string"),
            ({"categorical": np.array([["a"], [3]], dtype=object)}, "not a string"),
            ({"categorical": np.zeros((2, 1), np.float32)}, "categorical is float32"),
            ({"numeric": np.zeros((3, 2), np.float32)}, "model.onnx"),  # 6 cells do not make rows of 4
        ]
        for change, text in changes:
            inputs = {name: value for name, value in {**runtime_inputs(2), **change}.items() if value is not None}
            error = refusal(EngineError, partial(session.run, inputs))
            assert text in error.message, change
            assert "numeric float32" in error.hint
            assert session.run(runtime_inputs(2))["total"].tolist() == [1.0, 5.0], "and the session goes on"

    def test_a_file_that_is_no_graph_is_an_engine_error(self, tmp_path: Path) -> None:
        path = runtime_graph(tmp_path / "model.onnx")
        truncated = path.read_bytes()[:-20]
        path.unlink()
        for content in (None, b"", b"not a graph", b"\x08\x08\x12\x00" * 50, truncated):
            if content is not None:
                path.write_bytes(content)
            error = refusal(EngineError, partial(self.runtime().load, path))
            assert "model.onnx" in error.message
            assert error.hint

    def test_a_graph_for_a_fixed_number_of_rows_answers_any_number(self, tmp_path: Path) -> None:
        session = self.runtime().load(runtime_graph(tmp_path / "fixed.onnx", rows=4))
        for rows in (1, 3, 4, 5, 65):
            inputs = runtime_inputs(rows)
            outputs = session.run(inputs)
            assert outputs["total"].tolist() == inputs["numeric"].sum(axis=1).tolist()
            assert outputs["echo"].tolist() == inputs["categorical"].tolist()
        refusal(EngineError, lambda: session.run({"categorical": runtime_inputs(3)["categorical"]}))
        refusal(EngineError, lambda: session.run({**runtime_inputs(3), "numeric": runtime_inputs(2)["numeric"]}))


def runtime_graph(path: Path, rows: int | None = None) -> Path:
    """Write a graph: total = row sums of numeric [rows, 2], echo = categorical [rows, 1], fours = numeric in rows of 4.

    With ``rows`` it takes exactly so many, and has no fours.
    """
    import onnx
    from onnx import TensorProto, helper

    batch = "rows" if rows is None else rows
    nodes = [
        helper.make_node("ReduceSum", ["numeric", "axes"], ["total"], keepdims=0),
        helper.make_node("Identity", ["categorical"], ["echo"]),
        helper.make_node("Reshape", ["numeric", "four"], ["fours"]),
    ]
    inputs = [
        helper.make_tensor_value_info("numeric", TensorProto.FLOAT, [batch, 2]),
        helper.make_tensor_value_info("categorical", TensorProto.STRING, [batch, 1]),
    ]
    outputs = [
        helper.make_tensor_value_info("total", TensorProto.FLOAT, [batch]),
        helper.make_tensor_value_info("echo", TensorProto.STRING, [batch, 1]),
        helper.make_tensor_value_info("fours", TensorProto.FLOAT, None),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    four = helper.make_tensor("four", TensorProto.INT64, [2], [-1, 4])
    kept = slice(None) if rows is None else slice(2)
    constants = [axes, four][kept] if rows is None else [axes]
    graph = helper.make_graph(nodes[kept], "runtime", inputs, outputs[kept], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def runtime_inputs(rows: int) -> dict[str, np.ndarray]:
    """Inputs of `runtime_graph`."""
    numeric = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    return {"numeric": numeric, "categorical": np.array([[f"é{row}"] for row in range(rows)], dtype=object)}


# ---------------------------------------------------------------------------------------------------------- profilers

PROFILED_ROWS = 5000


class ProfilerContract:
    """What every adapter of `ports.Profiler` must do. Override `profiler`."""

    def profiler(self) -> Any:
        """The profiler; one with ``merge`` is tested as a `ports.MergingProfiler`."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        profiler = self.profiler()
        return dict(profiler.summary(profiler.profile(profiled_table())))

    def test_a_summary_is_json_with_the_agreed_keys(self) -> None:
        summary = self.summary()
        assert json.loads(json.dumps(summary, allow_nan=False)) == summary
        assert summary["rows"] == PROFILED_ROWS
        numeric = {"type", "count", "missing", "unique", "mean", "stddev", "min", "max", "quantiles", "histogram"}
        assert set(summary["columns"]["float"]) == numeric
        assert set(summary["columns"]["text"]) == {"type", "count", "missing", "unique", "frequent"}

    def test_figures_of_numbers_agree_with_the_rows(self) -> None:
        summary, table = self.summary(), profiled_table()
        for name in ("float", "gaps", "int", "constant", "few"):
            column, values = summary["columns"][name], table[name].dropna().to_numpy()
            missing = PROFILED_ROWS - len(values)
            assert (column["type"], column["count"], column["missing"]) == ("numeric", PROFILED_ROWS, missing)
            assert math.isclose(column["mean"], values.mean(), rel_tol=1e-6)
            assert math.isclose(column["stddev"], values.std(ddof=1), rel_tol=1e-6, abs_tol=1e-12)
            assert (column["min"], column["max"]) == (values.min(), values.max())
            assert math.isclose(column["unique"], len(np.unique(values)), rel_tol=0.05)
            for share, value in column["quantiles"].items():
                assert (values < value).mean() - 0.003 <= float(share) <= (values <= value).mean() + 0.003
            edges, counts = column["histogram"]["edges"], column["histogram"]["counts"]
            assert sum(counts) == len(values)
            exact = np.histogram(values, edges)[0] if len(edges) > 2 else [len(values)]
            assert np.abs(np.array(counts) - exact).max() <= 0.004 * PROFILED_ROWS

    def test_figures_of_text_are_exact(self) -> None:
        column, text = self.summary()["columns"]["text"], profiled_table()["text"]
        assert (column["type"], column["unique"]) == ("categorical", 3)
        assert column["missing"] == text.isna().sum()
        assert dict(column["frequent"]) == text.value_counts().to_dict()

    def test_equal_tables_give_equal_bytes(self) -> None:
        assert self.profiler().profile(profiled_table()) == self.profiler().profile(profiled_table())

    def test_profiles_merge(self) -> None:
        profiler = self.profiler()
        if not hasattr(profiler, "merge"):
            return
        table, whole = profiled_table(), self.summary()
        halves = [profiler.profile(half) for half in (table[: PROFILED_ROWS // 2], table[PROFILED_ROWS // 2 :])]
        merged = profiler.summary(profiler.merge(halves))
        assert merged["rows"] == PROFILED_ROWS
        assert math.isclose(merged["columns"]["float"]["mean"], whole["columns"]["float"]["mean"], rel_tol=1e-6)
        assert merged["columns"]["text"] == whole["columns"]["text"]
        median = merged["columns"]["gaps"]["quantiles"]["0.5"]
        assert abs((table["gaps"] < median).sum() / table["gaps"].count() - 0.5) < 0.01


def profiled_table() -> Any:
    """A pandas.DataFrame with numbers, gaps, text, a constant and a rare value."""
    import pandas as pd

    random = np.random.default_rng(3)
    gaps = random.lognormal(3, 1, PROFILED_ROWS)
    gaps[::10] = np.nan
    text = pd.Series(random.choice(["a", "b", "c"], PROFILED_ROWS, p=[0.7, 0.2, 0.1]), dtype="str")
    return pd.DataFrame(
        {
            "float": random.normal(10, 2, PROFILED_ROWS),
            "gaps": gaps,
            "int": random.integers(0, 1000, PROFILED_ROWS),
            "text": text.mask(random.random(PROFILED_ROWS) < 0.05),
            "constant": np.full(PROFILED_ROWS, 4.0),
            "few": np.r_[np.full(PROFILED_ROWS - 2, 1.0), 2.0, 2.0],
        }
    )
