"""Compares a shadow's answers with those that clients got, row by row. Pure: arrays in, numbers out.

Two answers to a row agree when their labels are the same, or, for a regression, when they differ by no more than
TOLERANCE of the spread of the champion's own predictions (the distance from their first to their last tenth), so
that the figure does not depend on the unit of the target.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from mlflowkit.bundle import Signature
from mlflowkit.features.tensors import category_text
from mlflowkit.judging.online.evidence import SCORE_BINS, Moments
from mlflowkit.values import Json

TOLERANCE = 0.05
EDGE_ROWS = 500
"""Predictions of the champion from which the tenths of a regression are told."""
SLICE_COLUMNS = 16
SLICE_VALUES = 16
"""Values of a column that are slices of their own, the most frequent of the reference profile; the rest is OTHER."""
OTHER = "(other)"
MISSING = "(missing)"
EXAMPLES = 50
RANK_WINDOW = 512

Answers = Mapping[str, np.ndarray]


def moments(values: np.ndarray) -> Moments:
    """Count, sum and sum of squares; only finite values count."""
    finite = values[np.isfinite(values)].astype(np.float64)
    return Moments(len(finite), float(finite.sum()), float(np.square(finite).sum()))


def label_texts(labels: np.ndarray) -> np.ndarray:
    """Labels as the texts that they are called by, an object array."""
    if labels.dtype.kind in "iu":
        return labels.astype(str).astype(object)
    return labels if labels.dtype == object else labels.astype(object)


def prediction_counts(signature: Signature, answers: Answers, edges: Sequence[float] = ()) -> dict[str, int]:
    """Answered rows by class and, for a binary task, by score bin; by tenth (of ``edges``) for a regression.

    >>> from mlflowkit.bundle import Tensor
    >>> signature = Signature(task="classification", inputs=(), outputs=(), classes=("bad", "good"))
    >>> answers = {"label": np.array(["good"], object), "probabilities": np.array([[0.25, 0.75]])}
    >>> prediction_counts(signature, answers)
    {'label:good': 1, 'score:37': 1}
    """
    if signature.task == "regression":
        tenths = np.searchsorted(np.asarray(edges), answers["prediction"].reshape(-1), side="right")
        return {f"decile:{tenth}": int(count) for tenth, count in _tally(tenths)}
    texts = pa.array(label_texts(answers["label"]), pa.string()).value_counts()
    found = {f"label:{item['values']}": item["counts"] for item in texts.to_pylist()}
    probabilities = answers.get("probabilities")
    if len(signature.classes) == 2 and probabilities is not None:
        bins = np.clip((probabilities[:, 1] * SCORE_BINS).astype(np.int64), 0, SCORE_BINS - 1)
        found |= {f"score:{place}": int(count) for place, count in _tally(bins)}
    return found


def _tally(codes: np.ndarray) -> Iterable[tuple[int, int]]:
    counts = np.bincount(codes)
    return [(int(code), int(counts[code])) for code in np.flatnonzero(counts)]


def tenths(predictions: np.ndarray) -> tuple[float, ...]:
    """The nine edges between the tenths of a sample.

    >>> tenths(np.arange(101.0))[:2]
    (10.0, 20.0)
    """
    return tuple(float(edge) for edge in np.quantile(predictions.astype(np.float64), np.linspace(0.1, 0.9, 9)))


def tolerance(edges: Sequence[float]) -> float:
    """By how much two predictions may differ and agree, from the tenths of the champion's.

    Where the champion always says the same, it is that share of its size, for rounding's sake.
    """
    spread = edges[-1] - edges[0]
    return TOLERANCE * spread if spread > 0 else 1e-6 * max(1.0, abs(edges[0]))


@dataclass(frozen=True, slots=True)
class Compared:
    """Two answers to the same rows.

    agrees      bool [n]
    difference  the shadow's score minus the champion's, float64 [n]: the probability of the positive class, of the
                class that the champion answered (more than two classes), or the prediction
    scores      what was subtracted from, (champion's, shadow's), each float64 [n]
    """

    agrees: np.ndarray
    difference: np.ndarray
    scores: tuple[np.ndarray, np.ndarray]


def compare(signature: Signature, answers: Answers, shadow: Answers, other: Signature, within: float) -> Compared:
    """Hold a shadow's answers (of signature ``other``) against the champion's; ``within`` is a regression's tolerance.

    Classes are matched by name: the two may order them differently. Raises KeyError or ValueError where a signature
    and its answers do not fit each other, or the tasks differ.
    """
    if signature.task != other.task:
        raise ValueError(f"a {signature.task} cannot be compared with a {other.task}")
    if signature.task == "regression":
        ours = answers["prediction"].reshape(-1).astype(np.float64)
        theirs = shadow["prediction"].reshape(-1).astype(np.float64)
        return Compared(np.abs(theirs - ours) <= within, theirs - ours, (ours, theirs))
    labels = label_texts(answers["label"])
    agrees = np.asarray(labels == label_texts(shadow["label"]), dtype=bool)
    classes = [category_text(label) for label in signature.classes]
    asked = np.full(len(labels), classes[-1], dtype=object) if len(classes) == 2 else labels
    ours = _probability(answers, signature, asked)
    theirs = _probability(shadow, other, asked)
    return Compared(agrees, theirs - ours, (ours, theirs))


def _probability(answers: Answers, signature: Signature, asked: np.ndarray) -> np.ndarray:
    """The probability given to a class a row; 0 for a class that the model does not know."""
    given = answers["probabilities"].astype(np.float64)
    place = {category_text(label): index for index, label in enumerate(signature.classes)}
    codes = np.array([place.get(text, -1) for text in asked], dtype=np.int64)
    found = np.take_along_axis(given, np.maximum(codes, 0)[:, None], axis=1)[:, 0]
    return np.where(codes < 0, 0.0, found)


def slice_name(column: str, value: str, known: frozenset[str]) -> str:
    """The slice that a value of a column is in.

    >>> slice_name("term", "36", frozenset({"36"})), slice_name("term", "", frozenset())
    ('term=36', 'term=(missing)')
    """
    return f"{column}={value if value in known else MISSING if value == '' else OTHER}"


def slice_moments(agrees: np.ndarray, column: str, values: np.ndarray, known: frozenset[str]) -> dict[str, Moments]:
    """Agreement by ``column=value`` for the values that are known, the rest together.

    >>> slice_moments(np.array([True, False]), "term", np.array(["36", "x"], object), frozenset({"36"}))["term=36"]
    Moments(count=1, total=1.0, squares=1.0)
    """
    encoded = pa.array(values, pa.string()).dictionary_encode()
    codes = encoded.indices.to_numpy()
    counts = np.bincount(codes, minlength=len(encoded.dictionary))
    agreed = np.bincount(codes, weights=agrees, minlength=len(encoded.dictionary))
    found: dict[str, Moments] = {}
    for text, count, total in zip(encoded.dictionary.to_pylist(), counts, agreed, strict=True):
        key = slice_name(column, text, known)
        found[key] = found.get(key, Moments()) + Moments(int(count), float(total), float(total))
    return found


def sliced_columns(signature: Signature, reference: Json, named: Sequence[str] = ()) -> dict[str, frozenset[str]]:
    """The columns by whose values agreement is told, each with the values that are slices of their own.

    Those that are ``named``, or else the categorical ones with the fewest values, at most SLICE_COLUMNS. A column is
    sliced only where the reference profile lists its frequent values: so every replica makes the same slices.
    """
    summaries = (reference or {}).get("columns", {})
    texts = [column for tensor in signature.inputs if tensor.datatype == "BYTES" for column in tensor.columns]
    listed = [column for column in texts if summaries.get(column, {}).get("frequent")]
    if named:
        chosen = [column for column in listed if column in named]
    else:
        low = [column for column in listed if len(summaries[column]["frequent"]) <= 2 * SLICE_VALUES]
        chosen = sorted(low, key=lambda column: len(summaries[column]["frequent"]))[:SLICE_COLUMNS]
    return {
        column: frozenset(str(value) for value, _ in summaries[column]["frequent"][:SLICE_VALUES] if value != "")
        for column in chosen
    }


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, those of equal values averaged.

    >>> ranks(np.array([5.0, 1.0, 5.0])).tolist()
    [1.5, 0.0, 1.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    return np.asarray(middle[inverse])


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where one side has no spread.

    >>> round(spearman(np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 4, 3])), 3)
    0.8
    """
    one, two = ranks(left), ranks(right)
    one, two = one - one.mean(), two - two.mean()
    spread = float(np.sqrt(np.square(one).sum() * np.square(two).sum()))
    return float((one * two).sum()) / spread if spread > 0 else float("nan")


class Reservoir:
    """A uniform sample of bounded size of all that it was offered (Vitter, Algorithm R, ACM TOMS 1985).

    >>> sample = Reservoir(3, seed=1)
    >>> for number in range(100):
    ...     if (place := sample.place()) is not None:
    ...         sample.items[place:place + 1] = [number]
    >>> len(sample.items), sample.seen
    (3, 100)
    """

    def __init__(self, size: int = EXAMPLES, *, seed: int = 0) -> None:
        self.size = size
        self.seen = 0
        self.items: list[Json] = []
        self._random = random.Random(seed)

    def place(self) -> int | None:
        """Where the next item goes (the place after the last one to append it); None when it is not taken."""
        self.seen += 1
        if len(self.items) < self.size:
            return len(self.items)
        place = self._random.randrange(self.seen)
        return place if place < self.size else None


@dataclass(slots=True)
class Comparison:
    """All that was seen of one shadow under one experiment; what `to_json` gives is written down to be looked at.

    ``latency`` is the shadow's own seconds minus those from the client's request to its answer; ``rank`` is Spearman's
    correlation of the two scores in each window of RANK_WINDOW rows.
    """

    shadow: str
    version: str
    experiment: str
    agreement: dict[str, Moments] = field(default_factory=dict)
    difference: Moments = field(default_factory=Moments)
    latency: Moments = field(default_factory=Moments)
    rank: Moments = field(default_factory=Moments)
    examples: Reservoir = field(default_factory=Reservoir)
    _left: list[np.ndarray] = field(default_factory=list)
    _right: list[np.ndarray] = field(default_factory=list)
    _held: int = 0

    def add(self, compared: Compared, agreement: Mapping[str, Moments], latency: np.ndarray) -> None:
        """Count compared rows; ``agreement`` is theirs by slice, ``latency`` one difference a request."""
        for key, value in agreement.items():
            self.agreement[key] = self.agreement.get(key, Moments()) + value
        self.difference += moments(compared.difference)
        self.latency += moments(latency)
        self._left.append(compared.scores[0])
        self._right.append(compared.scores[1])
        self._held += len(compared.agrees)
        if self._held >= RANK_WINDOW:
            left, right = np.concatenate(self._left), np.concatenate(self._right)
            whole = self._held // RANK_WINDOW * RANK_WINDOW
            found = [
                spearman(left[begin : begin + RANK_WINDOW], right[begin : begin + RANK_WINDOW])
                for begin in range(0, whole, RANK_WINDOW)
            ]
            self.rank += moments(np.array(found))
            self._left, self._right, self._held = [left[whole:]], [right[whole:]], self._held - whole

    def to_json(self) -> Json:
        """JSON: counts as [count, sum, sum of squares], agreement by slice, examples of disagreement."""
        return {
            "shadow": self.shadow,
            "version": self.version,
            "experiment": self.experiment,
            "agreement": {key: _triple(value) for key, value in sorted(self.agreement.items())},
            "difference": _triple(self.difference),
            "latency": _triple(self.latency),
            "rank": _triple(self.rank),
            "disagreements": self.examples.seen,
            "examples": self.examples.items,
        }


def merged(parts: Sequence[Json]) -> Json:
    """What several replicas saw of one shadow, as `Comparison.to_json` gives it; examples in the order of time."""
    first = parts[0]
    keys = sorted({key for part in parts for key in part["agreement"]})
    return {
        **first,
        "agreement": {key: _added([part["agreement"].get(key, [0, 0.0, 0.0]) for part in parts]) for key in keys},
        **{name: _added([part[name] for part in parts]) for name in ("difference", "latency", "rank")},
        "disagreements": sum(part["disagreements"] for part in parts),
        "examples": sorted((item for part in parts for item in part["examples"]), key=lambda item: item["time"]),
    }


def _added(triples: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) for values in zip(*triples, strict=True)]


def _triple(value: Moments) -> list[float]:
    return [value.count, value.total, value.squares]
