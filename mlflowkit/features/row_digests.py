"""Digests of the rows a model was fitted or selected on (train and validation), against training-row leakage.

A bundle carries them (``evidence/seen_rows.npy``), so that a later candidate is compared with this model on rows that
neither was trained on.

A digest covers a row as the model reads it: each number as float32 (where the model takes FP64, in double precision if
float32 changes it), each category as its text, and the target. It does not depend on the order of rows or columns, on
further columns, or on the type a reader chose (3 or 3.0). 64 bits: among a million test rows and a million training
rows, two collide with probability 5e-8.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mlflowkit.bundle import Bundle, Signature
from mlflowkit.errors import BundleError, StoreError
from mlflowkit.features.tensors import numeric_matrix
from mlflowkit.system.text import category_text

FILE = "seen_rows.npy"
EVIDENCE = f"evidence/{FILE}"
BATCH = 65_536
"""Rows digested at a time, which bounds memory."""
PARTS = ("train.parquet", "validation.parquet")
"""The parts a model is fitted on, and those its epoch, graph and quantisation are selected on."""


def digests_of(part: Path, signature: Signature, target: str) -> np.ndarray:
    """Digest each row of a part (Parquet) for a model with this signature; uint64 [rows], in the part's order.

    Raises StoreError when the part cannot be read and DataError when a numeric column holds other values.
    """
    kinds = {name: tensor.datatype for tensor in signature.inputs for name in tensor.columns}
    try:
        with pq.ParquetFile(part) as file:
            batches = file.iter_batches(batch_size=BATCH, columns=[*kinds, target])
            digests = [_batch_digests(batch, kinds, target, signature.task) for batch in batches]
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{part} cannot be read: {error}", hint="mlkit run RECIPE --force data") from error
    return np.concatenate([*digests, np.empty(0, "<u8")])


def training_row_digests(data: Path, signature: Signature, target: str) -> np.ndarray:
    """Digests of the rows that a model trained on this data stage's folder has seen; uint64, sorted, unique."""
    return np.unique(np.concatenate([digests_of(data / part, signature, target) for part in PARTS]))


def is_seen(digests: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Whether each digest is in ``seen``; bool [rows].

    >>> is_seen(np.array([5, 1, 9], "u8"), np.array([1, 9], "u8")).tolist()
    [False, True, True]
    """
    return np.isin(digests, seen)


def write(path: Path, seen: np.ndarray) -> None:
    """Write sorted digests; equal rows give equal bytes."""
    np.save(path, seen.astype("<u8", copy=False), allow_pickle=False)


def read(bundle: Bundle) -> np.ndarray | None:
    """The digests in a bundle; None when it has none. Raises BundleError when they are damaged."""
    if not bundle.has(EVIDENCE):
        return None
    try:
        seen = np.lib.format.read_array(io.BytesIO(bundle.read(EVIDENCE)), allow_pickle=False)
    except ValueError as error:
        raise BundleError(f"{bundle.path}: {EVIDENCE} cannot be read: {error}") from error
    if seen.dtype != np.dtype("<u8") or seen.ndim != 1 or (seen[1:] <= seen[:-1]).any():
        raise BundleError(f"{bundle.path}: {EVIDENCE} does not hold sorted digests of rows")
    return np.asarray(seen)


def _batch_digests(batch: pa.RecordBatch, kinds: Mapping[str, str], target: str, task: str) -> np.ndarray:
    total = np.zeros(batch.num_rows, dtype=np.uint64)
    for name, cells in _column_cells(batch, kinds, target, task):
        total += _mix(cells + np.uint64(_hash_text(name)))  # a sum: columns may come in any order
    return _mix(total).astype("<u8", copy=False)


def _column_cells(
    batch: pa.RecordBatch, kinds: Mapping[str, str], target: str, task: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Each column's key and its cells as uint64. The target's name is left out."""
    for name, kind in kinds.items():
        frame = batch.select([name]).to_pandas(integer_object_nulls=kind == "BYTES")
        if kind == "BYTES":
            yield f"text {name}", _hash_texts(frame[name])
        else:
            yield f"number {name}", _number_bits(numeric_matrix(frame, [name], np.float64)[:, 0], kind)
    labels = batch.column(batch.schema.get_field_index(target)).to_pandas()
    if task == "regression":
        yield "target", _float_bits(labels.to_numpy(dtype=np.float32, na_value=np.nan))
    else:
        yield "target", _hash_texts(labels)


def _number_bits(numbers: np.ndarray, kind: str) -> np.ndarray:
    """The bits of numbers as a graph reads them: float32, or double precision where float32 changes the value."""
    with np.errstate(over="ignore"):
        single = numbers.astype(np.float32)
    bits = _float_bits(single)
    return bits if kind == "FP32" else np.where(single == numbers, bits, _mix(numbers.view(np.uint64)))


def _float_bits(numbers: np.ndarray) -> np.ndarray:
    """The bits of float32 numbers, with one zero and one NaN."""
    numbers = np.where(np.isnan(numbers), np.float32(np.nan), numbers + np.float32(0.0))
    return numbers.view(np.uint32).astype(np.uint64)


def _hash_texts(series: pd.Series) -> np.ndarray:
    codes, uniques = pd.factorize(series, use_na_sentinel=False)
    return np.array([_hash_text(category_text(value)) for value in uniques], dtype=np.uint64)[codes]


def _hash_text(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def _mix(words: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood; OOPSLA 2014): each bit depends on the whole word."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(words ^ (words >> np.uint64(31)))
