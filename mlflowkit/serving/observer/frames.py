"""What goes from a gateway to its observer through a pipe: frames of Arrow, columns whole, no pickle.

A frame is a kind (one byte), the length of its payload (eight bytes, big-endian) and the payload:

- ``TABLE``: a routing table as JSON. It comes before the first record that was made under it.
- ``ANSWERED``: an Arrow IPC stream of one batch: answered rows of one variant under one table.
- ``COMPARED``: the same of mirrored requests, with a shadow's answers beside the client's.

A batch has a row an answered row: ``time``, ``seconds``, ``id``, ``error`` (those of its request, as dictionaries or
repeated), ``row`` (within its request), ``in.<tensor>`` and ``out.<tensor>``; a compared one also ``shadow.<tensor>``,
unless the shadow failed, and ``shadow_seconds``. A tensor of rank 2 is a fixed-size list; text is Arrow text. What all
rows have in common is JSON in the schema's metadata (`Head`).

Building a batch costs a concatenation a tensor, not work a cell, so that the gateway's interpreter lock is held for
microseconds; decoding gives NumPy views of the payload.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mlflowkit.errors import ServiceError
from mlflowkit.serving.inference.answer_records import Mirrored, Record

TABLE, ANSWERED, COMPARED = b"T", b"A", b"C"
PREFIX = struct.Struct(">cQ")
LARGEST = 1 << 31
"""A frame said to be longer than this is taken for a broken stream."""


@dataclass(frozen=True, slots=True)
class Head:
    """What the rows of a batch have in common; ``shadow`` and ``shadow_version`` are "" unless they were compared."""

    experiment: str
    epoch: int
    variant: str
    version: str
    answered: str
    how: str
    shadow: str = ""
    shadow_version: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """A decoded frame. Arrays have one entry a row; ``ids``, ``times``, ``seconds`` and ``errors`` one a request.

    ``request`` is the index of a row's request, ``row`` the row's place in it. Text is an object array of str.
    ``shadow`` is None where the shadow gave no answer.
    """

    head: Head
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


def frame(kind: bytes, payload: bytes | pa.Buffer) -> tuple[bytes, Any]:
    """The pieces of a frame, to be written one after the other; nothing is copied."""
    return PREFIX.pack(kind, len(payload)), payload


def answered_groups(records: Iterable[Record]) -> Iterator[tuple[Head, list[Record]]]:
    """Records that fit into one batch each, in order of arrival within it."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        key = (record.experiment, record.epoch, record.variant, record.version, record.answered, record.how)
        groups.setdefault(key, []).append(record)
    for key, members in groups.items():
        yield Head(*key), members


def compared_groups(mirrored: Iterable[Mirrored]) -> Iterator[tuple[Head, list[Mirrored]]]:
    """Mirrored requests that fit into one batch each: the answered apart from the failed."""
    groups: dict[tuple[Any, ...], list[Mirrored]] = {}
    for one in mirrored:
        record = one.record
        key = (
            record.experiment, record.epoch, record.variant, record.version, record.answered, record.how,
            one.shadow, one.version, one.answers is None,
        )  # fmt: skip
        groups.setdefault(key, []).append(one)
    for key, members in groups.items():
        yield Head(*key[:-1]), members


def answered_payload(head: Head, records: Sequence[Record]) -> pa.Buffer:
    """The payload of an ``ANSWERED`` frame. Raises ValueError or pyarrow.ArrowException for arrays that do not fit."""
    return _payload(head, _columns(records, [record.error for record in records]))


def compared_payload(head: Head, mirrored: Sequence[Mirrored]) -> pa.Buffer:
    """The payload of a ``COMPARED`` frame. Raises as `answered_payload` does."""
    columns = _columns([one.record for one in mirrored], [one.error for one in mirrored])
    counts = [one.record.rows for one in mirrored]
    columns["shadow_seconds"] = pa.array(np.repeat([one.seconds for one in mirrored], counts))
    for name in mirrored[0].answers or ():
        columns[f"shadow.{name}"] = _tensor([one.answers[name] for one in mirrored if one.answers is not None])
    return _payload(head, columns)


def decode(payload: bytes | memoryview | pa.Buffer) -> Batch:
    """The batch of an ``ANSWERED`` or ``COMPARED`` payload. Raises ServiceError when it is none."""
    try:
        with pa.ipc.open_stream(payload) as reader:
            batch = reader.read_next_batch()
            head = Head(**json.loads(reader.schema.metadata[b"head"]))
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        ids, request = _dictionary(columns["id"])
        firsts = np.searchsorted(request, np.arange(len(ids)))
        shadow = _tensors(columns, "shadow.")
        seconds = columns.get("shadow_seconds")
        return Batch(
            head=head,
            request=request,
            row=columns["row"].to_numpy(),
            ids=ids,
            times=columns["time"].to_numpy()[firsts],
            seconds=columns["seconds"].to_numpy()[firsts],
            errors=columns["error"].take(pa.array(firsts)).to_pylist(),
            inputs=_tensors(columns, "in."),
            answers=_tensors(columns, "out."),
            shadow=shadow or None,
            shadow_seconds=None if seconds is None else seconds.to_numpy()[firsts],
        )
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ServiceError(f"the observer was sent something that is no batch: {error!r}") from error


class Frames:
    """Takes a stream apart as it comes. Raises ServiceError for what is no frame."""

    def __init__(self) -> None:
        self._pieces = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(kind, payload) of each frame that is whole now."""
        self._pieces += data
        while len(self._pieces) >= PREFIX.size:
            kind, length = PREFIX.unpack_from(self._pieces)
            if kind not in (TABLE, ANSWERED, COMPARED) or length > LARGEST:
                raise ServiceError("the observer's pipe carries something that is no frame")
            end = PREFIX.size + length
            if len(self._pieces) < end:
                return
            payload = bytes(memoryview(self._pieces)[PREFIX.size : end])
            del self._pieces[:end]
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
    kinds = {error: code for code, error in enumerate(dict.fromkeys(errors))}
    codes = np.repeat(np.array([kinds[error] for error in errors], dtype=np.int32), counts)
    columns["error"] = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(list(kinds), pa.string()))
    for name in records[0].inputs:
        columns[f"in.{name}"] = _tensor([record.inputs[name] for record in records])
    for name in records[0].answers:
        columns[f"out.{name}"] = _tensor([record.answers[name] for record in records])
    return columns


def _tensor(parts: Sequence[np.ndarray]) -> pa.Array:
    whole = np.concatenate(parts) if len(parts) > 1 else np.asarray(parts[0])
    flat = whole.reshape(-1)
    values = pa.array(flat, pa.string()) if whole.dtype.kind in "OUS" else pa.array(flat)
    return values if whole.ndim == 1 else pa.FixedSizeListArray.from_arrays(values, flat.size // max(len(whole), 1))


def _payload(head: Head, columns: Mapping[str, pa.Array]) -> pa.Buffer:
    batch = pa.record_batch(list(columns.values()), names=list(columns))
    batch = batch.replace_schema_metadata({"head": json.dumps(asdict(head))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _dictionary(column: pa.DictionaryArray) -> tuple[list[str], np.ndarray]:
    return column.dictionary.to_pylist(), column.indices.to_numpy()


def _tensors(columns: Mapping[str, pa.Array], prefix: str) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: _array(column) for name, column in columns.items() if name.startswith(prefix)}


def _array(column: pa.Array) -> np.ndarray:
    values = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
    flat: np.ndarray = values.to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1) if pa.types.is_fixed_size_list(column.type) else flat
