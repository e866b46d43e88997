"""Judges the graph that will serve, on the test rows, by the recipe's gates."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlflowkit.bench.sequential.sampling import LatencyBudget, TimedRounds
from mlflowkit.bundle import Bundle, Signature, open_bundle, read_engine
from mlflowkit.errors import BundleError, DataError, MlkitError, StoreError
from mlflowkit.judging import gates, metrics
from mlflowkit.judging.metrics import LabelledPredictions
from mlflowkit.judging.paired_metrics import difference
from mlflowkit.judging.stats import Estimate, UndefinedMetricError
from mlflowkit.sections import Section
from mlflowkit.stages.base import TableInfo, read_signature, read_table_info, write_json
from mlflowkit.stages.evaluation import timing
from mlflowkit.stages.evaluation.gating import (
    ChampionEvidence,
    ComparedRows,
    EvaluationEvidence,
    Gate,
    Slice,
    group_rates,
    judge_gates,
    rivals,
    undecided_times,
)
from mlflowkit.stages.evaluation.groups import other_rows_by_value, rows_by_value
from mlflowkit.stages.evaluation.timing import PICKED, LatencySection, TimedGraph, TimingEvidence
from mlflowkit.system.machine import describe_machine
from mlflowkit.system.text import format_list, parse_json
from mlflowkit.values import Event, Json, Outcome, StageResult, Verdict

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from mlflowkit.ports import StageContext

PORTS = ("runtime",)
"""Ports that the result depends on."""

MAX_SHOWN_COLUMNS = 10
"""Columns whose importance `mlkit show` prints."""
MAX_LISTED_SLICES = 50
"""Slices too small to judge that are listed; beyond, they are only counted."""
NO_TRAINING_ROWS = (
    "the champion's bundle does not record which rows it was trained on, so these test rows may contain some; "
    "let this one pass with on_inconclusive: allow (its own bundle records them), or give the gate a min or max"
)


class Spec(Section):
    """Inputs of the evaluate stage's result, besides its input folders and the champion."""

    task: Literal["classification", "regression"]
    gates: list[Gate]
    """Also the policy: its digest is bound by the blessing."""
    latency: LatencySection = LatencySection()


def run(spec: Spec, context: StageContext) -> StageResult:
    """Write ``evaluation.json``, ``verdicts.json`` and ``predictions.parquet``.

    A gate that cannot be judged gets INCONCLUSIVE or ERROR and does not raise. Raises DataError for an empty test part
    and EngineError when the graph does not answer.
    """
    import pandas as pd

    data, optimized = context.inputs["data"], context.inputs["optimize"]
    info = read_table_info(data)
    signature = read_signature(optimized)
    table = pd.read_parquet(data / "test.parquet")
    if not len(table):
        raise DataError("the test part has no rows", hint="enlarge data.split.test")
    context.progress(Event("evaluate", "progress", f"predicting {len(table):,} test rows", fraction=0.1))
    predicted = _predict(context, optimized / "model.onnx", signature, table, info)
    champion = _predict_with_champion(context, signature, table, info)
    if champion is not None and champion.compared is not None:
        message = f"comparing with the champion on {int(champion.compared.mask.sum()):,} test rows"
        context.progress(Event("evaluate", "progress", message, fraction=0.5))
    fault = metrics.unusable_reason(predicted)
    times = _time_graphs(spec, context, signature, table)
    compared = [gate.fair.column for gate in spec.gates if gate.fair is not None]
    elsewhere = other_rows_by_value(data, [name for name in dict.fromkeys(compared) if name in table.columns])
    none = timing.without_champion(context)
    evidence = EvaluationEvidence(table, predicted, fault, champion, times, none, elsewhere)
    context.progress(Event("evaluate", "progress", f"judging {len(spec.gates)} gates", fraction=0.95))
    verdicts = tuple(judge_gates(spec.gates, evidence))
    evaluation = _evaluation_json(spec, evidence, signature, _latency_estimates(optimized, times))
    evaluation["importance"] = None if fault else _importance(context, signature, info, table)
    write_json(context.out / "evaluation.json", evaluation)
    write_json(context.out / "verdicts.json", [asdict(verdict) for verdict in verdicts])
    _write_predictions(context.out / "predictions.parquet", predicted, signature)
    return StageResult(
        metrics={name: measurement["value"] for name, measurement in evaluation["metrics"].items()},
        summary=_summary(evidence, evaluation, verdicts),
        verdicts=verdicts,
    )


# ------------------------------------------------------------------------------------------------------- predictions


def _predict(
    context: StageContext, model: Path, signature: Signature, table: pd.DataFrame, info: TableInfo
) -> LabelledPredictions:
    """The graph's predictions on the rows of a table, in the order of ``signature.classes``."""
    return _predictor(context, model, signature, info)(table)


def _predictor(
    context: StageContext, model: Path, signature: Signature, info: TableInfo
) -> Callable[[pd.DataFrame], LabelledPredictions]:
    """A function from a table to the graph's predictions, in the order of ``signature.classes``."""
    from mlflowkit.features.predictions import predict_rows
    from mlflowkit.features.tensors import inputs_from_table

    session = context.ports.runtime.load(model, engine=read_engine(model.parent))

    def predict(table: pd.DataFrame) -> LabelledPredictions:
        actual = _actual_values(table[info.target], signature)
        return predict_rows(session, signature, lambda rows: inputs_from_table(signature, table.iloc[rows]), actual)

    return predict


def _actual_values(target: pd.Series, signature: Signature) -> np.ndarray:
    """Class codes, or finite numbers. Raises DataError for any other."""
    import numpy as np

    from mlflowkit.features.tensors import class_codes

    if signature.task == "classification":
        actual = class_codes(target, signature.classes)
    else:
        actual = target.to_numpy(dtype=np.float64, na_value=np.nan)
        if not np.isfinite(actual).all():
            message = f"column {target.name!r} holds a target that is missing or infinite in the test part"
            hint = "leave such rows out of the source; a nulls check on it reports them before training"
            raise DataError(message, hint=hint)
    return actual


def _importance(context: StageContext, signature: Signature, info: TableInfo, table: pd.DataFrame) -> Json:
    """The permutation importance of the columns that the graph takes, as JSON."""
    from mlflowkit.stages.evaluation.importance import permutation_importance, rows_to_predict

    model = context.inputs["optimize"] / "model.onnx"
    columns = [column for tensor in signature.inputs for column in tensor.columns]
    rows = rows_to_predict(len(table), len(columns), model.stat().st_size)
    context.progress(Event("evaluate", "progress", f"importance of {len(columns)} columns", fraction=0.97))
    predict = _predictor(context, model, signature, info)
    return asdict(permutation_importance(predict, table, columns, signature.task, rows=rows, seed=0))


def _predict_with_champion(
    context: StageContext, signature: Signature, table: pd.DataFrame, info: TableInfo
) -> ChampionEvidence | None:
    if context.champion is None:
        return None
    try:
        bundle = open_bundle(context.champion, blessed=True)
    except BundleError as error:
        return ChampionEvidence("", None, f"the champion cannot be opened: {error.message}")
    version = bundle.manifest.version
    fault = _incompatibility(bundle, signature)
    if fault:
        return ChampionEvidence(version, None, fault)
    absent = [name for tensor in bundle.signature.inputs for name in tensor.columns if name not in table.columns]
    if absent:
        fault = f"the champion takes {format_list(absent)}, which this table does not have; "
        fault += "let this one pass with on_inconclusive: allow, or keep the column with data.columns: {COLUMN: ignore}"
        return ChampionEvidence(version, None, fault, Outcome.INCONCLUSIVE)
    try:
        predicted = _predict(context, bundle.model, bundle.signature, table, info)
    except MlkitError as error:
        return ChampionEvidence(version, None, f"the champion cannot answer these rows: {error.message}")
    fault = metrics.unusable_reason(predicted)
    if fault:
        return ChampionEvidence(version, None, f"the champion cannot be compared with: {fault}")
    predicted = _reorder_classes(predicted, bundle.signature.classes, signature.classes)
    return _with_compared_rows(bundle, predicted, context.inputs["data"], info)


def _with_compared_rows(
    bundle: Bundle, predicted: LabelledPredictions, data: Path, info: TableInfo
) -> ChampionEvidence:
    """The champion with the test rows on which it is compared with the candidate.

    A row that just one of the two was trained on is excluded. Rows that both were trained on are not: with one split,
    and recurring rows, the comparison on all of them favours neither.
    """
    from mlflowkit.features import row_digests

    version, signature = bundle.manifest.version, bundle.signature
    try:
        theirs = row_digests.read(bundle)
    except BundleError as error:
        return ChampionEvidence(version, None, f"the champion cannot be compared with: {error.message}")
    if theirs is None:
        return ChampionEvidence(version, None, NO_TRAINING_ROWS, Outcome.INCONCLUSIVE)
    rows = row_digests.digests_of(data / "test.parquet", signature, info.target)
    by_champion = row_digests.is_seen(rows, theirs)
    by_candidate = row_digests.is_seen(rows, row_digests.training_row_digests(data, signature, info.target))
    trained = "one of the two" if (by_candidate & ~by_champion).any() else "the champion"
    compared = ComparedRows(by_champion == by_candidate, f"{trained} was trained on the others")
    return ChampionEvidence(version, predicted, compared=compared)


def _incompatibility(bundle: Bundle, signature: Signature) -> str:
    """Why the champion cannot be compared with the candidate; "" if it can."""
    if bundle.signature.task != signature.task:
        return f"the champion is a {bundle.signature.task}, the candidate a {signature.task}"
    theirs, ours = bundle.signature.classes, signature.classes
    if sorted(map(str, theirs)) != sorted(map(str, ours)):
        return f"the champion predicts {_format_classes(theirs)}, the candidate {_format_classes(ours)}"
    if len(ours) == 2 and str(theirs[-1]) != str(ours[-1]):
        return f"the champion's positive class is {theirs[-1]!r}, the candidate's {ours[-1]!r}"
    return ""


def _format_classes(classes: Sequence[str | int]) -> str:
    return f"{len(classes)} classes ({', '.join(map(repr, classes[:6]))}{', …' if len(classes) > 6 else ''})"


def _reorder_classes(
    predicted: LabelledPredictions, theirs: Sequence[str | int], ours: Sequence[str | int]
) -> LabelledPredictions:
    """The champion's predictions with codes and columns in the order of the candidate's classes."""
    import numpy as np

    if predicted.scores is None or list(map(str, theirs)) == list(map(str, ours)):
        return predicted
    our_codes = {str(label): code for code, label in enumerate(ours)}
    codes = np.array([our_codes[str(label)] for label in theirs])
    scores = predicted.scores[:, np.argsort(codes)]
    return LabelledPredictions(predicted.task, codes[predicted.actual], codes[predicted.predicted], scores)


# ------------------------------------------------------------------------------------------------------------- times


def _time_graphs(spec: Spec, context: StageContext, signature: Signature, table: pd.DataFrame) -> TimingEvidence:
    """Measure what gates on time are judged on, until all are decided or the budget of the recipe ends."""
    timed = [gate for gate in spec.gates if gate.metric in metrics.TIMES]
    budget = LatencyBudget(spec.latency.seconds, spec.latency.rounds)
    evidence = TimingEvidence(describe_machine(), class_required=context.class_required, budget=budget)
    if not timed:
        return evidence
    for gate in timed:
        if gate.metric in metrics.LATENCY and gate.machine is None:
            context.progress(Event("evaluate", "warning", _unnamed_class(gate, evidence.machine)))
    optimized = context.inputs["optimize"]
    picked = TimedGraph(optimized / "model.onnx", read_engine(optimized), signature)
    graphs, settled = timing.rival_graphs(rivals(timed), context, picked)
    itself = frozenset(name for name, graph in graphs.items() if picked.equals(graph))
    others = {name: graph for name, graph in graphs.items() if name not in itself}
    alike = frozenset(name for name, graph in others.items() if picked.single_threaded and graph.single_threaded)
    evidence = replace(evidence, settled=settled, itself=itself, alike=alike)
    if not undecided_times(timed, evidence):
        return evidence
    batch = int(_picked_candidate(optimized).get("batch", 1))

    def decided(rounds: TimedRounds) -> bool:
        return not undecided_times(timed, replace(evidence, rounds=rounds))

    rounds = timing.measure(context, table, {PICKED: picked, **others}, batch, budget, decided)
    return replace(evidence, rounds=rounds)


def _unnamed_class(gate: Gate, machine: str) -> str:
    limit = f"{gate.metric} <= {gate.max:g}" if gate.max is not None else gate.metric
    return (
        f"{limit} holds for one class of machines and names none: add machine: {json.dumps(machine)} to the gate, or "
        "judge a ratio, which holds on any: {metric: latency_ratio, against: champion, max: 1.5}"
    )


def _picked_candidate(optimized: Path) -> Mapping[str, Json]:
    candidates = _read_json(optimized / "candidates.json")
    return next((candidate for candidate in candidates if candidate["picked"]), {"name": ""})


def _read_json(path: Path) -> Json:
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        message = f"{path}: latency cannot be read: {error}"
        raise StoreError(message, hint="mlkit run RECIPE --force optimize") from error


def _latency_estimates(optimized: Path, evidence: TimingEvidence) -> Callable[[str], Estimate]:
    """A function from a latency metric to its estimate for the picked graph; it may raise UndefinedMetricError.

    From the rounds of this stage where gates needed them, else from those of the optimize stage.
    """
    rounds = evidence.rounds
    if rounds is not None:
        quiet = rounds.undisturbed()
        blocks = (quiet if quiet.rounds else rounds).blocks[PICKED]
        return lambda metric: metrics.latency(metric, blocks.ravel(), blocks.shape[1])
    picked = _read_json(optimized / "latency.json").get(_picked_candidate(optimized)["name"], {})

    def estimate(metric: str) -> Estimate:
        import numpy as np

        return metrics.latency(metric, np.asarray(picked.get("samples_us", ())), int(picked.get("block", 1)))

    return estimate


# ------------------------------------------------------------------------------------------------------------- files


def _reported_metrics(spec: Spec, predicted: LabelledPredictions) -> tuple[str, ...]:
    """The built-in metrics of the task, and those of plugins that gates name."""
    gated = [gate.metric for gate in spec.gates if gate.fair is None]
    named = dict.fromkeys(name for name in gated if not metrics.is_built_in(name))
    installed = [name for name in named if metrics.is_defined(name, predicted.task, predicted.classes)]
    return (*metrics.metrics_of(predicted.task, predicted.classes), *installed)


def _measure_all(spec: Spec, predicted: LabelledPredictions) -> tuple[dict[str, Json], dict[str, str]]:
    """Every reported metric at 95 %, and why the others are undefined."""
    measurements: dict[str, Json] = {}
    undefined: dict[str, str] = {}
    for name in _reported_metrics(spec, predicted):
        try:
            measurements[name] = asdict(metrics.estimate(name, predicted).at(0.95))
        except UndefinedMetricError as error:
            undefined[name] = error.message
    return measurements, undefined


def _evaluation_json(
    spec: Spec, evidence: EvaluationEvidence, signature: Signature, latency: Callable[[str], Estimate]
) -> dict[str, Json]:
    from mlflowkit.judging import curves

    predicted = evidence.predictions
    evaluation: dict[str, Json] = {
        "task": spec.task,
        "rows": predicted.rows,
        "classes": list(signature.classes),
        "metrics": {},
        "undefined": {},
        "fault": evidence.fault,
        "confusion": curves.confusion(predicted, signature.classes) if signature.classes else None,
        **dict.fromkeys(("roc", "pr", "calibration", "residuals", "champion")),
        "slices": [],
        "slices_too_small": [],
        "fairness": [],
        "latency": evidence.timing.to_json(),
    }
    for metric in metrics.LATENCY:
        try:
            evaluation["metrics"][metric] = asdict(latency(metric).at(0.95))
        except UndefinedMetricError as error:
            evaluation["undefined"][metric] = error.message
    if evidence.fault:
        return evaluation
    measurements, undefined = _measure_all(spec, predicted)
    evaluation["metrics"] = {**measurements, **evaluation["metrics"]}
    evaluation["undefined"] = {**undefined, **evaluation["undefined"]}
    evaluation["roc"], evaluation["pr"] = curves.ranking(predicted)
    evaluation["calibration"] = curves.calibration(predicted)
    evaluation["residuals"] = curves.residuals(predicted)
    evaluation["champion"] = _champion_json(spec, evidence)
    for section in {gate.slice.column: gate.slice for gate in spec.gates if gate.slice is not None}.values():
        _add_slices(evaluation, spec, section, evidence)
    evaluation["fairness"] = group_rates(spec.gates, evidence)
    return evaluation


def _add_slices(evaluation: dict[str, Json], spec: Spec, section: Slice, evidence: EvaluationEvidence) -> None:
    column = section.column
    if column not in evidence.table.columns:
        return  # the gate's verdict is an ERROR
    small: list[dict[str, Json]] = []
    for value, rows in rows_by_value(evidence.table[column]):
        if len(rows) < section.min_rows:
            small.append({"value": value, "rows": len(rows)})
            continue
        measurements, undefined = _measure_all(spec, evidence.predictions.take(rows))
        evaluation["slices"].append(
            {"column": column, "value": value, "rows": len(rows), "metrics": measurements, "undefined": undefined}
        )
    if small:
        evaluation["slices_too_small"].append(
            {
                "column": column,
                "min_rows": section.min_rows,
                "values": small[:MAX_LISTED_SLICES],
                "count": len(small),
                "rows": sum(item["rows"] for item in small),
            }
        )


def _champion_json(spec: Spec, evidence: EvaluationEvidence) -> Json:
    """Each metric of champion and candidate on the compared rows, and their difference."""
    champion = evidence.champion
    if champion is None:
        return None
    none = {"rows": 0, "left_out": 0, "why": "", "metrics": {}, "undefined": {}}
    comparison: dict[str, Json] = {"version": champion.version, **none, "fault": champion.fault}
    if champion.predictions is None or champion.compared is None:
        return comparison
    rows = champion.compared.among(None)
    ours, theirs = evidence.predictions.take(rows), champion.predictions.take(rows)
    excluded = evidence.predictions.rows - len(rows)
    why = champion.compared.why_others_excluded if excluded else ""
    comparison |= {"rows": len(rows), "left_out": excluded, "why": why}
    for name in _reported_metrics(spec, ours):
        try:
            comparison["metrics"][name] = {
                "champion": asdict(metrics.estimate(name, theirs).at(0.95)),
                "candidate": asdict(metrics.estimate(name, ours).at(0.95)),
                "difference": asdict(difference(name, ours, theirs).at(0.95)),
            }
        except UndefinedMetricError as error:
            comparison["undefined"][name] = error.message
    return comparison


def _summary(
    evidence: EvaluationEvidence, evaluation: Mapping[str, Json], verdicts: Sequence[Verdict]
) -> dict[str, Json]:
    counts = {outcome: sum(verdict.outcome is outcome for verdict in verdicts) for outcome in Outcome}
    not_judged = [
        f"{small['count']:,} values of {small['column']} ({small['rows']:,} rows) have fewer than "
        f"{small['min_rows']} rows each and were not judged"
        for small in evaluation["slices_too_small"]
    ]
    not_judged += dict.fromkeys(gate["note"] for gate in evaluation["fairness"] if gate["note"])
    return {
        "rows": evidence.predictions.rows,
        "verdicts": {str(outcome): count for outcome, count in counts.items() if count},
        "blessed": gates.blessed(verdicts),
        "worst": str(gates.worst_blocking(verdicts)),
        "champion": evidence.champion.version if evidence.champion else None,
        "champion_fault": evidence.champion.fault if evidence.champion else "",
        "not_judged": not_judged,
        "importance": _largest_importances(evaluation["importance"]),
    }


def _largest_importances(importance: Json) -> Json:
    """The metric and the most important columns, for `mlkit show`."""
    if importance is None or not importance["columns"]:
        return None
    columns = {item["column"]: item["fall"] for item in importance["columns"][:MAX_SHOWN_COLUMNS]}
    return {"metric": importance["metric"], "value": importance["value"], "columns": columns}


def _write_predictions(path: Path, predicted: LabelledPredictions, signature: Signature) -> None:
    """Columns target and prediction, and ``score:CLASS`` for each class; equal predictions give equal bytes."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    if predicted.scores is None:
        columns = {"target": predicted.actual, "prediction": predicted.predicted}
    else:
        labels = np.array(signature.classes)
        columns = {"target": labels[predicted.actual], "prediction": labels[predicted.predicted]}
        columns |= {f"score:{label}": predicted.scores[:, code] for code, label in enumerate(signature.classes)}
    pq.write_table(pa.table(columns), path, version="2.6", compression="snappy")
