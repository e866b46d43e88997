"""Free texts in Python, in the graph and in scikit-learn become the same numbers."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import HashingVectorizer

from mlflowkit.adapters.onnx_exporter import graph_parts
from mlflowkit.adapters.onnx_exporter.preprocessing_graph import preprocessing
from mlflowkit.bundle import TextRule, TokenRule
from mlflowkit.errors import DataError, UsageError
from mlflowkit.features.cells import category_rules
from mlflowkit.features.preprocess import (
    Features,
    FittedPreprocessing,
    fit_preprocess,
    load_preprocess,
    save_preprocess,
    transform,
)
from mlflowkit.features.texts import text_hashing
from mlflowkit.features.texts.text_tokens import canonical_text
from mlflowkit.stages.train import PreprocessSettings, TextSettings

NAMES = Features(("size",), ("words", "shop", "pairs", "characters"), texts=("words", "pairs", "characters"))
SETTINGS = PreprocessSettings.model_validate(
    {
        "texts": {
            "words": {"features": 8, "norm": "none", "lowercase": False, "max_tokens": 12},
            "pairs": {"features": 64, "ngrams": [1, 3]},
            "characters": {"features": 33, "ngrams": [2, 4], "analyzer": "char", "max_tokens": 20},
        }
    }
)
NASTY = (
    "", " ", "\t\n", "a", "ab", "Straße STRASSE", "İstanbul ıI", "ΟΔΟΣ ὈΔΥΣΣΕΎΣ", "e\N{COMBINING ACUTE ACCENT}té été",
    "\N{FAMILY}\N{ZERO WIDTH JOINER}\N{VARIATION SELECTOR-16}", "日本語のテキスト", "नमस्ते दुनिया", "مرحبا بالعالم",
    "nul\0byte", "a\x1cb\x85c\N{LINE SEPARATOR}d\N{NO-BREAK SPACE}e", "\N{REPLACEMENT CHARACTER}\uffff\U0010ffff",
    "lone \ud800 surrogate", "under_score 42 4", "x" * 5000, "word " * 3000,
    "A\N{KELVIN SIGN} \N{LATIN CAPITAL LETTER S WITH ACUTE AND DOT ABOVE}",
)  # fmt: skip
TEXTS = st.one_of(st.sampled_from(NASTY), st.text(max_size=60), st.text("ab \t.é", max_size=40))


def canonical(texts: list[str]) -> np.ndarray:
    """The texts, read for the four columns of NAMES; the second is one of categories."""
    matrix = np.array([[text] * 4 for text in texts], dtype=object)
    rules = {name: SETTINGS.text(name).rule for name in NAMES.texts}
    return text_hashing.canonical_matrix(matrix, NAMES.categorical, rules)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[FittedPreprocessing, Any]:
    """Fitted preprocessing as it is read back, and its graph."""
    import onnxruntime
    from onnx import TensorProto, helper

    folder = tmp_path_factory.mktemp("texts")
    train = {"numeric": np.arange(6.0).reshape(6, 1), "categorical": canonical(["ab", "ab", "cd", "ab cd", "é", ""])}
    save_preprocess(fit_preprocess(train, SETTINGS, NAMES), folder)
    fitted = load_preprocess(folder)
    inputs = [
        helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["rows", 1]),
        helper.make_tensor_value_info("categorical", TensorProto.STRING, ["rows", 4]),
    ]
    outputs = [helper.make_tensor_value_info(graph_parts.FEATURES, TensorProto.FLOAT, ["rows", fitted.width])]
    content = graph_parts.assemble("texts", [preprocessing(fitted)], inputs, outputs)
    return fitted, onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=12))
def test_the_graph_computes_what_python_computes(world: tuple[FittedPreprocessing, Any], texts: list[str]) -> None:
    fitted, session = world
    matrix = canonical(texts)
    matrix[:, 1] = "ab"
    inputs = {"numeric": np.zeros((len(texts), 1), np.float32), "categorical": matrix}
    (actual,) = session.run(None, inputs)
    expected = transform(fitted, inputs)
    assert actual.tobytes() == expected.tobytes()
    assert transform(fitted, inputs, np.float64)[:, 1:].tobytes() == expected[:, 1:].astype(np.float64).tobytes()


def test_every_nasty_text_is_hashed_alike_alone_and_among_others(world: tuple[FittedPreprocessing, Any]) -> None:
    fitted, session = world
    matrix = canonical(list(NASTY))
    matrix[:, 1] = ""
    inputs = {"numeric": np.zeros((len(NASTY), 1), np.float32), "categorical": matrix}
    (together,) = session.run(None, inputs)
    assert together.tobytes() == transform(fitted, inputs).tobytes()
    for row in range(len(NASTY)):
        (alone,) = session.run(None, {name: array[row : row + 1] for name, array in inputs.items()})
        assert alone.tobytes() == together[row].tobytes()


@settings(max_examples=200, deadline=None)
@given(
    text=TEXTS,
    setting=st.builds(
        lambda ngrams, **keys: TextSettings(ngrams=sorted(ngrams), **keys),
        ngrams=st.lists(st.integers(1, 4), min_size=2, max_size=2),
        features=st.integers(2, 300),
        analyzer=st.sampled_from(["word", "char"]),
        lowercase=st.booleans(),
        norm=st.just("none"),
        max_tokens=st.just(10_000),
    ),
)
def test_numbers_are_those_of_scikit_learn(text: str, setting: TextSettings) -> None:
    """What a vectorizer makes of the raw text; lone surrogates, which it cannot encode, apart."""
    text = "".join(character for character in text if unicodedata.category(character) != "Cs")
    low, high = setting.ngrams
    theirs = HashingVectorizer(
        n_features=setting.features, ngram_range=(low, high), analyzer=setting.analyzer, norm=None,
        lowercase=setting.lowercase,
    )  # fmt: skip
    form, shortened = canonical_text(text, setting.rule)
    assert not shortened
    ours = np.zeros((1, setting.features), np.float32)
    text_hashing.hash_texts(np.array([form], object), text_hashing.text_hash(setting), ours)
    assert ours.tolist() == theirs.transform([text]).toarray().tolist()


@settings(max_examples=300, deadline=None)
@given(
    text=TEXTS,
    analyzer=st.sampled_from(["word", "char"]),
    lowercase=st.booleans(),
    max_tokens=st.one_of(st.integers(1, 30), st.just(1000)),
)
def test_the_canonical_form_of_a_canonical_form_is_itself(
    text: str, analyzer: Any, lowercase: bool, max_tokens: int
) -> None:
    rule = TokenRule(analyzer=analyzer, lowercase=lowercase, max_tokens=max_tokens)
    form, _ = canonical_text(text, rule)
    assert canonical_text(form, rule) == (form, False)
    assert len(form.split(" ") if analyzer == "word" and form else form) <= max_tokens
    form.encode()
    request = category_rules(TextRule(tokens={"note": rule}), ["note"])["note"]
    assert request.text(text) == form
    assert request.texts([text]) == ([form], int(canonical_text(text, rule)[1]))


def test_terms_that_share_a_bucket_are_counted() -> None:
    texts = [f"word{index} word{index + 1}" for index in range(300)] * 20
    few, many = (text_hashing.text_hash(TextSettings(features=features)) for features in (16, 16_384))
    crowded, roomy = (text_hashing.collisions(texts, hashing) for hashing in (few, many))
    assert crowded == text_hashing.Collisions(301, 301)
    assert roomy.terms == 301
    assert 0 < roomy.share < 0.1  # 301 * 300 / 16,384 / 2 pairs are expected to share one


def test_hashing_holds_the_matrix_and_a_part_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr(text_hashing, "CHUNK", 100)
    texts = np.array(["alpha beta gamma"] * 20_000, dtype=object)
    matrix = np.zeros((len(texts), 256), np.float32)
    tracemalloc.start()
    text_hashing.hash_texts(texts, text_hashing.text_hash(TextSettings()), matrix)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < matrix.nbytes / 5
    assert (matrix == matrix[0]).all()


def test_a_matrix_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_hashing, "memory", lambda field: 1_000_000)
    inputs = {"categorical": np.array([["some text"]] * 1000, dtype=object)}
    names = Features((), ("note",), texts=("note",))
    with pytest.raises(DataError, match=r"1,000 training rows of 256 numbers are 0\.0 GB"):
        fit_preprocess(inputs, PreprocessSettings(), names)


def test_settings_of_a_column_that_is_no_text_are_refused() -> None:
    section = PreprocessSettings.model_validate({"texts": {"shop": {}}})
    with pytest.raises(UsageError, match="'shop' is no column of free text"):
        fit_preprocess({"categorical": np.array([["a"]], object)}, section, Features((), ("shop",)))


def test_recipes_without_texts_have_the_same_settings_and_rules() -> None:
    """The fingerprint of a step and the identity of a bundle are digests of these."""
    assert "texts" not in PreprocessSettings().model_dump(mode="json")
    assert "tokens" not in TextRule().model_dump(mode="json")
