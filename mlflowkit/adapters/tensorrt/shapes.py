"""What an engine is built for: least, usual and largest shape of each input of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mlflowkit.errors import EngineError, UsageError, nearest
from mlflowkit.graphs.engine_key import Ranges, Shape

Dimensions = tuple[int | str, ...]


class Rows(NamedTuple):
    """Rows of a request: the least, the usual (what kernels are chosen for), the most."""

    least: int
    usual: int
    most: int

    @staticmethod
    def of(*counts: int) -> Rows:
        """Rows from one to three counts, in order. Raises UsageError.

        >>> Rows.of(1, 32, 128), Rows.of(8), Rows.of(1, 64)
        (Rows(least=1, usual=32, most=128), Rows(least=8, usual=8, most=8), Rows(least=1, usual=64, most=64))
        """
        if not 1 <= len(counts) <= 3 or list(counts) != sorted(counts) or counts[0] < 1:
            raise UsageError(
                f"rows {','.join(map(str, counts))} are not least, usual and most",
                hint="such as 1,32,128: one to three whole numbers from 1, none smaller than the one before",
            )
        return Rows(counts[0], counts[len(counts) // 2], counts[-1])


def dynamic_ranges(proto: Any, rows: Rows, shapes: Mapping[str, tuple[Shape, Shape, Shape]], model: str) -> Ranges:
    """Shapes of every input of an onnx.ModelProto. Constant dimensions stay, a dynamic first one ranges over ``rows``.

    ``shapes`` says it of whole inputs. Raises EngineError for another dynamic dimension that nothing is said of, and
    UsageError for shapes that are not the graph's.
    """
    inputs = graph_inputs(proto)
    for name in shapes:
        if name not in inputs:
            close = nearest(name, inputs) or ", ".join(inputs)
            raise UsageError(f"{model} has no input {name!r}", hint=f"did you mean {close}?")
    return {
        name: _told(name, dimensions, shapes[name], model)
        if name in shapes
        else _over_rows(name, dimensions, rows, model)
        for name, dimensions in inputs.items()
    }


def graph_inputs(proto: Any) -> dict[str, Dimensions]:
    """Inputs that a caller gives: constant dimensions as numbers, dynamic ones by their names ("" for none)."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    return {
        each.name: tuple(
            dimension.dim_value if dimension.HasField("dim_value") else dimension.dim_param
            for dimension in each.type.tensor_type.shape.dim
        )
        for each in proto.graph.input
        if each.name not in constants
    }


def _over_rows(name: str, dimensions: Dimensions, rows: Rows, model: str) -> tuple[Shape, Shape, Shape]:
    for axis, size in enumerate(dimensions):
        if axis and not isinstance(size, int):
            called = f" ({size})" if size else ""
            raise EngineError(
                f"{model}: dimension {axis}{called} of input {name} is dynamic, and there is no range for it",
                hint=f"say which shapes the engine is for: --shape {name}={_example(dimensions)}",
            )
    if not dimensions or isinstance(dimensions[0], int):
        fixed = tuple(size for size in dimensions if isinstance(size, int))
        return fixed, fixed, fixed
    rest = tuple(size for size in dimensions[1:] if isinstance(size, int))
    return (rows.least, *rest), (rows.usual, *rest), (rows.most, *rest)


def _told(
    name: str, dimensions: Dimensions, bounds: tuple[Shape, Shape, Shape], model: str
) -> tuple[Shape, Shape, Shape]:
    hint = f"--shape {name}={_example(dimensions)} (least, usual, largest)"
    for shape in bounds:
        fits = len(shape) == len(dimensions) and all(
            size == wanted for size, wanted in zip(shape, dimensions, strict=True) if isinstance(wanted, int)
        )
        if not fits:
            wanted = "x".join(str(size) if isinstance(size, int) else size or "?" for size in dimensions)
            raise UsageError(f"{model}: input {name} is {wanted}, not {'x'.join(map(str, shape))}", hint=hint)
    if any(not 0 < least <= usual <= most for least, usual, most in zip(*bounds, strict=True)):
        raise UsageError(f"{model}: the shapes of input {name} do not grow from least to largest", hint=hint)
    return bounds


def _example(dimensions: Dimensions) -> str:
    """Three shapes that the input takes, as an option says them."""
    sizes = ((1, 1), (8, 32), (32, 128))
    return ",".join(
        "x".join(
            str(size) if isinstance(size, int) else str(each[min(axis, 1)]) for axis, size in enumerate(dimensions)
        )
        for each in sizes
    )
