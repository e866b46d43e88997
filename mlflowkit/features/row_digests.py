"""Which rows a model has seen: digests of the rows that it was fitted or chosen on (train and validation).

They travel in a bundle (``evidence/seen_rows.npy``), so that a later candidate is compared with this model on rows
that do not favour one of the two: a model looks better than it is on rows that it was trained on.

A digest is that of what a row is to the model: each number as float32, each category as its text, and the target. It
does not depend on the order of rows or columns, on further columns, or on the type that a reader chose (3 or 3.0).
64 bits: among a million test rows and a million rows seen, one is mistaken for another with probability 5e-8.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.bundle import Bundle, Signature
from mlflowkit.errors import BundleError, StoreError
from mlflowkit.features.tensors import category_text, numeric_matrix

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

FILE = "seen_rows.npy"
EVIDENCE = f"evidence/{FILE}"
BATCH = 65_536
"""Rows digested at a time: a table is never held whole."""
PARTS = ("train.parquet", "validation.parquet")
"""What a model is fitted on, and what its epoch, its graph and its quantisation are chosen on."""


def digests_of(part: Path, signature: Signature, target: str) -> np.ndarray:
    """The digest of each row of a part (Parquet) to a model with this signature; uint64 [rows], in the part's order.

    Raises StoreError when the part cannot be read and DataError when a numeric column holds something else.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {name: tensor.datatype for tensor in signature.inputs for name in tensor.columns}
    try:
        with pq.ParquetFile(part) as file:
            batches = file.iter_batches(batch_size=BATCH, columns=[*kinds, target])
            found = [_digests(batch, kinds, target, signature.task) for batch in batches]
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{part} cannot be read: {error}", hint="mlkit run --force data") from error
    return np.concatenate([*found, np.empty(0, "<u8")])


def seen_by(data: Path, signature: Signature, target: str) -> np.ndarray:
    """Digests of the rows that a model trained on this folder of the data stage has seen; uint64, sorted, unique."""
    import numpy as np

    return np.unique(np.concatenate([digests_of(data / part, signature, target) for part in PARTS]))


def is_seen(digests: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Which of these digests are among the sorted ``seen``; bool [rows].

    >>> import numpy as np
    >>> is_seen(np.array([5, 1, 9], "u8"), np.array([1, 9], "u8")).tolist()
    [False, True, True]
    """
    import numpy as np

    if not len(seen):
        return np.zeros(len(digests), dtype=bool)
    places = np.minimum(np.searchsorted(seen, digests), len(seen) - 1)
    return np.asarray(seen[places] == digests)


def write(path: Path, seen: np.ndarray) -> None:
    """Write sorted digests; equal rows, equal bytes."""
    import numpy as np

    np.save(path, seen.astype("<u8", copy=False), allow_pickle=False)


def read(bundle: Bundle) -> np.ndarray | None:
    """The digests of the rows that a bundle's model has seen; None for a bundle that does not say.

    Raises BundleError when they are not what `write` writes.
    """
    import numpy as np

    if EVIDENCE not in bundle.manifest.files:
        return None
    try:
        seen = np.lib.format.read_array(io.BytesIO(bundle.read(EVIDENCE)), allow_pickle=False)
    except ValueError as error:
        raise BundleError(f"{bundle.path}: {EVIDENCE} cannot be read: {error}") from error
    if seen.dtype != np.dtype("<u8") or seen.ndim != 1 or (seen[1:] <= seen[:-1]).any():
        raise BundleError(f"{bundle.path}: {EVIDENCE} does not hold sorted digests of rows")
    return np.asarray(seen)


def _digests(batch: pa.RecordBatch, kinds: Mapping[str, str], target: str, task: str) -> np.ndarray:
    import numpy as np

    total = np.zeros(batch.num_rows, dtype=np.uint64)
    for name, cells in _cells(batch, kinds, target, task):
        total += _mixed(cells + np.uint64(_of_text(name)))  # a sum: columns may come in any order
    return _mixed(total).astype("<u8", copy=False)


def _cells(batch: pa.RecordBatch, kinds: Mapping[str, str], target: str, task: str) -> Iterator[tuple[str, np.ndarray]]:
    """Each column's key and its cells as uint64. The target's name is left out: it is what the model learns."""
    import numpy as np

    for name, kind in kinds.items():
        frame = batch.select([name]).to_pandas(integer_object_nulls=kind == "BYTES")
        if kind == "BYTES":
            yield f"text {name}", _texts(frame[name])
        else:
            yield f"number {name}", _bits(numeric_matrix(frame, [name])[:, 0])
    outcome = batch.column(batch.schema.get_field_index(target)).to_pandas()
    if task == "regression":
        yield "target", _bits(outcome.to_numpy(dtype=np.float32, na_value=np.nan))
    else:
        yield "target", _texts(outcome)


def _bits(numbers: np.ndarray) -> np.ndarray:
    """The bits of float32 numbers; one zero, one missing value."""
    import numpy as np

    numbers = np.where(np.isnan(numbers), np.float32(np.nan), numbers + np.float32(0.0))
    return numbers.view(np.uint32).astype(np.uint64)


def _texts(series: pd.Series) -> np.ndarray:
    import numpy as np
    import pandas as pd

    codes, uniques = pd.factorize(series, use_na_sentinel=False)
    return np.array([_of_text(category_text(value)) for value in uniques], dtype=np.uint64)[codes]


def _of_text(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def _mixed(words: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood; OOPSLA 2014): each bit depends on all of the word."""
    import numpy as np

    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(words ^ (words >> np.uint64(31)))
