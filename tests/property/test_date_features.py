"""Dates in Python and in the graph agree bit for bit."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflowkit.adapters.onnx_exporter import graph_parts
from mlflowkit.adapters.onnx_exporter.preprocessing_graph import preprocessing
from mlflowkit.features.dates.date_parts import DateFeature, date_features
from mlflowkit.features.dates.date_reading import EARLIEST, LATEST, date_text, read_dates
from mlflowkit.features.preprocess import FittedPreprocessing, transform

PARTS = ("year", "month", "day", "weekday", "hour")
CYCLES = tuple(f"{part}_{wave}" for part in ("month", "weekday", "hour") for wave in ("sin", "cos"))
FEATURES = tuple(
    feature
    for column in (0, 1)
    for feature in (
        *(DateFeature(column, name) for name in (*PARTS, *CYCLES)),
        DateFeature(column, "age", 1 - column, unit=31_556_952.0),
        DateFeature(column, "age", None, 1_577_836_800.0, 86_400.0),
    )
)
USUAL = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 12, 31))
ANY = st.one_of(
    USUAL, st.datetimes(), st.sampled_from([dt.datetime(2000, 2, 29), dt.datetime(1900, 2, 28, 23, 59, 59)])
)
SECONDS = st.one_of(
    ANY.map(lambda moment: (moment - dt.datetime(1970, 1, 1)).total_seconds()),
    st.sampled_from([np.nan, np.inf, -np.inf, -0.0, -1e-9, -0.5, float(EARLIEST), float(LATEST), LATEST - 1e-4]),
    st.floats(),
)


@pytest.fixture(scope="module")
def graph() -> object:
    """The graph of fitted preprocessing with every feature of two columns of dates."""
    import onnxruntime
    from onnx import TensorProto, helper

    fitted = FittedPreprocessing(
        np.zeros(len(FEATURES), np.float32), np.full(len(FEATURES), 3.5, np.float32),
        np.full(len(FEATURES), 1.7, np.float32), (), np.empty(0), (), FEATURES,
    )  # fmt: skip
    inputs = [helper.make_tensor_value_info("dates", TensorProto.DOUBLE, ["rows", 2])]
    outputs = [helper.make_tensor_value_info(graph_parts.FEATURES, TensorProto.FLOAT, ["rows", len(FEATURES)])]
    content = graph_parts.assemble("dates", [preprocessing(fitted)], inputs, outputs)
    return fitted, onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


@settings(max_examples=300, deadline=None)
@given(seconds=st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=40))
def test_the_graph_computes_what_python_computes(
    graph: tuple[FittedPreprocessing, object], seconds: list[object]
) -> None:
    fitted, session = graph
    inputs = {"dates": np.array(seconds, dtype=np.float64).reshape(-1, 2)}
    (actual,) = session.run(None, inputs)  # type: ignore[attr-defined]
    assert actual.tobytes() == transform(fitted, inputs).tobytes()


@settings(max_examples=500, deadline=None)
@given(moment=ANY)
def test_parts_are_those_of_the_calendar(moment: dt.datetime) -> None:
    text = moment.isoformat()
    read = read_dates([text])
    assert (read.naive, read.unreadable) == ([0], [])
    parts = date_features(read.seconds.reshape(-1, 1), [DateFeature(0, name) for name in PARTS])[0]
    expected = [moment.year, moment.month, moment.day, moment.weekday(), moment.hour]
    if moment.microsecond == 0:
        assert parts.tolist() == expected
    again = date_text(float(read.seconds[0]), "naive")
    assert read_dates([again]).seconds[0] == read.seconds[0]


@settings(max_examples=200, deadline=None)
@given(moment=USUAL, minutes=st.integers(-14 * 60, 14 * 60))
def test_an_offset_is_subtracted(moment: dt.datetime, minutes: int) -> None:
    zone = dt.timezone(dt.timedelta(minutes=minutes))
    read = read_dates([moment.replace(tzinfo=zone).isoformat()])
    assert (read.naive, read.offset, read.unreadable) == ([], [0], [])
    assert read.seconds[0] == (moment.replace(tzinfo=zone) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)).total_seconds()


@given(text=st.one_of(st.text(max_size=60), st.from_regex(r"\d{1,5}-\d{1,3}-\d{1,3}([T ].{0,20})?", fullmatch=True)))
def test_any_text_is_a_date_or_is_counted(text: str) -> None:
    read = read_dates([text])
    assert np.isnan(read.seconds[0]) == bool(read.unreadable or not text.strip())
