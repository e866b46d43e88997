"""Traces a torch module to ONNX, and finds what a trace cannot hold: a branch on values, a baked number of rows.

The tracing exporter takes 0.04 s where torch.export takes 3 s. It records one run, so the module is traced with several
inputs: graphs that differ show that the run depended on the number of rows or on values.
"""

from __future__ import annotations

import io
import linecache
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch.jit import TracerWarning
from torch.overrides import TorchFunctionMode

from mlflowkit.errors import EngineError, UserCodeError
from mlflowkit.system.text import first_line

OPSET = 17
ROWS, OTHER_ROWS = 3, 5
"""Rows of the traced inputs."""
_NAMES = ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy")
_TO_PYTHON = frozenset(getattr(torch.Tensor, name) for name in _NAMES)
"""Functions that turn a tensor's values into Python's."""


@dataclass(frozen=True, slots=True)
class SourceLine:
    """A line of the user's code."""

    file: Path
    line: int

    def __str__(self) -> str:
        text = linecache.getline(str(self.file), self.line).strip()
        return f"{self.file.name} line {self.line}" + (f": {text}" if text else "")


def convert(module: Any, width: int, folder: Path) -> Any:
    """The onnx.ModelProto of a module from ``features`` [rows, width] to ``scores`` [rows, outputs].

    ``folder`` is the recipe's. Raises UserCodeError where one graph cannot hold what forward does, with the line of
    the user's code, and EngineError when torch cannot export the module.
    """
    name = type(module).__name__
    content, suspects = _trace(module, torch.zeros(ROWS, width), folder)
    by_values = [line for line in _value_lines(module, width, folder) if line in suspects]
    if by_values:
        raise UserCodeError(
            f"forward of {name} turns values of a tensor into Python's, and the graph keeps what came out once: "
            f"{by_values[0]}",
            hint="write it with torch.where(condition, a, b); put a check that only raises behind "
            "`if not torch.jit.is_tracing():`",
        )
    if content != _trace(module, torch.zeros(OTHER_ROWS, width), folder)[0]:
        where = f": {suspects[0]}" if suspects else ""
        raise UserCodeError(
            f"{ROWS} rows are baked into the graph: forward of {name} turns the number of rows, x.shape[0], into a "
            f"number of Python{where}",
            hint="keep it a tensor's size: x.reshape(x.shape[0], -1) or x.flatten(1), not int(x.shape[0]); and no loop "
            "over the rows",
        )
    pattern = torch.linspace(-3, 3, ROWS * width).reshape(ROWS, width)
    if content != _trace(module, pattern, folder)[0]:
        raise UserCodeError(
            f"forward of {name} depends on values in a way that the graph does not hold: its graph is another one for "
            "other numbers",
            hint="write it with torch.where(condition, a, b), and use no .item(), .tolist() or NumPy in forward",
        )
    return onnx.load_from_string(content)


def _trace(module: Any, example: torch.Tensor, folder: Path) -> tuple[bytes, list[SourceLine]]:
    """The exported graph, and the lines below ``folder`` that torch warns of."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            torch.onnx.export(
                module, (example,), buffer, input_names=["features"], output_names=["scores"],
                dynamic_axes={"features": {0: "rows"}, "scores": {0: "rows"}}, opset_version=OPSET, dynamo=False,
            )  # fmt: skip
        except Exception as error:
            raise EngineError(
                f"torch cannot export {type(module).__name__} to ONNX: {first_line(error)}",
                hint="use only operators that ONNX supports in forward, and no code that depends on values",
            ) from error
    places = ((Path(str(item.filename)), item.lineno) for item in caught if issubclass(item.category, TracerWarning))
    lines = (SourceLine(file, line) for file, line in places if _is_users(file, folder))
    return buffer.getvalue(), list(dict.fromkeys(lines))


class _ValueWatch(TorchFunctionMode):  # type: ignore[misc]  # mypy does not read torch
    """Collects the user's lines at which a tensor's values become Python's."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.lines: list[SourceLine] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _TO_PYTHON:
            self.lines += _user_frames(self.folder)
        return func(*args, **(kwargs or {}))


def _value_lines(module: Any, width: int, folder: Path) -> list[SourceLine]:
    """Lines of the user's code that turn values into Python's in a run outside the tracer, where sizes are numbers."""
    watch = _ValueWatch(folder)
    with watch, torch.inference_mode():
        module(torch.zeros(ROWS, width))
    return watch.lines


def _user_frames(folder: Path) -> Iterator[SourceLine]:
    frame = sys._getframe(2)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if _is_users(file, folder):
            yield SourceLine(file, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]


def _is_users(file: Path, folder: Path) -> bool:
    return file.is_relative_to(folder.resolve()) and "site-packages" not in file.parts
