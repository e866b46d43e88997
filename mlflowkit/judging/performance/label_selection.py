"""Whether the rows with a label are like all rows: else a metric is one "of labelled rows only" and decides nothing.

The same question as drift between two windows, and the same null: not "equal", but "within a margin". A set of score
cells is chosen on earlier cohorts, and the share of labelled rows in it is tested against that of all rows plus the
margin, by an e-process over cohorts. What all rows do is known, so only the labelled ones are a sample.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflowkit.judging.online.sequential import Share, Wealth, distance, rate_bets
from mlflowkit.judging.performance.realised import LabelledCohort
from mlflowkit.values import Outcome

MARGIN, LEVEL = 0.1, 0.05
MIN_LABELS = 100


@dataclass(frozen=True, slots=True)
class LabelSelection:
    """The largest difference of the shares below any score, of labelled and of all rows; None without such counts."""

    outcome: Outcome
    distance: float | None
    labels: int
    evidence: float


def judge_selection(cohorts: Sequence[LabelledCohort], margin: float = MARGIN, level: float = LEVEL) -> LabelSelection:
    """Test the labelled rows of mature cohorts, in the order of time. INCONCLUSIVE for a task without scores.

    Rows beyond the margin in one cohort alone are not enough: the set is chosen on the cohorts before.
    """
    barrier, wealth, best = math.log(1 / level), Wealth(), 0.0
    labelled: Counter[int] = Counter()
    answered: Counter[int] = Counter()
    for cohort in cohorts:
        ours, everyone = _by_cell(cohort.labelled_cells), _by_cell(cohort.answered_cells)
        labels, rows = sum(ours.values()), sum(everyone.values())
        if not labels or not rows:
            continue
        if sum(labelled.values()) >= MIN_LABELS:
            _, chosen = _distance(answered, labelled)
            hits = sum(ours[cell] for cell in chosen)
            bound = min(sum(everyone[cell] for cell in chosen) / rows + margin, 1.0)
            if bound < 1.0:
                wealth = wealth.bet(rate_bets(Share(labels, hits), bound)[0], labels)
                best = max(best, wealth.log)
        labelled.update(ours)
        answered.update(everyone)
    total = sum(labelled.values())
    if total < MIN_LABELS:
        return LabelSelection(Outcome.INCONCLUSIVE, None, total, 0.0)
    value, _ = _distance(answered, labelled)
    if best >= barrier:
        return LabelSelection(Outcome.FAILED, value, total, best / barrier)
    radius = math.sqrt(math.log(2 / level) / (2 * total))  # Dvoretzky, Kiefer & Wolfowitz; Massart 1990
    surely = value + radius <= margin or total == sum(answered.values())
    return LabelSelection(Outcome.PASSED if surely else Outcome.INCONCLUSIVE, value, total, max(best, 0.0) / barrier)


def _by_cell(cells: Mapping[Any, int]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for key, rows in cells.items():
        counts[key[0]] += rows
    return counts


def _distance(answered: Counter[int], labelled: Counter[int]) -> tuple[float, tuple[int, ...]]:
    cells = sorted({*answered, *labelled})
    value, chosen = distance([answered[cell] for cell in cells], [labelled[cell] for cell in cells], ordered=True)
    return value, tuple(cells[index] for index in chosen)
