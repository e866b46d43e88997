"""A graph from elsewhere as the model of a recipe: which columns its inputs take, which answers its outputs are.

Pure judgement over names, types and dimensions. What is supported:

inputs    numbers of any width, booleans or strings, with the rows as an open first dimension: one matrix [rows, k] for
          the numeric columns and one for the categorical ones, or one input a column ([rows] or [rows, 1]), or
          whatever ``model.inputs`` says. Numbers arrive as float32 and are cast; a missing number is NaN, a missing
          text "".
outputs   of a classification: probabilities or logits [rows, classes], or [rows] or [rows, 1] of the positive class,
          and optionally labels [rows]; of a regression: values [rows] or [rows, 1]. Found by type and shape where only
          one is possible, else named by ``model.outputs``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlflowkit.errors import DataError, nearest

NUMBERS = (
    "FLOAT",
    "DOUBLE",
    "FLOAT16",
    "INT64",
    "INT32",
    "INT16",
    "INT8",
    "UINT64",
    "UINT32",
    "UINT16",
    "UINT8",
    "BOOL",
)
"""Element types that numbers from a table can be cast to."""
FLOATS = ("FLOAT", "DOUBLE", "FLOAT16")
WHOLE = ("INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8", "BOOL")
"""Element types that cannot hold a missing value."""
ROLES: Mapping[str, tuple[str, ...]] = {
    "classification": ("probabilities", "logits", "label"),
    "regression": ("prediction",),
}
"""What outputs can be, by task."""


@dataclass(frozen=True, slots=True)
class Port:
    """An input or an output. ``element`` is "" for what is no tensor; None is a rank or a size that is open.

    ``width`` is the number of columns: the second dimension, 1 where there is none.
    """

    name: str
    element: str
    rank: int | None
    rows: int | None
    width: int | None


@dataclass(frozen=True, slots=True)
class Graph:
    """Inputs and outputs in the graph's order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a graph cannot serve as a recipe says, at a key of the recipe."""

    key: tuple[str, ...]
    message: str
    hint: str
    at_key: bool = False


@dataclass(frozen=True, slots=True)
class Feed:
    """The columns that an input takes, in its order."""

    port: Port
    kind: Literal["numeric", "categorical"]
    columns: tuple[str, ...]


def describe(model: Any) -> Graph:
    """Inputs (without those that are constants) and outputs of an onnx.ModelProto."""
    constants = {constant.name for constant in model.graph.initializer}
    inputs = tuple(_port(value) for value in model.graph.input if value.name not in constants)
    return Graph(inputs, tuple(_port(value) for value in model.graph.output))


def objections(
    graph: Graph, task: str, inputs: Mapping[str, Sequence[str]] | None, outputs: Mapping[str, str]
) -> list[Objection]:
    """What forbids a graph to be the model, as far as it shows without the table.

    >>> row = Port("x", "FLOAT", 2, 1, 4)
    >>> objections(Graph((row,), (Port("y", "FLOAT", 2, None, 1),)), "regression", None, {})[0].message
    'input x takes exactly 1 row; requests and batches need any number of rows'
    """
    return [*_of_inputs(graph, inputs), *_of_outputs(graph, task, outputs)]


def answers(graph: Graph, task: str, outputs: Mapping[str, str]) -> dict[str, Port]:
    """The outputs by role (see ROLES), for a graph without `objections`.

    >>> scores, label = Port("p", "FLOAT", 2, None, 2), Port("l", "INT64", 1, None, 1)
    >>> found = answers(Graph((), (label, scores)), "classification", {})
    >>> {role: port.name for role, port in found.items()}
    {'probabilities': 'p', 'label': 'l'}
    """
    by_name = {port.name: port for port in graph.outputs}
    found = {role: by_name[name] for role, name in outputs.items()}
    if task == "regression":
        return found or {"prediction": _scores(graph)[0]}
    if "probabilities" not in found and "logits" not in found:
        found = {"probabilities": _scores(graph)[0], **found}
    labels = [port for port in graph.outputs if _may_be_label(port) and port not in found.values()]
    if "label" not in found and len(labels) == 1:
        found["label"] = labels[0]
    return found


def feeds(
    graph: Graph,
    inputs: Mapping[str, Sequence[str]] | None,
    numeric: Sequence[str],
    categorical: Sequence[str],
) -> tuple[Feed, ...]:
    """The columns of each input: as the recipe says, else by name, else one matrix for each kind of column.

    Raises DataError when the table's columns do not go into the graph's inputs, all of them.
    """
    kinds: dict[str, Literal["numeric", "categorical"]] = dict.fromkeys(numeric, "numeric")
    kinds |= dict.fromkeys(categorical, "categorical")
    named = inputs if inputs is not None else _by_name(graph, kinds) or _by_kind(graph, numeric, categorical)
    found = tuple(_feed(port, tuple(named[port.name]), kinds) for port in graph.inputs)
    taken = {column for feed in found for column in feed.columns}
    if unused := [name for name in kinds if name not in taken]:
        raise DataError(
            f"{_listed(unused)} of the table goes into no input of the graph",
            hint=f"data.drop: [{', '.join(unused)}], or name them under model.inputs",
        )
    return found


def graph_classes(declared: Sequence[str | int] | None, classes: Sequence[str | int]) -> tuple[str | int, ...]:
    """The classes in the order of the graph's scores: as the recipe declares them, else sorted as scikit-learn does.

    Raises DataError when the declared ones are not the table's.

    >>> graph_classes(None, ["good", "bad"])
    ('bad', 'good')
    """
    if declared is None:
        return tuple(sorted(classes))
    by_text = {str(label): label for label in classes}
    texts = [str(int(label)) if isinstance(label, bool) else str(label) for label in declared]
    if sorted(texts) != sorted(by_text):
        raise DataError(
            f"model.classes are {', '.join(map(repr, declared))}; the target has {', '.join(map(repr, classes))}",
            hint="list each class of the target once, in the order of the graph's scores",
        )
    return tuple(by_text[text] for text in texts)


# ------------------------------------------------------------------------------------------------------------ inputs


def _of_inputs(graph: Graph, inputs: Mapping[str, Sequence[str]] | None) -> Iterator[Objection]:
    place = ("model", "path")
    if not graph.inputs:
        yield Objection(place, "the graph has no inputs", "export it with the features as input")
    for port in graph.inputs:
        if port.element not in (*NUMBERS, "STRING"):
            what = port.element or "no tensor"
            yield Objection(place, f"input {port.name} is {what}; a table gives numbers and strings", "cast it inside")
        elif port.rank not in (1, 2):
            shape = "an unknown shape" if port.rank is None else f"{port.rank} dimensions"
            hint = "reshape it inside the graph, so that its input is [rows, columns]"
            yield Objection(place, f"input {port.name} has {shape}; a table gives rows of columns", hint)
        elif port.rows is not None:
            rows = f"exactly {port.rows} row{'' if port.rows == 1 else 's'}"
            hint = (
                f"export it with an open first dimension: dynamic_axes={{{port.name!r}: {{0: 'rows'}}}} with torch, "
                "FloatTensorType([None, columns]) with skl2onnx"
            )
            yield Objection(
                place, f"input {port.name} takes {rows}; requests and batches need any number of rows", hint
            )
    if inputs is not None:
        yield from _of_declared(graph, inputs)


def _of_declared(graph: Graph, inputs: Mapping[str, Sequence[str]]) -> Iterator[Objection]:
    ports = {port.name: port for port in graph.inputs}
    for name, columns in inputs.items():
        key = ("model", "inputs", name)
        if name not in ports:
            close = nearest(name, ports)
            hint = f"did you mean {close}?" if close else f"its inputs are {', '.join(ports)}"
            yield Objection(key, f"the graph has no input {name!r}", hint, at_key=True)
        elif ports[name].width is not None and ports[name].width != len(columns):
            message = f"input {name} takes {_columns(ports[name].width)}, and {len(columns)} are listed"
            yield Objection(key, message, "list as many columns as it takes, in its order")
    missing = [name for name in ports if name not in inputs]
    if missing and all(name in ports for name in inputs):  # else one of them is meant
        message = f"nothing is said of input {', '.join(missing)}"
        yield Objection(("model", "inputs"), message, f"add {missing[0]}: [COLUMN, ...]")


def _by_name(graph: Graph, kinds: Mapping[str, str]) -> dict[str, list[str]] | None:
    """One input a column, where each input is called as a column is."""
    fits = all(port.name in kinds and port.width in (1, None) for port in graph.inputs)
    return {port.name: [port.name] for port in graph.inputs} if fits else None


def _by_kind(graph: Graph, numeric: Sequence[str], categorical: Sequence[str]) -> dict[str, Sequence[str]]:
    """One matrix for the numeric columns and one for the categorical ones."""
    texts = [port.name for port in graph.inputs if port.element == "STRING"]
    numbers = [port.name for port in graph.inputs if port.element != "STRING"]
    if len(texts) > 1 or len(numbers) > 1:
        names = ", ".join(port.name for port in graph.inputs)
        raise DataError(
            f"which columns go into which input? The graph has {names}, and not all of them are columns of the table",
            hint=f"say model.inputs: {{{graph.inputs[0].name}: [COLUMN, ...], ...}}",
        )
    return dict.fromkeys(numbers, numeric) | dict.fromkeys(texts, categorical)


def _feed(port: Port, columns: tuple[str, ...], kinds: Mapping[str, Literal["numeric", "categorical"]]) -> Feed:
    wanted: Literal["numeric", "categorical"] = "categorical" if port.element == "STRING" else "numeric"
    for column in columns:
        if column not in kinds:
            close = nearest(column, kinds)
            hint = f"did you mean {close}?" if close else f"its features are {', '.join(list(kinds)[:12])}"
            raise DataError(f"model.inputs.{port.name} names {column!r}, which is no feature of the table", hint=hint)
        if kinds[column] != wanted:
            raise DataError(
                f"input {port.name} takes {'text' if wanted == 'categorical' else 'numbers'}, and column {column!r} is "
                f"{kinds[column]}",
                hint=f"declare data.columns: {{{column}: {wanted}}}",
            )
    if not columns or (port.width is not None and port.width != len(columns)):
        raise DataError(
            f"input {port.name} takes {_columns(port.width)}, and the table has {len(columns)} {wanted} of them",
            hint=f"drop what it does not take (data.drop), or say model.inputs: {{{port.name}: [COLUMN, ...]}}",
        )
    return Feed(port, wanted, columns)


# ----------------------------------------------------------------------------------------------------------- outputs


def _of_outputs(graph: Graph, task: str, outputs: Mapping[str, str]) -> Iterator[Objection]:
    if task not in ROLES:
        return
    ports = {port.name: port for port in graph.outputs}
    for role, name in outputs.items():
        key = ("model", "outputs", role)
        if role not in ROLES[task]:
            continue  # a fault of the recipe alone
        if name not in ports:
            close = nearest(name, ports)
            hint = f"did you mean {close}?" if close else f"its outputs are {', '.join(ports)}"
            yield Objection(key, f"the graph has no output {name!r}", hint)
        elif not (_may_be_label if role == "label" else _may_be_scores)(ports[name]):
            yield Objection(key, f"output {_shown(ports[name])} cannot be the {role}", f"see {_shapes(task)}")
    if any(role in outputs for role in ROLES[task] if role != "label"):
        return
    found = _scores(graph)
    if len(found) != 1:
        what, role = ("no", ROLES[task][0]) if not found else ("more than one", ROLES[task][0])
        listed = ", ".join(_shown(port) for port in (found or graph.outputs))
        hint = f"say model.outputs: {{{role}: {found[0].name}}}" if found else _without_scores(graph, task)
        yield Objection(("model", "path"), f"the graph has {what} output that may be the {role}: {listed}", hint)


def _scores(graph: Graph) -> list[Port]:
    """The outputs that may be probabilities or values; of several, the one that is called so."""
    found = [port for port in graph.outputs if _may_be_scores(port)]
    named = [port for port in found if port.name.lower() in ("probabilities", "output_probability", "prediction")]
    return named if len(named) == 1 else found


def _may_be_scores(port: Port) -> bool:
    return port.element in FLOATS and port.rank in (1, 2, None)


def _may_be_label(port: Port) -> bool:
    return (
        port.element in ("INT64", "INT32", "STRING", "BOOL") and port.rank in (1, 2, None) and port.width in (1, None)
    )


def _without_scores(graph: Graph, task: str) -> str:
    if any(port.element == "" for port in graph.outputs):
        return "a list of dictionaries is no tensor: convert with options={id(model): {'zipmap': False}}"
    return f"export it with {_shapes(task)}"


def _shapes(task: str) -> str:
    if task == "regression":
        return "float values [rows] or [rows, 1]"
    return "float scores [rows, classes], or [rows] of the positive class, and labels [rows]"


# ----------------------------------------------------------------------------------------------------------- details


def _port(value: Any) -> Port:
    if not value.type.HasField("tensor_type"):
        return Port(value.name, "", None, None, None)
    kind = value.type.tensor_type
    element = _element(kind.elem_type)
    if not kind.HasField("shape"):
        return Port(value.name, element, None, None, None)
    sizes = [item.dim_value if item.HasField("dim_value") and item.dim_value > 0 else None for item in kind.shape.dim]
    width = 1 if len(sizes) == 1 else sizes[1] if len(sizes) == 2 else None
    return Port(value.name, element, len(sizes), sizes[0] if sizes else None, width)


def _element(number: int) -> str:
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(number))


def _shown(port: Port) -> str:
    if port.element == "":
        return f"{port.name} (no tensor)"
    shape = {None: "", 1: " [rows]", 2: f" [rows, {port.width or '?'}]"}.get(port.rank, f" of {port.rank} dimensions")
    return f"{port.name} ({port.element.lower()}{shape})"


def _columns(width: int | None) -> str:
    return "columns" if width is None else f"{width} column{'' if width == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"column{'' if len(names) == 1 else 's'} {shown}"
