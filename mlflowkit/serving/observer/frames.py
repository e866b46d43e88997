"""Wire format of the pipe from a gateway to its observer: frames of Arrow columns, without pickle.

A frame is a kind (one byte), the length of its payload (eight bytes, big-endian) and the payload:

- ``TABLE``: a routing table as JSON, sent before the first record that was answered under it.
- ``ANSWERED``: an Arrow IPC stream of one batch: answered rows of one variant under one table.
- ``COMPARED``: the same for mirrored requests, with the shadow's answers beside the client's.

A batch has a row per answered row: ``time``, ``seconds``, ``id``, ``error`` (of the request, dictionary-encoded or
repeated), ``row`` (index within the request), ``in.<tensor>`` and ``out.<tensor>``; a compared batch also has
``shadow.<tensor>``, unless the shadow failed, and ``shadow_seconds``. A tensor of rank 2 is a fixed-size list; text is
Arrow text. What all rows have in common is JSON in the schema's metadata (`FrameHeader`).

Encoding costs one concatenation per tensor, not work per cell, so the gateway holds its interpreter lock for
microseconds; decoding returns NumPy views of the payload.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa

from mlflowkit.errors import ServiceError
from mlflowkit.serving.inference.answer_records import MirrorRecord, Record

TABLE, ANSWERED, COMPARED = b"T", b"A", b"C"
PREFIX = struct.Struct(">cQ")
MAX_FRAME_BYTES = 1 << 31
"""A longer frame is taken for a broken stream."""
_header_key = attrgetter("experiment", "epoch", "variant", "version", "answered", "how")


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """Values shared by all rows of a batch; ``shadow`` and ``shadow_version`` are "" in an ``ANSWERED`` frame.

    ``pane_seconds`` is the length of the window in which the gateway counted the rows as answered; 0 for none.
    """

    experiment: str
    epoch: int
    variant: str
    version: str
    answered: str
    how: str
    shadow: str = ""
    shadow_version: str = ""
    pane_seconds: float = 0.0

    @property
    def is_evidence(self) -> bool:
        """Whether the rows are evidence: assigned by the traffic split, and answered by that variant itself."""
        return self.how == "hash" and self.answered == self.variant


@dataclass(frozen=True, slots=True)
class Batch:
    """A decoded frame. ``ids``, ``times``, ``seconds`` and ``errors`` have an entry per request, other arrays per row.

    ``request`` is the index of a row's request, ``row`` the row's index within it. Text is an object array of str.
    ``shadow`` is None when the shadow failed.
    """

    header: FrameHeader
    request: np.ndarray
    row: np.ndarray
    ids: Sequence[str]
    times: np.ndarray
    seconds: np.ndarray
    errors: Sequence[str]
    inputs: Mapping[str, np.ndarray]
    answers: Mapping[str, np.ndarray]
    shadow: Mapping[str, np.ndarray] | None = None
    shadow_seconds: np.ndarray | None = None

    @property
    def rows(self) -> int:
        return len(self.request)


def encode_frame(kind: bytes, payload: bytes | pa.Buffer) -> tuple[bytes, Any]:
    """Return the prefix and the payload of a frame, to be written one after the other; nothing is copied."""
    return PREFIX.pack(kind, len(payload)), payload


def group_records(records: Iterable[Record | MirrorRecord]) -> Iterator[tuple[FrameHeader, list[Any]]]:
    """Group records by header, in order of arrival; mirrored requests with an answer apart from the failed."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for item in records:
        if isinstance(item, MirrorRecord):
            key = (*_header_key(item.record), item.shadow, item.version, 0.0, item.answers is None)
        else:
            key = (*_header_key(item), "", "", item.pane_seconds)
        groups.setdefault(key, []).append(item)
    for key, members in groups.items():
        yield FrameHeader(*key[:9]), members


def encode_records(header: FrameHeader, records: Sequence[Record]) -> pa.Buffer:
    """Encode an ``ANSWERED`` payload. Raises ValueError or ArrowException when the arrays do not fit together."""
    return _encode(header, _columns(records, [record.error for record in records]))


def encode_mirrored(header: FrameHeader, mirrored: Sequence[MirrorRecord]) -> pa.Buffer:
    """Encode the payload of a ``COMPARED`` frame. Raises as `encode_records` does."""
    columns = _columns([mirror.record for mirror in mirrored], [mirror.error for mirror in mirrored])
    counts = [mirror.record.rows for mirror in mirrored]
    columns["shadow_seconds"] = pa.array(np.repeat([mirror.seconds for mirror in mirrored], counts))
    for name in mirrored[0].answers or ():
        parts = [mirror.answers[name] for mirror in mirrored if mirror.answers is not None]
        columns[f"shadow.{name}"] = _tensor_column(parts)
    return _encode(header, columns)


def decode(payload: bytes | memoryview | pa.Buffer) -> Batch:
    """Decode an ``ANSWERED`` or ``COMPARED`` payload. Raises ServiceError when it is malformed."""
    try:
        with pa.ipc.open_stream(payload) as reader:
            batch = reader.read_next_batch()
            header = FrameHeader(**json.loads(reader.schema.metadata[b"head"]))
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        ids, request = columns["id"].dictionary.to_pylist(), columns["id"].indices.to_numpy()
        first_rows = np.searchsorted(request, np.arange(len(ids)))
        seconds = columns.get("shadow_seconds")
        return Batch(
            header=header,
            request=request,
            row=columns["row"].to_numpy(),
            ids=ids,
            times=columns["time"].to_numpy()[first_rows],
            seconds=columns["seconds"].to_numpy()[first_rows],
            errors=columns["error"].take(pa.array(first_rows)).to_pylist(),
            inputs=_tensors(columns, "in."),
            answers=_tensors(columns, "out."),
            shadow=_tensors(columns, "shadow.") or None,
            shadow_seconds=None if seconds is None else seconds.to_numpy()[first_rows],
        )
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ServiceError(f"the observer received a payload that is no batch: {error!r}") from error


class FrameParser:
    """Splits a byte stream into frames. Raises ServiceError when the stream is not made of frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Append data; yield (kind, payload) of each frame that is complete."""
        self._buffer += data
        while len(self._buffer) >= PREFIX.size:
            kind, length = PREFIX.unpack_from(self._buffer)
            if kind not in (TABLE, ANSWERED, COMPARED) or length > MAX_FRAME_BYTES:
                raise ServiceError("the observer's pipe carries data that is no frame")
            end = PREFIX.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(memoryview(self._buffer)[PREFIX.size : end])
            del self._buffer[:end]
            yield kind, payload


def _columns(records: Sequence[Record], errors: Sequence[str]) -> dict[str, pa.Array]:
    counts = [record.rows for record in records]
    request = np.repeat(np.arange(len(records), dtype=np.int32), counts)
    starts = np.cumsum(counts) - counts
    columns = {
        "time": pa.array(np.repeat([record.time for record in records], counts)),
        "seconds": pa.array(np.repeat([record.seconds for record in records], counts)),
        "id": pa.DictionaryArray.from_arrays(pa.array(request), pa.array([record.id for record in records])),
        "row": pa.array(np.arange(len(request), dtype=np.int32) - np.repeat(starts, counts).astype(np.int32)),
    }
    error_codes = {error: code for code, error in enumerate(dict.fromkeys(errors))}
    codes = np.repeat(np.array([error_codes[error] for error in errors], dtype=np.int32), counts)
    columns["error"] = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(list(error_codes), pa.string()))
    for name in records[0].inputs:
        columns[f"in.{name}"] = _tensor_column([record.inputs[name] for record in records])
    for name in records[0].answers:
        columns[f"out.{name}"] = _tensor_column([record.answers[name] for record in records])
    return columns


def _tensor_column(parts: Sequence[np.ndarray]) -> pa.Array:
    tensor = np.concatenate(parts) if len(parts) > 1 else np.asarray(parts[0])
    flat = tensor.reshape(-1)
    values = pa.array(flat, pa.string()) if tensor.dtype.kind in "OUS" else pa.array(flat)
    return values if tensor.ndim == 1 else pa.FixedSizeListArray.from_arrays(values, flat.size // max(len(tensor), 1))


def _encode(header: FrameHeader, columns: Mapping[str, pa.Array]) -> pa.Buffer:
    batch = pa.record_batch(list(columns.values()), names=list(columns))
    batch = batch.replace_schema_metadata({"head": json.dumps(asdict(header))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _tensors(columns: Mapping[str, pa.Array], prefix: str) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for name, column in columns.items():
        if name.startswith(prefix):
            is_matrix = pa.types.is_fixed_size_list(column.type)
            flat = (column.flatten() if is_matrix else column).to_numpy(zero_copy_only=False)
            tensors[name.removeprefix(prefix)] = flat.reshape(len(column), -1) if is_matrix else flat
    return tensors
