"""Calibration rows: checked against the graph's inputs, split into requests, run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from mlflowkit.adapters.onnx_passes.typed_graph import open_session, rank
from mlflowkit.errors import DataError
from mlflowkit.graphs import onnx_file
from mlflowkit.system.text import first_line

REQUEST_ROWS = 32
"""Rows per request unless fixed by the graph; few, as all intermediate tensors of a request are kept in memory."""

Rows = Mapping[str, np.ndarray]


def check_rows(model: Any, rows: Rows) -> dict[str, np.ndarray]:
    """``rows`` in the element types of the graph's inputs. Raises DataError for rows that do not fit.

    NaN passes: it is a missing value for a graph that imputes. For one that does not, `ranges` reports values that are
    not finite.
    """
    inputs = {entry.name: entry for entry in onnx_file.request_inputs(model)}
    missing, unknown = sorted(set(inputs) - set(rows)), sorted(set(rows) - set(inputs))
    if missing or unknown:
        parts = [f"without {', '.join(missing)}"] if missing else []
        parts += [f"with {', '.join(unknown)}, which the graph does not take"] if unknown else []
        raise DataError(
            f"calibration rows are {' and '.join(parts)}", hint=f"give an array for each of {', '.join(sorted(inputs))}"
        )
    checked = {name: _check_matrix(name, np.asarray(rows[name]), entry) for name, entry in inputs.items()}
    counts = {name: len(matrix) for name, matrix in checked.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"calibration inputs have different numbers of rows: {counts}", hint="give each the same rows")
    if not min(counts.values()):
        raise DataError("there is no row to calibrate with", hint="give training rows by input name")
    fixed = request_rows(model)
    if min(counts.values()) < fixed:
        raise DataError(
            f"the graph takes {fixed} rows at a time and there are {min(counts.values())} to calibrate with",
            hint=f"give at least {fixed} rows, or quantise before the pass rows",
        )
    return checked


def request_rows(model: Any) -> int:
    """The graph's fixed number of rows per request; 0 when any number fits."""
    sizes = {entry.type.tensor_type.shape.dim[0].dim_value for entry in onnx_file.request_inputs(model) if rank(entry)}
    return max(sizes, default=0)


def run_requests(model: Any, rows: Rows, names: list[str]) -> Iterator[dict[str, np.ndarray]]:
    """The tensors ``names`` of the graph for each request. Raises DataError when the rows cannot be run.

    An incomplete last request of a graph with a fixed number of rows is skipped.
    """
    session = open_session(model, outputs=names)
    for request in split_requests(rows, request_rows(model)):
        try:
            tensors = session.run(names, request)
        except Exception as error:
            raise DataError(
                f"the graph cannot run the calibration rows: {first_line(error)}",
                hint="calibrate with rows as they are sent in requests",
            ) from error
        yield dict(zip(names, tensors, strict=True))


def split_requests(rows: Rows, fixed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """``rows`` in requests of ``fixed`` rows; with 0 in requests of REQUEST_ROWS and a shorter last one.

    >>> [len(request["x"]) for request in split_requests({"x": np.zeros((70, 2))})]
    [32, 32, 6]
    >>> [len(request["x"]) for request in split_requests({"x": np.zeros((70, 2))}, 50)]
    [50]
    """
    size, count = fixed or REQUEST_ROWS, len(next(iter(rows.values())))
    for start in range(0, count - fixed + 1 if fixed else count, size):
        yield {name: matrix[start : start + size] for name, matrix in rows.items()}


def _check_matrix(name: str, matrix: np.ndarray, entry: Any) -> np.ndarray:
    """One input's rows, cast to the graph's element type if that is safe. Raises DataError."""
    kind = entry.type.tensor_type.elem_type
    shape = tuple((axis and size.dim_value) or -1 for axis, size in enumerate(entry.type.tensor_type.shape.dim))
    if matrix.ndim != len(shape) or any(e not in (-1, size) for e, size in zip(shape, matrix.shape, strict=True)):
        raise DataError(
            f"calibration input {name} has shape {matrix.shape}, and the graph takes {shape}",
            hint="-1 is any size; give rows as they are sent in requests",
        )
    dtype = np.dtype(object) if kind == TensorProto.STRING else helper.tensor_dtype_to_np_dtype(kind)
    is_text = matrix.dtype.kind in "OUS"
    if is_text != (dtype.kind == "O") or (not is_text and not np.can_cast(matrix.dtype, dtype, "same_kind")):
        raise DataError(
            f"calibration input {name} is {matrix.dtype}, and the graph takes {dtype}",
            hint="give rows as they are sent in requests",
        )
    matrix = matrix.astype(dtype, copy=False)
    if dtype.kind == "f" and np.isinf(matrix).any():
        row = int(np.argwhere(np.isinf(matrix))[0][0])
        hint = "leave such rows out; a gap is written as NaN"
        raise DataError(f"calibration input {name} is infinite in row {row}", hint=hint)
    return matrix
