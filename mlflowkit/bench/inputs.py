"""Request data for a graph: rows generated from its input types, or read from a file."""

from __future__ import annotations

import hashlib
import shlex
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mlflowkit.errors import DataError, UsageError

Fill = Literal["random", "zeros"]

DTYPES: Mapping[int, str] = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "object", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
"""NumPy's name of each supported element type of ONNX (onnx.TensorProto.DataType)."""


@dataclass(frozen=True, slots=True)
class GraphInput:
    """One input of a graph. ``shape`` has a number for a fixed axis, and the name of an open one ("" if unnamed)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(str(size or '?') for size in self.shape)}]"


@dataclass(frozen=True, slots=True)
class Requests:
    """Arrays by input name, each with ``rows`` rows; a request takes consecutive rows.

    ``batch`` is the only number of rows that the graph accepts at once; None if it accepts any.
    """

    arrays: Mapping[str, np.ndarray]
    rows: int
    batch: int | None = None

    def reason_to_reject(self, batch: int) -> str:
        """Return why the graph does not accept ``batch`` rows at once, or ""."""
        if self.batch is None or self.batch == batch:
            return ""
        return f"the graph takes {self.batch} row{'s' * (self.batch != 1)} a request, and no other number"

    @property
    def digest(self) -> str:
        """SHA-256 of the arrays with their names, types and shapes.

        >>> inputs = [GraphInput("x", "float32", ("N", 4))]
        >>> requests, other = make_requests(inputs, 8), make_requests(inputs, 8, seed=1)
        >>> requests.digest == make_requests(inputs, 8).digest, requests.digest == other.digest
        (True, False)
        """
        sha256 = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            content = "\0".join(map(str, array.ravel())).encode() if array.dtype == object else array.tobytes()
            sha256.update(f"{name} {array.dtype} {array.shape} {len(content)} ".encode())
            sha256.update(content)
        return sha256.hexdigest()


def inputs_of(model: Path) -> tuple[GraphInput, ...]:
    """Return the inputs of an ONNX file that have no initializer. Raises EngineError as `load_checked`."""
    from mlflowkit.graphs.onnx_file import load_checked

    graph = load_checked(model, weights=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    return tuple(_graph_input(model, value) for value in graph.input if value.name not in weights)


def make_requests(
    inputs: Sequence[GraphInput], rows: int, *, sizes: Mapping[str, int] | None = None, fill: Fill = "random",
    seed: int = 0,
) -> Requests:  # fmt: skip
    """Generate requests: normally distributed floats, integers of 1, empty strings.

    ``sizes`` gives the length of open axes by name; ``fill`` "zeros" makes every number 0. An integer of 1 is a token
    of any vocabulary, and a mask that hides nothing. Raises UsageError for an open axis, other than the rows, without a
    length.

    >>> requests = make_requests(
    ...     [GraphInput("x", "float32", ("N", 4)), GraphInput("ids", "int64", ("N", "T"))], 8, sizes={"T": 3}
    ... )
    >>> {name: array.shape for name, array in requests.arrays.items()}, requests.batch
    ({'x': (8, 4), 'ids': (8, 3)}, None)
    """
    generator = np.random.default_rng(seed)
    batch = _fixed_batch(inputs)
    arrays = {}
    for graph_input in inputs:
        axes = tuple(_axis_length(graph_input, size, sizes or {}) for size in graph_input.shape[1:])
        arrays[graph_input.name] = _generate(graph_input.dtype, (batch or rows, *axes), fill, generator)
    return Requests(arrays, batch or rows, batch)


def read_requests(path: Path, inputs: Sequence[GraphInput]) -> Requests:
    """Read requests from an .npz file with an array for each input, rows along the first axis.

    Raises DataError if the file is no such archive, or an array does not fit its input.
    """
    arrays = _read_arrays(path)
    hint = f"the graph takes {'; '.join(map(str, inputs))}"
    unknown = sorted(set(arrays) - {graph_input.name for graph_input in inputs})
    if unknown:
        raise DataError(f"{path}: the graph has no input {', '.join(unknown)}", hint=hint)
    for graph_input in inputs:
        name = graph_input.name
        if name not in arrays:
            raise DataError(f"{path} has no array {name}", hint=hint)
        if mismatch := _mismatch(graph_input, arrays[name]):
            raise DataError(f"{path}: {name} {mismatch}", hint=hint)
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or min(lengths.values()) == 0:
        counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"{path}: inputs need equally many rows, at least one; found {counts}", hint=hint)
    return Requests(arrays, next(iter(lengths.values())), _fixed_batch(inputs))


def _fixed_batch(inputs: Sequence[GraphInput]) -> int | None:
    """Return the fixed number of rows at once; None if the first axes are open.

    Raises UsageError for a graph without inputs, or whose inputs do not share their rows.
    """
    sizes = [graph_input.shape[:1] for graph_input in inputs]
    batches = {size[0] if isinstance(size[0], int) else None for size in sizes if size}
    if len(batches) != 1 or () in sizes:
        shapes = "; ".join(map(str, inputs)) or "it has none"
        raise UsageError(
            f"requests are cut along the first axis, which the inputs of this graph do not share: {shapes}",
            hint="export it with rows along the first axis of every input",
        )
    return batches.pop()


def _graph_input(model: Path, value: object) -> GraphInput:
    kind = value.type  # type: ignore[attr-defined]  # an onnx.ValueInfoProto
    name = value.name  # type: ignore[attr-defined]
    if not kind.HasField("tensor_type") or kind.tensor_type.elem_type not in DTYPES:
        raise UsageError(
            f"{model}: input {name} is no tensor of numbers, booleans or strings: requests cannot be made for it",
            hint="bench a graph whose inputs are plain tensors",
        )
    axes = kind.tensor_type.shape.dim
    shape = tuple(int(axis.dim_value) if axis.HasField("dim_value") else str(axis.dim_param) for axis in axes)
    return GraphInput(name, DTYPES[kind.tensor_type.elem_type], shape)


def _axis_length(graph_input: GraphInput, size: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    if size in sizes:
        return sizes[size]
    axis = f"axis {size}" if size else "an axis without a name"
    hint = "--inputs FILE.npz"
    hint = f"--size {shlex.quote(f'{size}=128')}, or {hint}" if size else f"{hint} with an array for each input"
    raise UsageError(f"input {graph_input} leaves the length of {axis} open", hint=hint)


def _generate(dtype: str, shape: tuple[int, ...], fill: Fill, generator: np.random.Generator) -> np.ndarray:
    if dtype == "object":
        return np.full(shape, "", dtype=object)
    if fill == "zeros":
        return np.zeros(shape, dtype)
    return generator.normal(size=shape).astype(dtype) if dtype.startswith("float") else np.ones(shape, dtype)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array; an .npz archive has an array for each input")
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as an .npz archive: {error}", hint="write it with numpy.savez(FILE, name=array)"
        ) from error
    return {name: array.astype(object) if array.dtype.kind in "US" else array for name, array in arrays.items()}


def _mismatch(graph_input: GraphInput, array: np.ndarray) -> str:
    """Return how an array differs from its input, or ""."""
    shape = graph_input.shape
    if array.dtype != graph_input.dtype:
        return f"is {array.dtype}; the graph wants {graph_input.dtype}"
    if array.ndim != len(shape):
        return f"has shape {list(array.shape)}; the graph wants {len(shape)} axes"
    for axis, (size, length) in enumerate(zip(shape, array.shape, strict=True)):
        if isinstance(size, int) and size != length:
            return f"has {length} along axis {axis}; the graph wants {size}"
    return ""
