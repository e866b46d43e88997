"""Judge the artifact that will serve, on the test rows, at the recipe's gates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mlflowkit.bundle import Bundle, Signature, open_bundle, read_engine
from mlflowkit.errors import BundleError, DataError, MlkitError, StoreError
from mlflowkit.features import predictions, row_digests
from mlflowkit.features.tensors import category_text, class_codes, inputs_from_table
from mlflowkit.judging import curves, gates, metrics
from mlflowkit.judging.metrics import Answers
from mlflowkit.judging.stats import Estimate, UndefinedMetricError
from mlflowkit.sections import Section
from mlflowkit.stages.base import TableInfo, read_signature, read_table_info, write_json
from mlflowkit.values import Event, Json, Outcome, StageResult, Verdict

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from mlflowkit.ports import StageContext

BINARY_METRICS = metrics.BINARY
CLASSIFICATION_METRICS = metrics.CLASSIFICATION
REGRESSION_METRICS = metrics.REGRESSION
LATENCY_METRICS = ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms")
LOWER_IS_BETTER = (*metrics.LOWER_IS_BETTER, *LATENCY_METRICS)

SMALL_SLICES = 50
"""Slices too small to judge that are listed by name; beyond, they are counted."""
MISSING = "(missing)"
UNTOLD = (
    "the champion's bundle does not tell which rows it was trained on, so some of them may be among these test rows; "
    "let this one pass with on_inconclusive: allow (its own bundle tells), or give the gate a min or max"
)


class Slice(Section):
    """The rows of the test part, by the values of a column."""

    column: str
    """A column declared under data.columns or in a schema check."""
    min_rows: int = Field(default=30, ge=2)
    """Values with fewer rows are reported and not judged."""


class Gate(Section):
    """One condition. A value threshold has min or max; a change threshold has against and margin."""

    metric: str
    """What is judged."""
    min: float | None = None
    """PASSED needs the whole interval at or above it."""
    max: float | None = None
    """PASSED needs the whole interval at or below it."""
    against: Literal["champion"] | None = None
    """Compare with the model that serves now, paired on the test rows that not just one of the two was trained on.
    PASSED when there is none; INCONCLUSIVE when its bundle does not say what it was trained on."""
    margin: float = Field(default=0.0, ge=0)
    """Non-inferiority margin: how much worse than the champion is borne."""
    slice: Slice | None = None
    """Judge each slice, corrected for their number (Holm)."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of the two-sided interval. One bound of it decides: PASSED and FAILED are each wrong with
    probability (1 - confidence) / 2 at most."""
    on_inconclusive: Literal["block", "allow"] = "block"
    """Whether INCONCLUSIVE stops the bundle from being blessed."""
    dry_run: bool = False
    """Report only."""


class Spec(Section):
    """What the evaluate stage's result depends on, besides its inputs and the champion."""

    task: Literal["classification", "regression"]
    gates: list[Gate]
    """Also the policy: its digest is bound by the blessing."""


@dataclass(frozen=True, slots=True)
class _Champion:
    """The model that serves now, asked the same rows; or why it could not be, and what its gates say then."""

    version: str
    answers: Answers | None
    fault: str = ""
    outcome: Outcome = Outcome.ERROR
    pairs: _Pairs | None = None


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The test rows that champion and candidate are compared on: those that both have seen or neither has."""

    fair: np.ndarray
    """bool [rows]"""
    why: str
    """Why the others are left out."""

    def among(self, rows: np.ndarray | None) -> np.ndarray:
        """Those of these rows (None: all) that are compared on."""
        import numpy as np

        return np.flatnonzero(self.fair) if rows is None else rows[self.fair[rows]]


@dataclass(frozen=True, slots=True)
class _Evidence:
    """All that gates are judged on."""

    table: pd.DataFrame
    answers: Answers
    fault: str
    champion: _Champion | None
    latency: Callable[[str], Estimate]


def run(spec: Spec, context: StageContext) -> StageResult:
    """Write ``evaluation.json``, ``verdicts.json`` and ``predictions.parquet``.

    A gate that cannot be judged says so (INCONCLUSIVE or ERROR) and does not raise. Raises DataError for an empty
    test part and EngineError when the graph does not answer.
    """
    import pandas as pd

    data, optimized = context.inputs["data"], context.inputs["optimize"]
    info = read_table_info(data)
    signature = read_signature(optimized)
    table = pd.read_parquet(data / "test.parquet")
    if not len(table):
        raise DataError("the test part has no rows", hint="enlarge data.split.test")
    context.progress(Event("evaluate", "progress", f"asking the model {len(table):,} test rows", fraction=0.1))
    answers = _ask(context, optimized / "model.onnx", signature, table, info)
    champion = _ask_champion(context, signature, table, info)
    if champion is not None and champion.pairs is not None:
        message = f"comparing with the champion on {int(champion.pairs.fair.sum()):,} test rows"
        context.progress(Event("evaluate", "progress", message, fraction=0.5))
    latency = _latency(optimized)
    evidence = _Evidence(table, answers, metrics.fault_of(answers), champion, latency)
    context.progress(Event("evaluate", "progress", f"judging {len(spec.gates)} gates", fraction=0.6))
    verdicts = tuple(_judge(spec.gates, evidence))
    evaluation = _evaluation(spec, evidence, signature)
    write_json(context.out / "evaluation.json", evaluation)
    write_json(context.out / "verdicts.json", [asdict(verdict) for verdict in verdicts])
    _write_predictions(context.out / "predictions.parquet", answers, signature)
    return StageResult(
        metrics={name: one["value"] for name, one in evaluation["metrics"].items()},
        summary=_summary(evidence, evaluation, verdicts),
        verdicts=verdicts,
    )


# ---- asking models


def _ask(context: StageContext, model: Path, signature: Signature, table: pd.DataFrame, info: TableInfo) -> Answers:
    """The graph's answers on the rows of a table, in the order of ``signature.classes``."""
    actual = _actual(signature, table[info.target])
    session = context.ports.runtime.load(model, engine=read_engine(model.parent))
    return predictions.ask(session, signature, lambda rows: inputs_from_table(signature, table.iloc[rows]), actual)


def _actual(signature: Signature, target: pd.Series) -> np.ndarray:
    import numpy as np

    if signature.task == "classification":
        return class_codes(target, signature.classes)
    actual = target.to_numpy(dtype=np.float64, na_value=np.nan)
    if not np.isfinite(actual).all():
        raise DataError(
            f"column {target.name!r} holds a target that is missing or infinite in the test part",
            hint="leave such rows out of the source; a nulls check on it says so before training",
        )
    return actual


def _ask_champion(
    context: StageContext, signature: Signature, table: pd.DataFrame, info: TableInfo
) -> _Champion | None:
    if context.champion is None:
        return None
    try:
        bundle = open_bundle(context.champion, blessed=True)
    except BundleError as error:
        return _Champion("", None, f"the champion cannot be opened: {error.message}")
    fault = _unlike(bundle, signature)
    if fault:
        return _Champion(bundle.manifest.version, None, fault)
    try:
        answers = _ask(context, bundle.model, bundle.signature, table, info)
    except MlkitError as error:
        return _Champion(bundle.manifest.version, None, f"the champion cannot answer these rows: {error.message}")
    fault = metrics.fault_of(answers)
    if fault:
        return _Champion(bundle.manifest.version, None, f"the champion cannot be compared with: {fault}")
    answers = _reordered(answers, bundle.signature.classes, signature.classes)
    return _paired(bundle, answers, context.inputs["data"], info)


def _paired(bundle: Bundle, answers: Answers, data: Path, info: TableInfo) -> _Champion:
    """The champion with the test rows that it and the candidate are compared on.

    A row that just one of the two was trained on is left out. What both were trained on is not: with one split, and a
    table where rows recur, the test rows are as they come, and the comparison on all of them favours neither.
    """
    version = bundle.manifest.version
    try:
        theirs = row_digests.read(bundle)
    except BundleError as error:
        return _Champion(version, None, f"the champion cannot be compared with: {error.message}")
    if theirs is None:
        return _Champion(version, None, UNTOLD, Outcome.INCONCLUSIVE)
    rows = row_digests.digests_of(data / "test.parquet", bundle.signature, info.target)
    by_champion = row_digests.is_seen(rows, theirs)
    by_candidate = row_digests.is_seen(rows, row_digests.seen_by(data, bundle.signature, info.target))
    trained = "one of the two" if (by_candidate & ~by_champion).any() else "the champion"
    pairs = _Pairs(by_champion == by_candidate, f"{trained} was trained on the others")
    return _Champion(version, answers, pairs=pairs)


def _unlike(bundle: Bundle, signature: Signature) -> str:
    """Why the champion answers another question than the candidate; "" when it does not."""
    if bundle.signature.task != signature.task:
        return f"the champion is a {bundle.signature.task}, the candidate a {signature.task}"
    theirs, ours = bundle.signature.classes, signature.classes
    if sorted(map(str, theirs)) != sorted(map(str, ours)):
        return f"the champion tells {_listed(theirs)}, the candidate {_listed(ours)}"
    if len(ours) == 2 and str(theirs[-1]) != str(ours[-1]):
        return f"the champion's positive class is {theirs[-1]!r}, the candidate's {ours[-1]!r}"
    return ""


def _reordered(answers: Answers, theirs: Sequence[str | int], ours: Sequence[str | int]) -> Answers:
    """The champion's answers with codes and columns in the order of the candidate's classes."""
    import numpy as np

    if answers.scores is None or list(map(str, theirs)) == list(map(str, ours)):
        return answers
    place = {str(label): code for code, label in enumerate(ours)}
    code = np.array([place[str(label)] for label in theirs])
    return Answers(answers.task, code[answers.actual], code[answers.predicted], answers.scores[:, np.argsort(code)])


def _listed(classes: Sequence[str | int]) -> str:
    shown = ", ".join(map(repr, classes[:6]))
    return f"{len(classes)} classes ({shown}{', …' if len(classes) > 6 else ''})"


def _latency(optimized: Path) -> Callable[[str], Estimate]:
    """Estimates of latency of the graph that was picked; raises UndefinedMetricError when asked in vain."""
    try:
        candidates = json.loads((optimized / "candidates.json").read_bytes())
        samples = json.loads((optimized / "latency.json").read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{optimized}: latency cannot be read: {error}", hint="mlkit run --force optimize") from error
    picked = next((one["name"] for one in candidates if one["picked"]), "")
    found = samples.get(picked, {})

    def estimate(metric: str) -> Estimate:
        import numpy as np

        return metrics.latency(metric, np.asarray(found.get("samples_us", ())), int(found.get("block", 1)))

    return estimate


# ---- gates


def _judge(asked: Sequence[Gate], evidence: _Evidence) -> Iterator[Verdict]:
    if evidence.fault:
        question = gates.Question("the model answers", "answers", 0.0, "min")
        yield gates.no_answer(question, Outcome.ERROR, evidence.fault)
    for gate in asked:
        questions = tuple(_questions(gate))
        if not questions:
            question = gates.Question(gate.metric, gate.metric, 0.0, "min", dry_run=gate.dry_run)
            yield gates.no_answer(question, Outcome.ERROR, "the gate has neither min nor max nor against")
        for question in questions:
            yield from _answer(gate, question, evidence)


def _questions(gate: Gate) -> Iterator[gates.Question]:
    by = f" by {gate.slice.column}" if gate.slice else ""
    allow = gate.on_inconclusive == "allow"
    if gate.min is not None:
        name = f"{gate.metric} >= {gate.min:g}{by}"
        yield gates.Question(name, gate.metric, gate.min, "min", gate.confidence, False, allow, gate.dry_run)
    if gate.max is not None:
        name = f"{gate.metric} <= {gate.max:g}{by}"
        yield gates.Question(name, gate.metric, gate.max, "max", gate.confidence, False, allow, gate.dry_run)
    if gate.against is not None:
        name = f"{gate.metric} against {gate.against}, margin {gate.margin:g}{by}"
        less = gate.metric in LOWER_IS_BETTER
        margin = gate.margin if less or gate.margin == 0 else -gate.margin
        direction: Literal["min", "max"] = "max" if less else "min"
        yield gates.Question(name, gate.metric, margin, direction, gate.confidence, True, allow, gate.dry_run)


def _answer(gate: Gate, question: gates.Question, evidence: _Evidence) -> Iterator[Verdict]:
    """The verdicts on one question: one, or one for each slice that is large enough."""
    refusal = _refusal(gate, question, evidence)
    if refusal is not None:
        yield gates.no_answer(question, *refusal)
        return
    if gate.slice is None:
        try:
            yield gates.judge(question, _estimate(question, evidence, None))
        except UndefinedMetricError as error:
            yield gates.no_answer(question, Outcome.INCONCLUSIVE, error.message)
        return
    yield from _answer_slices(gate.slice, question, evidence)


def _refusal(gate: Gate, question: gates.Question, evidence: _Evidence) -> tuple[Outcome, str] | None:
    """Why a question is not put to the numbers at all."""
    latency = gate.metric in LATENCY_METRICS
    known = metrics.metrics_of(evidence.answers.task, evidence.answers.classes)
    if not latency and gate.metric not in known:
        return Outcome.ERROR, f"no such metric for this task; it has {', '.join((*known, *LATENCY_METRICS))}"
    if latency and (gate.slice is not None or question.change):
        return Outcome.ERROR, "latency is judged by max alone: not by slice, and not against the champion"
    if gate.slice is not None and gate.slice.column not in evidence.table.columns:
        return Outcome.ERROR, f"the test part has no column {gate.slice.column!r}"
    if evidence.fault and not latency:
        return Outcome.ERROR, evidence.fault
    if question.change:
        if evidence.champion is None:
            return Outcome.PASSED, "no champion yet: nothing to compare with"
        if evidence.champion.answers is None:
            return evidence.champion.outcome, evidence.champion.fault
    return None


def _answer_slices(sliced: Slice, question: gates.Question, evidence: _Evidence) -> Iterator[Verdict]:
    estimates: dict[str, Estimate] = {}
    undefined: dict[str, str] = {}
    groups = _groups(evidence.table[sliced.column])
    for value, rows in groups:
        if len(rows) < sliced.min_rows:
            continue
        name = f"{sliced.column}={value}"
        try:
            estimates[name] = _estimate(question, evidence, rows, sliced.min_rows)
        except UndefinedMetricError as error:
            counted = "" if question.change else f"{len(rows):,} rows: "
            undefined[name] = f"{counted}{error.message}"
    yield from gates.judge_family(question, estimates, size=len(estimates) + len(undefined))
    for name, why in undefined.items():
        yield gates.no_answer(question, Outcome.INCONCLUSIVE, why, name)
    if not estimates and not undefined:
        most = max((len(rows) for _, rows in groups), default=0)
        why = f"none of {len(groups):,} values of {sliced.column} has {sliced.min_rows} test rows (the largest {most})"
        yield gates.no_answer(question, Outcome.INCONCLUSIVE, why)


def _estimate(question: gates.Question, evidence: _Evidence, rows: np.ndarray | None, min_rows: int = 0) -> Estimate:
    if question.metric in LATENCY_METRICS:
        return evidence.latency(question.metric)
    if question.change:
        return _difference(question.metric, evidence, rows, min_rows)
    return metrics.estimate(question.metric, evidence.answers if rows is None else evidence.answers.take(rows))


def _difference(metric: str, evidence: _Evidence, rows: np.ndarray | None, min_rows: int) -> Estimate:
    """Candidate minus champion on those of the rows that are compared on, told with how many were left out."""
    champion = evidence.champion
    if champion is None or champion.answers is None or champion.pairs is None:
        raise UndefinedMetricError("no champion to compare with")  # _refusal answers before it comes to this
    asked = evidence.answers.rows if rows is None else len(rows)
    fair = champion.pairs.among(rows)
    ours, theirs = evidence.answers.take(fair), champion.answers.take(fair)
    if len(fair) == asked:
        return metrics.difference(metric, ours, theirs)
    positive = f"{int((ours.actual == 1).sum()):,} positive; " if ours.classes == 2 else ""
    basis = f"{len(fair):,} of {asked:,} test rows ({positive}{champion.pairs.why})"
    if len(fair) < min_rows:
        raise UndefinedMetricError(f"{basis}: the gate asks for {min_rows:,} or more")
    try:
        return replace(metrics.difference(metric, ours, theirs), basis=basis)
    except UndefinedMetricError as error:
        raise UndefinedMetricError(f"{basis}: {error.message}") from error


def _groups(column: pd.Series) -> list[tuple[str, np.ndarray]]:
    """Rows by value, the largest group first, ties in the order of the text."""
    import numpy as np
    import pandas as pd

    texts = np.array([category_text(value) or MISSING for value in column], dtype=object)
    codes, values = pd.factorize(texts)
    order = np.argsort(codes, kind="stable")
    found = np.split(order, np.cumsum(np.bincount(codes))[:-1])
    return sorted(zip(map(str, values), found, strict=True), key=lambda group: (-len(group[1]), group[0]))


# ---- what is written


def _measured(answers: Answers) -> tuple[dict[str, Json], dict[str, str]]:
    """Every metric of the task at 95 %, and why the others are undefined."""
    found: dict[str, Json] = {}
    undefined: dict[str, str] = {}
    for name in metrics.metrics_of(answers.task, answers.classes):
        try:
            found[name] = asdict(metrics.estimate(name, answers).at(0.95))
        except UndefinedMetricError as error:
            undefined[name] = error.message
    return found, undefined


def _evaluation(spec: Spec, evidence: _Evidence, signature: Signature) -> dict[str, Json]:
    answers = evidence.answers
    evaluation: dict[str, Json] = {
        "task": spec.task,
        "rows": answers.rows,
        "classes": list(signature.classes),
        "metrics": {},
        "undefined": {},
        "fault": evidence.fault,
        "confusion": curves.confusion(answers, signature.classes) if signature.classes else None,
        **dict.fromkeys(("roc", "pr", "calibration", "residuals", "champion")),
        "slices": [],
        "slices_too_small": [],
    }
    for metric in LATENCY_METRICS:
        try:
            evaluation["metrics"][metric] = asdict(evidence.latency(metric).at(0.95))
        except UndefinedMetricError as error:
            evaluation["undefined"][metric] = error.message
    if evidence.fault:
        return evaluation
    found, undefined = _measured(answers)
    evaluation["metrics"] = {**found, **evaluation["metrics"]}
    evaluation["undefined"] = {**undefined, **evaluation["undefined"]}
    evaluation["roc"], evaluation["pr"] = curves.ranking(answers)
    evaluation["calibration"] = curves.calibration(answers)
    evaluation["residuals"] = curves.residuals(answers)
    evaluation["champion"] = _compared(evidence)
    for sliced in {gate.slice.column: gate.slice for gate in spec.gates if gate.slice is not None}.values():
        _add_slices(evaluation, sliced, evidence)
    return evaluation


def _add_slices(evaluation: dict[str, Json], sliced: Slice, evidence: _Evidence) -> None:
    if sliced.column not in evidence.table.columns:
        return  # its verdict is an ERROR that says so
    small: list[dict[str, Json]] = []
    for value, rows in _groups(evidence.table[sliced.column]):
        if len(rows) < sliced.min_rows:
            small.append({"value": value, "rows": len(rows)})
            continue
        found, undefined = _measured(evidence.answers.take(rows))
        one = {"column": sliced.column, "value": value, "rows": len(rows), "metrics": found, "undefined": undefined}
        evaluation["slices"].append(one)
    if small:
        evaluation["slices_too_small"].append(
            {
                "column": sliced.column,
                "min_rows": sliced.min_rows,
                "values": small[:SMALL_SLICES],
                "count": len(small),
                "rows": sum(one["rows"] for one in small),
            }
        )


def _compared(evidence: _Evidence) -> Json:
    """Each metric of champion and candidate on the rows that they are compared on, and their difference."""
    champion = evidence.champion
    if champion is None:
        return None
    made: dict[str, Json] = {
        "version": champion.version,
        "rows": 0,
        "left_out": 0,
        "why": "",
        "metrics": {},
        "undefined": {},
        "fault": champion.fault,
    }
    if champion.answers is None or champion.pairs is None:
        return made
    fair = champion.pairs.among(None)
    ours, theirs = evidence.answers.take(fair), champion.answers.take(fair)
    left_out = evidence.answers.rows - len(fair)
    made |= {"rows": len(fair), "left_out": left_out, "why": champion.pairs.why if left_out else ""}
    for name in metrics.metrics_of(ours.task, ours.classes):
        try:
            made["metrics"][name] = {
                "champion": asdict(metrics.estimate(name, theirs).at(0.95)),
                "candidate": asdict(metrics.estimate(name, ours).at(0.95)),
                "difference": asdict(metrics.difference(name, ours, theirs).at(0.95)),
            }
        except UndefinedMetricError as error:
            made["undefined"][name] = error.message
    return made


def _summary(evidence: _Evidence, evaluation: Mapping[str, Json], verdicts: Sequence[Verdict]) -> dict[str, Json]:
    counts = {outcome: sum(verdict.outcome is outcome for verdict in verdicts) for outcome in Outcome}
    small = [
        f"{one['count']:,} values of {one['column']} ({one['rows']:,} rows) have fewer than {one['min_rows']} rows "
        f"each and were not judged"
        for one in evaluation["slices_too_small"]
    ]
    return {
        "rows": evidence.answers.rows,
        "verdicts": {str(outcome): count for outcome, count in counts.items() if count},
        "blessed": gates.blessed(verdicts),
        "worst": str(gates.worst(verdicts)),
        "champion": evidence.champion.version if evidence.champion else None,
        "champion_fault": evidence.champion.fault if evidence.champion else "",
        "not_judged": small,
    }


def _write_predictions(path: Path, answers: Answers, signature: Signature) -> None:
    """Columns target and prediction, and ``score:CLASS`` for each class; equal answers make equal bytes."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    if answers.scores is None:
        columns = {"target": answers.actual, "prediction": answers.predicted}
    else:
        labels = np.array(signature.classes)
        columns = {"target": labels[answers.actual], "prediction": labels[answers.predicted]}
        columns |= {f"score:{label}": answers.scores[:, code] for code, label in enumerate(signature.classes)}
    pq.write_table(pa.table(columns), path, version="2.6", compression="snappy")
