"""Exports preprocessing and model as one ONNX graph, and measures its parity with the Python model on real rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from mlflowkit.bundle import Signature
from mlflowkit.errors import EngineError
from mlflowkit.sections import Section
from mlflowkit.stages.base import read_signature, read_table_info, sample_rows
from mlflowkit.values import Event, StageResult

if TYPE_CHECKING:
    import numpy as np

    from mlflowkit.ports import Session, StageContext

PORTS = ("exporter", "runtime")
"""Ports that the result depends on."""

Tensors = Mapping[str, "np.ndarray"]

UNSEEN = "\N{WORD JOINER}unseen\N{WORD JOINER}"
"""A category that occurs in no table."""
PROBABILITY_TOLERANCE = 1e-3
"""Largest deviation of the sum of probabilities from 1."""
EXTERNAL_MODEL_HINT = "are these logits, or other columns than it was trained on? See model.outputs and model.inputs"
SINGLE_ROWS = 8
"""Rows that are also predicted one at a time, to detect a graph with a fixed batch size."""


class ExportSection(Section):
    """Export settings: how close the graph must be to the Python model."""

    tolerance: float = Field(default=1e-4, gt=0)
    """Largest absolute difference allowed between the graph's and the Python model's scores (for a regression:
    relative to the standard deviation of the target)."""
    parity_rows: int = Field(default=1000, ge=1)
    """Rows of the validation part that parity is measured on."""


class Spec(Section):
    """Inputs of the export stage's result, besides its input folders."""

    export: ExportSection


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

    @property
    def holds(self) -> bool:
        return self.label_mismatches == 0 and self.max_abs_difference <= self.tolerance


def run(spec: Spec, context: StageContext) -> StageResult:
    """Write ``model.onnx``, ``signature.json`` and ``parity.json``.

    An external graph is compared with itself before it was wrapped, on real rows alone: its treatment of missing
    values is its own, but its predictions must be finite, and probabilities must sum to 1.

    Raises EngineError when the model has no ONNX form, or when the graph's predictions differ from the Python model's
    by more than ``tolerance`` on validation rows, on the same rows with cells blanked, or with unknown categories; or
    when an external graph's predictions are invalid.
    """
    from mlflowkit.features.tensors import inputs_from_table

    trained, data = context.inputs["train"], context.inputs["data"]
    context.progress(Event("export", "progress", "converting to ONNX", fraction=0.0))
    context.ports.exporter.export(trained, context.folder, context.out)
    signature = _with_text_rule(context.out, data)
    context.progress(Event("export", "progress", "measuring parity with the Python model", fraction=0.5))
    rows = sample_rows(data / "validation.parquet", signature, spec.export.parity_rows, context.seed)
    real = inputs_from_table(signature, rows)
    kind = json.loads((trained / "spec.json").read_text())["spec"]["model"]["kind"]
    is_external = kind == "onnx"
    inputs = real if is_external else with_gaps(real, context.seed)
    expected = context.ports.exporter.predict(trained, context.folder, inputs)
    actual = _predict(context.ports.runtime.load(context.out / "model.onnx"), inputs)
    scale = _target_deviation(data) if signature.task == "regression" else 1.0
    parity = compare(expected, actual, spec.export.tolerance, scale=scale, real_rows=_row_count(real))
    if not parity.holds:
        hint = "does the model's forward depend on values or on the batch size? If the difference is rounding, "
        hint += f"raise it: mlkit run RECIPE export.tolerance={spec.export.tolerance * 10:g}"
        raise EngineError(describe(parity, inputs, signature), hint=hint)
    if is_external and (fault := invalid_reason(expected, signature.classes)):
        raise EngineError(f"the graph's predictions of validation rows are invalid: {fault}", hint=EXTERNAL_MODEL_HINT)
    (context.out / "parity.json").write_text(json.dumps(asdict(parity), indent=1))
    metrics = {
        "parity_max_abs_difference": parity.max_abs_difference,
        "parity_rows": float(parity.rows),
        "graph_bytes": float((context.out / "model.onnx").stat().st_size),
    }
    summary = {"parity": asdict(parity), "signature": signature.model_dump(mode="json")}
    return StageResult(metrics=metrics, summary=summary)


def _with_text_rule(out: Path, data: Path) -> Signature:
    """The exporter's signature, with what the table's texts mean: the service reads them as the data stage did."""
    signature = read_signature(out).model_copy(update={"texts": read_table_info(data).texts})
    (out / "signature.json").write_text(signature.model_dump_json(indent=1))
    return signature


def invalid_reason(outputs: Tensors, classes: Sequence[str | int]) -> str:
    """Why an external graph's outputs are invalid (not finite, no probabilities, unknown labels); "" if they are not.

    >>> import numpy as np
    >>> invalid_reason({"probabilities": np.array([[0.5, 0.5], [3.0, -1.0]]), "label": np.array([0, 1])}, (0, 1))
    'row 1 has probabilities [3.0, -1.0]'
    """
    import numpy as np

    name = "prediction" if "prediction" in outputs else "probabilities"
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

    >>> import numpy as np
    >>> inputs = with_gaps({"numeric": np.zeros((4, 2), np.float32)}, seed=0)
    >>> inputs["numeric"].shape, bool(np.isnan(inputs["numeric"][-1]).all())
    ((6, 2), True)
    """
    import numpy as np

    rows = _row_count(real)
    sample = np.sort(np.random.default_rng(seed + 1).choice(rows, max(1, rows // 4), replace=False))
    blanks = {"numeric": np.nan, "categorical": ""}
    blanked = {name: _fill(matrix[sample], blanks[name], seed) for name, matrix in real.items()}
    empty = {name: np.full_like(matrix[:1], blanks[name]) for name, matrix in real.items()}
    blocks = [real, blanked, empty]
    if "categorical" in real:
        unseen = _fill(real["categorical"][sample], UNSEEN, seed + 2)
        blocks.insert(2, {**{name: matrix[sample] for name, matrix in real.items()}, "categorical": unseen})
    return {name: np.concatenate([block[name] for block in blocks]) for name in real}


def _fill(matrix: np.ndarray, value: object, seed: int) -> np.ndarray:
    """A copy in which about a quarter of the cells, at least one in each row, are ``value``."""
    import numpy as np

    generator = np.random.default_rng(seed)
    mask = generator.random(matrix.shape) < 0.25
    mask[np.arange(len(matrix)), generator.integers(matrix.shape[1], size=len(matrix))] = True
    copy = matrix.copy()
    copy[mask] = value
    return copy


def _predict(session: Session, inputs: Tensors) -> dict[str, np.ndarray]:
    """The graph's outputs, the first SINGLE_ROWS predicted one by one and the rest at once."""
    import numpy as np

    rows = _row_count(inputs)
    cuts = [*range(min(SINGLE_ROWS, rows)), rows] if rows > SINGLE_ROWS else [*range(rows + 1)]
    parts = [session.run({name: matrix[start:end] for name, matrix in inputs.items()}) for start, end in pairwise(cuts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def compare(expected: Tensors, actual: Tensors, tolerance: float, *, scale: float = 1.0, real_rows: int = 0) -> Parity:
    """Compare the graph's outputs with the Python model's (outputs as in bundle.Signature).

    Outputs that are not finite on one side only, or of another shape, count as infinitely far apart.

    >>> import numpy as np
    >>> expected = {"prediction": np.array([1.0, 2.0])}
    >>> compare(expected, {"prediction": np.array([1.0, 2.5])}, 0.1, scale=2.0).max_abs_difference
    0.25
    """
    import numpy as np

    name = "prediction" if "prediction" in expected else "probabilities"
    want, have = np.asarray(expected[name], np.float64), np.asarray(actual[name], np.float64)
    rows = len(want)
    if want.shape != have.shape:
        shapes = str(list(want.shape)), str(list(have.shape))
        return Parity(rows, real_rows, float("inf"), rows, tolerance, scale, 0, *shapes)
    with np.errstate(invalid="ignore"):
        gap = np.nan_to_num(np.abs(want - have) / scale, nan=np.inf)
    gap = np.where((want == have) | (np.isnan(want) & np.isnan(have)), 0, gap).reshape(rows, -1)
    mismatched = _label_mismatches(expected, actual, want, tolerance)
    worst = int(mismatched[0]) if mismatched.size else int(gap.max(axis=1).argmax())
    cell = int(gap[worst].argmax())
    pair = [float(side.reshape(rows, -1)[worst, cell]) for side in (want, have)]
    return Parity(rows, real_rows, float(gap.max()), len(mismatched), tolerance, scale, worst, pair[0], pair[1])


def _label_mismatches(expected: Tensors, actual: Tensors, scores: np.ndarray, tolerance: float) -> np.ndarray:
    """Rows whose labels differ though the Python model's two best classes are clearly apart."""
    import numpy as np

    if "label" not in expected:
        return np.empty(0, dtype=np.int64)
    best = np.sort(scores, axis=1)
    clear = best[:, -1] - best[:, -2] > 2 * tolerance
    differ = np.array([a != b for a, b in zip(expected["label"], actual["label"], strict=True)], dtype=bool)
    return np.flatnonzero(differ & clear)


def describe(parity: Parity, inputs: Tensors, signature: Signature) -> str:
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
        f"the graph differs from the Python model by {parity.max_abs_difference:.3g}{unit} "
        f"(export.tolerance {parity.tolerance:g}) and in {parity.label_mismatches} of {parity.rows} labels; "
        f"the worst is row {row}{origin}: {parity.found!r} instead of {parity.expected!r} for {shown}"
    )


def _target_deviation(data: Path) -> float:
    """Standard deviation of the target over the training rows; 1 when it is constant."""
    import numpy as np
    import pandas as pd

    target = read_table_info(data).target
    values = pd.read_parquet(data / "train.parquet", columns=[target])[target].to_numpy(np.float64, na_value=np.nan)
    return float(np.nanstd(values)) or 1.0


def _row_count(inputs: Tensors) -> int:
    return len(next(iter(inputs.values())))
