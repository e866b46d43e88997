"""Try candidate graphs on engines, measure them, and pick by the recipe's objective and constraints."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mlflowkit.bench import analysis, validity
from mlflowkit.bench.environment import Moment, description, moment
from mlflowkit.bundle import Signature, write_engine
from mlflowkit.errors import EngineError
from mlflowkit.features.tensors import class_codes, inputs_from_table
from mlflowkit.graphs.candidates import NAMED, Candidate
from mlflowkit.optimization.exploration import Exploration, Explored, Plan
from mlflowkit.optimization.objective import Objective, cost_of_a_million, quantile_of
from mlflowkit.optimization.pareto import Point, front
from mlflowkit.optimization.search import SearchSection
from mlflowkit.optimization.selection import Choice, choose
from mlflowkit.optimization.space import FLOAT, candidates_of, distinct, key_of
from mlflowkit.optimization.tournament import Setting, Tried
from mlflowkit.sections import Section
from mlflowkit.stages.base import read_signature, read_table_info, write_json
from mlflowkit.system import arrays
from mlflowkit.values import Event, StageResult

if TYPE_CHECKING:
    import pandas as pd

    from mlflowkit.ports import StageContext

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
"""The names of `candidates.NAMED`."""

REQUEST_ROWS = 1000
"""Validation rows that requests are cut from."""
MEGABYTE = 1_000_000
ADDED = "added, since every other is held against the float graph"
LIMITS = ("max_metric_drop", "max_latency_ms", "max_size_mb")
"""What a recipe bears of a candidate, as its keys are called in the reason of one that is refused."""


class OptimizeSection(Section):
    """Which graphs to try and how to choose."""

    candidates: list[CandidateName | Candidate] = Field(default=["onnx"], min_length=1)
    """By name or in full, in order of preference: a later one displaces an earlier one only where its interval says so.
    What a search finds comes after them."""
    objective: Objective = "latency_p99"
    """What to minimise (throughput: to maximise)."""
    metric: str | None = None
    """Metric that must not drop; without it roc_auc (binary), accuracy (multiclass) or rmse (regression)."""
    max_metric_drop: float = Field(default=0.005, ge=0)
    """Largest loss of the metric on the validation rows, against the float graph (paired on the same rows)."""
    max_latency_ms: float | None = Field(default=None, gt=0)
    """Largest latency, of the objective's quantile (p99 where the objective has none): surely, by its interval."""
    max_size_mb: float | None = Field(default=None, gt=0)
    """Largest graph, its weights included, in millions of bytes."""
    cost_per_hour: float | None = Field(default=None, gt=0)
    """What an hour of the machine costs, in any currency; the objective cost needs it."""
    batch: int = Field(default=1, ge=1)
    """Rows a request when latency is measured."""
    samples: int = Field(default=5000, ge=200)
    """Requests measured for each candidate, in interleaved blocks."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that a candidate may take to be built, to be loaded, or to answer, before it has failed."""
    search: SearchSection = Field(default_factory=SearchSection)
    """How candidates beyond those that are named are found."""


class Spec(Section):
    """What the optimize stage's result depends on, besides its inputs and the machine."""

    task: Literal["classification", "regression"]
    optimize: OptimizeSection


def run(spec: Spec, context: StageContext) -> StageResult:
    """Write the picked ``model.onnx`` with its ``signature.json``, ``candidates.json``, ``latency.json`` and
    ``machine.json``.

    ``engine.json`` is there when the pick runs on another engine than the default, ``scripts`` when a candidate failed.
    Raises EngineError when no candidate is left: none could be made, or each lost more of the metric than the recipe
    bears.
    """
    section = spec.optimize
    setting = _setting(spec, context)
    plan = planned(section)
    if plan.added:
        context.progress(Event("optimize", "progress", f"onnx is {ADDED}"))
    before = moment()
    explored = Exploration(setting, plan).explore()
    if not explored.finalists:
        raise EngineError(_nothing_left(explored.tried), hint=_way_out(explored.tried))
    figures = {one.name: one.figures for one in explored.finalists}
    choice = choose(figures, section.objective)
    rows = rows_of(section, explored, choice, setting.metric)
    picked = next(one for one in explored.finalists if one.name == choice.name)
    _publish(context, picked, rows, explored.tried)
    write_json(context.out / "machine.json", _machine([before, moment()], explored.finalists))
    return _result(rows, choice.name, setting.metric)


def default_metric(task: str, classes: int) -> str:
    """The metric that must not drop when the recipe names none.

    >>> default_metric("classification", 2), default_metric("classification", 10), default_metric("regression", 0)
    ('roc_auc', 'accuracy', 'rmse')
    """
    if task == "regression":
        return "rmse"
    return "roc_auc" if classes == 2 else "accuracy"


def planned(section: OptimizeSection) -> Plan:
    """The candidates that a recipe asks for.

    >>> planned(OptimizeSection(candidates=["onnx-int8"], search={"space": {"passes": [[{"kind": "fp16"}]]}})).added
    True
    """
    listed = distinct(NAMED[one] if isinstance(one, str) else one for one in section.candidates)
    if section.search.space is None:
        return Plan(tuple(listed), (), False, section.search)
    known = {key_of(one) for one in listed}
    names = {one.name for one in listed}
    space = [
        one.model_copy(update={"name": f"{one.name}, of the space"}) if one.name in names else one
        for one in candidates_of(section.search.space)
        if key_of(one) not in known
    ]
    lacking = key_of(FLOAT) not in known | {key_of(one) for one in space}
    return Plan((FLOAT, *listed) if lacking else tuple(listed), tuple(space), lacking, section.search)


def _setting(spec: Spec, context: StageContext) -> Setting:
    """What all trials have in common; writes the rows that their processes read."""
    import numpy as np
    import pandas as pd

    section, data = spec.optimize, context.inputs["data"]
    signature = read_signature(context.inputs["export"])
    target = read_table_info(data).target
    columns = [column for tensor in signature.inputs for column in tensor.columns]
    table = pd.read_parquet(data / "validation.parquet", columns=[*columns, target])
    if signature.task == "classification":
        actual = class_codes(table[target], signature.classes)
    else:
        actual = table[target].to_numpy(np.float64, na_value=np.nan)
    calibration = inputs_from_table(signature, _calibration(section, context, signature))
    rows = context.scratch / "rows.npz"
    inputs = inputs_from_table(signature, table)
    parts = (("calibration", calibration), ("inputs", inputs))
    arrays.write(rows, {f"{part}/{name}": array for part, found in parts for name, array in found.items()})
    return Setting(
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


def _calibration(section: OptimizeSection, context: StageContext, signature: Signature) -> pd.DataFrame:
    """Training rows in an order drawn by the seed, as many as any pass asks for: a pass takes the first of them, which
    are the same whatever the others ask for."""
    import numpy as np
    import pandas as pd

    plan = planned(section)
    asked = [getattr(one, "rows", 1) for each in (*plan.listed, *plan.space) for one in each.passes]
    columns = [column for tensor in signature.inputs for column in tensor.columns]
    table = pd.read_parquet(context.inputs["data"] / "train.parquet", columns=columns)
    shuffled = np.random.default_rng(context.seed).permutation(len(table))
    return table.iloc[shuffled[: max(asked, default=1)]]


# ----------------------------------------------------------------------------------------------------------- results


def rows_of(section: OptimizeSection, explored: Explored, choice: Choice, metric: str) -> list[dict[str, Any]]:
    """The candidates as candidates.json and `bench --json` list them: times in microseconds, throughput in rows/s."""
    measured = [one for one in explored.tried if one.status == "ok" and one.relative is not None]
    points = {
        one.name: Point({"latency": one.relative, **one.rest(section.max_metric_drop).bounds})
        for one in measured
        if one.relative is not None
    }
    best = set(front(points))
    return [_row(section, one, metric, choice, one.name in best) for one in explored.tried]


def _row(section: OptimizeSection, tried: Tried, metric: str, choice: Choice, in_front: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": tried.name,
        "runtime": tried.candidate.engine.runtime,
        "passes": [one.model_dump(mode="json") for one in tried.candidate.passes],
        "engine": tried.candidate.engine.model_dump(mode="json"),
        "batch": section.batch,
        "samples": 0,
        **dict.fromkeys(("p50_us", "p95_us", "p99_us", "interval", "throughput")),
        "status": tried.status,
        "reason": tried.reason or tried.beaten or choice.reasons.get(tried.name, "") or _behind(tried, choice),
        "metric": None if tried.metric is None else {"name": metric, "value": tried.metric},
        "metric_drop": None if tried.drop is None else asdict(tried.drop),
        "size_bytes": tried.built.size_bytes if tried.built else None,
        "memory_bytes": tried.loaded.memory_bytes if tried.loaded else None,
        "build_seconds": tried.built.build_seconds if tried.built else None,
        "cold_start_ms": tried.loaded.cold_start_ms if tried.loaded else None,
        "front": in_front,
        "picked": tried.name == choice.name,
        "script": tried.script,
        "notes": list(tried.notes),
    }
    if tried.samples is None:
        return row
    blocks = tried.samples.microseconds
    if section.cost_per_hour is not None:
        cost = cost_of_a_million(blocks, section.batch, section.cost_per_hour)
        row["notes"].append(f"a million rows cost {cost:.4g} at {section.cost_per_hour:g} an hour")
    return row | asdict(analysis.summarise(blocks, section.batch, quantile_of(section.objective)))


def _behind(tried: Tried, choice: Choice) -> str:
    """Why a candidate that may serve was no finalist."""
    if tried.status != "ok" or tried.name == choice.name or tried.value is None:
        return ""
    return f"{tried.value[0]:.2f} to {tried.value[1]:.2f} of the float graph by the objective: others are surely better"


def _publish(context: StageContext, picked: Tried, rows: list[dict[str, Any]], tried: Sequence[Tried]) -> None:
    for path in picked.built.files if picked.built else ():
        shutil.copyfile(path, context.out / path.name)
    shutil.copyfile(context.inputs["export"] / "signature.json", context.out / "signature.json")
    write_json(context.out / "candidates.json", rows)
    write_engine(context.out, picked.candidate.engine)
    latency = {one.name: one.samples.to_json() for one in tried if one.samples is not None}
    (context.out / "latency.json").write_text(json.dumps(latency))


def _machine(moments: Sequence[Moment], finalists: Sequence[Tried]) -> dict[str, Any]:
    """Where the latencies were measured, and what disturbed it there, in words; finalists were measured in turns."""
    told = description()
    paced = validity.throttling({one.name: one.figures.microseconds for one in finalists})
    return {
        "machine": told.to_json(),
        "moments": [one.to_json() for one in moments],
        "notes": [*filter(None, [paced]), *validity.disturbances(moments, os.cpu_count() or told.cores)],
    }


def _result(rows: list[dict[str, Any]], picked: str, metric: str) -> StageResult:
    row = next(row for row in rows if row["name"] == picked)
    latencies = {f"latency_{name}_ms": row[f"{name}_us"] / 1000 for name in ("p50", "p95", "p99")}
    found = {**latencies, "throughput": row["throughput"]}
    if row["metric"] is not None:
        found[f"validation_{metric}"] = row["metric"]["value"]
    return StageResult(metrics=found, summary={"picked": picked, "candidates": rows})


def _way_out(tried: Sequence[Tried]) -> str:
    """What a person may do where no candidate is left: only what can help."""
    limits = [one for one in LIMITS if any(one in each.reason for each in tried)]
    ways = [] if any(each.name == "onnx" for each in tried) else ["add onnx to optimize.candidates"]
    ways += [f"raise {' or '.join(limits)}"] if limits else []
    return ", or ".join(ways) or "mend what makes the graph fail, or export another"


def _nothing_left(tried: Sequence[Tried]) -> str:
    return "no candidate may serve: " + "; ".join(f"{each.name}: {each.reason or each.status}" for each in tried)
