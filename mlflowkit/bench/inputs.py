"""What a graph is asked: rows made from its own input types, or read from a file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlflowkit.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np

Fill = Literal["random", "zeros"]

DTYPES: Mapping[int, str] = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "object", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
"""NumPy's name of each element type of ONNX (onnx.TensorProto.DataType) that requests can be made of."""


@dataclass(frozen=True, slots=True)
class GraphInput:
    """One input of a graph: ``shape`` has a number for a fixed axis, and its name ("" for none) for an open one."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(str(size or '?') for size in self.shape)}]"


@dataclass(frozen=True, slots=True)
class Requests:
    """What is asked: arrays by input name, each with ``rows`` rows; a request takes rows that follow one another.

    ``batch`` is the only number of rows that the graph takes at once, or None when it takes any.
    """

    arrays: Mapping[str, np.ndarray]
    rows: int
    batch: int | None = None

    def refuses(self, batch: int) -> str:
        """Why the graph cannot be asked ``batch`` rows at once, or ""."""
        if self.batch is None or self.batch == batch:
            return ""
        return f"the graph takes {self.batch} row{'s' * (self.batch != 1)} a request, and no other number"

    @property
    def digest(self) -> str:
        """Of what is asked: the arrays by name, types and shapes included.

        >>> inputs = [GraphInput("x", "float32", ("N", 4))]
        >>> made(inputs, 8).digest == made(inputs, 8).digest, made(inputs, 8).digest == made(inputs, 8, seed=1).digest
        (True, False)
        """
        import hashlib

        found = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            content = "\0".join(map(str, array.ravel())).encode() if array.dtype == object else array.tobytes()
            found.update(f"{name} {array.dtype} {array.shape} {len(content)} ".encode())
            found.update(content)
        return found.hexdigest()


def inputs_of(model: Path) -> tuple[GraphInput, ...]:
    """The inputs of an ONNX file that are not filled by its own weights. Raises EngineError as `checked_load`."""
    from mlflowkit.graphs.onnx_file import checked_load

    graph = checked_load(model, weights=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    return tuple(_input(model, value) for value in graph.input if value.name not in weights)


def made(
    inputs: Sequence[GraphInput],
    rows: int,
    *,
    sizes: Mapping[str, int] | None = None,
    fill: Fill = "random",
    seed: int = 0,
) -> Requests:
    """Requests of the right types: normally distributed numbers, whole numbers of 1, strings that are empty.

    ``sizes`` says how long an open axis is, by its name; ``fill`` "zeros" makes every number 0. A whole number of 1 is
    a token that any vocabulary has, and a mask that hides nothing. Raises UsageError for an open axis, other than that
    of rows, whose length nobody said.

    >>> asked = made([GraphInput("x", "float32", ("N", 4)), GraphInput("ids", "int64", ("N", "T"))], 8, sizes={"T": 3})
    >>> {name: array.shape for name, array in asked.arrays.items()}, asked.batch
    ({'x': (8, 4), 'ids': (8, 3)}, None)
    """
    import numpy as np

    random = np.random.default_rng(seed)
    batch = _batch(inputs)
    arrays = {}
    for one in inputs:
        rest = tuple(_length(one, size, sizes or {}) for size in one.shape[1:])
        arrays[one.name] = _filled(one.dtype, (batch or rows, *rest), fill, random)
    return Requests(arrays, batch or rows, batch)


def read(path: Path, inputs: Sequence[GraphInput]) -> Requests:
    """Requests from an .npz file with an array for each input: rows along the first axis.

    Raises DataError when the file is no such archive, or an array does not fit its input.
    """
    arrays = _arrays(path)
    unknown = sorted(set(arrays) - {one.name for one in inputs})
    if unknown:
        raise DataError(f"{path}: the graph has no input {', '.join(unknown)}", hint=_takes(inputs))
    for one in inputs:
        if one.name not in arrays:
            raise DataError(f"{path} has no array {one.name}", hint=_takes(inputs))
        if fault := _misfit(one, arrays[one.name]):
            raise DataError(f"{path}: {one.name} {fault}", hint=_takes(inputs))
    batch = _batch(inputs)
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or min(lengths.values()) == 0:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(
            f"{path}: inputs need as many rows as one another, at least one; found {told}", hint=_takes(inputs)
        )
    return Requests(arrays, next(iter(lengths.values())), batch)


def _batch(inputs: Sequence[GraphInput]) -> int | None:
    """The rows that a graph takes at once, where its first axes fix them; None where they are open.

    Raises UsageError for a graph without inputs, and for one whose inputs do not share their rows.
    """
    firsts = {one.shape[0] if one.shape and isinstance(one.shape[0], int) else None for one in inputs if one.shape}
    if len(firsts) != 1 or not all(one.shape for one in inputs):
        told = "; ".join(map(str, inputs)) or "it has none"
        raise UsageError(
            f"requests are cut along the first axis, which the inputs of this graph do not share: {told}",
            hint="export it with rows along the first axis of every input",
        )
    return firsts.pop()


def _input(model: Path, value: object) -> GraphInput:
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


def _length(one: GraphInput, size: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    if size in sizes:
        return sizes[size]
    axis = f"axis {size}" if size else "an axis without a name"
    how = (
        f"--size {shlex.quote(f'{size}=128')}, or --inputs FILE.npz"
        if size
        else "--inputs FILE.npz with an array for each input"
    )
    raise UsageError(f"input {one} leaves {axis} open: how long is it?", hint=how)


def _filled(dtype: str, shape: tuple[int, ...], fill: Fill, random: np.random.Generator) -> np.ndarray:
    import numpy as np

    if dtype == "object":
        return np.full(shape, "", dtype=object)
    if fill == "zeros":
        return np.zeros(shape, dtype)
    return random.normal(size=shape).astype(dtype) if dtype.startswith("float") else np.ones(shape, dtype)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    import zipfile

    import numpy as np

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


def _misfit(one: GraphInput, array: np.ndarray) -> str:
    """What is wrong with an array, in words; "" when it fits."""
    if array.dtype != one.dtype:
        return f"is {array.dtype}; the graph wants {one.dtype}"
    if array.ndim != len(one.shape):
        return f"has shape {list(array.shape)}; the graph wants {len(one.shape)} axes"
    sizes = zip(one.shape, array.shape, strict=True)
    wrong = [axis for axis, (size, found) in enumerate(sizes) if isinstance(size, int) and size != found]
    return f"has {array.shape[wrong[0]]} along axis {wrong[0]}; the graph wants {one.shape[wrong[0]]}" if wrong else ""


def _takes(inputs: Sequence[GraphInput]) -> str:
    return f"the graph takes {'; '.join(map(str, inputs))}"
