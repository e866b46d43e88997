"""Numbers of texts by the hashing trick: how often each bucket's words, characters or runs of them occur.

The method of Weinberger et al., "Feature hashing for large scale multitask learning" (ICML 2009), as scikit-learn's
HashingVectorizer has it: MurmurHash3 (x86, 32 bits, seed 0) of the UTF-8 bytes of a term names its bucket, by absolute
value modulo the number of buckets, and by sign whether it adds or subtracts one, so that terms that share a bucket
cancel out on average. Counts are whole numbers, and their length is computed in double precision: the graph's numbers
are these, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from mlflowkit.errors import DataError, UsageError
from mlflowkit.features.texts.text_tokens import Tokens, canonical_text
from mlflowkit.system.machine import memory

CHUNK = 4096
"""Rows that are hashed at once; so many rows of counts are held besides the matrix."""
HASHES = 2**31 - 1
"""Buckets in which terms are told apart, to count those that share one of the column's."""
LARGEST_SHARE = 0.5
"""Of the free memory, that the matrix of the training rows may take."""


@dataclass(frozen=True, slots=True)
class TextHash:
    """How the canonical texts of a column become ``features`` numbers: terms of ``ngrams`` (least, most) tokens."""

    features: int
    ngrams: tuple[int, int]
    analyzer: Literal["word", "char"]
    norm: Literal["l2", "none"]


@dataclass(frozen=True, slots=True)
class Collisions:
    """Different terms of a column's training rows, and how many of them share their bucket with another."""

    terms: int
    sharing: int

    @property
    def share(self) -> float:
        """The share of terms that share their bucket."""
        return self.sharing / self.terms if self.terms else 0.0


class TextNames(Protocol):
    """Names of the feature columns; see `mlflowkit.features.preprocess.Features`."""

    @property
    def categorical(self) -> tuple[str, ...]: ...
    @property
    def texts(self) -> tuple[str, ...]: ...


def fit_hashes(section: Any, names: TextNames) -> tuple[TextHash | None, ...]:
    """How each categorical column is hashed by a stages.train.PreprocessSettings; () where there is no free text.

    Raises UsageError for settings of a column that is no free text.
    """
    for name in getattr(section, "texts", {}):
        if name not in names.texts:
            hint = f"write data.columns: {{{name}: text}}, or remove preprocess.texts.{name}"
            raise UsageError(f"preprocess.texts.{name}: {name!r} is no column of free text", hint=hint)
    if not names.texts:
        return ()
    return tuple(text_hash(section.text(name)) if name in names.texts else None for name in names.categorical)


def text_hash(setting: Any) -> TextHash:
    """The hash of a stages.train.TextSettings."""
    low, high = setting.ngrams
    return TextHash(setting.features, (low, high), setting.analyzer, setting.norm)


def require_memory(rows: int, width: int, hashes: Sequence[TextHash | None]) -> None:
    """Raise DataError where hashed texts make the matrix of the training rows larger than the memory that is free."""
    free, needed = memory("MemAvailable"), 4 * rows * width
    if any(hashes) and free is not None and needed > LARGEST_SHARE * free:
        message = f"{rows:,} training rows of {width:,} numbers are {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of"
        hint = "set fewer features under preprocess.texts, or use fewer rows"
        raise DataError(f"{message} memory are free: a model needs several such matrices", hint=hint)


def canonical_column(texts: Sequence[str], rule: Tokens) -> tuple[list[str], int]:
    """The canonical forms of a column, and how many texts were longer than the rule allows."""
    forms: dict[str, tuple[str, bool]] = {}
    for text in texts:
        if text not in forms:
            forms[text] = canonical_text(text, rule)
    read = [forms[text] for text in texts]
    return [form for form, _ in read], sum(cut for _, cut in read)


def canonical_matrix(matrix: np.ndarray, columns: Sequence[str], rules: Mapping[str, Tokens]) -> np.ndarray:
    """A matrix of texts [rows, columns], with the canonical forms of the columns that have a rule."""
    if not rules:
        return matrix
    matrix = matrix.copy()
    for index, name in enumerate(columns):
        if name in rules:
            matrix[:, index] = canonical_column(matrix[:, index].tolist(), rules[name])[0]
    return matrix


def hash_texts(texts: np.ndarray, hashing: TextHash, out: np.ndarray) -> None:
    """Write the numbers of canonical texts, object [rows], into ``out``, float [rows, features].

    They are those of float32 in float64, too.

    >>> numbers = np.zeros((2, 4), np.float32)
    >>> hash_texts(np.array(["the tea the tea", ""], object), TextHash(4, (1, 1), "word", "none"), numbers)
    >>> numbers.tolist()
    [[2.0, 0.0, -2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    for rows, counts in _counts(texts.tolist(), hashing, hashing.features):
        numbers = counts.toarray()
        if hashing.norm == "l2":
            lengths = np.sqrt((numbers * numbers).sum(axis=1, keepdims=True))
            numbers /= np.where(lengths == 0, 1.0, lengths)
        out[rows] = numbers.astype(np.float32)


def collisions(texts: Sequence[str], hashing: TextHash) -> Collisions:
    """How many of the terms of canonical texts share a bucket. Holds four bytes a term, not the terms.

    >>> collisions(["to be or not to be"], TextHash(4, (1, 1), "word", "l2"))
    Collisions(terms=4, sharing=2)
    """
    seen = np.empty(0, np.int32)
    for _, counts in _counts(texts, hashing, HASHES):
        seen = np.union1d(seen, counts.indices)
    shared = np.bincount(seen % hashing.features, minlength=1)
    return Collisions(len(seen), int(shared[shared > 1].sum()))


def _counts(texts: Sequence[str], hashing: TextHash, buckets: int) -> Iterator[tuple[slice, Any]]:
    """Rows, and their signed counts as a sparse matrix, CHUNK rows at a time."""
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        n_features=buckets, analyzer=hashing.analyzer, ngram_range=hashing.ngrams, token_pattern=r"[^ ]+",
        lowercase=False, norm=None,
    )  # fmt: skip
    for start in range(0, len(texts), CHUNK):
        rows = slice(start, start + CHUNK)
        yield rows, vectorizer.transform(texts[rows])
