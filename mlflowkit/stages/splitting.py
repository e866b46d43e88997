"""Splits of rows into parts. Pure: arrays and a seed in, one code a row out (0 train, 1 validation, 2 test)."""

from __future__ import annotations

import numpy as np

TRAIN, VALIDATION, TEST = 0, 1, 2


def random_parts(rows: int, validation: float, test: float, seed: int) -> np.ndarray:
    """A random split; uint8 [rows].

    >>> random_parts(10, 0.2, 0.2, seed=1).tolist().count(TEST)
    2
    """
    parts = np.full(rows, TRAIN, dtype=np.uint8)
    order = np.arange(rows, dtype=_row_type(rows))
    np.random.default_rng(seed).shuffle(order)
    in_test, in_validation = round(rows * test), round(rows * validation)
    parts[order[:in_test]] = TEST
    parts[order[in_test : in_test + in_validation]] = VALIDATION
    return parts


def stratified_parts(labels: np.ndarray, validation: float, test: float, seed: int) -> np.ndarray:
    """A random split that keeps the share of each class in each part to within one row; uint8 [rows].

    ``labels`` are class codes, int [rows]. Shares are rounded by largest remainder; a class of three rows or more has
    at least one in every part.
    """
    generator = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    tests = _apportion(counts, test)
    validations = np.minimum(_apportion(counts, validation), np.maximum(counts - tests - 1, 0))
    parts = np.full(len(labels), TRAIN, dtype=np.uint8)
    for label, in_test, in_validation in zip(classes, tests, validations, strict=True):
        rows = np.flatnonzero(labels == label).astype(_row_type(len(labels)))
        generator.shuffle(rows)
        parts[rows[:in_test]] = TEST
        parts[rows[in_test : in_test + in_validation]] = VALIDATION
    return parts


def group_parts(groups: np.ndarray, validation: float, test: float, seed: int) -> np.ndarray:
    """A random split of groups, whose rows stay together; uint8 [rows]. ``groups`` are codes from 0, int [rows].

    >>> parts = group_parts(np.array([0, 0, 1, 2]), 0.34, 0.33, seed=0)
    >>> bool(parts[0] == parts[1]), sorted(set(parts.tolist()))
    (True, [0, 1, 2])
    """
    number = int(groups.max()) + 1 if len(groups) else 0
    parts: np.ndarray = random_parts(number, validation, test, seed)[groups]
    return parts


def time_parts(times: np.ndarray, validation: float, test: float) -> np.ndarray:
    """A split by time, oldest rows for training, newest for the test; uint8 [rows]. ``times`` is any sortable [rows].

    A boundary within equal times moves to their nearer end, so that ties stay together.
    """
    order = np.argsort(times, kind="stable")
    ordered = times[order]
    rows = len(times)
    first = _boundary(ordered, round(rows * (1 - validation - test)))
    second = _boundary(ordered, round(rows * (1 - test)))
    parts = np.full(rows, TRAIN, dtype=np.uint8)
    parts[order[first:second]] = VALIDATION
    parts[order[second:]] = TEST
    return parts


def _row_type(rows: int) -> type[np.signedinteger]:
    """The smaller type that numbers so many rows: what is drawn does not depend on it."""
    return np.int32 if rows <= np.iinfo(np.int32).max else np.int64


def _apportion(counts: np.ndarray, share: float) -> np.ndarray:
    """Rows of each class for one part, by largest remainder; at least one for a class of three or more."""
    exact = counts * share
    rows = np.floor(exact).astype(np.int64)
    rows[(rows == 0) & (counts >= 3)] = 1
    left = round(float(counts.sum() * share)) - int(rows.sum())
    by_remainder = np.argsort(rows - exact, kind="stable")
    eligible = [index for index in by_remainder if rows[index] < exact[index]]
    rows[eligible[: max(left, 0)]] += 1
    return rows


def _boundary(ordered: np.ndarray, at: int) -> int:
    if at <= 0 or at >= len(ordered) or ordered[at - 1] != ordered[at]:
        return at
    begin, end = (int(ordered.searchsorted(ordered[at], side=side)) for side in ("left", "right"))
    return begin if at - begin <= end - at else end
