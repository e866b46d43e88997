"""Graphs of the user's own transformers give the same numbers in training and inside the exported graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflowkit.adapters.onnx_exporter import graph_parts
from mlflowkit.adapters.onnx_exporter.preprocessing_graph import preprocessing
from mlflowkit.features.preprocess import (
    Features,
    FittedPreprocessing,
    fit_preprocess,
    load_preprocess,
    save_preprocess,
    transform,
)
from mlflowkit.stages.train import PreprocessSettings

CODE = '''\
class Ratios:
    def fit(self, values):
        return [1.5]

    def graph(self, parameters):
        return f"""
        ratios (double[rows, 2] x) => (double[rows, 3] y)
        <int64[1] first = {{0}}, int64[1] second = {{1}}, double[1] shift = {{{parameters[0]}}}>
        {{
            a = Gather <axis = 1> (x, first)
            b = Gather <axis = 1> (x, second)
            q = Div (a, b)
            s = Abs (a)
            t = Add (s, shift)
            l = Log (t)
            w = Sqrt (t)
            y = Concat <axis = 1> (q, l, w)
        }}"""
'''
SECTION = PreprocessSettings.model_validate(
    {
        "numeric": {"c": {"scale": "log"}},
        "transforms": [{"module": "own:Ratios", "columns": [*pair]} for pair in ("ca", "ab")],
    }
)
NUMBERS = st.one_of(st.floats(width=32, allow_infinity=False), st.integers(-9, 9).map(float), st.just(np.nan))


@pytest.fixture(scope="module", params=[False, True], ids=["single", "double"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[FittedPreprocessing, Any]:
    """Fitted preprocessing as it is read back, with a date and a category beside the transformers, and its graph; of
    numbers in single precision, and in double where a column, here the fourth, has an offset."""
    import onnxruntime
    from onnx import TensorProto, helper

    folder: Path = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(CODE)
    offsets = (0.0, 0.0, 0.0, 1e9 if request.param else 0.0)
    names = Features(("a", "b", "c", "d"), ("shop",), offsets, dates=("day",), zones=("naive",))
    rng = np.random.default_rng(3)
    train = {
        "numeric": rng.normal(size=(80, 4)) + np.array(offsets),
        "dates": rng.integers(0, 10**9, (80, 1)).astype(float),
        "categorical": np.array([["x"]] * 80, object),
    }
    save_preprocess(fit_preprocess(train, SECTION, names, folder), folder)
    fitted = load_preprocess(folder)
    number = TensorProto.DOUBLE if request.param else TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info("numeric", number, ["rows", 4]),
        helper.make_tensor_value_info("dates", TensorProto.DOUBLE, ["rows", 1]),
        helper.make_tensor_value_info("categorical", TensorProto.STRING, ["rows", 1]),
    ]
    outputs = [helper.make_tensor_value_info(graph_parts.FEATURES, TensorProto.FLOAT, ["rows", fitted.width])]
    content = graph_parts.assemble("own", [preprocessing(fitted)], inputs, outputs)
    return fitted, onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


@settings(max_examples=200, deadline=None)
@given(numbers=st.lists(st.tuples(*[NUMBERS] * 4), min_size=1, max_size=20))
def test_the_graph_computes_what_training_computes(world: tuple[FittedPreprocessing, Any], numbers: list[Any]) -> None:
    fitted, session = world
    rows = len(numbers)
    inputs = {
        "numeric": np.array(numbers, dtype=np.float64 if fitted.is_double else np.float32).reshape(-1, 4),
        "dates": np.full((rows, 1), 86_400.0 * 365),
        "categorical": np.full((rows, 1), "x", dtype=object),
    }
    with np.errstate(over="ignore", invalid="ignore"):
        (actual,), expected = session.run(None, inputs), transform(fitted, inputs)
    assert actual.shape == expected.shape == (rows, 4 + 4 + 6 + 1)
    logarithms = [2, 9, 12]
    others = [index for index in range(fitted.width) if index not in logarithms]
    assert actual[:, others].tobytes() == expected[:, others].tobytes()
    np.testing.assert_array_max_ulp(actual[:, logarithms], expected[:, logarithms], maxulp=1)
