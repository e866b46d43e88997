"""Parity: the difference between a graph's predictions and the Python model's, on real rows.

Both sides are asked for the same rows several times: all at once, one by one and in batches of several sizes, because a
model that looks at the other rows of its batch, or at their number, cannot be served. Python is asked twice for all
rows, because a model that draws random numbers has no answer to compare with, and once in double precision, because
float32 on both sides would agree on values that float32 merges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mlflowkit.bundle import Signature

Tensors = Mapping[str, np.ndarray]

UNSEEN = "\N{WORD JOINER}unseen\N{WORD JOINER}"
"""A category that occurs in no table."""
PROBABILITY_TOLERANCE = 1e-3
"""Largest deviation of the sum of probabilities from 1."""
SINGLE_ROWS = 16
"""Rows that are also predicted one at a time."""
BATCHES = (2, 3, 7, 32)
"""Sizes of the batches after the single rows; the rest, but for the last row, is one batch."""


@dataclass(frozen=True, slots=True)
class Parity:
    """The difference between the graph's predictions and the Python model's.

    ``max_abs_difference`` is of probabilities, or of predictions in standard deviations of the target (``scale``).
    ``worst_row`` is an index into the compared rows; a label mismatch counts where the Python model's two best classes
    are further apart than the tolerance, so that rounding cannot explain it.
    """

    rows: int
    real_rows: int
    max_abs_difference: float
    label_mismatches: int
    tolerance: float
    scale: float
    worst_row: int
    expected: float | str | int
    found: float | str | int
    rows_apart: int = 0
    """Rows that differ by more than the tolerance."""

    @property
    def holds(self) -> bool:
        return self.label_mismatches == 0 and self.max_abs_difference <= self.tolerance


def invalid_reason(outputs: Tensors, classes: Sequence[str | int]) -> str:
    """Why an external graph's outputs are invalid (not finite, no probabilities, unknown labels); "" if they are not.

    >>> invalid_reason({"probabilities": np.array([[0.5, 0.5], [3.0, -1.0]]), "label": np.array([0, 1])}, (0, 1))
    'row 1 has probabilities [3.0, -1.0]'
    """
    name = _scores_name(outputs)
    scores = np.asarray(outputs[name], np.float64).reshape(len(outputs[name]), -1)
    good = np.isfinite(scores).all(axis=1)
    if name == "probabilities":
        sums = np.abs(scores.sum(axis=1) - 1) <= PROBABILITY_TOLERANCE
        good &= sums & (scores >= -PROBABILITY_TOLERANCE).all(axis=1)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        return f"row {row} has {name} {[round(value, 4) for value in scores[row].tolist()]}"
    unknown = sorted({str(label) for label in outputs.get("label", ())} - {str(label) for label in classes})
    return f"label {unknown[0]!r} is no class of the target" if unknown else ""


def with_gaps(real: Tensors, seed: int) -> dict[str, np.ndarray]:
    """The rows, then a quarter of them again with cells blanked, then with unknown categories, then one blank row.

    >>> inputs = with_gaps({"numeric": np.zeros((4, 2), np.float32)}, seed=0)
    >>> inputs["numeric"].shape, bool(np.isnan(inputs["numeric"][-1]).all())
    ((6, 2), True)
    """
    rows = row_count(real)
    sample = np.sort(np.random.default_rng(seed + 1).choice(rows, max(1, rows // 4), replace=False))
    blanks = {"numeric": np.nan, "dates": np.nan, "categorical": ""}
    blanked = {name: _fill(matrix[sample], blanks[name], seed) for name, matrix in real.items()}
    empty = {name: np.full_like(matrix[:1], blanks[name]) for name, matrix in real.items()}
    blocks = [real, blanked, empty]
    if "categorical" in real:
        unseen = _fill(real["categorical"][sample], UNSEEN, seed + 2)
        blocks.insert(2, {**{name: matrix[sample] for name, matrix in real.items()}, "categorical": unseen})
    return {name: np.concatenate([block[name] for block in blocks]) for name in real}


def _fill(matrix: np.ndarray, value: object, seed: int) -> np.ndarray:
    """A copy in which about a quarter of the cells, at least one in each row, are ``value``."""
    generator = np.random.default_rng(seed)
    mask = generator.random(matrix.shape) < 0.25
    mask[np.arange(len(matrix)), generator.integers(matrix.shape[1], size=len(matrix))] = True
    copy = matrix.copy()
    copy[mask] = value
    return copy


def compare(expected: Tensors, actual: Tensors, tolerance: float, *, scale: float = 1.0, real_rows: int = 0) -> Parity:
    """Compare the graph's outputs with the Python model's (outputs as in bundle.Signature).

    Outputs that are not finite on one side only, or of another shape, count as infinitely far apart.

    >>> expected = {"prediction": np.array([1.0, 2.0])}
    >>> compare(expected, {"prediction": np.array([1.0, 2.5])}, 0.1, scale=2.0).max_abs_difference
    0.25
    """
    name = _scores_name(expected)
    want, have = np.asarray(expected[name], np.float64), np.asarray(actual[name], np.float64)
    rows = len(want)
    sides = (expected, actual)
    if want.shape != have.shape or len({len(side["label"]) for side in sides if "label" in side}) > 1:
        shapes = tuple(str([list(np.shape(part)) for part in side.values()]) for side in sides)
        return Parity(rows, real_rows, float("inf"), rows, tolerance, scale, 0, shapes[0], shapes[1], rows)
    with np.errstate(invalid="ignore"):
        gap = np.nan_to_num(np.abs(want - have) / scale, nan=np.inf)
    gap = np.where((want == have) | (np.isnan(want) & np.isnan(have)), 0, gap).reshape(rows, -1)
    mismatched = _label_mismatches(expected, actual, want, tolerance)
    worst = int(mismatched[0]) if mismatched.size else int(gap.max(axis=1).argmax())
    cell = int(gap[worst].argmax())
    want_worst, have_worst = (float(side.reshape(rows, -1)[worst, cell]) for side in (want, have))
    largest, count = float(gap.max()), int((gap.max(axis=1) > tolerance).sum())
    return Parity(rows, real_rows, largest, len(mismatched), tolerance, scale, worst, want_worst, have_worst, count)


def _label_mismatches(expected: Tensors, actual: Tensors, scores: np.ndarray, tolerance: float) -> np.ndarray:
    """Rows whose labels differ though the Python model's two best classes are clearly apart."""
    if "label" not in expected:
        return np.empty(0, dtype=np.int64)
    best = np.sort(scores, axis=1)
    clear = best[:, -1] - best[:, -2] > 2 * tolerance
    differ = np.array([a != b for a, b in zip(expected["label"], actual["label"], strict=True)], dtype=bool)
    return np.flatnonzero(differ & clear)


def describe(parity: Parity, inputs: Tensors, signature: Signature, reference: str = "the Python model") -> str:
    """A message with the size of the difference, the row where it is largest, and that row's values."""
    unit = " standard deviations of the target" if parity.scale != 1.0 else ""
    row = parity.worst_row
    origin = "" if row < parity.real_rows else " (a validation row with cells blanked or unknown categories)"
    values = [
        f"{column}={inputs[tensor.name][row].tolist()[index]!r}"
        for tensor in signature.inputs
        for index, column in enumerate(tensor.columns)
    ]
    shown = ", ".join(values[:12]) + (f" and {len(values) - 12} more" if len(values) > 12 else "")
    return (
        f"the graph differs from {reference} by {parity.max_abs_difference:.3g}{unit} "
        f"(export.tolerance {parity.tolerance:g}) and in {parity.label_mismatches} of {parity.rows} labels; "
        f"the worst is row {row}{origin}: {parity.found!r} instead of {parity.expected!r} for {shown}"
    )


def pieces_of(rows: int) -> list[slice]:
    """Consecutive pieces of ``rows`` rows: single ones, small batches, the rest, and the last row alone.

    >>> [piece.stop - piece.start for piece in pieces_of(70)][14:]
    [1, 1, 2, 3, 7, 32, 9, 1]
    """
    sizes = [*[1] * SINGLE_ROWS, *BATCHES]
    ends = [0]
    for size in sizes:
        if ends[-1] + size < rows - 1:
            ends.append(ends[-1] + size)
    ends += [end for end in (rows - 1, rows) if end > ends[-1]]
    return [slice(start, end) for start, end in pairwise(ends)]


def predict_in_pieces(predict: Callable[[Tensors], Tensors], inputs: Tensors) -> dict[str, np.ndarray]:
    """The outputs for all rows, asked for in `pieces_of` them."""
    rows = row_count(inputs)
    parts = [predict({name: matrix[piece] for name, matrix in inputs.items()}) for piece in pieces_of(rows)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _scores_name(outputs: Tensors) -> str:
    return "prediction" if "prediction" in outputs else "probabilities"


def row_count(inputs: Tensors) -> int:
    return len(next(iter(inputs.values())))
