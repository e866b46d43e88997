"""Which requests and replies of a model's clients change when another version takes over. Pure.

A client was written for the signature of the champion. A change is *breaking* when requests that the champion answers
are refused by the candidate, or are answered with something that the client cannot read or would misread. Three kinds
of clients are considered together: those that send rows (``POST /predict``), a tensor for each column, and whole
tensors (Open Inference Protocol); the last depend on the order of columns and classes as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from mlflowkit.features.dates.date_terms import ZONES
from mlflowkit.values import Json

if TYPE_CHECKING:
    from mlflowkit.bundle import Signature, TensorSpec

MAX_NAMED = 5
"""Categories or classes that a message names."""
ChangeKind = Literal[
    "column-removed", "column-added", "column-kind", "column-order", "input", "category-removed", "task", "classes",
    "output", "texts", "threshold",
]  # fmt: skip
Categories = Mapping[str, frozenset[str]]
"""Every training value of a categorical column, for the columns where all of them are known."""


@dataclass(frozen=True, slots=True)
class Leniency:
    """How a service treats columns that a version does not know (``serve.unknown_columns``) or was not given
    (``serve.missing_columns``)."""

    ignores_unknown: bool = False
    fills_missing: bool = False


@dataclass(frozen=True, slots=True)
class SignatureChange:
    """One difference between two signatures. ``subject`` is the column, tensor or field."""

    kind: ChangeKind
    subject: str
    breaking: bool
    message: str

    def to_json(self) -> dict[str, Json]:
        return asdict(self)


def compare_signatures(
    champion: Signature,
    candidate: Signature,
    leniency: Leniency = Leniency(),
    categories: tuple[Categories, Categories] = ({}, {}),
) -> tuple[SignatureChange, ...]:
    """What changes for clients of ``champion`` when ``candidate`` answers them; breaking changes first.

    ``categories`` are those of the two versions, in this order.
    """
    changes = [
        *_column_changes(champion, candidate, leniency),
        *_input_changes(champion, candidate),
        *_text_changes(champion, candidate),
        *_category_changes(*categories),
        *_answer_changes(champion, candidate),
    ]
    return tuple(sorted(changes, key=lambda change: not change.breaking))


def breaking_changes(changes: Iterable[SignatureChange]) -> tuple[SignatureChange, ...]:
    return tuple(change for change in changes if change.breaking)


def summarize_changes(changes: Sequence[SignatureChange]) -> str:
    """The messages of some changes in one sentence, at most `MAX_NAMED` of them.

    >>> summarize_changes([SignatureChange("task", "task", True, "the task is another")])
    'the task is another'
    """
    more = f"; and {len(changes) - MAX_NAMED} more" if len(changes) > MAX_NAMED else ""
    return "; ".join(change.message for change in changes[:MAX_NAMED]) + more


def _columns(signature: Signature) -> dict[str, TensorSpec]:
    return {column: tensor for tensor in signature.inputs for column in tensor.columns}


def _kind(tensor: TensorSpec) -> str:
    return "categorical" if tensor.datatype == "BYTES" else "numeric"


def _column_changes(champion: Signature, candidate: Signature, leniency: Leniency) -> Iterable[SignatureChange]:
    before, now = _columns(champion), _columns(candidate)
    if not before or not now:  # a graph without named columns is compared tensor by tensor
        return
    for column in before:
        if column not in now:
            effect = "it is ignored in requests" if leniency.ignores_unknown else "requests that have it are refused"
            message = f"column {column} is gone: {effect}"
            yield SignatureChange("column-removed", column, not leniency.ignores_unknown, message)
    for column, tensor in now.items():
        if column not in before:
            lenient = leniency.fills_missing
            effect = "it is taken as missing where it is not sent" if lenient else "requests without it are refused"
            message = f"column {column} ({_kind(tensor)}) is new: {effect}"
            yield SignatureChange("column-added", column, not leniency.fills_missing, message)
        elif _kind(before[column]) != _kind(tensor):
            message = f"column {column} was {_kind(before[column])} and is {_kind(tensor)}"
            yield SignatureChange("column-kind", column, True, message)
    others = {tensor.name: tensor.columns for tensor in candidate.inputs}
    for tensor in champion.inputs:
        columns = others.get(tensor.name, ())
        if len(columns) == len(tensor.columns) and columns != tensor.columns:
            moved = [f"{old} -> {new}" for old, new in zip(tensor.columns, columns, strict=True) if old != new]
            named = ", ".join(moved[:MAX_NAMED]) + (", …" if len(moved) > MAX_NAMED else "")
            message = f"tensor {tensor.name} has other columns in the same places ({named}): whole tensors are misread"
            yield SignatureChange("column-order", tensor.name, True, message)


def _input_changes(champion: Signature, candidate: Signature) -> Iterable[SignatureChange]:
    """Tensors without named columns (imported graphs), and one whose numbers have another datatype."""
    before = {tensor.name: tensor for tensor in champion.inputs}
    now = {tensor.name: tensor for tensor in candidate.inputs}
    for name, tensor in before.items():
        other = now.get(name)
        if tensor.columns and (other is None or other.columns):
            if other is not None and tensor.datatype != other.datatype and _kind(tensor) == _kind(other):
                yield SignatureChange(
                    "input", name, True, f"input {name} was {tensor.datatype} and is {other.datatype}"
                )
        elif other is None:
            yield SignatureChange("input", name, True, f"input {name} is gone")
        elif _form(tensor) != _form(other):
            yield SignatureChange("input", name, True, f"input {name} was {_form(tensor)} and is {_form(other)}")
    for name, tensor in now.items():
        if name not in before and not (tensor.columns and _columns(champion)):
            yield SignatureChange("input", name, True, f"input {name} is new")


def _text_changes(champion: Signature, candidate: Signature) -> Iterable[SignatureChange]:
    """How texts are read: of categories in requests, and of numbers in files that a client scores by the service."""
    before, now = champion.texts, candidate.texts
    for field, mark in (("decimal", "decimal mark"), ("thousands", "separator of thousands")):
        old, new = getattr(before, field), getattr(now, field)
        if old != new and old != type(before)().model_dump()[field]:
            message = f"the {mark} of numbers in files for mlkit predict was {old!r} and is {new!r}"
            yield SignatureChange("texts", field, True, message)
    lost = [unit for unit in before.units if unit not in now.units]
    if lost:
        yield SignatureChange(
            "texts", "units", True, f"numbers in files for mlkit predict may no longer have {_listed(lost)}"
        )
    for column in before.dates.keys() & now.dates.keys():
        if before.dates[column] != now.dates[column]:
            message = f"dates of {column} were {ZONES[before.dates[column]]} and are {ZONES[now.dates[column]]}"
            yield SignatureChange("texts", column, True, message)
    for column in before.tokens.keys() | now.tokens.keys():
        if before.tokens.get(column) != now.tokens.get(column):
            yield SignatureChange("texts", column, False, f"the text of {column} is taken apart otherwise than before")
    if (before.missing, before.verbatim, before.trim) != (now.missing, now.verbatim, now.trim):
        message = "other texts count as missing, or are kept as they are, than before"
        yield SignatureChange("texts", "missing", False, message)


def _category_changes(before: Categories, now: Categories) -> Iterable[SignatureChange]:
    """Values that the champion was trained on and the candidate was not: it answers them as unknown."""
    for column, values in before.items():
        lost = sorted(values - now[column] - {""}) if column in now else []
        if lost:
            named = _listed(lost)
            message = (
                f"column {column}: {named} {'is' if len(lost) == 1 else 'are'} unknown to it, and answered as such"
            )
            yield SignatureChange("category-removed", column, False, message)


def _answer_changes(champion: Signature, candidate: Signature) -> Iterable[SignatureChange]:
    if champion.task != candidate.task:
        yield SignatureChange("task", "task", True, f"it was a {champion.task} and is a {candidate.task}")
        return
    if champion.classes != candidate.classes:
        yield SignatureChange("classes", "classes", True, _classes_message(champion.classes, candidate.classes))
    elif champion.threshold != candidate.threshold:
        old, new = (0.5 if side.threshold is None else side.threshold for side in (champion, candidate))
        message = f"{champion.classes[-1]} is the label from a probability of {new:.4g} on, and was from {old:.4g}"
        yield SignatureChange("threshold", "label", False, message)
    before = {tensor.name: tensor for tensor in champion.outputs}
    now = {tensor.name: tensor for tensor in candidate.outputs}
    for name, tensor in before.items():
        if name not in now:
            yield SignatureChange("output", name, True, f"output {name} is gone")
        elif _form(tensor) != _form(now[name]) and champion.classes == candidate.classes:
            yield SignatureChange("output", name, True, f"output {name} was {_form(tensor)} and is {_form(now[name])}")
    for name in now:
        if name not in before:
            yield SignatureChange("output", name, False, f"output {name} is new")


def _classes_message(before: Sequence[str | int], now: Sequence[str | int]) -> str:
    lost = [label for label in before if label not in now]
    added = [label for label in now if label not in before]
    if not lost and not added:
        return f"the classes are in another order: {', '.join(map(str, now[:MAX_NAMED]))}"
    parts = [f"{word} {_listed(labels)}" for word, labels in (("without", lost), ("with", added)) if labels]
    return f"other classes: {', '.join(parts)}"


def _form(tensor: TensorSpec) -> str:
    return f"{tensor.datatype} {list(tensor.shape)}"


def _listed(values: Sequence[str | int]) -> str:
    """
    >>> _listed(["a", 1])
    "'a', 1"
    """
    shown = ", ".join(map(repr, values[:MAX_NAMED]))
    return f"{shown} and {len(values) - MAX_NAMED} more" if len(values) > MAX_NAMED else shown
