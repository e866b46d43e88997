"""Digests of rows: the same for the same row however a table is laid out, others for other rows."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.errors import StoreError
from mlflowkit.features import row_digests

SETTINGS = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
ROW = st.tuples(
    st.one_of(st.none(), st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.one_of(st.none(), st.integers(-(2**53), 2**53)),
    st.one_of(st.none(), st.sampled_from(["", "a", "b", "ß", "a\0"])),
    st.sampled_from(["no", "yes"]),
)


def signature(numeric: tuple[str, ...] = ("x",), text: tuple[str, ...] = ("code", "s"), task: str = "") -> Signature:
    groups = [("numeric", "FP32", numeric), ("categorical", "BYTES", text)]
    inputs = [
        {"name": name, "datatype": kind, "shape": (-1, len(columns)), "columns": columns}
        for name, kind, columns in groups
        if columns
    ]
    output = TensorSpec(name="label", datatype="BYTES", shape=(-1,))
    return Signature.model_validate({"task": task or "classification", "inputs": inputs, "outputs": [output]})


def digests(folder: Path, frame: pd.DataFrame, schema: Signature | None = None, target: str = "y") -> np.ndarray:
    frame.to_parquet(folder / "t.parquet")
    return row_digests.digests_of(folder / "t.parquet", schema or signature(), target)


def table(rows: list[tuple[object, ...]]) -> pd.DataFrame:
    plain = pd.DataFrame(rows, columns=["x", "code", "s", "y"])
    return plain.astype({"x": "float64", "code": "Int64", "s": "str", "y": "str"})


@SETTINGS
@given(rows=st.lists(ROW, min_size=1, max_size=30), data=st.data())
def test_order_of_rows_and_columns_and_other_columns_do_not_matter(
    tmp_path: Path, rows: list[tuple[object, ...]], data: st.DataObject
) -> None:
    plain = table(rows)
    expected = digests(tmp_path, plain)
    order = data.draw(st.permutations(range(len(rows))))
    moved = plain.iloc[order].assign(other=1)[data.draw(st.permutations(["x", "code", "s", "y", "other"]))]
    columns = data.draw(st.permutations(["code", "s"]))
    assert digests(tmp_path, moved, signature(text=tuple(columns))).tolist() == expected[order].tolist()
    for row in range(len(rows)):  # nor what stands around a row, which is what makes a reader choose a type
        assert digests(tmp_path, plain.iloc[[row]]).tolist() == [expected[row]]


@SETTINGS
@given(rows=st.lists(ROW, min_size=1, max_size=30))
def test_rows_have_one_digest_exactly_when_a_model_cannot_tell_them_apart(
    tmp_path: Path, rows: list[tuple[object, ...]]
) -> None:
    alike = {(x if x is None else x + 0.0, code, s or "", y) for x, code, s, y in rows}  # type: ignore[operator]
    assert len(np.unique(digests(tmp_path, table(rows)))) == len(alike)


@pytest.mark.parametrize(
    "other",
    [
        {"x": [0, 2]},
        {"x": np.array([-0.0, 2.0])},
        {"x": np.array([0, 2], dtype="int8")},
        {"x": [False, 2]},
        {"code": [3.0, 4.0]},
        {"code": ["3", "4"]},
        {"s": pd.Categorical(["a", None])},
    ],
)
def test_the_type_that_a_reader_chose_does_not_matter(tmp_path: Path, other: dict[str, object]) -> None:
    plain = pd.DataFrame({"x": [0.0, 2.0], "code": [3, 4], "s": ["a", None], "y": [0, 1]})
    changed = plain.assign(**{name: pd.Series(values) for name, values in other.items()})
    if changed["x"].dtype == object:
        changed["x"] = changed["x"].astype(float)
    assert digests(tmp_path, changed).tolist() == digests(tmp_path, plain).tolist()


def test_the_names_of_features_matter_and_that_of_the_target_does_not(tmp_path: Path) -> None:
    plain = pd.DataFrame({"a": [1.0], "b": [2.0], "y": ["no"]})
    schema = signature(numeric=("a", "b"), text=())
    swapped = plain.rename(columns={"a": "b", "b": "a"})
    renamed = plain.rename(columns={"y": "label"})
    assert digests(tmp_path, swapped, schema) != digests(tmp_path, plain, schema)
    assert digests(tmp_path, renamed, schema, "label") == digests(tmp_path, plain, schema)


def test_the_outcome_of_a_regression_is_a_number(tmp_path: Path) -> None:
    schema = signature(text=(), task="regression")
    plain = pd.DataFrame({"x": [1.0, 1.0, 1.0], "y": [1, 2, 1]})
    hashes = digests(tmp_path, plain, schema)
    assert hashes[0] == hashes[2] != hashes[1]
    assert digests(tmp_path, plain.astype({"y": float}), schema).tolist() == hashes.tolist()


def test_a_table_of_many_batches_and_what_is_written_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"x": rng.normal(size=1000), "code": rng.integers(0, 9, 1000), "s": "a", "y": "no"})
    all_digests = digests(tmp_path, rows)
    monkeypatch.setattr(row_digests, "BATCH", 64)
    assert digests(tmp_path, rows).tolist() == all_digests.tolist()
    for part, part_rows in (("train", rows.iloc[:600]), ("validation", rows.iloc[500:])):
        part_rows.to_parquet(tmp_path / f"{part}.parquet")
    training_digests = row_digests.training_row_digests(tmp_path, signature(), "y")
    assert training_digests.tolist() == sorted(set(all_digests.tolist()))
    contents = []
    for name in ("one.npy", "two.npy"):
        row_digests.write(tmp_path / name, training_digests)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    assert np.load(io.BytesIO(contents[0]), allow_pickle=False).dtype == np.dtype("<u8")
    assert row_digests.is_seen(all_digests, training_digests).all()
    assert not row_digests.is_seen(all_digests, training_digests[:0]).any()
    assert row_digests.is_seen(all_digests, np.unique(all_digests[:100])).tolist() == [True] * 100 + [False] * 900


def test_digests_do_not_move_between_versions(tmp_path: Path) -> None:
    """Bundles outlive the version that wrote them: a change here makes every champion look unseen."""
    plain = pd.DataFrame({"x": [1.5, None], "code": [3, 4], "s": ["a", None], "y": ["no", "yes"]})
    assert digests(tmp_path, plain).tolist() == [11340042422786953644, 16580091875571653409]


def test_a_part_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"train\.parquet cannot be read"):
        row_digests.training_row_digests(tmp_path, signature(), "y")
