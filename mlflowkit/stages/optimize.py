"""Tries candidate graphs on engines, measures them, and picks one by the recipe's objective and constraints."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mlflowkit.bench import analysis, validity
from mlflowkit.bench.environment import MachineMoment, machine_info, read_moment
from mlflowkit.bench.sequential.disturbance import describe, observe
from mlflowkit.bundle import write_engine
from mlflowkit.errors import EngineError
from mlflowkit.graphs.candidates import NAMED, Candidate
from mlflowkit.judging.metrics import is_built_in
from mlflowkit.optimization.objective import Objective, cost_of_a_million, quantile_of
from mlflowkit.optimization.pareto import Point, pareto_front
from mlflowkit.optimization.search import SearchPlan, SearchSection
from mlflowkit.optimization.selection import CandidateChoice, choose
from mlflowkit.optimization.space import FLOAT, candidates_of, distinct, key_of
from mlflowkit.sections import Section
from mlflowkit.stages.base import read_signature, read_table_info, write_json
from mlflowkit.system import arrays
from mlflowkit.system.entry_points import METRICS
from mlflowkit.system.text import join_words
from mlflowkit.values import Event, StageResult

if TYPE_CHECKING:
    import pandas as pd

    from mlflowkit.optimization.exploration import SearchResult
    from mlflowkit.optimization.trial_outcome import TournamentSettings, TrialOutcome
    from mlflowkit.ports import StageContext

PORTS = ("trials", "passes", "engines", "search")
"""Ports that the result depends on."""

CandidateName = Literal[
    "onnx",
    "onnx-int8",
    "onnx-int8-per-channel",
    "onnx-int8-cpu",
    "onnx-int8-cpu-per-channel",
    "onnx-int8-dynamic",
    "onnx-fp16",
    "onnx-fused",
    "onnx-weight-only-4",
    "onnx-weight-only-8",
    "onnx-cuda",
    "onnx-cuda-fp16",
    "onnx-tensorrt-fp16",
    "tensorrt-fp16",
    "torch",
    "torch-compile",
]
"""The keys of `candidates.NAMED`."""

REQUEST_ROWS = 1000
"""Validation rows that requests are cut from."""
MEGABYTE = 1_000_000
LIMITS = ("max_metric_drop", "max_latency_ms", "max_size_mb")
"""Recipe keys that limit a candidate; the reason of a rejected one names its key."""
SLACK = 1.1
"""Factor between the latency that was measured and the limit that a hint names."""


class OptimizeSection(Section):
    """Which graphs to try and how to choose."""

    candidates: list[CandidateName | Candidate] = Field(default=["onnx"], min_length=1)
    """By name or in full, in order of preference: a later one displaces an earlier one only where its interval shows a
    gain. Candidates of a search come after them."""
    objective: Objective = "latency_p99"
    """What to minimise (throughput: to maximise)."""
    metric: str | None = None
    """Metric that must not drop; without it roc_auc (binary), accuracy (multiclass) or rmse (regression)."""
    max_metric_drop: float = Field(default=0.005, ge=0)
    """Largest loss of the metric on the validation rows, against the float graph (paired on the same rows)."""
    max_latency_ms: float | None = Field(default=None, gt=0)
    """Largest latency, of the objective's quantile (p99 where it has none), for the upper bound of its interval."""
    max_size_mb: float | None = Field(default=None, gt=0)
    """Largest graph, its weights included, in millions of bytes."""
    cost_per_hour: float | None = Field(default=None, gt=0)
    """Price of an hour of the machine, in any currency; required by the objective cost."""
    batch: int = Field(default=1, ge=1)
    """Rows a request when latency is measured."""
    samples: int = Field(default=5000, ge=200)
    """Requests measured for each candidate, in interleaved blocks."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that a candidate may take to build, to load, or to answer, before it counts as failed."""
    search: SearchSection = Field(default_factory=SearchSection)
    """How candidates besides the named ones are found."""

    def plugin_names(self) -> tuple[tuple[str, str], ...]:
        return () if self.metric is None or is_built_in(self.metric) else ((METRICS, self.metric),)


class Spec(Section):
    """Inputs of the optimize stage's result, besides its input folders and the machine."""

    task: Literal["classification", "regression"]
    optimize: OptimizeSection


def run(spec: Spec, context: StageContext) -> StageResult:
    """Write the picked ``model.onnx`` with its ``signature.json``, ``candidates.json``, ``latency.json`` and
    ``machine.json``.

    ``engine.json`` exists when the pick runs on another engine than the default, ``scripts`` when a candidate failed.
    Raises EngineError when no candidate may serve: each failed, or violates a limit of the recipe.
    """
    from mlflowkit.optimization.exploration import Exploration

    section = spec.optimize
    settings = _tournament_settings(spec, context)
    plan = search_plan(section)
    if plan.added:
        message = "onnx is added, since all others are compared with the float graph"
        context.progress(Event("optimize", "progress", message))
    before = read_moment()
    result = Exploration(settings, plan).explore()
    if not result.finalists:
        _forget_times(context)
        raise _no_candidate(result.tried, _disturbance(before, read_moment()), spec.optimize)
    choice = choose({outcome.name: outcome.figures for outcome in result.finalists}, section.objective)
    rows = candidate_rows(section, result, choice, settings.metric)
    picked = next(outcome for outcome in result.finalists if outcome.name == choice.name)
    _publish(context, picked, rows, result.tried)
    after = read_moment()
    write_json(context.out / "machine.json", _machine_json([before, after], result.finalists))
    stage_result = _stage_result(rows, choice.name, settings.metric)
    doubtful = doubtful_rejections(result.tried, _disturbance(before, after))
    if doubtful:
        context.progress(Event("optimize", "warning", doubtful))
        stage_result = replace(stage_result, summary={**stage_result.summary, "remeasure": True})
    return stage_result


def _forget_times(context: StageContext) -> None:
    """Remove the times that an interrupted run would go on from: those that rejected every candidate are measured anew
    by the next run, since they are evidence of one moment."""
    for path in context.scratch.glob("measured-*.npz"):
        path.unlink(missing_ok=True)


def _disturbance(before: MachineMoment, after: MachineMoment) -> str:
    """What disturbed the machine meanwhile, with figures, where times were measured in other processes."""
    return describe([observe(before, after, os.cpu_count() or 1, single_threaded=False)])


def doubtful_rejections(tried: Sequence[TrialOutcome], disturbance: str) -> str:
    """A warning that a disturbed machine may have made candidates seem slower than max_latency_ms; "" if it did not."""
    slow = [outcome.name for outcome in tried if outcome.status == "rejected" and "max_latency_ms" in outcome.reason]
    if not slow or not disturbance:
        return ""
    return (
        f"max_latency_ms rejected {join_words(slow)} while the machine was disturbed: {disturbance}; the next run "
        "measures all candidates anew"
    )


def _no_candidate(tried: Sequence[TrialOutcome], disturbance: str, section: OptimizeSection) -> EngineError:
    reasons = "; ".join(f"{outcome.name}: {outcome.reason or outcome.status}" for outcome in tried)
    limits = [limit for limit in LIMITS if any(limit in outcome.reason for outcome in tried)]
    listed = any(outcome.name == "onnx" for outcome in tried)
    remedies = [] if listed else ["add onnx to optimize.candidates"]
    if "max_latency_ms" in limits:
        limits.remove("max_latency_ms")
        quantile = analysis.QUANTILES[quantile_of(section.objective)]
        slow = [outcome.figures.microseconds for outcome in tried if "max_latency_ms" in outcome.reason]
        least = min(analysis.quantile_interval(blocks, quantile)[1] for blocks in slow) / 1000
        remedies.append(f"mlkit run RECIPE optimize.max_latency_ms={least * SLACK:.2g}")
        if disturbance:
            reasons += f"; the machine was disturbed: {disturbance}"
            remedies.insert(0, "mlkit run RECIPE measures again, when the machine is quieter")
    remedies += [f"raise {' or '.join(limits)}"] if limits else []
    hint = ", or ".join(remedies) or "correct what makes the graph fail, or export another"
    return EngineError(f"no candidate may serve: {reasons}", hint=hint)


def default_metric(task: str, classes: int) -> str:
    """The metric that must not drop when the recipe names none.

    >>> default_metric("classification", 2), default_metric("classification", 10), default_metric("regression", 0)
    ('roc_auc', 'accuracy', 'rmse')
    """
    if task == "regression":
        return "rmse"
    return "roc_auc" if classes == 2 else "accuracy"


def search_plan(section: OptimizeSection) -> SearchPlan:
    """The candidates that a recipe lists, and those of its search space.

    >>> search_plan(OptimizeSection(candidates=["onnx-int8"], search={"space": {"passes": [[{"kind": "fp16"}]]}})).added
    True
    """
    listed = distinct(NAMED[item] if isinstance(item, str) else item for item in section.candidates)
    if section.search.space is None:
        return SearchPlan(tuple(listed), (), False, section.search)
    keys = {key_of(candidate) for candidate in listed}
    names = {candidate.name for candidate in listed}
    space = []
    for candidate in candidates_of(section.search.space):
        if candidate.name in names:
            candidate = candidate.model_copy(update={"name": f"{candidate.name}, of the space"})
        if key_of(candidate) not in keys:
            space.append(candidate)
    added = key_of(FLOAT) not in keys | {key_of(candidate) for candidate in space}
    return SearchPlan((FLOAT, *listed) if added else tuple(listed), tuple(space), added, section.search)


def _tournament_settings(spec: Spec, context: StageContext) -> TournamentSettings:
    """The settings shared by all trials; writes the rows that their processes read."""
    import numpy as np
    import pandas as pd

    from mlflowkit.features.tensors import class_codes, inputs_from_table
    from mlflowkit.optimization.trial_outcome import TournamentSettings

    section, data = spec.optimize, context.inputs["data"]
    signature = read_signature(context.inputs["export"])
    target = read_table_info(data).target
    columns = [column for tensor in signature.inputs for column in tensor.columns]
    table = pd.read_parquet(data / "validation.parquet", columns=[*columns, target])
    if signature.task == "classification":
        actual = class_codes(table[target], signature.classes)
    else:
        actual = table[target].to_numpy(np.float64, na_value=np.nan)
    rows = context.scratch / "rows.npz"
    calibration = inputs_from_table(signature, _calibration_rows(section, context, columns))
    parts = (("calibration", calibration), ("inputs", inputs_from_table(signature, table)))
    arrays.write(rows, {f"{part}/{name}": array for part, inputs in parts for name, array in inputs.items()})
    return TournamentSettings(
        context=context,
        signature=signature,
        rows=rows,
        actual=actual,
        metric=section.metric or default_metric(spec.task, len(signature.classes)),
        objective=section.objective,
        max_metric_drop=section.max_metric_drop,
        max_latency_ms=section.max_latency_ms,
        max_size=None if section.max_size_mb is None else section.max_size_mb * MEGABYTE,
        batch=section.batch,
        samples=section.samples,
        requests=REQUEST_ROWS,
        stop_early=section.search.stop_early,
        reuse=section.search.reuse,
        timeout=section.timeout,
    )


def _calibration_rows(section: OptimizeSection, context: StageContext, columns: list[str]) -> pd.DataFrame:
    """Shuffled training rows, as many as the largest request of a pass; each pass takes the first rows that it needs,
    which do not depend on other passes."""
    import numpy as np
    import pandas as pd

    plan = search_plan(section)
    candidates = (*plan.listed, *plan.space)
    counts = [
        max(step.calibration_rows, getattr(step, "rows", 1)) for candidate in candidates for step in candidate.passes
    ]
    table = pd.read_parquet(context.inputs["data"] / "train.parquet", columns=columns)
    shuffled = np.random.default_rng(context.seed).permutation(len(table))
    return table.iloc[shuffled[: max(counts, default=1)]]


# ----------------------------------------------------------------------------------------------------------- results


def candidate_rows(
    section: OptimizeSection, result: SearchResult, choice: CandidateChoice, metric: str
) -> list[dict[str, Any]]:
    """The rows of candidates.json and `bench --json`: times in microseconds, throughput in rows/s."""
    points = {
        outcome.name: Point(
            {"latency": outcome.relative, **outcome.secondary_objectives(section.max_metric_drop).bounds}
        )
        for outcome in result.tried
        if outcome.status == "ok" and outcome.relative is not None
    }
    front = set(pareto_front(points))
    return [_candidate_row(section, outcome, metric, choice, outcome.name in front) for outcome in result.tried]


def _candidate_row(
    section: OptimizeSection, outcome: TrialOutcome, metric: str, choice: CandidateChoice, in_front: bool
) -> dict[str, Any]:
    candidate, built, loaded = outcome.candidate, outcome.built, outcome.loaded
    reason = outcome.reason or outcome.why_not_picked or choice.reasons.get(outcome.name, "")
    if not reason and outcome.status == "ok" and outcome.name != choice.name and outcome.value is not None:
        span = f"{outcome.value[0]:.2f} to {outcome.value[1]:.2f}"
        reason = f"{span} of the float graph by the objective: others are significantly better"
    row: dict[str, Any] = {
        "name": outcome.name,
        "runtime": candidate.engine.runtime,
        "passes": [graph_pass.model_dump(mode="json") for graph_pass in candidate.passes],
        "engine": candidate.engine.model_dump(mode="json"),
        "batch": section.batch,
        "samples": 0,
        **dict.fromkeys(("p50_us", "p95_us", "p99_us", "interval", "throughput")),
        "status": outcome.status,
        "reason": reason,
        "metric": None if outcome.metric is None else {"name": metric, "value": outcome.metric},
        "metric_drop": None if outcome.drop is None else asdict(outcome.drop),
        "size_bytes": built.size_bytes if built else None,
        "memory_bytes": loaded.memory_bytes if loaded else None,
        "build_seconds": built.build_seconds if built else None,
        "cold_start_ms": loaded.cold_start_ms if loaded else None,
        "front": in_front,
        "picked": outcome.name == choice.name,
        "script": outcome.script,
        "notes": list(outcome.notes),
    }
    if outcome.samples is None:
        return row
    blocks = outcome.samples.microseconds
    if section.cost_per_hour is not None:
        cost = cost_of_a_million(blocks, section.batch, section.cost_per_hour)
        row["notes"].append(f"a million rows cost {cost:.4g} at {section.cost_per_hour:g} an hour")
    return row | asdict(analysis.summarise(blocks, section.batch, quantile_of(section.objective)))


def _publish(
    context: StageContext, picked: TrialOutcome, rows: list[dict[str, Any]], tried: Sequence[TrialOutcome]
) -> None:
    for path in picked.built.files if picked.built else ():
        shutil.copyfile(path, context.out / path.name)
    shutil.copyfile(context.inputs["export"] / "signature.json", context.out / "signature.json")
    write_json(context.out / "candidates.json", rows)
    write_engine(context.out, picked.candidate.engine)
    latency = {outcome.name: outcome.samples.to_json() for outcome in tried if outcome.samples is not None}
    (context.out / "latency.json").write_text(json.dumps(latency))


def _machine_json(moments: Sequence[MachineMoment], finalists: Sequence[TrialOutcome]) -> dict[str, Any]:
    """The machine that latencies were measured on, and notes on what disturbed the measurement."""
    machine = machine_info()
    throttled = validity.throttling({outcome.name: outcome.figures.microseconds for outcome in finalists})
    return {
        "machine": machine.to_json(),
        "moments": [moment.to_json() for moment in moments],
        "notes": [*filter(None, [throttled]), *validity.disturbances(moments, os.cpu_count() or machine.cores)],
    }


def _stage_result(rows: list[dict[str, Any]], picked: str, metric: str) -> StageResult:
    row = next(row for row in rows if row["name"] == picked)
    metrics = {f"latency_{name}_ms": row[f"{name}_us"] / 1000 for name in ("p50", "p95", "p99")}
    metrics["throughput"] = row["throughput"]
    if row["metric"] is not None:
        metrics[f"validation_{metric}"] = row["metric"]["value"]
    return StageResult(metrics=metrics, summary={"picked": picked, "candidates": rows})
