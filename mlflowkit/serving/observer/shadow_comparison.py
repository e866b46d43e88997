"""Row-by-row comparison of a shadow's answers with those that clients got. Pure: arrays in, numbers out.

Two answers to a row agree when their labels are equal or, for a regression, when they differ by no more than TOLERANCE
of the spread of the champion's own predictions (from their first to their ninth decile edge), so that the figure does
not depend on the unit of the target.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from mlflowkit.bundle import Signature
from mlflowkit.judging.online.evidence import SCORE_BINS, Moments
from mlflowkit.system.text import category_text
from mlflowkit.values import Json

TOLERANCE = 0.05
EDGE_ROWS = 500
"""Predictions of the champion from which the decile edges of a regression are computed."""
SLICE_COLUMNS = 16
SLICE_VALUES = 16
"""Values of a column that get a slice each, the most frequent of the reference profile; all others share OTHER."""
OTHER = "(other)"
MISSING = "(missing)"
EXAMPLES = 50
RANK_WINDOW = 512

Answers = Mapping[str, np.ndarray]


def moments(values: np.ndarray) -> Moments:
    """Count, sum and sum of squares of the finite values."""
    finite = values[np.isfinite(values)].astype(np.float64)
    return Moments(len(finite), float(finite.sum()), float(np.square(finite).sum()))


def label_texts(labels: np.ndarray) -> np.ndarray:
    """Convert labels to an object array of texts."""
    if labels.dtype.kind in "iu":
        return labels.astype(str).astype(object)
    return labels if labels.dtype == object else labels.astype(object)


def prediction_counts(signature: Signature, answers: Answers, edges: Sequence[float] = ()) -> dict[str, int]:
    """Count rows by class and, for a binary task, by score bin; for a regression by decile (between ``edges``).

    >>> signature = Signature(task="classification", inputs=(), outputs=(), classes=("bad", "good"))
    >>> answers = {"label": np.array(["good"], object), "probabilities": np.array([[0.25, 0.75]])}
    >>> prediction_counts(signature, answers)
    {'label:good': 1, 'score:37': 1}
    """
    counts: dict[str, int] = {}
    for names, codes in _prediction_codes(signature, answers, edges):
        rows = np.bincount(codes, minlength=len(names))
        counts |= {names[code]: int(rows[code]) for code in np.flatnonzero(rows)}
    return counts


def request_prediction_counts(
    signature: Signature, answers: Answers, request: np.ndarray, edges: Sequence[float] = ()
) -> dict[str, float]:
    """As `prediction_counts`, by requests: each counts 1, shared equally among its rows. ``request`` is each row's.

    >>> signature = Signature(task="classification", inputs=(), outputs=(), classes=("a", "b", "c"))
    >>> answers = {"label": np.array(["a", "b", "b", "c"], object)}
    >>> request_prediction_counts(signature, answers, np.array([0, 0, 0, 1]))
    {'label:a': 0.333333333, 'label:b': 0.666666667, 'label:c': 1.0}
    """
    counts: dict[str, float] = {}
    weights = 1.0 / np.bincount(request)[request] if len(request) else np.empty(0)
    for names, codes in _prediction_codes(signature, answers, edges):
        shares = np.bincount(codes, weights, minlength=len(names)).round(9)
        counts |= {names[code]: float(shares[code]) for code in np.flatnonzero(shares)}
    return counts


def _prediction_codes(
    signature: Signature, answers: Answers, edges: Sequence[float]
) -> list[tuple[list[str], np.ndarray]]:
    """Ways of counting predictions: the names of the counts, and each row's index into them."""
    if signature.task == "regression":
        deciles = np.searchsorted(np.asarray(edges), answers["prediction"].reshape(-1), "right")
        return [([f"decile:{code}" for code in range(len(edges) + 1)], deciles)]
    labels = pa.array(label_texts(answers["label"]), pa.string()).dictionary_encode()
    ways = [([f"label:{text}" for text in labels.dictionary.to_pylist()], labels.indices.to_numpy())]
    probabilities = answers.get("probabilities")
    if len(signature.classes) == 2 and probabilities is not None:
        bins = np.clip((probabilities[:, 1] * SCORE_BINS).astype(np.int64), 0, SCORE_BINS - 1)
        ways.append(([f"score:{code}" for code in range(SCORE_BINS)], bins))
    return ways


def request_moments(values: np.ndarray, request: np.ndarray) -> Moments:
    """Moments of the means by request of values in [0, 1]; ``request`` is each row's.

    >>> request_moments(np.array([True, False, True]), np.array([4, 4, 5]))
    Moments(count=2, total=1.5, squares=1.25)
    """
    rows = np.bincount(request)
    present = np.flatnonzero(rows)
    means = np.bincount(request, values.astype(np.float64))[present] / rows[present]
    return Moments(len(means), round(float(means.sum()), 9), round(float(np.square(means).sum()), 9))


def decile_edges(predictions: np.ndarray) -> tuple[float, ...]:
    """The nine edges between the deciles of a sample.

    >>> decile_edges(np.arange(101.0))[:2]
    (10.0, 20.0)
    """
    return tuple(float(edge) for edge in np.quantile(predictions.astype(np.float64), np.linspace(0.1, 0.9, 9)))


def tolerance(edges: Sequence[float]) -> float:
    """The largest difference at which two predictions agree, from the champion's decile edges.

    When the champion's predictions are constant, it is 1e-6 of their size, which allows for rounding.
    """
    spread = edges[-1] - edges[0]
    return TOLERANCE * spread if spread > 0 else 1e-6 * max(1.0, abs(edges[0]))


@dataclass(frozen=True, slots=True)
class RowComparison:
    """Two answers to the same rows.

    agrees      bool [n]
    difference  the shadow's score minus the champion's, float64 [n]: the probability of the positive class, of the
                class that the champion answered (more than two classes), or the prediction
    scores      the scores subtracted, (champion's, shadow's), each float64 [n]
    """

    agrees: np.ndarray
    difference: np.ndarray
    scores: tuple[np.ndarray, np.ndarray]


def compare(
    signature: Signature, answers: Answers, shadow: Answers, shadow_signature: Signature, within: float
) -> RowComparison:
    """Compare a shadow's answers with the champion's; ``within`` is the tolerance of a regression.

    Classes are matched by name: the two models may order them differently. Raises KeyError or ValueError when a
    signature and its answers do not fit each other, or the tasks differ.
    """
    if signature.task != shadow_signature.task:
        raise ValueError(f"a {signature.task} cannot be compared with a {shadow_signature.task}")
    if signature.task == "regression":
        champion_scores = answers["prediction"].reshape(-1).astype(np.float64)
        shadow_scores = shadow["prediction"].reshape(-1).astype(np.float64)
        difference = shadow_scores - champion_scores
        return RowComparison(np.abs(difference) <= within, difference, (champion_scores, shadow_scores))
    labels = label_texts(answers["label"])
    agrees = np.asarray(labels == label_texts(shadow["label"]), dtype=bool)
    classes = [category_text(label) for label in signature.classes]
    scored_class = np.full(len(labels), classes[-1], dtype=object) if len(classes) == 2 else labels
    champion_scores = _class_probability(answers, signature, scored_class)
    shadow_scores = _class_probability(shadow, shadow_signature, scored_class)
    return RowComparison(agrees, shadow_scores - champion_scores, (champion_scores, shadow_scores))


def _class_probability(answers: Answers, signature: Signature, scored_class: np.ndarray) -> np.ndarray:
    """The probability of one class per row; 0 for a class that the model does not have."""
    probabilities = answers["probabilities"].astype(np.float64)
    index = {category_text(label): code for code, label in enumerate(signature.classes)}
    codes = np.array([index.get(text, -1) for text in scored_class], dtype=np.int64)
    chosen = np.take_along_axis(probabilities, np.maximum(codes, 0)[:, None], axis=1)[:, 0]
    return np.where(codes < 0, 0.0, chosen)


def slice_name(column: str, value: str, frequent: frozenset[str]) -> str:
    """The slice of a value; ``frequent`` values have a slice each.

    >>> slice_name("term", "36", frozenset({"36"})), slice_name("term", "", frozenset())
    ('term=36', 'term=(missing)')
    """
    return f"{column}={value if value in frequent else MISSING if value == '' else OTHER}"


def slice_moments(agrees: np.ndarray, column: str, values: np.ndarray, frequent: frozenset[str]) -> dict[str, Moments]:
    """Agreement by slice of a column (see `slice_name`).

    >>> slice_moments(np.array([True, False]), "term", np.array(["36", "x"], object), frozenset({"36"}))["term=36"]
    Moments(count=1, total=1.0, squares=1.0)
    """
    encoded = pa.array(values, pa.string()).dictionary_encode()
    codes = encoded.indices.to_numpy()
    counts = np.bincount(codes, minlength=len(encoded.dictionary))
    agreed = np.bincount(codes, weights=agrees, minlength=len(encoded.dictionary))
    slices: dict[str, Moments] = {}
    for text, count, total in zip(encoded.dictionary.to_pylist(), counts, agreed, strict=True):
        key = slice_name(column, text, frequent)
        slices[key] = slices.get(key, Moments()) + Moments(int(count), float(total), float(total))
    return slices


def request_slice_moments(
    agrees: np.ndarray, request: np.ndarray, column: str, values: np.ndarray, frequent: frozenset[str]
) -> dict[str, Moments]:
    """As `slice_moments`, a request's mean over its rows in a slice being one observation.

    >>> rows = np.array([True, False, True]), np.array([0, 0, 1]), "term", np.array(["36"] * 3, object)
    >>> request_slice_moments(*rows, frozenset({"36"}))["term=36"]
    Moments(count=2, total=1.5, squares=1.25)
    """
    names = np.array([slice_name(column, value, frequent) for value in values], dtype=object)
    return {name: request_moments(agrees[names == name], request[names == name]) for name in dict.fromkeys(names)}


def sliced_columns(signature: Signature, reference: Json, named: Sequence[str] = ()) -> dict[str, frozenset[str]]:
    """Choose the columns by which agreement is sliced, each with its frequent values.

    These are the ``named`` columns, or by default the categorical ones with the fewest values, at most SLICE_COLUMNS.
    A column is sliced only when the reference profile lists its frequent values: so all replicas use the same slices.
    """
    summaries = (reference or {}).get("columns", {})
    texts = [column for tensor in signature.inputs if tensor.datatype == "BYTES" for column in tensor.columns]
    listed = [column for column in texts if summaries.get(column, {}).get("frequent")]
    if named:
        columns = [column for column in listed if column in named]
    else:
        low = [column for column in listed if len(summaries[column]["frequent"]) <= 2 * SLICE_VALUES]
        columns = sorted(low, key=lambda column: len(summaries[column]["frequent"]))[:SLICE_COLUMNS]
    frequent = {column: summaries[column]["frequent"][:SLICE_VALUES] for column in columns}
    return {name: frozenset(str(value) for value, _ in values if value != "") for name, values in frequent.items()}


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share their mean rank (scipy.stats costs the observer a second and 40 MB to import).

    >>> ranks(np.array([5.0, 1.0, 5.0])).tolist()
    [1.5, 0.0, 1.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts + 1) / 2
    return np.asarray(mean_rank[inverse])


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Spearman's rank correlation; NaN when one side is constant.

    >>> round(spearman(np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 4, 3])), 3)
    0.8
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(ranks(left), ranks(right))[0, 1])


class Reservoir:
    """A uniform sample of bounded size of all items offered (Vitter, Algorithm R, ACM TOMS 1985).

    >>> sample = Reservoir(3, seed=1)
    >>> for number in range(100):
    ...     if (index := sample.next_index()) is not None:
    ...         sample.items[index:index + 1] = [number]
    >>> len(sample.items), sample.offered
    (3, 100)
    """

    def __init__(self, size: int = EXAMPLES, *, seed: int = 0) -> None:
        self.size = size
        self.offered = 0
        self.items: list[Json] = []
        self._random = random.Random(seed)

    def next_index(self) -> int | None:
        """Offer an item; return its index in ``items`` (their length to append it), or None to discard it."""
        self.offered += 1
        if len(self.items) < self.size:
            return len(self.items)
        index = self._random.randrange(self.offered)
        return index if index < self.size else None


@dataclass(slots=True)
class ShadowComparison:
    """All comparisons of one shadow in one experiment.

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
    _pending: list[np.ndarray] = field(default_factory=list)
    _pending_rows: int = 0

    def add(self, rows: RowComparison, agreement: Mapping[str, Moments], latency: np.ndarray) -> None:
        """Count compared rows; ``agreement`` is theirs by slice, ``latency`` one difference per request."""
        for key, value in agreement.items():
            self.agreement[key] = self.agreement.get(key, Moments()) + value
        self.difference += moments(rows.difference)
        self.latency += moments(latency)
        self._pending.append(np.stack(rows.scores))
        self._pending_rows += len(rows.agrees)
        if self._pending_rows >= RANK_WINDOW:
            scores = np.concatenate(self._pending, axis=1)
            end = self._pending_rows // RANK_WINDOW * RANK_WINDOW
            windows = np.split(scores[:, :end], end // RANK_WINDOW, axis=1)
            self.rank += moments(np.array([spearman(left, right) for left, right in windows]))
            self._pending, self._pending_rows = [scores[:, end:]], self._pending_rows - end

    def to_json(self) -> Json:
        """JSON: moments as [count, sum, sum of squares], agreement by slice, examples of disagreement."""
        return {
            "shadow": self.shadow,
            "version": self.version,
            "experiment": self.experiment,
            "agreement": {key: _triple(value) for key, value in sorted(self.agreement.items())},
            "difference": _triple(self.difference),
            "latency": _triple(self.latency),
            "rank": _triple(self.rank),
            "disagreements": self.examples.offered,
            "examples": self.examples.items,
        }


def merge_comparisons(parts: Sequence[Json]) -> Json:
    """Add up what several replicas compared of one shadow (`ShadowComparison.to_json`); examples are sorted by time."""
    slices = sorted({key for part in parts for key in part["agreement"]})
    return {
        **parts[0],
        "agreement": {key: _add([part["agreement"].get(key, [0, 0.0, 0.0]) for part in parts]) for key in slices},
        **{name: _add([part[name] for part in parts]) for name in ("difference", "latency", "rank")},
        "disagreements": sum(part["disagreements"] for part in parts),
        "examples": sorted((item for part in parts for item in part["examples"]), key=lambda item: item["time"]),
    }


def _add(triples: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) for values in zip(*triples, strict=True)]


def _triple(value: Moments) -> list[float]:
    return [value.count, value.total, value.squares]
