"""Rows that ranges are found from: held against the graph's inputs, cut into requests, run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from mlflowkit.adapters.onnx_passes.typed_graph import first_line, session
from mlflowkit.errors import DataError

REQUEST_ROWS = 32
"""Rows of one request, where the graph does not fix them. Few, as what lies inside the graph is held for each."""

Rows = Mapping[str, np.ndarray]


def verified(model: Any, rows: Rows) -> dict[str, np.ndarray]:
    """``rows`` as the graph of ``model`` takes them. Raises DataError for rows that it would not take.

    NaN is let through: it is how a missing value reaches a graph that fills gaps itself. Where a graph does not, the
    ranges are not finite, and `ranges` says so.
    """
    inputs = _inputs(model)
    _same_names(set(inputs), set(rows))
    taken = {name: _verified(name, np.asarray(rows[name]), entry) for name, entry in inputs.items()}
    counts = {name: len(matrix) for name, matrix in taken.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"calibration inputs have unlike numbers of rows: {counts}", hint="give each the same rows")
    if not min(counts.values()):
        raise DataError("there is no row to calibrate with", hint="give training rows by input name")
    fixed = request_rows(model)
    if min(counts.values()) < fixed:
        raise DataError(
            f"the graph takes {fixed} rows at a time and there are {min(counts.values())} to calibrate with",
            hint=f"give at least {fixed} rows, or quantise before the pass rows",
        )
    return taken


def request_rows(model: Any) -> int:
    """Rows that the graph takes at a time; 0 where any number will do."""
    sizes = {entry.type.tensor_type.shape.dim[0].dim_value for entry in _inputs(model).values() if _rank(entry)}
    return max(sizes, default=0)


def run(model: Any, rows: Rows, names: list[str]) -> Iterator[dict[str, np.ndarray]]:
    """Tensors ``names`` of the graph, float, request after request. Raises DataError when the rows cannot be run.

    Rows that do not fill a request of a graph with a fixed number of rows are left out.
    """
    running = session(model, outputs=names)
    for request in requests(rows, request_rows(model)):
        try:
            found = running.run(names, request)
        except Exception as error:
            raise DataError(
                f"the graph cannot run the calibration rows: {first_line(error)}",
                hint="calibrate with rows as they are sent in requests",
            ) from error
        yield dict(zip(names, found, strict=True))


def requests(rows: Rows, fixed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """``rows`` in requests of ``fixed`` rows, or of REQUEST_ROWS and a shorter last one where that is 0.

    >>> [len(request["x"]) for request in requests({"x": np.zeros((70, 2))})]
    [32, 32, 6]
    >>> [len(request["x"]) for request in requests({"x": np.zeros((70, 2))}, 50)]
    [50]
    """
    size, count = fixed or REQUEST_ROWS, len(next(iter(rows.values())))
    for start in range(0, count - fixed + 1 if fixed else count, size):
        yield {name: matrix[start : start + size] for name, matrix in rows.items()}


def _inputs(model: Any) -> dict[str, Any]:
    fed = {tensor.name for tensor in model.graph.initializer}
    return {entry.name: entry for entry in model.graph.input if entry.name not in fed}


def _rank(entry: Any) -> int:
    return len(entry.type.tensor_type.shape.dim)


def _same_names(wanted: set[str], given: set[str]) -> None:
    missing, unknown = sorted(wanted - given), sorted(given - wanted)
    if not missing and not unknown:
        return
    parts = [f"without {', '.join(missing)}"] if missing else []
    parts += [f"with {', '.join(unknown)}, which the graph does not take"] if unknown else []
    raise DataError(
        f"calibration rows are {' and '.join(parts)}", hint=f"give an array for each of {', '.join(sorted(wanted))}"
    )


def _verified(name: str, matrix: np.ndarray, entry: Any) -> np.ndarray:
    """One input's rows, in the graph's element type where that loses nothing. Raises DataError."""
    kind = entry.type.tensor_type.elem_type
    sizes = [size.dim_value or -1 for size in entry.type.tensor_type.shape.dim]
    shape = tuple(-1 if place == 0 else size for place, size in enumerate(sizes))
    if matrix.ndim != len(shape) or any(
        wanted not in (-1, found) for wanted, found in zip(shape, matrix.shape, strict=True)
    ):
        raise DataError(
            f"calibration input {name} has shape {matrix.shape}, and the graph takes {shape}",
            hint="-1 is any size; give rows as they are sent in requests",
        )
    wanted = np.dtype(object) if kind == TensorProto.STRING else helper.tensor_dtype_to_np_dtype(kind)
    text = matrix.dtype.kind in "OUS"
    if text != (wanted.kind == "O") or (not text and not np.can_cast(matrix.dtype, wanted, "same_kind")):
        raise DataError(
            f"calibration input {name} is {matrix.dtype}, and the graph takes {wanted}",
            hint="give rows as they are sent in requests",
        )
    matrix = matrix.astype(wanted, copy=False)
    if wanted.kind == "f" and np.isinf(matrix).any():
        row = int(np.argwhere(np.isinf(matrix))[0][0])
        raise DataError(
            f"calibration input {name} is infinite in row {row}", hint="leave such rows out; a gap is written as NaN"
        )
    return matrix
