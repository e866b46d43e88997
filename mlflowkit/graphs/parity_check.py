"""Measures the parity of an exported graph with its model, and refuses a graph or a model that cannot be served."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mlflowkit.bundle import Signature
from mlflowkit.errors import EngineError, UserCodeError
from mlflowkit.graphs.parity import Parity, Tensors, compare, describe, predict_in_pieces
from mlflowkit.ports import ReferenceModel, Session

SAME_ANSWER = 1e-4
"""Differences between two answers of the Python model up to this are rounding (other batch sizes sum otherwise)."""
ROUNDING = 1e-3
"""The largest difference that rounding in float32 explains; above it, another tolerance is no remedy."""
RANDOM_HINT = (
    "torch.nn.functional.dropout drops rows also in evaluation: use torch.nn.Dropout in __init__, or pass "
    "training=self.training; and draw no random numbers in forward"
)
BATCH_HINT = "let each row be computed from its own columns only: no mean, sort or branch over dimension 0"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared, and how closely.

    ``inputs`` have numbers in double precision; ``real_rows`` of them come from the table, the rest was made of them.
    ``scale`` is the standard deviation of a regression's target, else 1. Up to ``allowed`` of the rows may differ.
    """

    inputs: Tensors
    signature: Signature
    tolerance: float
    scale: float = 1.0
    real_rows: int = 0
    allowed: float = 0.0
    double: bool = True
    """Whether Python is also asked in double precision."""

    def accepts(self, parity: Parity) -> bool:
        """Whether enough rows agree."""
        apart = max(parity.rows_apart, parity.label_mismatches)
        return parity.holds or (math.isfinite(parity.max_abs_difference) and apart <= self.allowed * parity.rows)


def measure(model: ReferenceModel, session: Session, comparison: Comparison) -> Parity:
    """The parity over all ways of asking. Raises UserCodeError for a model whose answer for a row is random or depends
    on other rows, EngineError where the graph differs by more than the tolerance."""
    inputs = comparison.inputs
    whole = model.predict(inputs)
    _require_one_answer(model, whole, comparison)
    alone = predict_in_pieces(model.predict, inputs)
    _require_independent_rows(model, whole, alone, comparison)

    def graph(part: Tensors) -> Tensors:
        return session.run(as_graph_inputs(comparison.signature, part))

    answers = graph(inputs)
    pairs: list[tuple[str, Tensors, Callable[[], Tensors]]] = [
        ("the Python model", whole, lambda: answers),
        ("the Python model asked row by row", alone, lambda: predict_in_pieces(graph, inputs)),
    ]
    if comparison.double and (double := model.predict_double(inputs)) is not None:
        pairs.append(("the Python model in double precision", double, lambda: answers))
    results = []
    for title, expected, ask in pairs:
        actual = ask()
        parity = _compare(expected, actual, comparison)
        if not comparison.accepts(parity):
            message = describe(parity, inputs, comparison.signature, title)
            raise EngineError(message, hint=_mismatch_hint(parity, model))
        results.append(parity)
    return max(results, key=lambda parity: parity.max_abs_difference)


def as_graph_inputs(signature: Signature, inputs: Tensors) -> dict[str, np.ndarray]:
    """Inputs in the datatypes of a signature: numbers as float32 where the graph takes FP32."""
    single = {tensor.name for tensor in signature.inputs if tensor.datatype == "FP32"}
    with np.errstate(over="ignore"):
        return {name: part.astype(np.float32) if name in single else part for name, part in inputs.items()}


def _compare(expected: Tensors, actual: Tensors, comparison: Comparison, tolerance: float | None = None) -> Parity:
    limit = comparison.tolerance if tolerance is None else tolerance
    return compare(expected, actual, limit, scale=comparison.scale, real_rows=comparison.real_rows)


def _require_one_answer(model: ReferenceModel, whole: Tensors, comparison: Comparison) -> None:
    again = _compare(whole, model.predict(comparison.inputs), comparison, SAME_ANSWER)
    if not again.holds:
        labels = f", and {again.label_mismatches} of {again.rows} labels differ" if again.label_mismatches else ""
        raise UserCodeError(
            f"{model.name} answers at random: asked twice for the same {again.rows} rows it gives scores up to "
            f"{again.max_abs_difference:.3g} apart{labels}",
            hint=RANDOM_HINT if model.kind == "torch" else model.remedy,
        )


def _require_independent_rows(model: ReferenceModel, whole: Tensors, alone: Tensors, comparison: Comparison) -> None:
    parity = _compare(whole, alone, comparison, SAME_ANSWER)
    if not parity.holds:
        raise UserCodeError(
            f"{model.name}'s answer for a row depends on the rows that it is asked with: row {parity.worst_row} is "
            f"{parity.found!r} alone or in a small batch and {parity.expected!r} among all {parity.rows}; "
            f"{parity.label_mismatches} of {parity.rows} labels differ",
            hint=BATCH_HINT if model.kind == "torch" else model.remedy,
        )


def _mismatch_hint(parity: Parity, model: ReferenceModel) -> str:
    """The tolerance that would do where rounding explains the difference; else what the model's kind suggests."""
    if 0 < parity.max_abs_difference <= ROUNDING:
        wide = round_up(parity.max_abs_difference)
        return f"this much may be rounding: to accept it, mlkit run RECIPE export.tolerance={wide:g}"
    return model.remedy


def round_up(value: float) -> float:
    """A positive number rounded up to one significant digit.

    >>> round_up(0.00012), round_up(3e-7)
    (0.0002, 3e-07)
    """
    unit = 10.0 ** math.floor(math.log10(value))
    return float(f"{math.ceil(round(value / unit, 6)) * unit:.1g}")
