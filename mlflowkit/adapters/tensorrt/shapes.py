"""Engine profiles: minimum, optimum and maximum shape of each input of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mlflowkit.errors import EngineError, UsageError, closest_match
from mlflowkit.graphs.engine_key import Ranges, Shape
from mlflowkit.graphs.onnx_file import request_inputs

Dimensions = tuple[int | str, ...]
"""Dimensions of an input: numbers, or names ("" for unnamed) of dynamic dimensions."""


class RowCounts(NamedTuple):
    """Rows of a request: minimum, optimum (for kernel selection) and maximum."""

    least: int
    usual: int
    most: int

    @staticmethod
    def of(*counts: int) -> RowCounts:
        """Rows from one to three counts, in order. Raises UsageError.

        >>> RowCounts.of(1, 32, 128), RowCounts.of(8)
        (RowCounts(least=1, usual=32, most=128), RowCounts(least=8, usual=8, most=8))
        """
        if not 1 <= len(counts) <= 3 or list(counts) != sorted(counts) or counts[0] < 1:
            raise UsageError(
                f"rows {','.join(map(str, counts))} are not least, usual and most",
                hint="such as 1,32,128: one to three whole numbers from 1, none smaller than the one before",
            )
        return RowCounts(counts[0], counts[len(counts) // 2], counts[-1])


def dynamic_ranges(proto: Any, rows: RowCounts, shapes: Mapping[str, tuple[Shape, Shape, Shape]], model: str) -> Ranges:
    """Shape ranges of a model's inputs: ``shapes`` by input, else ``rows`` for a dynamic first dimension.

    Raises EngineError for another dynamic dimension without a range, UsageError for shapes that do not fit the graph.
    """
    inputs: dict[str, Dimensions] = {}
    for value in request_inputs(proto):
        dimensions = value.type.tensor_type.shape.dim
        inputs[value.name] = tuple(
            size.dim_value if size.HasField("dim_value") else size.dim_param for size in dimensions
        )
    for name in shapes:
        if name not in inputs:
            close = closest_match(name, inputs) or ", ".join(inputs)
            raise UsageError(f"{model} has no input {name!r}", hint=f"did you mean {close}?")
    return {
        name: _explicit_range(name, dimensions, shapes[name], model)
        if name in shapes
        else _row_range(name, dimensions, rows, model)
        for name, dimensions in inputs.items()
    }


def _row_range(name: str, dimensions: Dimensions, rows: RowCounts, model: str) -> tuple[Shape, Shape, Shape]:
    for axis, size in enumerate(dimensions):
        if axis and not isinstance(size, int):
            name_text = f" ({size})" if size else ""
            raise EngineError(
                f"{model}: dimension {axis}{name_text} of input {name} is dynamic, and there is no range for it",
                hint=f"set the engine's shapes: --shape {name}={_example(dimensions)}",
            )
    fixed = tuple(size for size in dimensions if isinstance(size, int))
    if len(fixed) == len(dimensions):
        return fixed, fixed, fixed
    return (rows.least, *fixed), (rows.usual, *fixed), (rows.most, *fixed)


def _explicit_range(
    name: str, dimensions: Dimensions, bounds: tuple[Shape, Shape, Shape], model: str
) -> tuple[Shape, Shape, Shape]:
    hint = f"--shape {name}={_example(dimensions)} (least, usual, largest)"
    for shape in bounds:
        fits = len(shape) == len(dimensions) and all(
            size == expected for size, expected in zip(shape, dimensions, strict=True) if isinstance(expected, int)
        )
        if not fits:
            expected_shape = "x".join(str(size) if isinstance(size, int) else size or "?" for size in dimensions)
            raise UsageError(f"{model}: input {name} is {expected_shape}, not {'x'.join(map(str, shape))}", hint=hint)
    if any(not 0 < least <= usual <= most for least, usual, most in zip(*bounds, strict=True)):
        raise UsageError(f"{model}: the shapes of input {name} do not grow from least to largest", hint=hint)
    return bounds


def _example(dimensions: Dimensions) -> str:
    """Three valid shapes as an example for the option."""
    shapes = []
    for rows, other in ((1, 1), (8, 32), (32, 128)):
        sizes = [size if isinstance(size, int) else other if axis else rows for axis, size in enumerate(dimensions)]
        shapes.append("x".join(map(str, sizes)))
    return ",".join(shapes)
