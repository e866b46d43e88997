"""How alike two models answer, beyond what chance gives: the counts behind the rollout metric ``kappa``. Pure.

Cohen's kappa is 1 - D / E: D is how far the two answers to the same row are apart, E how far the answers of the one to
a row are from those of the other to an independent row. Answers are points, distances squared:

- two classes: the probability of the positive one, as 2/pi arcsin(sqrt(p)), which spreads rare classes (quadratic
  weights; the same as Lin's concordance correlation);
- more classes: corners of a simplex, so that a distance is 0 or 1 (unweighted kappa);
- a regression: the decile among the champion's predictions, from 0 to 1 (quadratic weights).

Requests are taken in pairs, in order of arrival. Each pair gives one observation of D and one of E, from means over the
rows of its two requests, so the rows of one request need not be independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlflowkit.bundle import Signature
from mlflowkit.judging.online.evidence import PairMoments
from mlflowkit.serving.observer import shadow_comparison
from mlflowkit.serving.observer.shadow_comparison import Answers, RowComparison
from mlflowkit.system.text import category_text


@dataclass(frozen=True, slots=True)
class RequestMeans:
    """Means over the rows of each of n requests: the two answers as points [n, m], their squared lengths [n], and
    their squared distance [n]."""

    champion: np.ndarray
    shadow: np.ndarray
    champion_squares: np.ndarray
    shadow_squares: np.ndarray
    apart: np.ndarray

    def __len__(self) -> int:
        return len(self.apart)

    def __getitem__(self, requests: np.ndarray | slice) -> RequestMeans:
        return RequestMeans(
            self.champion[requests], self.shadow[requests], self.champion_squares[requests],
            self.shadow_squares[requests], self.apart[requests],
        )  # fmt: skip

    def followed_by(self, other: RequestMeans) -> RequestMeans:
        """These requests, then ``other``."""
        return RequestMeans(
            np.concatenate([self.champion, other.champion]),
            np.concatenate([self.shadow, other.shadow]),
            np.concatenate([self.champion_squares, other.champion_squares]),
            np.concatenate([self.shadow_squares, other.shadow_squares]),
            np.concatenate([self.apart, other.apart]),
        )


def embed(
    signature: Signature, answers: Answers, shadow: Answers, shadow_signature: Signature, rows: RowComparison,
    edges: Sequence[float] = (),
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Both answers to each row as points, [rows, m] each."""
    if signature.task == "regression":
        return as_deciles(rows.scores[0], edges), as_deciles(rows.scores[1], edges)
    if len(signature.classes) == 2:
        return as_angles(rows.scores[0]), as_angles(rows.scores[1])
    classes = dict.fromkeys(category_text(label) for label in (*signature.classes, *shadow_signature.classes))
    return as_corners(answers["label"], tuple(classes)), as_corners(shadow["label"], tuple(classes))


def as_deciles(predictions: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    return np.searchsorted(np.asarray(edges), predictions, "right")[:, None] / 9.0


def as_angles(probabilities: np.ndarray) -> np.ndarray:
    """
    >>> as_angles(np.array([0.0, 0.5, 1.0])).ravel().tolist()
    [0.0, 0.5, 1.0]
    """
    angles: np.ndarray = np.arcsin(np.sqrt(np.clip(probabilities, 0.0, 1.0)))[:, None] * (2 / np.pi)
    return angles.round(12)


def as_corners(labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Labels as corners of a simplex, at a squared distance of 1; a label outside ``classes`` has one of its own."""
    codes = {label: code for code, label in enumerate(classes)}
    rows = [codes.get(category_text(label), len(codes)) for label in shadow_comparison.label_texts(labels)]
    corners: np.ndarray = np.eye(len(codes) + 1)[np.array(rows, dtype=np.int64)] / np.sqrt(2)
    return corners


def request_means(request: np.ndarray, champion: np.ndarray, shadow: np.ndarray) -> RequestMeans:
    """Means by request; ``request`` is the index of each row's. Rows with an answer that is no number are left out."""
    finite = np.isfinite(champion).all(axis=1) & np.isfinite(shadow).all(axis=1)
    _, codes, counts = np.unique(request[finite], return_inverse=True, return_counts=True)
    champion, shadow = champion[finite], shadow[finite]

    def mean(values: np.ndarray) -> np.ndarray:
        sums = np.zeros((len(counts), *values.shape[1:]))
        np.add.at(sums, codes, values)
        means: np.ndarray = sums / (counts[:, None] if values.ndim > 1 else counts)
        return means

    own, others, apart = (mean(np.square(points).sum(axis=1)) for points in (champion, shadow, champion - shadow))
    return RequestMeans(mean(champion), mean(shadow), own, others, apart)


def pair_moments(means: RequestMeans) -> PairMoments:
    """Moments of the pairs of consecutive requests; an odd last one is left out.

    >>> labels = as_corners(np.array(["a", "b", "a", "b"], object), ("a", "b"))
    >>> pair_moments(request_means(np.arange(4), labels, labels))
    PairMoments(pairs=2, apart=0.0, chance=2.0, apart_squares=0.0, chance_squares=2.0, products=0.0)
    """
    end = len(means) // 2 * 2
    first, second = means[slice(0, end, 2)], means[slice(1, end, 2)]
    apart = (first.apart + second.apart) / 2
    across = [
        one.champion_squares - 2 * (one.champion * other.shadow).sum(axis=1) + other.shadow_squares
        for one, other in ((first, second), (second, first))
    ]
    chance = np.maximum((across[0] + across[1]) / 2, 0.0)
    sums = (apart, chance, apart**2, chance**2, apart * chance)
    return PairMoments(end // 2, *(round(float(values.sum()), 9) for values in sums))


class PairCounter:
    """Counts pairs of requests that arrive batch by batch: an odd request waits for the next."""

    def __init__(self) -> None:
        self._waiting: RequestMeans | None = None

    def add(self, means: RequestMeans) -> PairMoments:
        """The pairs that these requests complete."""
        if self._waiting is not None and self._waiting.champion.shape[1:] == means.champion.shape[1:]:
            means = self._waiting.followed_by(means)
        odd = len(means) % 2
        self._waiting = means[slice(len(means) - 1, None)] if odd else None
        return pair_moments(means)
