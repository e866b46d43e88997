"""One text is one number, whether it is read as a cell of a request or in a column of a file."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from mlflowkit.bundle import TextRule
from mlflowkit.features.cells import CategoryRule, ReadingPlan, number_of
from mlflowkit.features.text_columns import TextColumn, clean_texts

RULES = st.builds(
    TextRule,
    missing=st.sampled_from([(), ("?",), ("-999", "NA"), ("NA", "nan", "?")]),
    decimal=st.sampled_from([".", ","]),
    thousands=st.sampled_from(["", "'", " "]),
    units=st.sampled_from([(), ("%",), ("$", "kg"), ("EUR", "%")]),
)
TEXTS = st.one_of(
    st.text("0123456789.,'+- eE%$k?", max_size=9),
    st.sampled_from(
        ["-999", "NA", "nan", "?", "inf", "1'000,5", "$5", "5 kg", "7%", "-$3", "007", "0x1F", "1e400", " "]
    ),
)


@given(RULES, TEXTS)
def test_a_number_is_read_alike_in_a_cell_and_in_a_column(rule: TextRule, text: str) -> None:
    try:
        number = number_of(text, rule)
    except ValueError:
        number = "none"
    column = TextColumn("x", ReadingPlan(rule, {"x": "number"}))
    column.add(pa.array([text, "1"]))
    values = column.values()
    (read, _) = values.to_pylist()
    if read == float("inf") or read == -float("inf"):
        read = "none"
    if pa.types.is_string(values.type):
        read = "none" if read is not None or number == "none" else None
    assert read == number


@given(RULES, st.lists(TEXTS, min_size=1, max_size=12), st.integers(1, 12))
def test_numbers_are_read_alike_however_the_column_is_cut(rule: TextRule, texts: list[str], size: int) -> None:
    def read(batches: list[list[str]]) -> pa.ChunkedArray:
        column = TextColumn("x", ReadingPlan(rule, {"x": "number"}))
        for batch in batches:
            column.add(pa.array(batch, pa.string()))
        if column.reread:
            column = column.as_text()
            for batch in batches:
                column.add(pa.array(batch, pa.string()))
        return column.values()

    whole, cut = read([texts]), read([texts[start : start + size] for start in range(0, len(texts), size)])
    assert (cut.type, cut.to_pylist()) == (whole.type, whole.to_pylist())


@given(st.sampled_from([frozenset(), frozenset({"NA", "?"})]), st.booleans(), st.text(" NAx?\t\u00a0", max_size=4))
def test_a_category_is_read_alike_in_a_cell_and_in_a_column(missing: frozenset[str], trim: bool, text: str) -> None:
    rule = CategoryRule(missing, trim)
    (read,) = clean_texts(pa.array([text]), rule)[0].to_pylist()
    assert (read or "") == rule.text(text)
