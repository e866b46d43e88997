"""Scoring a file means by a number or a boolean what a request means by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mlflowkit.bundle import Signature, TensorSpec, TextRule
from mlflowkit.errors import DataError
from mlflowkit.features.cells import ReadingPlan
from mlflowkit.features.text_columns import read_texts
from mlflowkit.scoring.conversion import feature_frame
from mlflowkit.scoring.reading import RowFile, open_rows, rows_of_json
from mlflowkit.scoring.score import ScoringOptions, score
from mlflowkit.serving.protocol.input_schema import Schema

COLUMNS = ("grade", "member")
SIGNATURE = Signature(
    task="regression",
    inputs=(TensorSpec(name="categorical", datatype="BYTES", shape=(-1, 2), columns=COLUMNS),),
    outputs=(TensorSpec(name="prediction", datatype="FP32", shape=(-1,)),),
    texts=TextRule(missing=("NA",), verbatim=COLUMNS),
)
KNOWN = {"grade": frozenset({"3.0", "4.0", "2.5", "0.1"}), "member": frozenset({"true", "false"})}
ROWS: list[dict[str, Any]] = [
    {"grade": 3, "member": True},
    {"grade": 2.5, "member": None},
    {"grade": None, "member": False},
    {"grade": 7, "member": True},
]


def answered(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The categories of a request."""
    cells: list[list[str]] = Schema(SIGNATURE, KNOWN).rows({"rows": rows}, limit=9).inputs["categorical"].tolist()
    return cells


class Recorder:
    """A predictor that keeps what it is asked, and a sink."""

    version = "1"

    def __init__(self) -> None:
        self.signature = SIGNATURE
        self.frames: list[pd.DataFrame] = []
        self.written: list[pa.Table] = []

    def predict(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        self.frames.append(frame)
        return {"prediction": np.zeros(len(frame), np.float32)}

    def write(self, table: pa.Table) -> None:
        self.written.append(table)


@pytest.mark.parametrize("kind", ["json", "integers", "float32", "categories"])
def test_a_value_is_the_spelling_that_the_training_data_had(kind: str) -> None:
    grades: list[Any] = [3, None, 4] if kind == "integers" else [3, 0.1, None]
    types = {
        "json": None,
        "integers": pa.int32(),
        "float32": pa.float32(),
        "categories": None,
    }
    column = pa.chunked_array([pa.array(grades, types[kind])])
    table = pa.table(
        {
            "grade": column.dictionary_encode() if kind == "categories" else column,
            "member": pa.array([True, None, False]),
        }
    )
    rows = [{"grade": grade, "member": member} for grade, member in zip(grades, (True, None, False), strict=True)]
    frame = feature_frame(table, SIGNATURE, start=0, categories=KNOWN)
    assert frame[list(COLUMNS)].to_numpy().tolist() == answered(rows)


def test_a_service_is_sent_values_to_spell_and_a_graph_their_spelling() -> None:
    def file() -> RowFile:
        return rows_of_json(Path("rows.json"), json.dumps(ROWS))

    sent, spelled = Recorder(), Recorder()
    score(file(), sent, sent, ScoringOptions(categories=None), lambda rows: None)
    summary = score(file(), spelled, spelled, ScoringOptions(categories=KNOWN), lambda rows: None)
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in sent.frames[0].to_numpy().tolist()]
    assert answered(rows) == answered(ROWS)
    assert spelled.frames[0].to_numpy().tolist() == answered(ROWS)
    assert summary.unseen == {"grade": 1}


def test_a_whole_number_beyond_64_bits_is_refused_with_its_column() -> None:
    with pytest.raises(DataError, match="'grade' has a whole number beyond 64 bits"):
        rows_of_json(Path("rows.json"), json.dumps([{"grade": 2**70}])).batches.__next__()


@pytest.mark.parametrize("known", [frozenset({"red", ""}), frozenset({"red", "NA"}), None])
def test_a_csv_is_read_for_a_bundle_of_version_0_1_as_its_training_data_were(
    known: frozenset[str] | None, tmp_path: Path
) -> None:
    """It has no rule of texts; the reader of that version took NA, null and their like for missing values."""
    document = SIGNATURE.model_dump(mode="json", exclude={"texts"})
    recorder = Recorder()
    recorder.signature = Signature.model_validate(document)
    (tmp_path / "rows.csv").write_text("grade,member\nNA,null\nred,NA\n")
    categories = None if known is None else {"grade": known, "member": frozenset({"yes"})}
    score(
        open_rows(tmp_path / "rows.csv"), recorder, recorder, ScoringOptions(categories=categories), lambda rows: None
    )
    kept = "NA" if known is not None and "NA" in known else ""
    assert recorder.frames[0][list(COLUMNS)].to_numpy().tolist() == [[kept, ""], ["red", ""]]
    ruled = Recorder()
    ruled.signature = SIGNATURE.model_copy(update={"texts": TextRule()})
    score(open_rows(tmp_path / "rows.csv"), ruled, ruled, ScoringOptions(), lambda rows: None)
    assert ruled.frames[0][list(COLUMNS)].to_numpy().tolist() == [["NA", "null"], ["red", "NA"]]


@pytest.mark.parametrize("encoded", [False, True])
def test_a_column_of_categories_has_the_missing_values_of_texts(encoded: bool) -> None:
    """Training, a file and a request read one text alike, also where Parquet stores it as a dictionary."""
    texts = pa.array(["a", "?", " a", None])
    column = texts.dictionary_encode() if encoded else texts
    rule = TextRule(missing=("?",), trim=True)
    read = read_texts(pa.table({"grade": column}), ReadingPlan(rule))
    assert pa.types.is_dictionary(read.table.schema.field("grade").type) is encoded
    trained = read.table.column("grade").to_pylist()
    assert trained == ["a", None, "a", None]
    assert read.missing == {"grade": {"?": 1}}
    signature = SIGNATURE.model_copy(update={"texts": rule})
    table = pa.table({"grade": column, "member": pa.nulls(4, pa.string())})
    scored = feature_frame(table, signature, start=0, categories={})["grade"].tolist()
    rows = [{"grade": text, "member": ""} for text in texts.to_pylist()]
    asked = Schema(signature).rows({"rows": rows}, limit=9).inputs["categorical"][:, 0].tolist()
    assert scored == asked == [text or "" for text in trained]


def test_categories_declared_numeric_are_numbers() -> None:
    table = pa.table({"n": pa.array(["1,5", "?", None]).dictionary_encode()})
    plan = ReadingPlan(TextRule(missing=("?",), decimal=","), {"n": "number"})
    assert read_texts(table, plan).table.column("n").to_pylist() == [1.5, None, None]
