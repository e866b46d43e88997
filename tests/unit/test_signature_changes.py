"""What changes for the clients of a version when another one takes over."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from mlflowkit.bundle import Signature, TensorSpec, TextRule
from mlflowkit.judging.compatibility import Leniency, breaking_changes, compare_signatures
from mlflowkit.rollout import policy
from mlflowkit.rollout.settings import Rollout
from mlflowkit.rollout.state import Request, RolloutState
from mlflowkit.values import RoutingTable, Variant
from tests.support.lending_bundle import SIGNATURE

LENIENT = Leniency(ignores_unknown=True, fills_missing=True)


def signature(
    numeric: tuple[str, ...] = ("age", "income"), categorical: tuple[str, ...] = ("term",),
    classes: tuple[str | int, ...] = ("bad", "good"), **more: Any,
) -> Signature:  # fmt: skip
    inputs = [
        TensorSpec(name=name, datatype=datatype, shape=(-1, len(columns)), columns=columns)
        for name, datatype, columns in (("numeric", "FP32", numeric), ("categorical", "BYTES", categorical))
        if columns
    ]
    label: Any = "BYTES" if isinstance(classes[0], str) else "INT64"
    outputs = (
        TensorSpec(name="label", datatype=label, shape=(-1,)),
        TensorSpec(name="probabilities", datatype="FP32", shape=(-1, len(classes))),
    )
    return Signature(
        **{"task": "classification", "inputs": tuple(inputs), "outputs": outputs, "classes": classes, **more}
    )


REGRESSION = signature(
    task="regression", classes=("x",), outputs=(TensorSpec(name="prediction", datatype="FP32", shape=(-1,)),)
).model_copy(update={"classes": ()})


def tensors(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = ()) -> Signature:
    return Signature(task="regression", inputs=inputs, outputs=outputs)


IMAGE = TensorSpec(name="image", datatype="FP32", shape=(-1, 3, 8, 8))
SCORE = TensorSpec(name="prediction", datatype="FP32", shape=(-1,))


@pytest.mark.parametrize("same", [signature(), SIGNATURE, REGRESSION, tensors(IMAGE, outputs=(SCORE,))])
def test_a_version_with_the_same_signature_changes_nothing(same: Signature) -> None:
    assert compare_signatures(same, same) == ()


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (signature(numeric=("age",)), {("column-removed", "income")}),
        (signature(numeric=("age", "income", "debt")), {("column-added", "debt")}),
        (signature(categorical=()), {("column-removed", "term")}),
        (signature(numeric=("age",), categorical=("term", "income")), {("column-kind", "income")}),
        (signature(numeric=("income", "age")), {("column-order", "numeric")}),
        (
            signature(numeric=("age", "debt")),
            {("column-removed", "income"), ("column-added", "debt"), ("column-order", "numeric")},
        ),
        (signature(classes=("good", "bad")), {("classes", "classes")}),
        (signature(classes=("bad", "good", "ugly")), {("classes", "classes")}),
        (signature(classes=("bad", "best")), {("classes", "classes")}),
        (signature(classes=(0, 1)), {("classes", "classes")}),
        (REGRESSION, {("task", "task")}),
        (signature(outputs=(signature().outputs[0],)), {("output", "probabilities")}),
    ],
)
def test_what_its_clients_would_notice_is_breaking(candidate: Signature, expected: set[tuple[str, str]]) -> None:
    changes = compare_signatures(signature(), candidate)
    assert {(change.kind, change.subject) for change in changes} == expected
    assert breaking_changes(changes) == changes
    assert all(change.subject in change.message or change.kind in ("classes", "task") for change in changes)


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (tensors(IMAGE.model_copy(update={"shape": (-1, 3, 16, 16)}), outputs=(SCORE,)), ("input", "image")),
        (tensors(IMAGE.model_copy(update={"datatype": "UINT8"}), outputs=(SCORE,)), ("input", "image")),
        (tensors(outputs=(SCORE,)), ("input", "image")),
        (tensors(IMAGE, SCORE, outputs=(SCORE,)), ("input", "prediction")),
        (tensors(IMAGE, outputs=(SCORE.model_copy(update={"datatype": "FP64"}),)), ("output", "prediction")),
    ],
)
def test_a_graph_without_columns_is_compared_tensor_by_tensor(candidate: Signature, expected: tuple[str, str]) -> None:
    changes = compare_signatures(tensors(IMAGE, outputs=(SCORE,)), candidate)
    assert [(change.kind, change.subject, change.breaking) for change in changes] == [(*expected, True)]


def test_named_columns_with_another_datatype_break_clients_of_tensors() -> None:
    wide = tuple(tensor.model_copy(update={"datatype": "FP64"}) for tensor in signature().inputs[:1])
    candidate = signature().model_copy(update={"inputs": (*wide, *signature().inputs[1:])})
    assert [change.subject for change in compare_signatures(signature(), candidate)] == ["numeric"]


def test_another_output_is_told_and_breaks_nothing() -> None:
    candidate = signature().model_copy(update={"outputs": (*signature().outputs, SCORE)})
    (change,) = compare_signatures(signature(), candidate)
    assert (change.kind, change.breaking) == ("output", False)


def test_a_service_that_is_lenient_about_columns_takes_versions_with_others() -> None:
    for candidate in (signature(numeric=("age",)), signature(numeric=("age", "income", "debt"))):
        strict, lenient = (compare_signatures(signature(), candidate, how) for how in (Leniency(), LENIENT))
        assert breaking_changes(strict)
        assert not breaking_changes(lenient)
        assert {change.subject for change in lenient} == {change.subject for change in strict}  # still told
    removed, added = signature(numeric=("age",)), signature(numeric=("age", "income", "debt"))
    assert breaking_changes(compare_signatures(signature(), removed, Leniency(fills_missing=True)))
    assert breaking_changes(compare_signatures(signature(), added, Leniency(ignores_unknown=True)))


def test_a_column_in_the_place_of_another_breaks_clients_of_whole_tensors_of_a_lenient_service() -> None:
    changes = breaking_changes(compare_signatures(signature(), signature(numeric=("age", "debt")), LENIENT))
    assert [(change.kind, change.message) for change in changes] == [
        (
            "column-order",
            "tensor numeric has other columns in the same places (income -> debt): whole tensors are misread",
        )
    ]


def test_numbers_in_files_are_read_as_before_or_it_is_breaking() -> None:
    german = signature(texts=TextRule(decimal=",", thousands=".", units=("EUR",)))
    changes = compare_signatures(german, signature())
    assert [(change.subject, change.breaking) for change in changes] == [
        ("decimal", True), ("thousands", True), ("units", True)
    ]  # fmt: skip
    assert changes[0].message == "the decimal mark of numbers in files for mlkit predict was ',' and is '.'"
    assert compare_signatures(signature(), german) == ()  # its clients' files have plain numbers
    (change,) = compare_signatures(signature(), signature(texts=TextRule(missing=("NA",))))
    assert (change.subject, change.breaking) == ("missing", False)


def test_categories_that_became_unknown_are_told() -> None:
    before = {"term": frozenset({"36", "60", ""}), "purpose": frozenset({"car"})}
    now = {"term": frozenset({"36", "72"})}
    (change,) = compare_signatures(signature(), signature(), categories=(before, now))
    assert (change.kind, change.subject, change.breaking) == ("category-removed", "term", False)
    assert change.message == "column term: '60' is unknown to it, and answered as such"
    assert compare_signatures(signature(), signature(), categories=(now, {**now, "purpose": frozenset()})) == ()


def test_a_rollout_of_an_older_release_is_still_read() -> None:
    """Its records have no signature changes."""
    request = Request("e1", "lending", Variant("challenger", "2", "d2", "b"), Rollout(), 0.0)
    state = policy.begin(request, RoutingTable("lending", 1, (Variant("champion", "1", "d1", "b"),)), now=0.0)
    for value, read in ((request, Request.from_json), (state, RolloutState.from_json)):
        document = json.loads(json.dumps(value.to_json()))
        del document["signature_changes"]
        assert read(document) == value
    changed = replace(state, signature_changes=compare_signatures(signature(), signature(numeric=("age",))))
    assert RolloutState.from_json(json.loads(json.dumps(changed.to_json()))) == changed
    assert policy.warnings(changed) == ("breaks clients: column income is gone: requests that have it are refused",)


def test_another_decision_threshold_is_told() -> None:
    champion = signature()
    (change,) = compare_signatures(champion, champion.model_copy(update={"threshold": 0.05}))
    assert (change.kind, change.breaking) == ("threshold", False)
    assert change.message == f"{champion.classes[-1]} is the label from a probability of 0.05 on, and was from 0.5"
    again = champion.model_copy(update={"threshold": 0.05})
    assert compare_signatures(again, again) == ()
