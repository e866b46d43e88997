"""Scores answers against their feedback, and decides whose feedback counts. Pure.

Who may say what:

- Only feedback received at or after the answer counts: what came before was not about this answer.
- A client may correct itself: of a row, the last value that a source sent counts. A source is an API key, or everyone
  where none is asked for.
- Between sources, the one that was first to name a row decides it; another one's differing value is a conflict.
- A source that may also send requests can invent both sides: it counts only while its share of the labels of each
  variant is at most a limit (`sources_beyond`). A source that may only send feedback has no limit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlflowkit.judging.online.evidence import Moments
from mlflowkit.serving.feedback.intake import ASKING, Feedback
from mlflowkit.system.text import category_text
from mlflowkit.values import Json

CLIP = float(np.finfo(np.float32).eps)
"""Probabilities are clipped to [CLIP, 1 - CLIP], as in the metrics of the evaluate stage."""
COUNTERS = ("conflicts", "corrections", "mismatched", "premature", "unknown")
BY_REQUEST = "~"
"""Before the name of a metric: its moments are those of the means of requests."""
_Receipt = tuple[float, Feedback]


@dataclass(frozen=True, slots=True)
class AnsweredRequest:
    """One answered row: a label with the probabilities by class, or a prediction."""

    label: str | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    prediction: float | None = None


@dataclass(frozen=True, slots=True)
class JoinedOutcome:
    """The result of one request's feedback.

    quality      moments by metric and source, over the rows
    conflicts    values that differ from that of the source which decides their row
    corrections  values that the source which decides their row replaced by another
    mismatched   items for another number of rows, or of the other kind
    premature    items received before the answer was given
    unknown      labels that are none of the model's classes
    labelled     (row, source, value, when the row's first label was received) of each row that counts
    """

    by_source: Mapping[tuple[str, str], Moments]
    conflicts: int = 0
    corrections: int = 0
    mismatched: int = 0
    premature: int = 0
    unknown: int = 0
    labelled: tuple[tuple[int, str, Any, float], ...] = ()

    @property
    def quality(self) -> dict[str, Moments]:
        """Moments by metric, of all sources."""
        total: dict[str, Moments] = {}
        for (metric, _), moments in self.by_source.items():
            total[metric] = total.get(metric, Moments()) + moments
        return total

    def to_json(self) -> dict[str, list[float]]:
        """[count, sum, sum of squares] by ``metric`` or ``metric@source``; the same by "~" and that name, where the
        request is one observation, the mean over its rows; and counters by "-" and their name."""
        counters = {f"-{name}": getattr(self, name) for name in COUNTERS}
        quality = {
            f"{metric}@{source}" if source else metric: [value.count, value.total, value.squares]
            for (metric, source), value in sorted(self.by_source.items())
        }
        by_request = {f"{BY_REQUEST}{name}": _one_observation(*moments) for name, moments in quality.items()}
        return quality | by_request | {name: [count, 0.0, 0.0] for name, count in counters.items() if count}


@dataclass
class _LabelledRow:
    """What the sources sent for one row: for each, its values, with the times when each was first and last received."""

    values: dict[str, dict[str, tuple[float, float, Any]]] = field(default_factory=dict)

    def add(self, source: str, received: float, value: Any) -> None:
        labels = self.values.setdefault(source, {})
        key = json.dumps(value)
        first, last, _ = labels.get(key, (received, received, value))
        labels[key] = (min(first, received), max(last, received), value)

    @property
    def first(self) -> float:
        """When the first label of any source was received."""
        return min(first for labels in self.values.values() for first, _, _ in labels.values())

    def decided(self) -> tuple[str, Any, int, int]:
        """(source, value, corrections, conflicts)."""
        began = {source: min(first for first, _, _ in labels.values()) for source, labels in self.values.items()}
        owner = min(began, key=lambda source: (began[source], source))
        final = {
            source: max(labels.items(), key=lambda item: (item[1][1], item[0]))[1][2]
            for source, labels in self.values.items()
        }
        value = final[owner]
        return owner, value, len(self.values[owner]) - 1, sum(other != value for other in final.values())


def join_request(
    answers: Sequence[AnsweredRequest], feedback: Iterable[_Receipt], answered: float = -math.inf
) -> JoinedOutcome:
    """Score one request's rows, answered at a time, against all its feedback, given as (time received, item).

    The result does not depend on the order of the feedback, nor on items received again.

    >>> join_request([AnsweredRequest("good", {"good": 0.8})], [(7.0, Feedback("r", "label", ("good",)))]).quality[
    ...     "accuracy"
    ... ]
    Moments(count=1, total=1.0, squares=1.0)
    """
    kind = "label" if answers[0].label is not None else "target"
    rows: dict[int, _LabelledRow] = {}
    late: set[str] = set()
    early: set[str] = set()
    mismatched: set[str] = set()
    for received, item in feedback:
        name = json.dumps([item.kind, item.values, item.source])
        (late if received >= answered else early).add(name)
        if received < answered:
            continue
        if item.kind != kind or len(item.values) != len(answers):
            mismatched.add(name)
            continue
        for row, value in enumerate(item.values):
            if value is not None:
                rows.setdefault(row, _LabelledRow()).add(item.source, received, _plain(value, kind, answers[row]))
    quality: dict[tuple[str, str], Moments] = {}
    conflicts = corrections = unknown = 0
    labelled: list[tuple[int, str, Any, float]] = []
    for row, labels in sorted(rows.items()):
        source, actual, corrected, differing = labels.decided()
        corrections += corrected
        conflicts += differing
        scores = _scores(answers[row], actual)
        unknown += scores is None
        if scores is not None:
            labelled.append((row, source, actual, labels.first))
        for metric, score in (scores or {}).items():
            before = quality.get((metric, source), Moments())
            quality[metric, source] = before + Moments(1, score, score * score)
    return JoinedOutcome(quality, conflicts, corrections, len(mismatched), len(early - late), unknown, tuple(labelled))


def _one_observation(rows: float, total: float, squares: float) -> list[float]:
    """Moments of one observation, the mean of these; those of no rows stay as they are."""
    mean = total / rows if rows else 0.0
    return [1, mean, mean * mean] if rows > 1 else [rows, total, squares]


def paired_difference(champion: JoinedOutcome, shadow: JoinedOutcome) -> JoinedOutcome:
    """The champion's quality minus a shadow's on the same rows of one request, by metric and source.

    One observation a request, the mean over its rows: rows of a request need not be independent. Metrics that are not
    of the same rows are left out.

    >>> ours, theirs = (JoinedOutcome({("accuracy", ""): Moments(2, total, total)}) for total in (1.0, 2.0))
    >>> paired_difference(ours, theirs).quality
    {'accuracy': Moments(count=1, total=-0.5, squares=0.25)}
    """
    differences = {}
    for key, own in champion.by_source.items():
        other = shadow.by_source.get(key)
        if other is not None and own.count and other.count == own.count:
            difference = own.mean - other.mean
            differences[key] = Moments(1, difference, difference * difference)
    return JoinedOutcome(differences)


def _plain(value: Json, kind: str, answer: AnsweredRequest) -> Any:
    """A label as the text of its class, a target as it is. A boolean is the class written so (True, true), else 0 or 1.

    >>> answer = AnsweredRequest("true", {"false": 0.2, "true": 0.8})
    >>> _plain(True, "label", answer), _plain(True, "label", AnsweredRequest("1"))
    ('true', '1')
    """
    if kind != "label":
        return value
    if isinstance(value, bool):
        names = {*answer.probabilities, answer.label}
        spellings = (str(value), str(value).lower(), str(value).upper())
        return next((text for text in spellings if text in names), category_text(int(value)))
    return category_text(value)


def _scores(answer: AnsweredRequest, actual: Any) -> dict[str, float] | None:
    """Metrics of one row; None for a label that is none of the classes."""
    if answer.prediction is not None:
        error = answer.prediction - float(actual)
        return {"absolute_error": abs(error), "squared_error": error * error}
    if not answer.probabilities:
        return {"accuracy": float(answer.label == actual)}
    if actual not in answer.probabilities:
        return None
    probability = min(max(answer.probabilities[actual], CLIP), 1.0 - CLIP)
    return {"accuracy": float(answer.label == actual), "log_loss": -math.log(probability)}


def sources_beyond(labels: Mapping[str, Mapping[str, int]], max_share: float) -> dict[str, float]:
    """The sources whose labels are not used, with the largest share that each had; ``labels`` by variant and source.

    A source that may send requests too is left out while it has more than ``max_share`` of the labels of any variant.
    The shares of the others are then of what is left, so that what remains obeys the limit.

    >>> sources_beyond({"champion": {"a+infer": 9, "b": 1}, "challenger": {"a+infer": 1, "b": 9}}, 0.5)
    {'a+infer': 0.9}
    >>> sources_beyond({"champion": {"": 9}, "challenger": {"b": 7}}, 0.5)
    {}
    """
    beyond: dict[str, float] = {}
    while True:
        shares: dict[str, float] = {}
        for counts in labels.values():
            used = {source: count for source, count in counts.items() if source not in beyond and count > 0}
            for source, count in used.items():
                if source.endswith(ASKING):
                    shares[source] = max(shares.get(source, 0.0), count / sum(used.values()))
        largest = max(shares, key=lambda source: (shares[source], source), default="")
        if not largest or shares[largest] <= max_share:
            return beyond
        beyond[largest] = shares[largest]
