"""Numbers of the user's own transformers: fitted in Python, computed by an ONNX graph and nothing else.

A transformer is a class beside the recipe with ``fit(values) -> parameters`` (JSON) and ``graph(parameters)``, the
graph from float64 [rows, columns] to float64 [rows, numbers]. Training runs that graph by ONNX's reference evaluator,
and the served graph contains it: there is no Python form that could differ. Both compute in double precision and round
to float32, so that two libraries' logarithms, which may differ in the last bit of a double, give the same number.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mlflowkit import usercode
from mlflowkit.errors import UsageError, UserCodeError
from mlflowkit.system.text import first_line

OPSET, ML_OPSET, IR_VERSION = 17, 3, 8
CHECKED_ROWS = 200
"""Rows that are also computed alone, to see that the numbers of a row depend on that row only."""
RANDOM = frozenset({"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
                    "RandomUniformLike"})  # fmt: skip
WANTED = (
    "a graph from double[rows, columns] to double[rows, numbers], as text for onnx.parser.parse_graph or GraphProto"
)


@dataclass(frozen=True, slots=True)
class OwnTransform:
    """A fitted transformer: ``columns`` are indices of numeric columns, ``numbers`` is how many it makes of them, and
    ``graph`` the model (base64 of the serialised onnx.ModelProto) that does it. ``parameters`` are for the reader."""

    module: str
    columns: tuple[int, ...]
    numbers: int
    graph: str
    parameters: Any

    @property
    def content(self) -> bytes:
        """The serialised onnx.ModelProto."""
        return base64.b64decode(self.graph)


def fit_transforms(
    values: np.ndarray, section: Any, numeric: Sequence[str], offsets: Sequence[float], folder: Path | None
) -> tuple[OwnTransform, ...]:
    """Fit the transformers of a stages.train.PreprocessSettings on numbers, float64 [rows, columns]; NaN is missing.

    Raises UsageError for columns that are no numbers, or that float32 does not hold, and UserCodeError for a
    transformer that fails, or whose graph is not as promised.
    """
    fitted = []
    for place, setting in enumerate(getattr(section, "transforms", ())):
        key = f"preprocess.transforms.{place}"
        for name in setting.columns:
            if name not in numeric:
                hint = f"write data.columns: {{{name}: numeric}}, or name another column"
                raise UsageError(f"{key}: {name!r} is no column of numbers", hint=hint)
            if offsets and offsets[numeric.index(name)]:
                message = f"{key}: float32 does not hold {name!r}, which is centred before anything else"
                raise UsageError(message, hint=f"name another column than {name}")
        if folder is None:
            raise UsageError(f"{key} needs the folder of the recipe", hint="pass it to fit_preprocess")
        columns = tuple(numeric.index(name) for name in setting.columns)
        fitted.append(_fit(values[:, columns].astype(np.float32).astype(np.float64), setting, columns, folder))
    return tuple(fitted)


def apply_transforms(numeric: np.ndarray, transforms: Sequence[OwnTransform], dtype: Any) -> list[np.ndarray]:
    """The numbers of each transformer, [rows, numbers], rounded to float32; NaN where they are infinite."""
    return [
        _finite(_evaluate(transform.content, numeric[:, transform.columns].astype(np.float32))).astype(dtype)
        for transform in transforms
    ]


def undefined_share(numeric: np.ndarray, transform: OwnTransform) -> float:
    """The share of rows, of [rows, columns], with all inputs of a transformer and not all of its numbers."""
    values = numeric[:, transform.columns].astype(np.float32)
    (numbers,) = apply_transforms(numeric, (transform,), np.float32)
    undefined = np.isnan(numbers).any(axis=1) & ~np.isnan(values).any(axis=1)
    return float(undefined.mean()) if len(undefined) else 0.0


def _finite(numbers: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        single = numbers.astype(np.float32)
    result: np.ndarray = np.where(np.isinf(single), np.float32(np.nan), single)
    return result


def _evaluate(content: bytes, values: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        (numbers,) = _evaluator(content).run(None, {_evaluator(content).input_names[0]: values.astype(np.float64)})
    return np.asarray(numbers)


@lru_cache(maxsize=32)
def _evaluator(content: bytes) -> Any:
    import onnx
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(onnx.load_from_string(content))


def _fit(values: np.ndarray, setting: Any, columns: tuple[int, ...], folder: Path) -> OwnTransform:
    reference = setting.module
    kind = usercode.load(reference, folder)
    for method in ("fit", "graph"):
        if not (isinstance(kind, type) and callable(getattr(kind, method, None))):
            message = f"{reference} has no method {method}, and is no transformer"
            raise UserCodeError(message, hint="write a class with fit(values) -> parameters and graph(parameters)")
    with usercode.translate_user_errors(reference, folder):
        transformer = kind(**setting.args)
        given = transformer.fit(values.copy())
    try:
        parameters = json.loads(json.dumps(given, allow_nan=False))
    except (TypeError, ValueError) as error:
        message = f"{reference}: what fit returned is no JSON: {error}"
        raise UserCodeError(
            message, hint="return finite numbers, texts, lists and dicts: float(x), x.tolist()"
        ) from error
    with usercode.translate_user_errors(reference, folder):
        returned = transformer.graph(parameters)
    where = f"{_location(kind.graph)}: {reference}"
    content = _checked_model(returned, len(columns), where)
    numbers = _checked_numbers(content, values[:CHECKED_ROWS], where)
    with np.errstate(over="ignore"):
        outputs = _evaluate(content, values).astype(np.float32)
    if empty := np.flatnonzero(np.isnan(outputs).all(axis=0)).tolist():
        message = f"{where}: its graph makes no number in any of {len(values):,} training rows (column {empty[0]} of y)"
        raise UserCodeError(message, hint="keep negative numbers from Log, Sqrt and Pow: Abs, Max or Clip before them")
    infinite = int(np.isinf(outputs).any(axis=1).sum())
    if infinite:
        message = f"{where}: its graph makes infinite numbers of {infinite:,} of {len(values):,} training rows"
        raise UserCodeError(message, hint="bound what it divides by, or takes the logarithm of: Max, Clip or Where")
    return OwnTransform(reference, columns, numbers, base64.b64encode(content).decode(), parameters)


def _location(method: Any) -> str:
    """File and line of a method."""
    code = getattr(method, "__code__", None)
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code is not None else "graph"


def _checked_model(returned: Any, columns: int, where: str) -> bytes:
    """The serialised model of a user's graph. Raises UserCodeError for one that is not valid, random or unsuitable."""
    import onnx
    from onnx import checker, defs, helper, parser, shape_inference

    try:
        graph = parser.parse_graph(returned) if isinstance(returned, str) else returned
        if not isinstance(graph, onnx.GraphProto):
            raise UserCodeError(f"{where}: graph returned a {type(returned).__name__}", hint=f"return {WANTED}")
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        checker.check_model(model, full_check=True)
    except (parser.ParseError, checker.ValidationError, shape_inference.InferenceError) as error:
        text = " ".join(str(error.args[0] if error.args else error).split())
        raise UserCodeError(f"{where}: its graph is not valid ONNX: {text[:300]}", hint=f"return {WANTED}") from error
    for node in graph.node:
        known = node.domain in ("", "ai.onnx.ml") and defs.has(node.op_type, node.domain)
        if not known or node.op_type in RANDOM or any(attribute.HasField("g") for attribute in node.attribute):
            why = "draws at random" if node.op_type in RANDOM else "is none of ONNX, or has a graph of its own"
            hint = "use operators of https://onnx.ai/onnx/operators without subgraphs"
            raise UserCodeError(f"{where}: {node.op_type} in its graph {why}", hint=hint)
    ports = [*graph.input, *graph.output]
    double = all(port.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE for port in ports)
    if (len(graph.input), len(graph.output)) != (1, 1) or not double:
        shown = (
            f"{len(graph.input)} inputs and {len(graph.output)} outputs" if double else "numbers that are not double"
        )
        raise UserCodeError(f"{where}: its graph has {shown}", hint=f"return {WANTED}")
    width = graph.input[0].type.tensor_type.shape.dim
    if len(width) == 2 and width[1].HasField("dim_value") and width[1].dim_value != columns:
        message = f"{where}: its graph takes {width[1].dim_value} columns, and the recipe names {columns}"
        raise UserCodeError(message, hint=f"return {WANTED}")
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _checked_numbers(content: bytes, values: np.ndarray, where: str) -> int:
    """How many numbers a graph makes of a row. Raises UserCodeError where they depend on other rows."""
    try:
        together = _evaluate(content, values)
        alone = [_evaluate(content, values[row : row + 1]) for row in range(len(values))]
    except Exception as error:
        message = f"{where}: its graph fails on the training rows: {first_line(error)}"
        raise UserCodeError(message, hint=f"return {WANTED}") from error
    if together.ndim != 2 or len(together) != len(values) or not together.shape[1]:
        message = f"{where}: its graph makes {list(together.shape)} of {list(values.shape)}"
        raise UserCodeError(message, hint=f"return {WANTED}")
    if any(part.shape != (1, together.shape[1]) for part in alone) or not np.array_equal(
        np.concatenate(alone), together, equal_nan=True
    ):
        message = f"{where}: the numbers of a row are others when it is asked alone"
        raise UserCodeError(message, hint="take means and the like in fit, and put them into the graph as constants")
    return int(together.shape[1])


def load_transforms(items: Sequence[Mapping[str, Any]]) -> tuple[OwnTransform, ...]:
    """Transformers as they were saved, by dataclasses.asdict."""
    return tuple(OwnTransform(**{**item, "columns": tuple(item["columns"])}) for item in items)
