"""Request bodies: what is accepted, and for everything else which status and which words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import orjson
import pytest

from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.serving.protocol.binary_tensors import read_document
from mlflowkit.serving.protocol.http_error import RequestError
from mlflowkit.serving.protocol.input_schema import ColumnPolicy, Schema
from mlflowkit.serving.protocol.responses import answer_notes, note_headers, render_infer, render_rows, require_finite

SIGNATURE = Signature(
    task="classification",
    inputs=(
        TensorSpec(name="numeric", datatype="FP32", shape=(-1, 2), columns=("age", "income")),
        TensorSpec(name="categorical", datatype="BYTES", shape=(-1, 2), columns=("term", "grade")),
    ),
    outputs=(
        TensorSpec(name="label", datatype="BYTES", shape=(-1,)),
        TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 2)),
    ),
    classes=("bad", "good"),
)
SCHEMA = Schema(SIGNATURE, {"term": frozenset({"36", "60"})})
NUMERIC = {"name": "numeric", "shape": [1, 2], "datatype": "FP32", "data": [41, 5.5]}
CATEGORICAL = {"name": "categorical", "shape": [1, 2], "datatype": "BYTES", "data": ["36", "A"]}
ROW = {"age": 41, "income": 5.5, "term": "36", "grade": "A"}


def infer(*inputs: Any, **more: Any) -> Any:
    return SCHEMA.infer({"inputs": list(inputs), **more}, limit=100)


def rows(*found: Any, **more: Any) -> Any:
    return SCHEMA.rows({"rows": list(found), **more}, limit=100)


def test_the_same_question_in_four_forms_is_the_same_arrays() -> None:
    column = [
        {"name": "age", "shape": [2], "datatype": "INT64", "data": [41, 7]},
        {"name": "income", "shape": [2, 1], "datatype": "FP64", "data": [[5.5], [None]]},
        {"name": "term", "shape": [2], "datatype": "BYTES", "data": ["36", None]},
        {"name": "grade", "shape": [2, 1], "datatype": "BYTES", "data": ["A", "B"]},
    ]
    flat = [
        {"name": "numeric", "shape": [2, 2], "datatype": "FP32", "data": [41, 5.5, 7, None]},
        {"name": "categorical", "shape": [2, 2], "datatype": "BYTES", "data": ["36", "A", "", "B"]},
    ]
    nested = [
        {"name": "numeric", "shape": [2, 2], "datatype": "FP32", "data": [[41, 5.5], [7, None]]},
        {"name": "categorical", "shape": [2, 2], "datatype": "BYTES", "data": [["36", "A"], [None, "B"]]},
    ]
    plain = rows(ROW, {"age": 7, "income": None, "term": None, "grade": "B"})
    for query in (infer(*column), infer(*flat), infer(*nested)):
        assert query.rows == plain.rows == 2
        np.testing.assert_array_equal(query.inputs["numeric"], plain.inputs["numeric"])
        assert query.inputs["categorical"].tolist() == plain.inputs["categorical"].tolist() == [["36", "A"], ["", "B"]]
    assert plain.inputs["numeric"].dtype == np.float32
    assert math.isnan(plain.inputs["numeric"][1, 1])


def test_categories_that_training_never_saw_are_counted_and_missing_ones_are_not() -> None:
    query = rows({**ROW, "term": "48"}, {**ROW, "term": None}, {**ROW, "grade": "Z"})
    assert query.unseen == {"term": 1}
    assert infer(NUMERIC, {**CATEGORICAL, "data": ["48", "Z"]}).unseen == {"term": 1}


def test_a_number_is_a_category_where_training_saw_it_as_one() -> None:
    assert rows({**ROW, "term": 36}).inputs["categorical"].tolist() == [["36", "A"]]
    assert rows({**ROW, "term": 36.0, "grade": True}).inputs["categorical"].tolist() == [["36", "True"]]


def test_a_number_that_training_never_saw_is_an_unseen_category() -> None:
    query = rows({**ROW, "term": 37})
    assert (query.inputs["categorical"].tolist(), query.unseen) == ([["37", "A"]], {"term": 1})


def test_a_reply_names_the_columns_with_unseen_categories() -> None:
    answers = {"label": np.array(["good"], dtype=object), "probabilities": np.array([[0.1, 0.9]], dtype=np.float32)}
    query = rows({**ROW, "term": 37})
    names = {"model": "lending", "version": "v1", "id": "q1"}
    assert orjson.loads(render_rows(SCHEMA, query, answers, **names))["notes"] == {"unseen_categories": {"term": 1}}
    reply = orjson.loads(render_infer(SCHEMA, query, answers, **names)[0])
    assert orjson.loads(reply["parameters"]["unseen_categories"]) == {"term": 1}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"rows": [{"age": NaN}]}', "NaN is no JSON: send a finite number, or null"),
        (b'{"rows": [{"age": -Infinity}]}', "-Infinity is no JSON"),
        (b'{"inputs": []}\x00\x00\x80\x3f\xff', "Inference-Header-Content-Length, which is missing"),
        (b'{"rows": []} {"rows": []}', "goes on after its JSON, which ends at byte 12"),
        (b'{"rows": ["NaN"', "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
    ],
)
def test_a_body_that_is_no_json_is_told_what_to_send(body: bytes, words: str) -> None:
    with pytest.raises(RequestError) as refusal:
        read_document(body)
    assert words in refusal.value.message


@pytest.mark.parametrize(
    ("inputs", "status", "words"),
    [
        ([], 400, ["inputs", "list of tensors"]),
        (["numeric"], 400, ["inputs[0]", "found a string"]),
        ([{"shape": [1, 2]}], 400, ["inputs[0]", "name"]),
        ([NUMERIC, NUMERIC], 400, ["given twice"]),
        ([NUMERIC], 400, ["categorical is missing"]),
        ([{**NUMERIC, "name": "numerics"}, CATEGORICAL], 400, ["numerics", "Did you mean numeric?"]),
        ([{**NUMERIC, "datatype": "INT64"}, CATEGORICAL], 400, ["INT64", "FP32 is expected"]),
        ([{**NUMERIC, "datatype": None}, CATEGORICAL], 400, ["null", "FP32 is expected"]),
        ([{**NUMERIC, "shape": [1, 3]}, CATEGORICAL], 400, ["[1,3]", "[-1, 2] is expected"]),
        ([{**NUMERIC, "shape": [2]}, CATEGORICAL], 400, ["[-1, 2] is expected"]),
        ([{**NUMERIC, "shape": "1x2"}, CATEGORICAL], 400, ["[-1, 2] is expected"]),
        ([{**NUMERIC, "shape": [0, 2], "data": []}, CATEGORICAL], 400, ["one row or more"]),
        ([{**NUMERIC, "shape": [-1, 2]}, CATEGORICAL], 400, ["one row or more"]),
        ([{**NUMERIC, "shape": [1.0, 2]}, CATEGORICAL], 400, ["one row or more"]),
        ([{**NUMERIC, "shape": [True, 2]}, CATEGORICAL], 400, ["one row or more"]),
        ([{**NUMERIC, "shape": [10**12, 2]}, CATEGORICAL], 413, ["at most 100"]),
        ([{**NUMERIC, "shape": [2, 2], "data": [1, 2, 3, 4]}, CATEGORICAL], 400, ["1 rows", "has 2"]),
        ([{**NUMERIC, "data": [1]}, CATEGORICAL], 400, ["1 values", "needs 2"]),
        ([{**NUMERIC, "data": None}, CATEGORICAL], 400, ["data must be a list"]),
        ([{**NUMERIC, "data": None, "parameters": 7}, CATEGORICAL], 400, ["data must be a list"]),
        ([{**NUMERIC, "data": [[1], 2]}, CATEGORICAL], 400, ["2 rows", "needs 1"]),
        ([{**NUMERIC, "data": [[1, 2, 3]]}, CATEGORICAL], 400, ["not nested as shape [1,2]"]),
        ([{**NUMERIC, "data": [[1, [2]]]}, CATEGORICAL], 400, ["value 1", "a list"]),
        ([{**NUMERIC, "data": [[[1, 2]]]}, CATEGORICAL], 400, ["not nested as shape [1,2]"]),
        ([{**NUMERIC, "data": [1, "2"]}, CATEGORICAL], 400, ["value 1", "a string", "a number or null"]),
        ([{**NUMERIC, "data": [1, True]}, CATEGORICAL], 400, ["value 1", "a boolean"]),
        ([{**NUMERIC, "data": [1, {}]}, CATEGORICAL], 400, ["value 1", "an object"]),
        ([{**NUMERIC, "data": [1, 1e39]}, CATEGORICAL], 400, ["1e+39", "beyond the range of FP32"]),
        ([NUMERIC, {**CATEGORICAL, "data": ["36", [5]]}], 400, ["value 1", "a list", "a string, a number"]),
        ([{"name": "age", "shape": [1], "datatype": "INT64", "data": [1]}], 400, ["income, term, grade are missing"]),
        ([{"name": "agee", "shape": [1], "datatype": "INT64", "data": [1]}], 400, ["Did you mean age?"]),
        ([{"name": "age", "shape": [1], "datatype": "BYTES", "data": ["x"]}], 400, ["FP32 is expected"]),
        ([{"name": "age", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}], 400, ["[-1] or [-1, 1]"]),
    ],
)  # fmt: skip
def test_an_infer_request_that_is_wrong_is_told_what_is_right(inputs: list[Any], status: int, words: list[str]) -> None:
    with pytest.raises(RequestError) as refusal:
        infer(*inputs)
    assert refusal.value.status == status
    for word in words:
        assert word in refusal.value.message


@pytest.mark.parametrize(
    ("found", "status", "words"),
    [
        ([], 400, ["at least one row"]),
        (["x"], 400, ["row 0", "found a string"]),
        ([ROW, {**ROW, "incom": 1}], 400, ["row 1", '"incom"', "age, income, term, grade", "Did you mean income?"]),
        ([{"age": 1, "income": 2, "term": "36"}], 400, ["row 0", "grade is not given", "null"]),
        ([{**ROW, "age": "old"}], 400, ["row 0, column age", "a string", '"old"', "a number or null"]),
        ([ROW, {**ROW, "age": [1]}], 400, ["row 1, column age", "a list"]),
        ([{**ROW, "age": 1e300}], 400, ["row 0, column age", "beyond the range"]),
        ([{**ROW, "grade": {"a": 1}}], 400, ["row 0, column grade", "an object"]),
        ([ROW] * 101, 413, ["101 rows", "at most 100"]),
    ],
)  # fmt: skip
def test_a_row_that_is_wrong_is_named_with_its_column(found: list[Any], status: int, words: list[str]) -> None:
    with pytest.raises(RequestError) as refusal:
        rows(*found)
    assert refusal.value.status == status
    for word in words:
        assert word in refusal.value.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1, 2]",
        b"null",
        b'{"inputs": NaN}',
        b'{"inputs": [1e999]}',
        b"[" * 5000,
        b"\xff\xfe",
        b'{"a": "\\ud800"}',
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused_by_both_doors(body: bytes) -> None:
    for door in (SCHEMA.infer, SCHEMA.rows):
        with pytest.raises(RequestError) as refusal:
            door(read_document(body), limit=10)
        assert refusal.value.status == 400


def test_replies_name_model_version_and_id_and_keep_the_asked_outputs() -> None:
    answers = {"label": np.array(["good"], dtype=object), "probabilities": np.array([[0.1, 0.9]], dtype=np.float32)}
    query = infer(NUMERIC, CATEGORICAL, id="q1", outputs=[{"name": "probabilities"}])
    reply = orjson.loads(render_infer(SCHEMA, query, answers, model="lending", version="v1", id=query.id)[0])
    assert reply == {
        "model_name": "lending",
        "model_version": "v1",
        "id": "q1",
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [1, 2], "data": [0.1, 0.9]}],
    }
    people = orjson.loads(render_rows(SCHEMA, query, answers, model="lending", version="v1", id="q1"))
    assert "notes" not in people
    assert people["predictions"] == [{"label": "good", "probabilities": {"bad": 0.1, "good": 0.9}}]


def test_an_answer_that_is_not_finite_is_refused_with_its_row() -> None:
    answers = {
        "label": np.array(["a", "b"], dtype=object),
        "probabilities": np.array([[0, 1], [np.nan, 1]], np.float32),
    }
    with pytest.raises(RequestError, match="row 1") as refusal:
        require_finite(answers["probabilities"], "probabilities")
    assert refusal.value.status == 422


def test_the_best_classes_are_asked_for_by_number() -> None:
    answers = {"label": np.array(["good"], dtype=object), "probabilities": np.array([[0.1, 0.9]], dtype=np.float32)}
    for count, data in ((1, ["0.900000:1:good"]), (9, ["0.900000:1:good", "0.100000:0:bad"])):
        outputs = [{"name": "probabilities", "parameters": {"classification": count}}, {"name": "label"}]
        query = infer(NUMERIC, CATEGORICAL, outputs=outputs)
        reply = orjson.loads(render_infer(SCHEMA, query, answers, model="lending", version="v1", id="1")[0])
        shape = [1, len(data)]
        assert reply["outputs"][0] == {"name": "probabilities", "datatype": "BYTES", "shape": shape, "data": data}
        assert reply["outputs"][1]["data"] == ["good"]


@pytest.mark.parametrize(
    ("name", "count", "words"),
    [
        ("probabilities", 0, "a number of classes from 1"), ("probabilities", True, "a number of classes"),
        ("probabilities", "2", "a number of classes"), ("label", 1, "no values by class; allowed: probabilities"),
    ],
)  # fmt: skip
def test_classes_of_what_has_none_are_refused(name: str, count: Any, words: str) -> None:
    with pytest.raises(RequestError) as refusal:
        infer(NUMERIC, CATEGORICAL, outputs=[{"name": name, "parameters": {"classification": count}}])
    assert words in refusal.value.message


def test_unknown_outputs_and_ids_are_refused() -> None:
    with pytest.raises(RequestError, match="Did you mean label"):
        infer(NUMERIC, CATEGORICAL, outputs=[{"name": "labels"}])
    with pytest.raises(RequestError, match="id"):
        infer(NUMERIC, CATEGORICAL, id=5)


@pytest.mark.parametrize("last", [True, 1.0, "1", None, [1]])
def test_a_shape_is_made_of_integers(last: Any) -> None:
    columns = [{"name": name, "shape": [1, last], "datatype": "FP32", "data": [1]} for name in ("age", "income")]
    texts = [{"name": name, "shape": [1], "datatype": "BYTES", "data": ["a"]} for name in ("term", "grade")]
    whole = {**NUMERIC, "shape": [1, 2.0 if last == 1 else last]}
    for inputs in ([*columns, *texts], [whole, CATEGORICAL]):
        with pytest.raises(RequestError, match=r"inputs\[\w+\]: shape") as refused:
            infer(*inputs)
        assert refused.value.status == 400


LENIENT = ColumnPolicy("ignore", "null")


def test_columns_too_many_and_too_few_are_taken_at_every_door_where_the_recipe_says_so() -> None:
    column = {"shape": [1], "datatype": "INT64", "data": [1]}
    sent = {"rows": [{"age": 41, "term": "36", "grade": "A", "colour": "red"}, ROW]}
    query = SCHEMA.rows(sent, limit=9, columns=LENIENT)
    np.testing.assert_array_equal(query.inputs["numeric"], np.array([[41, np.nan], [41, 5.5]], np.float32))
    assert query.notes == {"ignored_columns": {"colour": 1}, "missing_columns": {"income": 1}}
    tensors = [{"name": "age", **column}, {"name": "colour", **column}, {"name": "grade", **column, "data": [3]}]
    query = SCHEMA.infer({"inputs": tensors}, limit=9, columns=LENIENT)
    np.testing.assert_array_equal(query.inputs["numeric"], np.array([[1, np.nan]], np.float32))
    assert query.inputs["categorical"].tolist() == [["", "3"]]
    assert query.notes == {"ignored_columns": {"colour": 1}, "missing_columns": {"income": 1, "term": 1}}
    query = SCHEMA.infer({"inputs": [NUMERIC, {"name": "more", **column}]}, limit=9, columns=LENIENT)
    assert query.inputs["categorical"].tolist() == [["", ""]]
    assert query.notes == {"ignored_columns": {"more": 1}, "missing_columns": {"term": 1, "grade": 1}}
    assert sent["rows"][0] == {"age": 41, "term": "36", "grade": "A", "colour": "red"}


@pytest.mark.parametrize(
    ("policy", "row", "words"),
    [
        (ColumnPolicy("ignore", "error"), {"age": 1, "colour": 2}, "income is not given"),
        (ColumnPolicy("error", "null"), {"age": 1, "colour": 2}, '"colour" is not known'),
        (LENIENT, {"agee": 1}, "Did you mean age?"),
        (LENIENT, {}, "age is not given"),
    ],
)
def test_each_leniency_is_its_own_and_a_row_of_unknown_columns_is_no_row(
    policy: ColumnPolicy, row: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        SCHEMA.rows({"rows": [ROW, row]}, limit=9, columns=policy)
    assert words in refusal.value.message
    assert "row 1" in refusal.value.message
    tensors = [{"name": name, "shape": [1], "datatype": "INT64", "data": [1]} for name in row]
    with pytest.raises(RequestError):
        SCHEMA.infer({"inputs": tensors}, limit=9, columns=policy)


def test_an_integer_tensor_has_no_missing_value() -> None:
    spec = TensorSpec(name="n", datatype="INT64", shape=(-1, 2), columns=("a", "b"))
    output = TensorSpec(name="prediction", datatype="FP32", shape=(-1,))
    schema = Schema(Signature(task="regression", inputs=(spec,), outputs=(output,)))
    with pytest.raises(RequestError, match="null"):
        schema.rows({"rows": [{"a": 1}]}, limit=9, columns=LENIENT)
    tensor = {"name": "a", "shape": [1], "datatype": "INT64", "data": [1]}
    with pytest.raises(RequestError, match="columns b are missing"):
        schema.infer({"inputs": [tensor]}, limit=9, columns=LENIENT)


def test_notes_name_a_bounded_number_of_columns() -> None:
    row = ROW | {f"{'x' * 300}{number}": 1 for number in range(500)}
    notes = answer_notes(SCHEMA.rows({"rows": [row]}, limit=9, columns=LENIENT))
    assert sum(notes["ignored_columns"].values()) == 500
    assert sum(len(value) for _, value in note_headers(notes)) < 4096
