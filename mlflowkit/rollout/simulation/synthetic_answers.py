"""Answers of two models to the same rows, as samples: how alike they are, for the metric ``kappa``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING

from mlflowkit.judging.online.evidence import SCORE_BINS

if TYPE_CHECKING:
    import numpy as np

PAIRS = 4000
"""Pairs of requests that a sample has."""
AnswerPairs = tuple[tuple[float, float], ...]
"""How far two models' answers are from each other in each pair of requests: to the same row, and to another one."""


def kappa_of(pairs: AnswerPairs) -> float:
    """The kappa of a sample; NaN for an empty one."""
    chance = math.fsum(pair[1] for pair in pairs)
    return 1 - math.fsum(pair[0] for pair in pairs) / chance if chance else math.nan


@lru_cache(maxsize=64)
def answer_pairs(kappa: float) -> AnswerPairs:
    """Pairs of requests of models with about that kappa: uniform scores, joined by a Gaussian copula.

    >>> [round(kappa_of(answer_pairs(kappa)), 1) for kappa in (0.9, 0.4, 0.0)]
    [0.9, 0.4, 0.0]
    """
    import numpy as np

    random = np.random.default_rng(7)
    correlation = 2 * math.sin(math.pi * kappa / 6)  # of the normals, for that rank correlation
    first, noise = random.normal(size=(2, 2 * PAIRS))
    normals = np.array([first, correlation * first + math.sqrt(1 - correlation**2) * noise])
    errors = np.vectorize(math.erf, otypes=[float])
    return _pairs(0.5 * (1 + errors(normals / math.sqrt(2))))


@dataclass(frozen=True, slots=True)
class RankedAnswers:
    """Answers of a champion and a challenger to rows of a binary task, each with its AUC: labels, scores and truth."""

    pairs: AnswerPairs
    agreement: float
    accuracy: tuple[float, float]
    predictions: tuple[tuple[Mapping[str, float], ...], tuple[Mapping[str, float], ...]]


@lru_cache(maxsize=16)
def ranked_answers(positive: float, champion_auc: float, challenger_auc: float) -> RankedAnswers:
    """Answers with a share of ``positive`` positive rows. Both models believe in the champion's skill: their scores are
    the champion's calibrated ones, of what each of them sees of the truth.

    >>> answers = ranked_answers(0.09, 0.75, 0.41)
    >>> answers.agreement > 0.95, abs(kappa_of(answers.pairs)) < 0.1
    (True, True)
    """
    import numpy as np

    random = np.random.default_rng(7)
    truth = random.random(2 * PAIRS) < positive
    skills = [math.sqrt(2) * NormalDist().inv_cdf(auc) for auc in (champion_auc, challenger_auc)]
    seen = [np.where(truth, skill / 2, -skill / 2) + random.normal(size=2 * PAIRS) for skill in skills]
    scores = np.array([1 / (1 + np.exp(-(math.log(positive / (1 - positive)) + skills[0] * z))) for z in seen])
    labels = scores > 0.5
    predictions = []
    for own, label in zip(scores, labels, strict=True):
        bins = np.bincount((own * SCORE_BINS).astype(int), minlength=SCORE_BINS) / len(own)
        share = float(label.mean())
        histogram = {f"score:{index}": float(part) for index, part in enumerate(bins)}
        predictions.append(({"label:yes": share, "label:no": 1 - share}, histogram))
    right = (labels == truth).mean(axis=1)
    return RankedAnswers(
        _pairs(np.arcsin(np.sqrt(scores)) * (2 / math.pi)), float((labels[0] == labels[1]).mean()),
        (float(right[0]), float(right[1])), (predictions[0], predictions[1]),
    )  # fmt: skip


def _pairs(scores: np.ndarray) -> AnswerPairs:
    """Pairs of consecutive rows of scores [2, n] of champion and challenger, one row a request."""
    (first, second), (first_shadow, second_shadow) = ((row[0::2], row[1::2]) for row in scores)
    apart = ((first - first_shadow) ** 2 + (second - second_shadow) ** 2) / 2
    chance = ((first - second_shadow) ** 2 + (second - first_shadow) ** 2) / 2
    return tuple(zip(apart.tolist(), chance.tolist(), strict=True))
