"""Try candidate graphs on engines, measure them, and pick by the recipe's objective and constraints."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mlflowkit import arrays
from mlflowkit.bench import analysis
from mlflowkit.bench.analysis import Pick
from mlflowkit.bundle import Signature
from mlflowkit.candidates import NAMED, Candidate, Engine
from mlflowkit.errors import EngineError
from mlflowkit.optimization.choice import choose
from mlflowkit.optimization.front import Point, front
from mlflowkit.optimization.objective import Objective, cost_of_a_million, quantile_of, timed
from mlflowkit.optimization.search import Exhaustive, SearchSection, method_of
from mlflowkit.optimization.space import FLOAT, candidates_of, distinct, key_of
from mlflowkit.ports import Search, TrialResult
from mlflowkit.sections import Section
from mlflowkit.stages.base import read_signature, read_table_info, write_json
from mlflowkit.stages.trying import Bench, Setting, Tried, group_size
from mlflowkit.tables import class_codes, inputs_from_table
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


@dataclass(frozen=True, slots=True)
class Plan:
    """What is tried: candidates that the recipe names, all of them, then what a search takes of its space."""

    listed: tuple[Candidate, ...]
    space: tuple[Candidate, ...]
    added: bool
    """Whether the float graph was put before a space that lacks it."""

    @property
    def order(self) -> Mapping[str, int]:
        """Order of preference, by `key_of` a candidate."""
        return {key_of(one): index for index, one in enumerate((*self.listed, *self.space))}


def run(spec: Spec, context: StageContext) -> StageResult:
    """Write the picked ``model.onnx`` with its ``signature.json``, ``candidates.json`` and ``latency.json``.

    ``engine.json`` is there when the pick runs on another engine than the default, ``scripts`` when a candidate failed.
    Raises EngineError when no candidate is left: none could be made, or each lost more of the metric than the recipe
    bears.
    """
    section = spec.optimize
    setting = _setting(spec, context)
    plan = planned(section)
    if plan.added:
        context.progress(Event("optimize", "progress", f"onnx is {ADDED}"))
    explored = _Exploration(section, setting, plan).explore()
    if not explored.finalists:
        raise EngineError(
            _nothing_left(explored.tried), hint="add onnx to optimize.candidates, or raise max_metric_drop"
        )
    figures = {one.name: one.figures for one in explored.finalists}
    choice = choose(figures, section.objective)
    rows = rows_of(section, explored, choice, setting.metric)
    picked = next(one for one in explored.finalists if one.name == choice.name)
    _publish(context, picked, rows, explored.tried)
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
        return Plan(tuple(listed), (), added=False)
    known = {key_of(one) for one in listed}
    names = {one.name for one in listed}
    space = [
        one.model_copy(update={"name": f"{one.name}, of the space"}) if one.name in names else one
        for one in candidates_of(section.search.space)
        if key_of(one) not in known
    ]
    lacking = key_of(FLOAT) not in known | {key_of(one) for one in space}
    return Plan((FLOAT, *listed) if lacking else tuple(listed), tuple(space), added=lacking)


# ------------------------------------------------------------------------------------------------------- exploration


@dataclass(frozen=True, slots=True)
class Explored:
    """What was tried, in the order of preference, and those of it that may serve and were measured in the same rounds,
    with the figures of those rounds."""

    tried: tuple[Tried, ...]
    finalists: tuple[Tried, ...]


class _Exploration:
    """Asks a search what to try, tries it, tells the search what became of it, until it has no more to suggest."""

    def __init__(self, section: OptimizeSection, setting: Setting, plan: Plan) -> None:
        self._section, self._setting, self._plan = section, setting, plan
        self._found: dict[str, Tried] = {}
        self._began = time.monotonic()
        self._size = group_size((setting.context.inputs["export"] / "model.onnx").stat().st_size)
        wanted = section.search.trials if self._method == "optuna" else len(plan.space)
        self._expected = len(plan.listed) + min(wanted, len(plan.space))

    @property
    def _method(self) -> str:
        return method_of(self._section.search, len(self._plan.space))

    def explore(self) -> Explored:
        """Try candidates group by group. Where there were several, the best are measured once more, all together."""
        groups = 0
        with Bench(self._setting, self._progress) as bench:
            best: Tried | None = None
            for group in self._groups():
                for one in bench.try_group(group, best.candidate if best else None):
                    self._found[key_of(one.candidate)] = self._constrained(one)
                groups += 1
                best = min(self._eligible(), key=lambda one: _middle(one.value), default=None)
                bench.close(but=[FLOAT, *([best.candidate] if best else [])])
            finalists = self._contenders() if groups == 1 else self._final(bench)
            if not finalists and self._eligible():  # the best failed at last: those that they beat are left
                finalists = self._final(bench)
            finalists = self._confirmed(bench, finalists)
        order = self._plan.order
        in_order = sorted(self._found.values(), key=lambda one: order[key_of(one.candidate)])
        return Explored(tuple(in_order), tuple(finalists))

    def _groups(self) -> Iterator[list[Candidate]]:
        """Listed candidates first, then those of the search, which is told in between."""
        listed, space = list(self._plan.listed), list(self._plan.space)
        search: Search = Exhaustive(space)
        if self._method == "optuna" and space:
            search = self._setting.context.ports.search(space, self._section.search.trials, self._setting.context.seed)
        while True:
            group, listed = listed[: self._size], listed[self._size :]
            if not self._late():
                group = [*group, *search.suggest(self._size - len(group))]
            if not group:
                return
            yield group
            keys = {key_of(one) for one in space}
            search.told([self._result_of(one) for one in group if key_of(one) in keys])

    def _late(self) -> bool:
        seconds = self._section.search.seconds
        return seconds is not None and time.monotonic() - self._began > seconds

    def _result_of(self, candidate: Candidate) -> TrialResult:
        tried = self._found[key_of(candidate)]
        ratio = None if tried.value is None else _middle(tried.value)
        return TrialResult(candidate, ratio, tried.status in ("ok", "dominated"))

    def _eligible(self) -> list[Tried]:
        """Those that may serve, in the order of preference."""
        order = self._plan.order
        found = [one for one in self._found.values() if one.status == "ok"]
        return sorted(found, key=lambda one: order[key_of(one.candidate)])

    def _final(self, bench: Bench) -> list[Tried]:
        """The best of all groups, measured anew in the same rounds: what was best of many is best by luck in part."""
        left = self._contenders() or self._eligible()
        least = min((one.value[1] for one in left if one.value), default=0.0)
        ranked = sorted(
            (one for one in left if one.value and one.value[0] <= least), key=lambda one: _middle(one.value)
        )
        keys = {key_of(one.candidate) for one in ranked[: self._size]}
        wanted = [one.candidate for one in left if key_of(one.candidate) in keys]
        if not wanted:
            return []
        again = [self._constrained(one) for one in bench.try_group(wanted, time="final")]
        self._found |= {key_of(one.candidate): one for one in again}
        return [one for one in again if one.status == "ok" and not one.beaten]

    def _confirmed(self, bench: Bench, finalists: list[Tried]) -> list[Tried]:
        """The finalists without those that would be picked by the luck of one start.

        A process is faster or slower than the next of the same graph by more than its own samples tell: where memory
        came to lie lasts as long as it does. So what would displace the first candidate has to do so in new processes.
        """
        while len(finalists) > 1 and timed(self._section.objective):
            chosen = choose({one.name: one.figures for one in finalists}, self._section.objective).name
            first, best = finalists[0], next(one for one in finalists if one.name == chosen)
            if best is first:
                break
            bench.close()
            again = bench.try_group([first.candidate, best.candidate], time=f"confirming {key_of(best.candidate)}")
            if again[1].status == "ok" and not again[1].beaten and self._displaces(*again):
                break
            said = f"faster than {first.name} at first, but not in processes that were started anew"
            self._found[key_of(best.candidate)] = replace(best, beaten=said)
            finalists = [one for one in finalists if one is not best]
        return finalists

    def _displaces(self, first: Tried, best: Tried) -> bool:
        """Whether the second is to be picked rather than the first, which may have been stopped for its sake."""
        if first.status != "ok" or first.beaten:
            return True
        return choose({one.name: one.figures for one in (first, best)}, self._section.objective).name == best.name

    def _contenders(self) -> list[Tried]:
        """Those that may serve and were not surely beaten before they had all their turns."""
        return [one for one in self._eligible() if not one.beaten]

    def _constrained(self, tried: Tried) -> Tried:
        """The candidate, rejected where it is surely or perhaps beyond the latency that the recipe bears."""
        most = self._section.max_latency_ms
        if most is None or tried.status != "ok":
            return tried
        quantile = quantile_of(self._section.objective)
        q = analysis.QUANTILES[quantile]
        low, high = analysis.quantile_interval(tried.figures.microseconds, q)
        if high <= most * 1000:
            return tried
        sure = "more" if low > most * 1000 else "it may be more"
        said = f"{quantile} is {low / 1000:.3g} to {high / 1000:.3g} ms: {sure} than max_latency_ms {most:g}"
        return replace(tried, status="rejected", reason=said)

    def _progress(self, done: float, doing: str) -> None:
        tried = len(self._found)
        eligible = self._eligible()
        best = min(eligible, key=lambda one: _middle(one.value), default=None)
        said = f"tried {tried} of {self._expected}" if self._expected > self._size else ""
        if best is not None:
            said = f"{said}, best so far {best.name} ({_middle(best.value):.2f} of the float graph)"
        share = min(self._size, self._expected) / self._expected
        fraction = min(1.0, tried / self._expected + share * done * (tried < self._expected))
        self._setting.context.progress(
            Event("optimize", "progress", "; ".join(filter(None, (doing, said))), fraction=fraction)
        )


def _middle(bounds: tuple[float, float] | None) -> float:
    """The geometric middle of an interval of ratios; infinite where there is none."""
    return float("inf") if bounds is None else (max(bounds[0], 0.0) * max(bounds[1], 0.0)) ** 0.5


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
        max_size=None if section.max_size_mb is None else section.max_size_mb * MEGABYTE,
        batch=section.batch,
        samples=section.samples,
        requests=REQUEST_ROWS,
        stop_early=section.search.stop_early,
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


def rows_of(section: OptimizeSection, explored: Explored, choice: Pick, metric: str) -> list[dict[str, Any]]:
    """The candidates as candidates.json and `bench --json` list them: times in microseconds, throughput in rows/s."""
    measured = [one for one in explored.tried if one.status == "ok" and one.relative is not None]
    points = {
        one.name: Point({"latency": one.relative, **one.rest(section.max_metric_drop).bounds})
        for one in measured
        if one.relative is not None
    }
    best = set(front(points))
    return [_row(section, one, metric, choice, one.name in best) for one in explored.tried]


def _row(section: OptimizeSection, tried: Tried, metric: str, choice: Pick, in_front: bool) -> dict[str, Any]:
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


def _behind(tried: Tried, choice: Pick) -> str:
    """Why a candidate that may serve was no finalist."""
    if tried.status != "ok" or tried.name == choice.name or tried.value is None:
        return ""
    return f"{tried.value[0]:.2f} to {tried.value[1]:.2f} of the float graph by the objective: others are surely better"


def _publish(context: StageContext, picked: Tried, rows: list[dict[str, Any]], tried: Sequence[Tried]) -> None:
    for path in picked.built.files if picked.built else ():
        shutil.copyfile(path, context.out / path.name)
    shutil.copyfile(context.inputs["export"] / "signature.json", context.out / "signature.json")
    write_json(context.out / "candidates.json", rows)
    if picked.candidate.engine != Engine():
        write_json(context.out / "engine.json", picked.candidate.engine.model_dump(mode="json"))
    latency = {one.name: one.samples.to_json() for one in tried if one.samples is not None}
    (context.out / "latency.json").write_text(json.dumps(latency))


def _result(rows: list[dict[str, Any]], picked: str, metric: str) -> StageResult:
    row = next(row for row in rows if row["name"] == picked)
    latencies = {f"latency_{name}_ms": row[f"{name}_us"] / 1000 for name in ("p50", "p95", "p99")}
    found = {**latencies, "throughput": row["throughput"]}
    if row["metric"] is not None:
        found[f"validation_{metric}"] = row["metric"]["value"]
    return StageResult(metrics=found, summary={"picked": picked, "candidates": rows})


def _nothing_left(tried: Sequence[Tried]) -> str:
    return "no candidate may serve: " + "; ".join(f"{each.name}: {each.reason or each.status}" for each in tried)
