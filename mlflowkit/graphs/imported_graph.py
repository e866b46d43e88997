"""An external ONNX graph as the model of a recipe: maps table columns to its inputs and roles to its outputs.

Pure functions over names, types and dimensions. Supported:

inputs    numbers of any width, booleans or strings, with an open first dimension for rows: one matrix [rows, k] for
          the numeric and one for the categorical columns, or one input per column ([rows] or [rows, 1]), or the
          mapping in ``model.inputs``. Numbers are cast from float32; a missing number is NaN, a missing text "".
outputs   classification: probabilities or logits [rows, classes], or [rows] or [rows, 1] of the positive class, and
          optionally labels [rows]; regression: values [rows] or [rows, 1]. Inferred from type and shape where that is
          unambiguous, else named by ``model.outputs``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlflowkit.errors import DataError, closest_match
from mlflowkit.system.text import format_count, format_list

FLOATS = ("FLOAT", "DOUBLE", "FLOAT16")
INTEGERS = ("INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8", "BOOL")
"""Element types that cannot hold a missing value."""
NUMBERS = (*FLOATS, *INTEGERS)
"""Element types that numbers from a table can be cast to."""
ROLES: Mapping[str, tuple[str, ...]] = {
    "classification": ("probabilities", "logits", "label"),
    "regression": ("prediction",),
}
"""Output roles by task."""


@dataclass(frozen=True, slots=True)
class GraphIO:
    """An input or an output. ``element`` is "" for a non-tensor; None is an unknown rank or size.

    ``width`` is the number of columns: the second dimension, or 1 without one.
    """

    name: str
    element: str
    rank: int | None
    rows: int | None
    width: int | None


@dataclass(frozen=True, slots=True)
class GraphInterface:
    """Inputs and outputs in graph order."""

    inputs: tuple[GraphIO, ...]
    outputs: tuple[GraphIO, ...]


@dataclass(frozen=True, slots=True)
class Incompatibility:
    """A reason why a graph does not fit a recipe, at a key of the recipe."""

    key: tuple[str, ...]
    message: str
    hint: str
    at_key: bool = False


@dataclass(frozen=True, slots=True)
class ColumnMapping:
    """The columns of an input, in its order."""

    target: GraphIO
    kind: Literal["numeric", "categorical"]
    columns: tuple[str, ...]


def read_interface(model: Any) -> GraphInterface:
    """Non-constant inputs and outputs of an onnx.ModelProto."""
    constants = {constant.name for constant in model.graph.initializer}
    inputs = tuple(_graph_io(value) for value in model.graph.input if value.name not in constants)
    return GraphInterface(inputs, tuple(_graph_io(value) for value in model.graph.output))


def find_incompatibilities(
    graph: GraphInterface, task: str, inputs: Mapping[str, Sequence[str]] | None, outputs: Mapping[str, str]
) -> list[Incompatibility]:
    """Reasons against a graph as the model that can be determined without the table.

    >>> graph = GraphInterface((GraphIO("x", "FLOAT", 2, 1, 4),), (GraphIO("y", "FLOAT", 2, None, 1),))
    >>> find_incompatibilities(graph, "regression", None, {})[0].message
    'input x takes exactly 1 row; requests and batches need any number of rows'
    """
    return [*_check_inputs(graph, inputs), *_check_outputs(graph, task, outputs)]


def assign_outputs(graph: GraphInterface, task: str, outputs: Mapping[str, str]) -> dict[str, GraphIO]:
    """The outputs by role (see ROLES), for a graph without incompatibilities.

    >>> scores, label = GraphIO("p", "FLOAT", 2, None, 2), GraphIO("l", "INT64", 1, None, 1)
    >>> by_role = assign_outputs(GraphInterface((), (label, scores)), "classification", {})
    >>> {role: tensor.name for role, tensor in by_role.items()}
    {'probabilities': 'p', 'label': 'l'}
    """
    by_name = {output.name: output for output in graph.outputs}
    by_role = {role: by_name[name] for role, name in outputs.items()}
    if task == "regression":
        return by_role or {"prediction": _score_outputs(graph)[0]}
    if "probabilities" not in by_role and "logits" not in by_role:
        by_role = {"probabilities": _score_outputs(graph)[0], **by_role}
    labels = [output for output in graph.outputs if _may_be_label(output) and output not in by_role.values()]
    if "label" not in by_role and len(labels) == 1:
        by_role["label"] = labels[0]
    return by_role


def map_columns(
    graph: GraphInterface,
    inputs: Mapping[str, Sequence[str]] | None,
    numeric: Sequence[str],
    categorical: Sequence[str],
) -> tuple[ColumnMapping, ...]:
    """The columns of each input: as in the recipe, else by name, else one matrix per kind of column.

    Raises DataError unless every column of the table maps to an input.
    """
    kinds: dict[str, Literal["numeric", "categorical"]] = dict.fromkeys(numeric, "numeric")
    kinds |= dict.fromkeys(categorical, "categorical")
    columns: Mapping[str, Sequence[str]]
    if inputs is not None:
        columns = inputs
    elif all(tensor.name in kinds and tensor.width in (1, None) for tensor in graph.inputs):
        columns = {tensor.name: [tensor.name] for tensor in graph.inputs}
    else:
        columns = _match_kinds(graph, numeric, categorical)
    mappings = tuple(_map_input(target, tuple(columns[target.name]), kinds) for target in graph.inputs)
    used = {column for mapping in mappings for column in mapping.columns}
    if unused := [name for name in kinds if name not in used]:
        columns_text = f"column{'' if len(unused) == 1 else 's'} {format_list(unused)}"
        message = f"{columns_text} of the table goes into no input of the graph"
        raise DataError(message, hint=f"data.drop: [{', '.join(unused)}], or name them under model.inputs")
    return mappings


def class_order(declared: Sequence[str | int] | None, classes: Sequence[str | int]) -> tuple[str | int, ...]:
    """The classes in score order: as declared in the recipe, else sorted as scikit-learn does.

    Raises DataError when the declared classes differ from the table's.

    >>> class_order(None, ["good", "bad"])
    ('bad', 'good')
    """
    if declared is None:
        return tuple(sorted(classes))
    by_text = {str(label): label for label in classes}
    texts = [str(int(label)) if isinstance(label, bool) else str(label) for label in declared]
    if sorted(texts) != sorted(by_text):
        message = f"model.classes are {', '.join(map(repr, declared))}; the target has {', '.join(map(repr, classes))}"
        raise DataError(message, hint="list each class of the target once, in the order of the graph's scores")
    return tuple(by_text[text] for text in texts)


def _check_inputs(graph: GraphInterface, inputs: Mapping[str, Sequence[str]] | None) -> Iterator[Incompatibility]:
    key = ("model", "path")
    if not graph.inputs:
        yield Incompatibility(key, "the graph has no inputs", "export it with the features as input")
    for tensor in graph.inputs:
        if tensor.element not in (*NUMBERS, "STRING"):
            message = f"input {tensor.name} is {tensor.element or 'no tensor'}; a table gives numbers and strings"
            yield Incompatibility(key, message, "cast it inside")
        elif tensor.rank not in (1, 2):
            shape = "an unknown shape" if tensor.rank is None else f"{tensor.rank} dimensions"
            hint = "reshape it inside the graph, so that its input is [rows, columns]"
            yield Incompatibility(key, f"input {tensor.name} has {shape}; a table gives rows of columns", hint)
        elif tensor.rows is not None:
            rows = format_count(tensor.rows, "row")
            message = f"input {tensor.name} takes exactly {rows}; requests and batches need any number of rows"
            hint = (
                f"export it with an open first dimension: dynamic_axes={{{tensor.name!r}: {{0: 'rows'}}}} with torch, "
                "FloatTensorType([None, columns]) with skl2onnx"
            )
            yield Incompatibility(key, message, hint)
    if inputs is not None:
        yield from _check_declared_inputs(graph, inputs)


def _check_declared_inputs(graph: GraphInterface, inputs: Mapping[str, Sequence[str]]) -> Iterator[Incompatibility]:
    by_name = {tensor.name: tensor for tensor in graph.inputs}
    for name, columns in inputs.items():
        key = ("model", "inputs", name)
        if name not in by_name:
            close = closest_match(name, by_name)
            hint = f"did you mean {close}?" if close else f"its inputs are {', '.join(by_name)}"
            yield Incompatibility(key, f"the graph has no input {name!r}", hint, at_key=True)
        elif by_name[name].width is not None and by_name[name].width != len(columns):
            message = f"input {name} takes {_count_columns(by_name[name].width)}, and {len(columns)} are listed"
            yield Incompatibility(key, message, "list as many columns as it takes, in its order")
    missing = [name for name in by_name if name not in inputs]
    if missing and all(name in by_name for name in inputs):  # otherwise a misspelled name is reported above
        message = f"no columns are listed for input {', '.join(missing)}"
        yield Incompatibility(("model", "inputs"), message, f"add {missing[0]}: [COLUMN, ...]")


def _match_kinds(graph: GraphInterface, numeric: Sequence[str], categorical: Sequence[str]) -> dict[str, Sequence[str]]:
    """One matrix for the numeric columns and one for the categorical ones."""
    texts = [tensor.name for tensor in graph.inputs if tensor.element == "STRING"]
    numbers = [tensor.name for tensor in graph.inputs if tensor.element != "STRING"]
    if len(texts) > 1 or len(numbers) > 1:
        names = ", ".join(tensor.name for tensor in graph.inputs)
        raise DataError(
            f"which columns go into which input? The graph has {names}, and not all of them are columns of the table",
            hint=f"set model.inputs: {{{graph.inputs[0].name}: [COLUMN, ...], ...}}",
        )
    return dict.fromkeys(numbers, numeric) | dict.fromkeys(texts, categorical)


def _map_input(
    tensor: GraphIO, columns: tuple[str, ...], kinds: Mapping[str, Literal["numeric", "categorical"]]
) -> ColumnMapping:
    kind: Literal["numeric", "categorical"] = "categorical" if tensor.element == "STRING" else "numeric"
    for column in columns:
        if column not in kinds:
            close = closest_match(column, kinds)
            hint = f"did you mean {close}?" if close else f"its features are {', '.join(list(kinds)[:12])}"
            raise DataError(f"model.inputs.{tensor.name} names {column!r}, which is no feature of the table", hint=hint)
        if kinds[column] != kind:
            takes = "text" if kind == "categorical" else "numbers"
            message = f"input {tensor.name} takes {takes}, and column {column!r} is {kinds[column]}"
            raise DataError(message, hint=f"declare data.columns: {{{column}: {kind}}}")
    if not columns or (tensor.width is not None and tensor.width != len(columns)):
        raise DataError(
            f"input {tensor.name} takes {_count_columns(tensor.width)}; the table has {len(columns)} {kind} columns",
            hint=f"drop the other columns (data.drop), or set model.inputs: {{{tensor.name}: [COLUMN, ...]}}",
        )
    return ColumnMapping(tensor, kind, columns)


def _check_outputs(graph: GraphInterface, task: str, outputs: Mapping[str, str]) -> Iterator[Incompatibility]:
    if task not in ROLES:
        return
    by_name = {tensor.name: tensor for tensor in graph.outputs}
    for role, name in outputs.items():
        key = ("model", "outputs", role)
        if role not in ROLES[task]:
            continue  # reported by the recipe's own rules
        if name not in by_name:
            close = closest_match(name, by_name)
            hint = f"did you mean {close}?" if close else f"its outputs are {', '.join(by_name)}"
            yield Incompatibility(key, f"the graph has no output {name!r}", hint)
        elif not (_may_be_label if role == "label" else _may_be_scores)(by_name[name]):
            message = f"output {_format_io(by_name[name])} cannot be the {role}"
            yield Incompatibility(key, message, f"see {_expected_shapes(task)}")
    if any(role in outputs for role in ROLES[task] if role != "label"):
        return
    scores = _score_outputs(graph)
    if len(scores) != 1:
        count, role = "more than one" if scores else "no", ROLES[task][0]
        listed = ", ".join(_format_io(tensor) for tensor in (scores or graph.outputs))
        hint = f"export it with {_expected_shapes(task)}"
        if scores:
            hint = f"set model.outputs: {{{role}: {scores[0].name}}}"
        elif any(tensor.element == "" for tensor in graph.outputs):
            hint = "a list of dictionaries is no tensor: convert with options={id(model): {'zipmap': False}}"
        yield Incompatibility(("model", "path"), f"the graph has {count} output that may be the {role}: {listed}", hint)


def _score_outputs(graph: GraphInterface) -> list[GraphIO]:
    """Outputs that may be probabilities or values; of several, the one with a conventional name."""
    candidates = [tensor for tensor in graph.outputs if _may_be_scores(tensor)]
    conventional = ("probabilities", "output_probability", "prediction")
    named = [tensor for tensor in candidates if tensor.name.lower() in conventional]
    return named if len(named) == 1 else candidates


def _may_be_scores(tensor: GraphIO) -> bool:
    return tensor.element in FLOATS and tensor.rank in (1, 2, None)


def _may_be_label(tensor: GraphIO) -> bool:
    is_label = tensor.element in ("INT64", "INT32", "STRING", "BOOL")
    return is_label and tensor.rank in (1, 2, None) and tensor.width in (1, None)


def _expected_shapes(task: str) -> str:
    if task == "regression":
        return "float values [rows] or [rows, 1]"
    return "float scores [rows, classes], or [rows] of the positive class, and labels [rows]"


def _graph_io(value: Any) -> GraphIO:
    from onnx import TensorProto

    if not value.type.HasField("tensor_type"):
        return GraphIO(value.name, "", None, None, None)
    kind = value.type.tensor_type
    element = str(TensorProto.DataType.Name(kind.elem_type))
    if not kind.HasField("shape"):
        return GraphIO(value.name, element, None, None, None)
    sizes = [item.dim_value if item.HasField("dim_value") and item.dim_value > 0 else None for item in kind.shape.dim]
    width = 1 if len(sizes) == 1 else sizes[1] if len(sizes) == 2 else None
    return GraphIO(value.name, element, len(sizes), sizes[0] if sizes else None, width)


def _format_io(tensor: GraphIO) -> str:
    if tensor.element == "":
        return f"{tensor.name} (no tensor)"
    shapes = {None: "", 1: " [rows]", 2: f" [rows, {tensor.width or '?'}]"}
    shape = shapes.get(tensor.rank, f" of {tensor.rank} dimensions")
    return f"{tensor.name} ({tensor.element.lower()}{shape})"


def _count_columns(width: int | None) -> str:
    return "columns" if width is None else format_count(width, "column")
