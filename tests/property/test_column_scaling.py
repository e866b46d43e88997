"""Scaling, frequencies and one-hot columns in Python and in the graph."""

from __future__ import annotations

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

NAMES = Features(("plain", "skewed", "ranked", "robust"), ("shop", "size"), orders=((), ("S", "M", "L")))
SETTINGS = PreprocessSettings.model_validate(
    {
        "numeric": {
            "skewed": {"scale": "log", "impute": "mean"},
            "ranked": {"scale": "quantile", "knots": 11},
            "robust": {"scale": "robust"},
        },
        "categorical": {"shop": {"encode": "frequency"}},
    }
)
NUMBERS = st.one_of(st.floats(width=32, allow_infinity=False), st.integers(-1000, 1000).map(float), st.just(np.nan))


def training_rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    ranked = rng.choice([0, 0, 1, 5, 900.25, 1e6], 500)
    numbers = np.stack([rng.normal(size=500), rng.lognormal(8, 3, 500), ranked, rng.random(500)]).T
    numbers[rng.random(numbers.shape) < 0.05] = np.nan
    shops = rng.choice(["a", "b", "", "café"], 500, p=[0.5, 0.3, 0.1, 0.1])
    sizes = rng.choice(["S", "M", "L"], 500)
    return {"numeric": numbers, "categorical": np.stack([shops, sizes], axis=1).astype(object)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[FittedPreprocessing, Any]:
    """Fitted preprocessing as it is read back, and its graph."""
    import onnxruntime
    from onnx import TensorProto, helper

    folder = tmp_path_factory.mktemp("scaling")
    save_preprocess(fit_preprocess(training_rows(), SETTINGS, NAMES), folder)
    fitted = load_preprocess(folder)
    inputs = [
        helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["rows", 4]),
        helper.make_tensor_value_info("categorical", TensorProto.STRING, ["rows", 2]),
    ]
    outputs = [helper.make_tensor_value_info(graph_parts.FEATURES, TensorProto.FLOAT, ["rows", fitted.width])]
    content = graph_parts.assemble("scaling", [preprocessing(fitted)], inputs, outputs)
    return fitted, onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


@settings(max_examples=300, deadline=None)
@given(data=st.data(), rows=st.integers(1, 30))
def test_the_graph_computes_what_python_computes(
    world: tuple[FittedPreprocessing, Any], data: st.DataObject, rows: int
) -> None:
    fitted, session = world
    numbers = data.draw(st.lists(NUMBERS, min_size=4 * rows, max_size=4 * rows))
    words = st.sampled_from(["a", "b", "", "café", "S", "M", "L", "new"])
    texts = data.draw(st.lists(words, min_size=rows, max_size=rows))
    inputs = {
        "numeric": np.array(numbers, dtype=np.float32).reshape(-1, 4),
        "categorical": np.stack([texts, texts[::-1]], axis=1).astype(object),
    }
    (actual,) = session.run(None, inputs)
    expected = transform(fitted, inputs)
    others = [0, *range(2, fitted.width)]
    assert actual[:, others].tobytes() == expected[:, others].tobytes()
    np.testing.assert_array_max_ulp(actual[:, 1], expected[:, 1], maxulp=1)  # the logarithms of two libraries


def test_what_the_columns_mean(world: tuple[FittedPreprocessing, Any]) -> None:
    fitted, _ = world
    train = training_rows()
    matrix = transform(fitted, {**train, "numeric": train["numeric"].astype(np.float32)})
    assert matrix.shape == (500, 4 + 1 + 3)
    assert matrix[:, 1].mean() == pytest.approx(0, abs=1e-5)
    assert matrix[:, 1].std() == pytest.approx(1, abs=1e-5)
    assert 0.1 < matrix[:, 2].min() < 0.3 < 0.8 < matrix[:, 2].max() <= 1
    known = train["numeric"][:, 2] == 1.0
    below = (train["numeric"][:, 2] < 1).mean()
    assert below < matrix[known, 2][0] < below + known.mean()
    assert np.median(matrix[:, 3]) == pytest.approx(0, abs=1e-6)
    assert np.subtract(*np.quantile(matrix[:, 3], [0.75, 0.25])) == pytest.approx(1, abs=1e-5)
    shares = {text: (train["categorical"][:, 0] == text).mean() for text in ("a", "b", "", "café")}
    numbers = {text: matrix[train["categorical"][:, 0] == text, 4][0] for text in shares}
    assert sorted(numbers, key=lambda text: numbers[text]) == sorted(shares, key=lambda text: shares[text])
    assert matrix[:, 4].mean() == pytest.approx(0, abs=1e-5)


def test_recipes_without_the_new_keys_have_the_same_settings() -> None:
    """The fingerprint of a step is a digest of these."""
    assert PreprocessSettings().model_dump(mode="json") == {
        "impute": "median",
        "scale": "standard",
        "max_categories": 50,
    }


@pytest.mark.parametrize("scale", ["log", "quantile", "robust"])
def test_a_constant_column_and_one_without_values_are_finite(scale: str) -> None:
    section = PreprocessSettings.model_validate({"numeric": {"a": {"scale": scale}, "b": {"scale": scale}}})
    inputs = {"numeric": np.array([[3.0, np.nan]] * 5)}
    assert np.isfinite(transform(fit_preprocess(inputs, section, Features(("a", "b"), ())), inputs)).all()
