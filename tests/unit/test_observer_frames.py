"""Frames of the observer's pipe are decoded to what was encoded."""

from __future__ import annotations

import numpy as np
import pytest

from mlflowkit.errors import ServiceError
from mlflowkit.serving.observer import frames
from tests.support.observing import answered, classified, compared, mirrored, record


def test_records_of_one_variant_become_one_batch() -> None:
    late = record("b", [0.9], error="late", answered="champion", seconds=0.5, time=2000.0)
    (batch,) = answered(record("a", [0.2, 0.7], term=""), late)
    assert batch.ids == ["a", "b"]
    assert batch.request.tolist() == [0, 0, 1]
    assert batch.row.tolist() == [0, 1, 0]
    assert batch.times.tolist() == [1000.0, 2000.0]
    assert batch.seconds.tolist() == [0.002, 0.5]
    assert batch.errors == ["", "late"]
    assert batch.inputs["categorical"].tolist() == [[""], [""], ["36 months"]]
    np.testing.assert_array_equal(batch.inputs["numeric"], np.array([[0, np.nan], [1, np.nan], [0, np.nan]]))
    assert batch.answers["label"].tolist() == ["bad", "good", "good"]
    np.testing.assert_allclose(batch.answers["probabilities"][:, 1], [0.2, 0.7, 0.9])
    assert batch.shadow is None


def test_records_with_different_headers_become_separate_batches() -> None:
    batches = answered(
        record("a", [0.2]), record("b", [0.2], variant="candidate"), record("c", [0.2], epoch=4),
        record("d", [0.2], how="override"), record("e", [0.3]),
    )  # fmt: skip
    assert sorted(batch.ids for batch in batches) == [["a", "e"], ["b"], ["c"], ["d"]]


def test_failed_shadows_are_batched_apart() -> None:
    first, second = record("a", [0.2, 0.8]), record("b", [0.2])
    good, failed = compared(mirrored(first, classified([0.6, 0.9])), mirrored(second, None))
    assert (good.ids, failed.ids) == (["a"], ["b"])
    assert good.shadow is not None
    assert good.shadow["label"].tolist() == ["good", "good"]
    assert good.answers["label"].tolist() == ["bad", "good"]
    assert good.shadow_seconds is not None
    assert good.shadow_seconds.tolist() == [0.005]
    assert failed.shadow is None
    assert failed.errors == ["it raised"]


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_frames_are_found_in_pieces_of_any_size(size: int) -> None:
    header, group = next(iter(frames.group_records([record("a", [0.2])])))
    stream = b"".join(
        bytes(piece)
        for kind, payload in ((frames.TABLE, b"{}"), (frames.ANSWERED, frames.encode_records(header, group)))
        for piece in frames.encode_frame(kind, payload)
    )
    parser = frames.FrameParser()
    parsed = [frame for begin in range(0, len(stream), size) for frame in parser.feed(stream[begin : begin + size])]
    assert [kind for kind, _ in parsed] == [frames.TABLE, frames.ANSWERED]
    assert frames.decode(parsed[1][1]).ids == ["a"]


def test_what_is_no_frame_is_refused() -> None:
    with pytest.raises(ServiceError, match="no frame"):
        list(frames.FrameParser().feed(b"GET / HTTP/1.1\r\n"))
    with pytest.raises(ServiceError, match="no batch"):
        frames.decode(b"not arrow")
