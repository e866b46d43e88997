"""What a text means is one rule: of columns of files, of requests, and of single cells."""

from __future__ import annotations

from typing import Any

import pytest

from mlflowkit.bundle import Signature, TensorSpec, TextRule
from mlflowkit.features.cells import number_of
from mlflowkit.serving.protocol.input_schema import Schema


def schema(texts: TextRule) -> Schema:
    inputs = (TensorSpec(name="categorical", datatype="BYTES", shape=(-1, 2), columns=("country", "city")),)
    outputs = (TensorSpec(name="prediction", datatype="FP32", shape=(-1,)),)
    known = {"country": frozenset({"NA", "DE"}), "city": frozenset({"", "Bonn"})}
    return Schema(Signature(task="regression", inputs=inputs, outputs=outputs, texts=texts), known)


def asked(texts: TextRule, door: str, row: tuple[Any, Any]) -> tuple[list[Any], dict[str, int]]:
    """The cells that the graph gets and the unseen ones, by /predict and by infer with whole or single columns."""
    parser = schema(texts)
    if door == "rows":
        query = parser.rows({"rows": [{"country": row[0], "city": row[1]}]}, limit=5)
    elif door == "tensor":
        tensor = {"name": "categorical", "datatype": "BYTES", "shape": [1, 2], "data": list(row)}
        query = parser.infer({"inputs": [tensor]}, limit=5)
    else:
        columns = zip(("country", "city"), row, strict=True)
        tensors = [{"name": name, "datatype": "BYTES", "shape": [1], "data": [cell]} for name, cell in columns]
        query = parser.infer({"inputs": tensors}, limit=5)
    return query.inputs["categorical"].ravel().tolist(), dict(query.unseen)


@pytest.mark.parametrize("door", ["rows", "tensor", "columns"])
def test_a_token_is_missing_at_every_door_but_in_a_declared_category(door: str) -> None:
    rule = TextRule(missing=("NA", "?"), verbatim=("country",))
    assert asked(rule, door, ("NA", "NA")) == (["NA", ""], {})
    assert asked(rule, door, ("  ", " \t")) == (["  ", ""], {"country": 1})
    assert asked(rule, door, ("DE", "Bonn ")) == (["DE", "Bonn "], {"city": 1})
    assert asked(TextRule(), door, ("NA", "NA")) == (["NA", "NA"], {"city": 1})


@pytest.mark.parametrize("door", ["rows", "tensor", "columns"])
def test_blanks_are_removed_at_every_door_if_the_recipe_says_so(door: str) -> None:
    assert asked(TextRule(trim=True), door, (" DE", "  ")) == (["DE", ""], {})


@pytest.mark.parametrize("text", ["1.234", "0x10", "1_0", "inf", "nan", "12kg", "1,2,3", "5 EUR EUR"])
def test_a_text_that_is_no_number_by_the_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        number_of(text, TextRule(decimal=",", units=("EUR",)))
