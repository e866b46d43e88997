"""What a graph is asked: rows made of its own types, or read from a file that has to fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlflowkit.bench.inputs import GraphInput, inputs_of, make_requests, read_requests
from mlflowkit.errors import DataError, UsageError
from tests.support import onnx_graphs

NUMBERS, WORDS = GraphInput("x", "float32", ("rows", 4)), GraphInput("words", "object", ("rows", "length"))


def test_inputs_that_weights_fill_are_not_asked(tmp_path: Path) -> None:
    model = onnx_graphs.mlp(tmp_path / "mlp.onnx")
    assert [str(one) for one in inputs_of(model)] == ["x float32 [rows, 8]"]


def test_rows_are_made_alike_each_time_and_other_with_another_seed() -> None:
    one, two, other = (make_requests([NUMBERS], 8, seed=seed) for seed in (1, 1, 2))
    assert one.digest == two.digest != other.digest
    assert one.arrays["x"].shape == (8, 4)
    assert not make_requests([NUMBERS], 8, fill="zeros").arrays["x"].any()


def test_whole_numbers_are_one_and_strings_are_empty() -> None:
    asked = make_requests([GraphInput("ids", "int64", ("rows", 3)), WORDS], 2, sizes={"length": 5})
    assert asked.arrays["ids"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert asked.arrays["words"].tolist() == [[""] * 5] * 2


def test_a_fixed_number_of_rows_is_the_only_batch() -> None:
    asked = make_requests([GraphInput("x", "float32", (16, 4))], 256)
    assert (asked.rows, asked.batch) == (16, 16)
    assert asked.reason_to_reject(16) == ""
    assert asked.reason_to_reject(8) == "the graph takes 16 rows a request, and no other number"


def test_an_open_axis_without_a_length_and_inputs_that_share_no_rows_are_refused() -> None:
    with pytest.raises(UsageError, match="leaves the length of axis length open") as wrong:
        make_requests([WORDS], 8)
    assert "--size length=128" in wrong.value.hint
    for inputs in ([], [GraphInput("x", "float32", ())], [NUMBERS, GraphInput("k", "int64", (3,))]):
        with pytest.raises(UsageError, match="do not share"):
            make_requests(inputs, 8)


def test_a_file_of_rows_has_to_fit(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"

    def refused(**arrays: np.ndarray) -> str:
        np.savez(path, **arrays)
        with pytest.raises(DataError) as wrong:
            read_requests(path, [NUMBERS, WORDS])
        return wrong.value.message

    x, words = np.zeros((3, 4), np.float32), np.array([["a"], ["b"], ["ü"]])
    np.savez(path, x=x, words=words)
    assert read_requests(path, [NUMBERS, WORDS]).arrays["words"].tolist() == [["a"], ["b"], ["ü"]]
    assert "has no array words" in refused(x=x)
    assert "no input z" in refused(x=x, words=words, z=x)
    assert "x 2, words 3" in refused(x=x[:2], words=words)
    assert "wants 2 axes" in refused(x=x[0], words=words)
    assert "float64" in refused(x=x.astype(np.float64), words=words)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"not an archive"])
def test_a_file_that_is_no_archive_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read as an \.npz archive"):
        read_requests(path, [NUMBERS])
    with pytest.raises(DataError):
        read_requests(tmp_path / "none.npz", [NUMBERS])


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, x=np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="allow_pickle"):
        read_requests(path, [NUMBERS])
