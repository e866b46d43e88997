"""Exports preprocessing and model as one ONNX graph, and measures its parity with the Python model on real rows."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mlflowkit.bundle import Signature
from mlflowkit.errors import DataError, EngineError, UsageError
from mlflowkit.judging.decision_rule import DecisionSection
from mlflowkit.sections import Section
from mlflowkit.stages.base import read_signature, read_table_info, sample_rows
from mlflowkit.values import Event, StageResult

if TYPE_CHECKING:
    from mlflowkit.judging.metrics import LabelledPredictions
    from mlflowkit.judging.thresholds import Decision
    from mlflowkit.ports import StageContext

PORTS = ("exporter", "runtime")
"""Ports that the result depends on."""

EXTERNAL_MODEL_HINT = "are these logits, or other columns than it was trained on? See model.outputs and model.inputs"


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
    decision: DecisionSection | None = None


def run(spec: Spec, context: StageContext) -> StageResult:
    """Write ``model.onnx``, ``signature.json`` and ``parity.json``.

    An external graph is compared with itself before it was wrapped, on real rows alone: its treatment of missing
    values is its own, but its predictions must be finite, and probabilities must sum to 1.

    Raises EngineError when the model has no ONNX form, or when the graph's predictions differ from the Python model's
    by more than ``tolerance`` on validation rows, on the same rows with cells blanked, or with unknown categories,
    asked at once, row by row, in small batches and in double precision; or when an external graph's predictions are
    invalid. Raises UserCodeError for a model whose answers are random, depend on the other rows or are traced away.
    """
    from mlflowkit.features.tensors import double_inputs
    from mlflowkit.graphs.parity import invalid_reason, row_count, with_gaps
    from mlflowkit.graphs.parity_check import Comparison, measure

    trained, data = context.inputs["train"], context.inputs["data"]
    context.progress(Event("export", "progress", "converting to ONNX", fraction=0.0))
    context.ports.exporter.export(trained, context.folder, context.out)
    signature = _with_text_rule(context.out, data)
    context.progress(Event("export", "progress", "measuring parity with the Python model", fraction=0.5))
    rows = sample_rows(data / "validation.parquet", signature, spec.export.parity_rows, context.seed)
    real = double_inputs(signature, rows)
    model = context.ports.exporter.reference(trained, context.folder)
    inputs = real if model.kind == "onnx" else with_gaps(real, context.seed)
    scale = _target_deviation(data) if signature.task == "regression" else 1.0
    comparison = Comparison(inputs, signature, spec.export.tolerance, scale, real_rows=row_count(real))
    parity = measure(model, context.ports.runtime.load(context.out / "model.onnx"), comparison)
    if model.kind == "onnx" and (fault := invalid_reason(model.predict(inputs), signature.classes)):
        raise EngineError(f"the graph's predictions of validation rows are invalid: {fault}", hint=EXTERNAL_MODEL_HINT)
    (context.out / "parity.json").write_text(json.dumps(asdict(parity), indent=1))
    section = spec.decision or _bundle_decision(signature, context)
    decision = None if section is None else _decide(section, signature, context)
    metrics = {
        "parity_max_abs_difference": parity.max_abs_difference,
        "parity_rows": float(parity.rows),
        "graph_bytes": float((context.out / "model.onnx").stat().st_size),
    }
    summary = {"parity": asdict(parity), "signature": read_signature(context.out).model_dump(mode="json")}
    if decision is not None:
        summary["decision"] = asdict(decision)
        metrics["decision_threshold"] = decision.threshold
    return StageResult(metrics=metrics, summary=summary)


def _bundle_decision(signature: Signature, context: StageContext) -> DecisionSection | None:
    """The threshold of the bundle that is the model, which a recipe without a decision leaves as it is.

    Raises UsageError where it is one of the other class's probability.
    """
    path = context.inputs["train"] / "bundle.json"
    keys: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {"threshold": None}
    threshold = keys["threshold"]
    if threshold is None:
        return None
    theirs, ours = str(keys["classes"][-1]), str(signature.classes[-1])
    if theirs != ours:
        message = (
            f"the bundle's decision threshold, {threshold:g}, is of {theirs!r}, and the positive class is {ours!r}"
        )
        raise UsageError(message, hint=f"write data.positive: {theirs!r}, or a decision: {{...}} of its own")
    message = f"the decision threshold is the bundle's, {threshold:g}; decision: {{...}} chooses another"
    context.progress(Event("export", "progress", message))
    return DecisionSection(threshold=threshold)


def _decide(section: DecisionSection, signature: Signature, context: StageContext) -> Decision:
    """Choose the threshold on the validation rows and put it into graph and signature; writes ``decision.json``.

    Raises DataError for a model of more than two classes, EngineError when the rewritten graph answers otherwise.
    """
    import numpy as np
    import pandas as pd

    from mlflowkit.features.predictions import predict_rows
    from mlflowkit.features.tensors import class_codes, inputs_from_table
    from mlflowkit.graphs.decision import set_threshold
    from mlflowkit.judging.thresholds import decide

    data, graph = context.inputs["data"], context.out / "model.onnx"
    if len(signature.classes) != 2:
        problem = f"decision is for two classes; the target has {len(signature.classes)}"
        raise DataError(problem, hint="remove the section decision from the recipe")
    context.progress(Event("export", "progress", "choosing the decision threshold", fraction=0.9))
    table = pd.read_parquet(data / "validation.parquet")
    actual = class_codes(table[read_table_info(data).target], signature.classes)

    def predict() -> LabelledPredictions:
        session = context.ports.runtime.load(graph)
        return predict_rows(session, signature, lambda rows: inputs_from_table(signature, table.iloc[rows]), actual)

    scores = predict().class_scores[:, 1]
    decision = decide(section, scores, actual == 1)
    set_threshold(graph, signature, decision.threshold)
    if not np.array_equal(predict().predicted == 1, scores >= decision.threshold):
        raise EngineError("the graph does not answer by its threshold", hint="report this with the model's kind")
    bounded = signature.model_copy(update={"threshold": decision.threshold})
    (context.out / "signature.json").write_text(bounded.model_dump_json(indent=1))
    (context.out / "decision.json").write_text(json.dumps(asdict(decision), indent=1))
    return decision


def _with_text_rule(out: Path, data: Path) -> Signature:
    """The exporter's signature, with what the table's texts mean: the service reads them as the data stage did."""
    exported = read_signature(out)
    texts = read_table_info(data).texts.model_copy(update={"tokens": exported.texts.tokens})
    signature = exported.model_copy(update={"texts": texts})
    (out / "signature.json").write_text(signature.model_dump_json(indent=1))
    return signature


def _target_deviation(data: Path) -> float:
    """Standard deviation of the target over the training rows; 1 when it is constant."""
    import numpy as np
    import pandas as pd

    target = read_table_info(data).target
    values = pd.read_parquet(data / "train.parquet", columns=[target])[target].to_numpy(np.float64, na_value=np.nan)
    return float(np.nanstd(values)) or 1.0
