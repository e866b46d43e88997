"""Gates of a recipe: the sections, and their verdicts on the evidence of the evaluate stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mlflowkit.bench.sequential.sampling import FIRST_LOOK, TimedRounds
from mlflowkit.judging import gates, metrics
from mlflowkit.judging.gates import GateSpec, undecided_verdict
from mlflowkit.judging.metrics import LabelledPredictions
from mlflowkit.judging.paired_metrics import difference
from mlflowkit.judging.stats import Estimate, UndefinedMetricError
from mlflowkit.sections import Section
from mlflowkit.stages.evaluation import fairness_gates
from mlflowkit.stages.evaluation.fairness_gates import Fair, GroupEvidence
from mlflowkit.stages.evaluation.groups import rows_by_value
from mlflowkit.stages.evaluation.timing import DESCRIPTIONS, FIRST_VERSION, TimingEvidence, is_of_class, time_estimate
from mlflowkit.system.entry_points import METRICS
from mlflowkit.values import Json, Outcome, Verdict

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MIN_UNDISTURBED = 0.25
"""Share of the rounds that must be undisturbed for a verdict on them alone."""


class Slice(Section):
    """The rows of the test part, by the values of a column."""

    column: str
    """A column declared under data.columns or in a schema check."""
    min_rows: int = Field(default=30, ge=2)
    """Values with fewer rows are reported and not judged."""


class Gate(Section):
    """One condition. A value threshold has min or max, a change threshold against and margin; fair compares groups."""

    metric: str
    """The metric to judge."""
    min: float | None = None
    """PASSED needs the whole interval at or above it."""
    max: float | None = None
    """PASSED needs the whole interval at or below it."""
    against: Literal["champion", "float"] | None = None
    """Compare with the model that serves now, paired on the test rows that both or neither of the two were trained on.
    PASSED when there is none (INCONCLUSIVE in `mlkit ci judge`, which needs one); INCONCLUSIVE when its bundle does not
    record its training rows. A latency ratio is against the float graph (its default), or against the champion,
    measured in the same rounds."""
    margin: float = Field(default=0.0, ge=0)
    """Non-inferiority margin: how much worse than the champion is allowed."""
    slice: Slice | None = None
    """Judge each slice, corrected for their number (Holm)."""
    fair: Fair | None = None
    """Compare the groups of a column pair by pair, corrected for their number (Holm): selection_rate, recall,
    false_positive_rate, equalized_odds, precision or accuracy."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of the two-sided interval. One bound of it decides: PASSED and FAILED are each wrong with
    probability (1 - confidence) / 2 at most."""
    machine: str | None = Field(default=None, min_length=1)
    """Class of machines that a limit in milliseconds holds for: words of the machine's description, such as
    "EPYC 7B13 x4" (a run warns of a gate that names none, and prints its own). INCONCLUSIVE on every other machine."""
    on_inconclusive: Literal["block", "allow"] = "block"
    """Whether INCONCLUSIVE prevents the blessing of the bundle."""
    dry_run: bool = False
    """Report only."""

    def plugin_names(self) -> tuple[tuple[str, str], ...]:
        own = self.fair is not None or metrics.is_built_in(self.metric)
        return () if own else ((METRICS, self.metric),)


@dataclass(frozen=True, slots=True)
class ComparedRows:
    """The test rows on which champion and candidate are compared: those that both or neither were trained on."""

    mask: np.ndarray
    """bool [rows]"""
    why_others_excluded: str

    def among(self, rows: np.ndarray | None) -> np.ndarray:
        """Those of these rows (None: all) that are compared."""
        import numpy as np

        return np.flatnonzero(self.mask) if rows is None else rows[self.mask[rows]]


@dataclass(frozen=True, slots=True)
class ChampionEvidence:
    """The predictions of the serving model on the same rows; or why there are none, and the outcome of gates then."""

    version: str
    predictions: LabelledPredictions | None
    fault: str = ""
    outcome: Outcome = Outcome.ERROR
    compared: ComparedRows | None = None


@dataclass(frozen=True, slots=True)
class EvaluationEvidence:
    """All data that gates are judged on."""

    table: pd.DataFrame
    predictions: LabelledPredictions
    fault: str
    champion: ChampionEvidence | None
    timing: TimingEvidence = field(default_factory=TimingEvidence)
    no_champion: tuple[Outcome, str] = FIRST_VERSION
    """Outcome, and its reason, of gates that compare with a champion that there is not."""
    elsewhere: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Rows of the other parts by value, of the columns that gates compare groups of."""


def judge_gates(gates_of_recipe: Sequence[Gate], evidence: EvaluationEvidence) -> Iterator[Verdict]:
    """The verdicts of all gates, in order; ERROR for a gate that cannot be judged."""
    if evidence.fault:
        spec = GateSpec("the model answers", "answers", 0.0, "min")
        yield undecided_verdict(spec, Outcome.ERROR, evidence.fault)
    for gate in gates_of_recipe:
        specs = tuple(_gate_specs(gate))
        if not specs:
            spec = GateSpec(gate.metric, gate.metric, 0.0, "min", dry_run=gate.dry_run)
            yield undecided_verdict(spec, Outcome.ERROR, "the gate has no limit: min, max, against or fair")
        for spec in specs:
            yield from _verdicts(gate, spec, evidence)


def undecided_times(gates_of_recipe: Sequence[Gate], timing: TimingEvidence) -> bool:
    """Whether more rounds may decide a gate on time."""
    return any(
        judge_time(gate, spec, timing).remeasure
        for gate in gates_of_recipe
        if gate.metric in metrics.TIMES and gate.slice is None
        for spec in _gate_specs(gate)
    )


def rivals(gates_of_recipe: Sequence[Gate]) -> tuple[str, ...]:
    """The graphs that latency ratios of these gates are against.

    >>> rivals([Gate(metric="latency_ratio", max=2), Gate(metric="roc_auc", against="champion")])
    ('float',)
    """
    ratios = [gate for gate in gates_of_recipe if gate.metric in metrics.LATENCY_RATIOS]
    return tuple(dict.fromkeys(gate.against or "float" for gate in ratios))


def _gate_specs(gate: Gate) -> Iterator[GateSpec]:
    if gate.metric in metrics.LATENCY_RATIOS:
        yield from _ratio_specs(gate)
        return
    if gate.fair is not None:
        base = GateSpec(gate.metric, gate.metric, 0.0, "max", gate.confidence, members="comparisons")
        base = replace(base, allow_inconclusive=gate.on_inconclusive == "allow", dry_run=gate.dry_run)
        yield from fairness_gates.specs(gate.fair, gate.metric, base)
        return
    by = f" by {gate.slice.column}" if gate.slice else ""
    allow = gate.on_inconclusive == "allow"
    if gate.min is not None:
        name = f"{gate.metric} >= {gate.min:g}{by}"
        yield GateSpec(name, gate.metric, gate.min, "min", gate.confidence, False, allow, gate.dry_run)
    if gate.max is not None:
        name = f"{gate.metric} <= {gate.max:g}{by}"
        yield GateSpec(name, gate.metric, gate.max, "max", gate.confidence, False, allow, gate.dry_run)
    if gate.against is not None:
        name = f"{gate.metric} against {gate.against}, margin {gate.margin:g}{by}"
        less = metrics.lower_is_better(gate.metric)
        margin = gate.margin if less or gate.margin == 0 else -gate.margin
        direction: Literal["min", "max"] = "max" if less else "min"
        yield GateSpec(name, gate.metric, margin, direction, gate.confidence, True, allow, gate.dry_run)


def _ratio_specs(gate: Gate) -> Iterator[GateSpec]:
    allow = gate.on_inconclusive == "allow"
    if gate.max is not None:
        name = f"{gate.metric} against {gate.against or 'float'} <= {gate.max:g}"
        yield GateSpec(name, gate.metric, gate.max, "max", gate.confidence, False, allow, gate.dry_run)


def _verdicts(gate: Gate, spec: GateSpec, evidence: EvaluationEvidence) -> Iterator[Verdict]:
    """One verdict, or one for each slice that is large enough."""
    fault = _fault(gate, spec, evidence)
    if fault is not None:
        yield undecided_verdict(spec, *fault)
    elif gate.fair is not None:
        yield from fairness_gates.verdicts(gate.fair, gate.metric, spec, group_evidence(gate.fair, evidence))
    elif gate.metric in metrics.TIMES:
        yield judge_time(gate, spec, evidence.timing)
    elif gate.slice is not None:
        yield from _slice_verdicts(gate.slice, spec, evidence)
    else:
        try:
            yield gates.judge(spec, _estimate(spec, evidence, None))
        except UndefinedMetricError as error:
            yield undecided_verdict(spec, Outcome.INCONCLUSIVE, error.message)


def _fault(gate: Gate, spec: GateSpec, evidence: EvaluationEvidence) -> tuple[Outcome, str] | None:
    """Why a gate cannot be judged, with its outcome."""
    if gate.fair is not None:
        columns = list(evidence.table.columns)
        reason = (
            fairness_gates.comparison_fault(gate.fair, gate.metric, evidence.predictions, columns) or evidence.fault
        )
        return (Outcome.ERROR, reason) if reason else None
    is_latency = gate.metric in metrics.TIMES
    task, classes = evidence.predictions.task, evidence.predictions.classes
    if not is_latency and not metrics.is_defined(gate.metric, task, classes):
        names = metrics.metrics_of(task, classes)
        return Outcome.ERROR, f"no such metric for this task; it has {', '.join((*names, *metrics.TIMES))}"
    if is_latency and (gate.slice is not None or spec.change):
        return Outcome.ERROR, "latency is judged by max alone: not by slice, and against the champion as latency_ratio"
    if gate.against == "float" and not is_latency:
        return Outcome.ERROR, "only latency_ratio is against the float graph"
    if gate.slice is not None and gate.slice.column not in evidence.table.columns:
        return Outcome.ERROR, f"the test part has no column {gate.slice.column!r}"
    if evidence.fault and not is_latency:
        return Outcome.ERROR, evidence.fault
    if spec.change:
        if evidence.champion is None:
            return evidence.no_champion
        if evidence.champion.predictions is None:
            return evidence.champion.outcome, evidence.champion.fault
    return None


def _fairness_fault(fair: Fair, metric: str, evidence: EvaluationEvidence) -> str:
    return fairness_gates.comparison_fault(fair, metric, evidence.predictions, list(evidence.table.columns))


def group_rates(gates_of_recipe: Sequence[Gate], evidence: EvaluationEvidence) -> list[Json]:
    """The rates of each group that a gate on fairness compares, and the groups that it does not compare."""
    compared = [(gate.fair, gate.metric) for gate in gates_of_recipe if gate.fair is not None]
    return [
        fairness_gates.fairness_json(fair, metric, group_evidence(fair, evidence))
        for fair, metric in compared
        if not _fairness_fault(fair, metric, evidence)
    ]


def group_evidence(fair: Fair, evidence: EvaluationEvidence) -> GroupEvidence:
    """The rows of each group of a column that the table has."""
    rows = rows_by_value(evidence.table[fair.column])
    return GroupEvidence(evidence.predictions, rows, evidence.elsewhere.get(fair.column, {}))


def judge_time(gate: Gate, spec: GateSpec, timing: TimingEvidence) -> Verdict:
    """The verdict on a time. What was measured while the machine was disturbed never makes it FAILED, except a ratio
    of graphs that a disturbance slows alike."""
    against = gate.against or "float" if gate.metric in metrics.LATENCY_RATIOS else ""
    if against in timing.settled:
        return undecided_verdict(spec, *timing.settled[against])
    if against in timing.itself:
        outcome = Outcome.PASSED if spec.threshold >= 1 else Outcome.FAILED
        return undecided_verdict(spec, outcome, f"{DESCRIPTIONS[against]} itself serves: its ratio to itself is 1")
    if gate.machine is not None and not is_of_class(timing.machine, gate.machine):
        reason = f"the limit holds for machines of the class {gate.machine!r}; this one is {timing.machine!r}"
        return undecided_verdict(spec, Outcome.INCONCLUSIVE, reason)
    if gate.machine is None and timing.class_required and not against:
        reason = (
            f"not judged here: a pipeline's runner is any machine, this one {timing.machine!r}; name the class that "
            "the limit holds for in gates.machine, or judge {metric: latency_ratio, against: champion, max: 1.5}"
        )
        return undecided_verdict(spec, Outcome.INCONCLUSIVE, reason)
    if timing.rounds is None:
        return replace(undecided_verdict(spec, Outcome.INCONCLUSIVE, "no latency was measured"), remeasure=True)
    verdict = _judge_rounds(spec, timing.rounds, against, alike=against in timing.alike)
    if verdict.outcome is not Outcome.INCONCLUSIVE:
        return verdict
    ended = f"the budget ended after {timing.rounds.rounds:,} rounds in {timing.rounds.seconds:.1f} s"
    reasons = filter(None, (verdict.message, timing.rounds.describe_disturbance(), ended))
    return replace(verdict, message="; ".join(reasons), remeasure=True)


def _judge_rounds(spec: GateSpec, rounds: TimedRounds, against: str, *, alike: bool) -> Verdict:
    """The verdict on undisturbed rounds where there are enough; else what disturbed ones show as well.

    A disturbance only adds time: a limit that holds in spite of it holds. It slows both sides of a ratio, which is
    paired by round, where both run alike.
    """
    quiet = rounds.undisturbed()
    if quiet.rounds >= max(FIRST_LOOK, MIN_UNDISTURBED * rounds.rounds):
        return _judge_estimate(spec, quiet, against)
    verdict = _judge_estimate(spec, rounds, against)
    shown = {Outcome.PASSED, Outcome.FAILED} if alike else {Outcome.PASSED} if not against else set()
    if verdict.outcome in shown and spec.direction == "max":
        return verdict
    measured = verdict.measurement
    figure = f"{measured.value:.3g} {measured.unit}" if measured else "too few requests"
    return undecided_verdict(spec, Outcome.INCONCLUSIVE, f"{figure} on a disturbed machine decides nothing")


def _judge_estimate(spec: GateSpec, rounds: TimedRounds, against: str) -> Verdict:
    try:
        return gates.judge(spec, time_estimate(spec.metric, rounds, against))
    except UndefinedMetricError as error:
        return undecided_verdict(spec, Outcome.INCONCLUSIVE, error.message)


def _slice_verdicts(section: Slice, spec: GateSpec, evidence: EvaluationEvidence) -> Iterator[Verdict]:
    estimates: dict[str, Estimate] = {}
    undefined: dict[str, str] = {}
    slices = rows_by_value(evidence.table[section.column])
    for value, rows in slices:
        if len(rows) < section.min_rows:
            continue
        name = f"{section.column}={value}"
        try:
            estimates[name] = _estimate(spec, evidence, rows, section.min_rows)
        except UndefinedMetricError as error:
            undefined[name] = error.message if spec.change else f"{len(rows):,} rows: {error.message}"
    yield from gates.judge_family(spec, estimates, size=len(estimates) + len(undefined))
    for name, reason in undefined.items():
        yield undecided_verdict(spec, Outcome.INCONCLUSIVE, reason, name)
    if not estimates and not undefined:
        largest = max((len(rows) for _, rows in slices), default=0)
        required = f"has {section.min_rows} test rows (the largest {largest})"
        reason = f"none of {len(slices):,} values of {section.column} {required}"
        yield undecided_verdict(spec, Outcome.INCONCLUSIVE, reason)


def _estimate(spec: GateSpec, evidence: EvaluationEvidence, rows: np.ndarray | None, min_rows: int = 0) -> Estimate:
    if spec.change:
        return _difference(spec.metric, evidence, rows, min_rows)
    return metrics.estimate(spec.metric, evidence.predictions if rows is None else evidence.predictions.take(rows))


def _difference(metric: str, evidence: EvaluationEvidence, rows: np.ndarray | None, min_rows: int) -> Estimate:
    """Candidate minus champion on the compared rows among these; the basis states how many were excluded."""
    champion = evidence.champion
    if champion is None or champion.predictions is None or champion.compared is None:
        raise UndefinedMetricError("no champion to compare with")  # _fault precludes this
    total = evidence.predictions.rows if rows is None else len(rows)
    compared = champion.compared.among(rows)
    ours, theirs = evidence.predictions.take(compared), champion.predictions.take(compared)
    if len(compared) == total:
        return difference(metric, ours, theirs)
    positive = f"{int((ours.actual == 1).sum()):,} positive; " if ours.classes == 2 else ""
    basis = f"{len(compared):,} of {total:,} test rows ({positive}{champion.compared.why_others_excluded})"
    if len(compared) < min_rows:
        raise UndefinedMetricError(f"{basis}: the gate asks for {min_rows:,} or more")
    try:
        return replace(difference(metric, ours, theirs), basis=basis)
    except UndefinedMetricError as error:
        raise UndefinedMetricError(f"{basis}: {error.message}") from error
