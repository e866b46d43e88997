"""Measure candidate graphs for latency and metric; pick by the recipe's objective and constraint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mlflowkit.bench import analysis
from mlflowkit.bench.measure import Samples, measure, requests_over
from mlflowkit.bundle import Signature
from mlflowkit.errors import EngineError, UsageError
from mlflowkit.judging import metrics
from mlflowkit.judging.stats import UndefinedMetricError
from mlflowkit.sections import Section
from mlflowkit.stages import asking
from mlflowkit.stages.base import read_signature, read_table_info, sample_rows, write_json
from mlflowkit.tables import class_codes, inputs_from_table
from mlflowkit.values import Event, Measurement, StageResult

if TYPE_CHECKING:
    import numpy as np

    from mlflowkit.ports import Session, StageContext

CandidateName = Literal["onnx", "onnx-int8"]
Tensors = Mapping[str, "np.ndarray"]

FLOAT = "onnx"
"""The graph that the export stage published: what every other is held against."""
RUNTIME = "onnxruntime"
CALIBRATION_ROWS = 512
"""Training rows that fix the ranges of a quantised graph."""
REQUEST_ROWS = 1000
"""Validation rows that requests are cut from."""


class OptimizeSection(Section):
    """Which graphs to try and how to choose."""

    candidates: list[CandidateName] = Field(default=["onnx"], min_length=1)
    """In order of preference: a later one displaces an earlier one only where its interval says so."""
    objective: Literal["latency_p50", "latency_p95", "latency_p99"] = "latency_p99"
    """What to minimise."""
    metric: str | None = None
    """Metric that must not drop; without it roc_auc (binary), accuracy (multiclass) or rmse (regression)."""
    max_metric_drop: float = Field(default=0.005, ge=0)
    """Largest loss of the metric on the validation rows, against the float graph (paired on the same rows)."""
    batch: int = Field(default=1, ge=1)
    """Rows a request when latency is measured."""
    samples: int = Field(default=5000, ge=200)
    """Requests measured for each candidate, in interleaved blocks."""


class Spec(Section):
    """What the optimize stage's result depends on, besides its inputs and the machine."""

    task: Literal["classification", "regression"]
    optimize: OptimizeSection


@dataclass(frozen=True, slots=True)
class Candidate:
    """One graph and what was found out about it. ``model`` and ``session`` are None when it could not be made."""

    name: str
    status: Literal["ok", "rejected", "unavailable"]
    reason: str = ""
    model: Path | None = None
    session: Session | None = None
    metric: float | None = None
    drop: Measurement | None = None


def run(spec: Spec, context: StageContext) -> StageResult:
    """Write the picked ``model.onnx`` with its ``signature.json``, ``candidates.json`` and ``latency.json``.

    Raises EngineError when no candidate is left: none could be made, or each lost more of the metric than the recipe
    bears.
    """
    section = spec.optimize
    signature = read_signature(context.inputs["export"])
    metric = section.metric or default_metric(spec.task, len(signature.classes))
    inputs, actual = _validation(context, signature)
    candidates = judge(spec, context, signature, metric, inputs, actual)
    taken = _latencies(section, context, candidates, inputs)
    eligible = [candidate for candidate in candidates if candidate.status == "ok"]
    if not eligible:
        raise EngineError(_nothing_left(candidates), hint="add onnx to optimize.candidates, or raise max_metric_drop")
    blocks = {candidate.name: taken[candidate.name].microseconds for candidate in eligible}
    choice = analysis.pick(blocks, section.objective, seed=context.seed)
    rows = [
        _row(section, candidate, taken.get(candidate.name), metric, choice, context.seed) for candidate in candidates
    ]
    picked = next(candidate for candidate in eligible if candidate.name == choice.name)
    _publish(context, picked, rows, taken)
    return _result(rows, choice.name, metric)


def default_metric(task: str, classes: int) -> str:
    """The metric that must not drop when the recipe names none.

    >>> default_metric("classification", 2), default_metric("classification", 10), default_metric("regression", 0)
    ('roc_auc', 'accuracy', 'rmse')
    """
    if task == "regression":
        return "rmse"
    return "roc_auc" if classes == 2 else "accuracy"


def judge(
    spec: Spec, context: StageContext, signature: Signature, metric: str, inputs: Tensors, actual: np.ndarray
) -> list[Candidate]:
    """Make each candidate of the recipe and hold its metric against the float graph's on the same rows."""
    reference = _answers(_load(context, context.inputs["export"] / "model.onnx"), signature, inputs, actual)
    judged = []
    for index, name in enumerate(spec.optimize.candidates):
        fraction = 0.3 * index / len(spec.optimize.candidates)
        context.progress(Event("optimize", "progress", f"making {name}", fraction=fraction))
        model, reason = _make(name, context, signature)
        if model is None:
            judged.append(Candidate(name, "unavailable", reason))
            continue
        session = _load(context, model)
        answers = reference if name == FLOAT else _answers(session, signature, inputs, actual)
        judged.append(_judged(Candidate(name, "ok", "", model, session), metric, answers, reference, spec.optimize))
    return judged


def _judged(
    candidate: Candidate, metric: str, answers: metrics.Answers, reference: metrics.Answers, section: OptimizeSection
) -> Candidate:
    """The candidate with its metric and, unless it is the float graph, the metric's drop and what follows from it."""
    if fault := metrics.fault_of(answers):
        return replace(candidate, status="rejected", reason=fault)
    try:
        value = metrics.estimate(metric, answers).value
        drop = None if answers is reference else metric_drop(metric, answers, reference)
    except UndefinedMetricError as error:
        unknown = f"the validation rows cannot say what it loses: {error.message}"
        return candidate if answers is reference else replace(candidate, status="rejected", reason=unknown)
    if drop is None:
        return replace(candidate, metric=value)
    accepted, reason = analysis.accepts(drop, section.max_metric_drop)
    return replace(candidate, status="ok" if accepted else "rejected", reason=reason, metric=value, drop=drop)


def metric_drop(metric: str, answers: metrics.Answers, reference: metrics.Answers) -> Measurement:
    """How much worse the answers are than the reference's on the same rows; positive is worse, whatever the metric."""
    change = metrics.difference(metric, answers, reference).at(analysis.CONFIDENCE)
    if metric in metrics.LOWER_IS_BETTER:
        return change
    return Measurement(
        change.name,
        -change.value,
        -change.high,
        -change.low,
        change.samples,
        change.confidence,
        change.unit,
        change.method,
    )


def _make(name: str, context: StageContext, signature: Signature) -> tuple[Path | None, str]:
    """The candidate's graph, or None and the reason why there is none."""
    exported = context.inputs["export"] / "model.onnx"
    if name == FLOAT:
        return exported, ""
    out = context.scratch / f"{name}.onnx"
    rows = sample_rows(context.inputs["data"] / "train.parquet", signature, CALIBRATION_ROWS, context.seed)
    reason = context.ports.exporter.quantize(exported, out, inputs_from_table(signature, rows))
    return (None, reason) if reason else (out, "")


def _validation(context: StageContext, signature: Signature) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs of all validation rows, and what was to be answered: class codes int64 [n], or values float64 [n]."""
    import numpy as np
    import pandas as pd

    target = read_table_info(context.inputs["data"]).target
    columns = [column for tensor in signature.inputs for column in tensor.columns]
    table = pd.read_parquet(context.inputs["data"] / "validation.parquet", columns=[*columns, target])
    if signature.task == "classification":
        return inputs_from_table(signature, table), class_codes(table[target], signature.classes)
    return inputs_from_table(signature, table), table[target].to_numpy(np.float64, na_value=np.nan)


def _load(context: StageContext, model: Path) -> Session:
    return context.ports.runtime.load(model)


def _answers(session: Session, signature: Signature, inputs: Tensors, actual: np.ndarray) -> metrics.Answers:
    return asking.ask(session, signature, lambda rows: {name: part[rows] for name, part in inputs.items()}, actual)


def _latencies(
    section: OptimizeSection, context: StageContext, candidates: list[Candidate], inputs: Tensors
) -> dict[str, Samples]:
    """Latency samples of every candidate that could be made, rejected ones included: the report shows them."""

    def progress(done: float) -> None:
        if (done * 4).is_integer():
            context.progress(Event("optimize", "progress", "measuring latency", fraction=0.4 + 0.6 * done))

    rows = {name: matrix[:REQUEST_ROWS] for name, matrix in inputs.items()}
    requests = {
        candidate.name: requests_over(candidate.session.run, rows, section.batch)
        for candidate in candidates
        if candidate.session is not None
    }
    return measure(requests, section.samples, progress=progress) if requests else {}


def _row(
    section: OptimizeSection,
    candidate: Candidate,
    samples: Samples | None,
    metric: str,
    choice: analysis.Pick,
    seed: int,
) -> dict[str, Any]:
    """The candidate as candidates.json and `bench --json` list it: times in microseconds, throughput in rows/s."""
    row: dict[str, Any] = {
        "name": candidate.name,
        "runtime": RUNTIME,
        "batch": section.batch,
        "samples": 0,
        **dict.fromkeys(("p50_us", "p95_us", "p99_us", "interval", "throughput")),
        "status": candidate.status,
        "reason": candidate.reason or choice.reasons.get(candidate.name, ""),
        "metric": None if candidate.metric is None else {"name": metric, "value": candidate.metric},
        "metric_drop": None if candidate.drop is None else asdict(candidate.drop),
        "picked": candidate.name == choice.name,
    }
    if samples is None:
        return row
    return row | asdict(analysis.summarise(samples.microseconds, section.batch, section.objective, seed=seed))


def _publish(
    context: StageContext, picked: Candidate, rows: list[dict[str, Any]], taken: Mapping[str, Samples]
) -> None:
    if picked.model is None:
        raise UsageError(f"candidate {picked.name} has no graph")
    shutil.copyfile(picked.model, context.out / "model.onnx")
    shutil.copyfile(context.inputs["export"] / "signature.json", context.out / "signature.json")
    write_json(context.out / "candidates.json", rows)
    latency = {name: samples.to_json() for name, samples in taken.items()}
    (context.out / "latency.json").write_text(json.dumps(latency))


def _result(rows: list[dict[str, Any]], picked: str, metric: str) -> StageResult:
    row = next(row for row in rows if row["name"] == picked)
    latencies = {f"latency_{name}_ms": row[f"{name}_us"] / 1000 for name in ("p50", "p95", "p99")}
    found = {**latencies, "throughput": row["throughput"]}
    if row["metric"] is not None:
        found[f"validation_{metric}"] = row["metric"]["value"]
    return StageResult(metrics=found, summary={"picked": picked, "candidates": rows})


def _nothing_left(candidates: list[Candidate]) -> str:
    return "no candidate may serve: " + "; ".join(f"{each.name}: {each.reason}" for each in candidates)
