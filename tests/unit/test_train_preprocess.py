"""Imputation, scaling and encoding: fitted on training rows, the same numbers as scikit-learn's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, OneHotEncoder, StandardScaler

from mlflowkit.errors import DataError, EngineError, UsageError
from mlflowkit.features.preprocess import (
    class_weights,
    fit_preprocess,
    load_preprocess,
    load_sklearn,
    save_preprocess,
    save_sklearn,
    transform,
)
from mlflowkit.stages.train import PreprocessSettings

SCALERS = {"standard": StandardScaler, "minmax": MinMaxScaler, "none": FunctionTransformer}


@pytest.mark.parametrize("scale", SCALERS)
@pytest.mark.parametrize("impute", ["median", "mean", "most_frequent"])
def test_numbers_are_those_of_scikit_learn(impute: str, scale: str) -> None:
    rng = np.random.default_rng(3)
    train = rng.integers(-4, 9, (200, 5)).astype(np.float32) * np.float32([1, 10, 0.1, 1000, 0]) + 2
    train[rng.random(train.shape) < 0.2] = np.nan
    other = np.where(rng.random((50, 5)) < 0.3, np.nan, rng.normal(0, 30, (50, 5))).astype(np.float32)
    fitted = fit_preprocess({"numeric": train}, PreprocessSettings.model_validate({"impute": impute, "scale": scale}))
    reference = make_pipeline(SimpleImputer(strategy=impute), SCALERS[scale]()).fit(train.astype(np.float64))
    matrix = transform(fitted, {"numeric": other})
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix, reference.transform(other.astype(np.float64)), rtol=1e-4, atol=1e-4)


def test_a_column_without_a_value_stays_as_a_constant() -> None:
    train = np.array([[np.nan, 1], [np.nan, 2]], np.float32)
    fitted = fit_preprocess({"numeric": train}, PreprocessSettings())
    assert fitted.width == 2
    assert transform(fitted, {"numeric": np.array([[np.nan, 1.5], [7, 1.5]], np.float32)}).tolist() == [[0, 0], [7, 0]]


def test_categories_are_the_most_frequent_and_the_rest_encodes_to_zeros() -> None:
    values = ["a"] * 3 + ["c"] * 2 + ["b"] * 2 + [""] * 4 + ["d"]
    texts = np.array(values, dtype=object).reshape(-1, 1)
    fitted = fit_preprocess({"categorical": texts}, PreprocessSettings(max_categories=3))
    assert fitted.categories == (("", "a", "b"),)
    seen = np.array([["a"], [""], ["c"], ["unheard of"]], dtype=object)
    assert transform(fitted, {"categorical": seen}).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(object, st.tuples(st.integers(1, 30), st.integers(1, 3)), elements=st.sampled_from("abcxyz ")))
def test_encoding_is_scikit_learns(texts: np.ndarray) -> None:
    train, other = texts[: len(texts) // 2 + 1], texts
    fitted = fit_preprocess({"categorical": train}, PreprocessSettings())
    reference = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(train)
    np.testing.assert_array_equal(transform(fitted, {"categorical": other}), reference.transform(other))


@pytest.mark.parametrize("scale", ["standard", "minmax"])
@pytest.mark.parametrize("largest", [1e-45, 1e-38, 1e37])
def test_a_spread_that_float32_cannot_divide_by_gives_finite_numbers(scale: str, largest: float) -> None:
    x = np.array([[0.0], [-largest], [largest]], np.float32)
    fitted = fit_preprocess({"numeric": x}, PreprocessSettings(scale=scale))
    assert np.isfinite(transform(fitted, {"numeric": x / 2})).all()


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, (6, 2), elements=st.floats(-(2.0**99), 2.0**99, width=32) | st.just(float("nan"))))
def test_what_was_fitted_survives_the_disk_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, x: np.ndarray) -> None:
    folder = tmp_path_factory.getbasetemp()
    inputs = {"numeric": x, "categorical": np.array([["é"], ['"'], [""], ["\n"], ["a"], ["a"]], dtype=object)}
    fitted = fit_preprocess(inputs, PreprocessSettings())
    save_preprocess(fitted, folder)
    matrix = transform(load_preprocess(folder), inputs)
    np.testing.assert_array_equal(matrix, transform(fitted, inputs))
    assert np.isfinite(matrix).all()


def test_class_weights() -> None:
    codes = np.array([0] * 8 + [1] * 2)
    assert class_weights("balanced", ("no", "yes"), codes) == (0.625, 2.5)
    assert class_weights({"1": 3.0}, (0, 1), codes) == (1.0, 3.0)
    assert class_weights(None, (0, 1), codes) is None
    with pytest.raises(UsageError, match="'maybe', which is not a class") as caught:
        class_weights({"maybe": 2.0}, ("no", "yes"), codes)
    assert "no, yes" in caught.value.hint
    with pytest.raises(UsageError, match="is for a classification"):
        class_weights("balanced", (), codes)


@pytest.mark.heavy
def test_a_skops_file_with_a_foreign_type_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    save_sklearn(FunctionTransformer(func=foreign), path)
    with pytest.raises(EngineError, match="untrusted types"):
        load_sklearn(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(EngineError, match="cannot be read"):
        load_sklearn(path)


def foreign(x: np.ndarray) -> np.ndarray:
    raise DataError("this must not run")
