"""Gates on fairness: all pairs of groups of a column, as one family.

FAILED where the interval of a pair lies beyond the limit, PASSED only where that of every pair lies within it. What is
not compared is told: a group without test rows is INCONCLUSIVE, one that is too small is named with its share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

from pydantic import Field

from mlflowkit.judging import fairness, gates
from mlflowkit.judging.fairness import RATES, fair_metrics, group_difference, group_ratio
from mlflowkit.judging.gates import GateSpec, undecided_verdict
from mlflowkit.judging.metrics import LabelledPredictions
from mlflowkit.judging.stats import Estimate, UndefinedMetricError
from mlflowkit.sections import Section
from mlflowkit.stages.evaluation.groups import group_text
from mlflowkit.values import Json, Outcome, Verdict

if TYPE_CHECKING:
    import numpy as np

MAX_GROUPS = 20
"""Groups of a column that are compared pair by pair."""
MAX_NAMED = 10
"""Groups left out that a message names; all are counted."""

GroupRows = Sequence[tuple[str, "np.ndarray"]]
"""The row numbers of each value of a column, as of `rows_by_value`."""


class Fair(Section):
    """Groups of the test part that are compared pair by pair."""

    column: str
    """The column of the groups: a feature, or one that data.columns keeps out of the model with `ignore`."""
    max_difference: float | None = Field(default=None, gt=0, lt=1)
    """PASSED needs the interval of the difference of every two groups at or below it."""
    min_ratio: float | None = Field(default=None, gt=0, lt=1)
    """PASSED needs the interval of the smaller rate over the larger one at or above it, for every two groups."""
    groups: list[str | int | bool] | None = Field(default=None, min_length=2)
    """The groups to compare: each must be in the test part, with min_rows or more rows. Without it, all values that
    have so many."""
    min_rows: int = Field(default=30, ge=2)
    """Groups with fewer test rows are named with their share and not compared; INCONCLUSIVE where `groups` lists
    them."""


@dataclass(frozen=True, slots=True)
class GroupEvidence:
    """What a gate on fairness is judged on: the test rows by group, and the rows of each group in the other parts."""

    predictions: LabelledPredictions
    rows: GroupRows
    elsewhere: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class UncomparedGroup:
    """A group that is not compared, and why; ``decisive`` where that alone makes the gate INCONCLUSIVE."""

    group: str
    rows: int
    share: float
    reason: str
    decisive: bool = False


@dataclass(frozen=True, slots=True)
class GroupChoice:
    """The groups to compare, and those that are not."""

    compared: GroupRows
    others: tuple[UncomparedGroup, ...]

    @property
    def decisive(self) -> tuple[UncomparedGroup, ...]:
        return tuple(other for other in self.others if other.decisive)

    def describe_left_out(self, column: str) -> str:
        """Name the groups that are left out without a verdict of their own; "" where there are none."""
        left_out = [other for other in self.others if not other.decisive]
        if not left_out:
            return ""
        named = [f"{column}={other.group} ({_size(other)}, {other.reason})" for other in left_out[:MAX_NAMED]]
        more = len(left_out) - len(named)
        rows = sum(other.rows for other in left_out[MAX_NAMED:])
        return f"not compared: {'; '.join(named)}" + (f"; and {more:,} more with {rows:,} rows" if more else "")


def specs(fair: Fair, metric: str, base: GateSpec) -> Iterator[GateSpec]:
    """The condition of each limit, with what ``base`` says of confidence and consequence."""
    if fair.max_difference is not None:
        name = f"{metric} difference <= {fair.max_difference:g} by {fair.column}"
        yield replace(base, gate=name, metric=f"{metric} difference", threshold=fair.max_difference, direction="max")
    if fair.min_ratio is not None:
        name = f"{metric} ratio >= {fair.min_ratio:g} by {fair.column}"
        yield replace(base, gate=name, metric=f"{metric} ratio", threshold=fair.min_ratio, direction="min")


def comparison_fault(fair: Fair, metric: str, evidence: LabelledPredictions, columns: Sequence[str]) -> str:
    """Why groups cannot be compared at all; "" if they can."""
    allowed = fair_metrics(evidence.task, evidence.classes)
    if metric not in allowed:
        there = f"it has {', '.join(allowed)}" if allowed else "judge the values of a column with slice"
        return f"no rate of groups for this task; {there}"
    if fair.column not in columns:
        return f"the test part has no column {fair.column!r}: data.columns: {{{fair.column}: ignore}} keeps it"
    return ""


def choose_groups(fair: Fair, evidence: GroupEvidence) -> GroupChoice:
    """Decide which groups are compared."""
    total = max(evidence.predictions.rows, 1)
    named = None if fair.groups is None else {group_text(value) for value in fair.groups}
    compared, others = [], []
    for group, rows in evidence.rows:
        share = len(rows) / total
        if named is not None and group not in named:
            others.append(UncomparedGroup(group, len(rows), share, "groups does not list it"))
        elif len(rows) < fair.min_rows:
            reason = f"fewer than min_rows: {fair.min_rows}"
            others.append(UncomparedGroup(group, len(rows), share, reason, decisive=named is not None))
        else:
            compared.append((group, rows))
    present = {group for group, _ in evidence.rows}
    for group in sorted(set(evidence.elsewhere if named is None else named) - present):
        rest = evidence.elsewhere.get(group, 0)
        reason = f"it has {rest:,} rows in the other parts of the split" if rest else "no row of the table has it"
        others.append(UncomparedGroup(group, 0, 0.0, reason, decisive=True))
    return GroupChoice(compared, tuple(others))


def verdicts(fair: Fair, metric: str, spec: GateSpec, evidence: GroupEvidence) -> Iterator[Verdict]:
    """A verdict for every pair of groups, and one for each group that should have been compared and cannot be."""
    choice = choose_groups(fair, evidence)
    judged = list(_pair_verdicts(fair, metric, spec, evidence.predictions, choice))
    note = choice.describe_left_out(fair.column)
    if note:
        judged[0] = replace(judged[0], message=f"{judged[0].message}; {note}")
    yield from judged


def _pair_verdicts(
    fair: Fair, metric: str, spec: GateSpec, predictions: LabelledPredictions, choice: GroupChoice
) -> Iterator[Verdict]:
    if len(choice.compared) > MAX_GROUPS:
        reason = f"{fair.column} has {len(choice.compared):,} groups of {fair.min_rows} or more test rows, and "
        reason += f"{MAX_GROUPS} are compared pair by pair at most: list those that matter in groups, or make bands"
        yield undecided_verdict(spec, Outcome.ERROR, reason)
        return
    estimates, undefined = _pair_estimates(fair, metric, spec, predictions, choice.compared)
    yield from gates.judge_family(spec, estimates, size=len(estimates) + len(undefined))
    for name, reason in undefined.items():
        yield undecided_verdict(spec, Outcome.INCONCLUSIVE, reason, name)
    for other in choice.decisive:
        reason = f"the group has {_size(other)}: {other.reason}"
        yield undecided_verdict(spec, Outcome.INCONCLUSIVE, reason, f"{fair.column}={other.group}")
    if len(choice.compared) < 2 and not choice.decisive:
        names = ", ".join(group for group, _ in choice.compared) or "none"
        reason = f"groups of {fair.column} with {fair.min_rows} or more test rows: {names}; it takes two to compare"
        yield undecided_verdict(spec, Outcome.INCONCLUSIVE, reason)


def _pair_estimates(
    fair: Fair, metric: str, spec: GateSpec, predictions: LabelledPredictions, groups: GroupRows
) -> tuple[dict[str, Estimate], dict[str, str]]:
    """The estimate of every pair and rate, and why the others are undefined."""
    compare = group_difference if spec.direction == "max" else group_ratio
    parts = {group: predictions.take(rows) for group, rows in groups}
    estimates: dict[str, Estimate] = {}
    undefined: dict[str, str] = {}
    for rate in RATES[metric]:
        counts = [fairness.count(rate, group, part) for group, part in parts.items()]
        prefix = f"{rate.name}, " if len(RATES[metric]) > 1 else ""
        for first, second in combinations(counts, 2):
            name = f"{prefix}{fair.column}={first.group} and {second.group}"
            try:
                estimates[name] = compare(rate, first, second)
            except UndefinedMetricError as error:
                undefined[name] = error.message
    return estimates, undefined


def fairness_json(fair: Fair, metric: str, evidence: GroupEvidence) -> dict[str, Json]:
    """The rates of every compared group at 95 %, and the groups that are not compared."""
    choice = choose_groups(fair, evidence)
    groups = []
    for group, rows in choice.compared[:MAX_GROUPS]:
        part = evidence.predictions.take(rows)
        counts = {rate.name: fairness.count(rate, group, part) for rate in RATES[metric]}
        groups.append({"group": group, "rows": len(rows), "rates": {name: _rate_json(counts[name]) for name in counts}})
    others = [
        {"group": other.group, "rows": other.rows, "share": other.share, "why": other.reason}
        for other in choice.others[:MAX_GROUPS]
    ]
    return {
        "metric": metric, "column": fair.column, "min_rows": fair.min_rows, "groups": groups, "not_compared": others,
        "note": choice.describe_left_out(fair.column),
    }  # fmt: skip


def _rate_json(count: fairness.GroupCount) -> dict[str, Json]:
    if not count.trials:
        return {"hits": 0, "trials": 0, "value": None, "low": None, "high": None}
    low, high = count.bounds(0.95)
    return {"hits": count.hits, "trials": count.trials, "value": count.share, "low": low, "high": high}


def _size(other: UncomparedGroup) -> str:
    return f"{other.rows:,} test rows, {other.share:.2%}" if other.rows else "no test row"
