"""The YAML of generated files is read back to the same value, by YAML 1.1 and by what YAML 1.2 readers do otherwise."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from mlflowkit.delivery.yaml_text import Commented, yaml_text

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    | st.text(" \n\t:#-'\"a|>&*!%@`{}[],?", max_size=12)
    | st.from_regex(r"[-+]?[0-9.]{1,4}([eE][-+]?[0-9]{1,2})?", fullmatch=True)
)
KEYS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4))
CORE_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+|0x[0-9a-fA-F]+")
"""A number of YAML 1.2's core schema, which Go's and Ruby's readers have in part."""


def _commented(value: Any) -> Any:
    """The same value with a comment at every place."""
    if isinstance(value, dict):
        return Commented({key: _commented(item) for key, item in value.items()}, "why: not\nanother line")
    if isinstance(value, list):
        return Commented([_commented(item) for item in value], "# twice")
    return Commented(value, "one line")


@given(VALUES)
@example({"a": 1.0, "b": True, "c": 1})
@example(["a\n\n b ", " a\nb", "a\n", "\n", "a\x85b", ""])
def test_it_reads_back_to_the_same_value(value: Any) -> None:
    text = yaml_text(value)
    assert yaml.safe_load(text) == value
    assert repr(yaml.safe_load(text)) == repr(value)
    assert text == yaml_text(value)
    assert text.endswith("\n")
    assert "\r" not in text


@given(VALUES)
@example([{"a": {"b": 1}}, [[1]], [{}], {"a": []}])
def test_comments_change_no_value(value: Any) -> None:
    assert yaml.safe_load(yaml_text(_commented(value).value)) == value


@pytest.mark.parametrize("text", ["y", "N", "1e3", "0o17", "1E-3", ".5", "+1", "12e03", "1_000", "1:30", "0x1F", "on"])
def test_texts_that_some_reader_takes_for_another_type_are_quoted(text: str) -> None:
    assert yaml_text({"key": text}) == f"key: '{text}'\n"


@given(SCALARS.filter(lambda value: isinstance(value, str)))
def test_no_plain_text_is_a_number_of_yaml_1_2(text: str) -> None:
    written = yaml_text({"key": text}).removeprefix("key: ")
    if CORE_NUMBER.fullmatch(text):
        assert written[0] in "'\""
