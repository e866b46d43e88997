"""Which part each row belongs to. Pure: arrays and a seed in, one code a row out (0 train, 1 validation, 2 test)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

TRAIN, VALIDATION, TEST = 0, 1, 2


def random_parts(rows: int, validation: float, test: float, seed: int) -> np.ndarray:
    """Rows drawn without replacement; uint8 [rows].

    >>> random_parts(10, 0.2, 0.2, seed=1).tolist().count(TEST)
    2
    """
    import numpy as np

    parts = np.full(rows, TRAIN, dtype=np.uint8)
    order = np.random.default_rng(seed).permutation(rows)
    in_test, in_validation = round(rows * test), round(rows * validation)
    parts[order[:in_test]] = TEST
    parts[order[in_test : in_test + in_validation]] = VALIDATION
    return parts


def stratified_parts(labels: np.ndarray, validation: float, test: float, seed: int) -> np.ndarray:
    """As `random_parts` with the share of each class in each part right to within one row; uint8 [rows].

    ``labels`` are class codes, int [rows]. Shares are rounded by largest remainder, and a class with three rows or
    more has one at least in every part.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    tests = _apportion(counts, test)
    validations = np.minimum(_apportion(counts, validation), np.maximum(counts - tests - 1, 0))
    parts = np.full(len(labels), TRAIN, dtype=np.uint8)
    for label, in_test, in_validation in zip(classes, tests, validations, strict=True):
        rows = generator.permutation(np.flatnonzero(labels == label))
        parts[rows[:in_test]] = TEST
        parts[rows[in_test : in_test + in_validation]] = VALIDATION
    return parts


def group_parts(groups: np.ndarray, validation: float, test: float, seed: int) -> np.ndarray:
    """Groups drawn at random, all rows of one in the same part; uint8 [rows]. ``groups`` are codes from 0, int [rows].

    >>> import numpy as np
    >>> parts = group_parts(np.array([0, 0, 1, 2]), 0.34, 0.33, seed=0)
    >>> bool(parts[0] == parts[1]), sorted(set(parts.tolist()))
    (True, [0, 1, 2])
    """
    number = int(groups.max()) + 1 if len(groups) else 0
    of_group = random_parts(number, validation, test, seed)
    parts: np.ndarray = of_group[groups]
    return parts


def time_parts(times: np.ndarray, validation: float, test: float) -> np.ndarray:
    """The oldest rows train, the newest test; uint8 [rows]. ``times`` is any sortable [rows].

    A boundary inside a run of equal times moves to the nearer end of that run, so ties stay together.
    """
    import numpy as np

    order = np.argsort(times, kind="stable")
    ordered = times[order]
    rows = len(times)
    first = _boundary(ordered, round(rows * (1 - validation - test)))
    second = _boundary(ordered, round(rows * (1 - test)))
    parts = np.full(rows, TRAIN, dtype=np.uint8)
    parts[order[first:second]] = VALIDATION
    parts[order[second:]] = TEST
    return parts


def _apportion(counts: np.ndarray, share: float) -> np.ndarray:
    """Rows of each class for one part: largest remainder, at least one for a class of three or more."""
    import numpy as np

    exact = counts * share
    given = np.floor(exact).astype(np.int64)
    given[(given == 0) & (counts >= 3)] = 1
    left = round(float(counts.sum() * share)) - int(given.sum())
    by_remainder = np.argsort(given - exact, kind="stable")
    eligible = [index for index in by_remainder if given[index] < exact[index]]
    given[eligible[: max(left, 0)]] += 1
    return given


def _boundary(ordered: np.ndarray, at: int) -> int:
    if at <= 0 or at >= len(ordered) or ordered[at - 1] != ordered[at]:
        return at
    import numpy as np

    begin = int(np.searchsorted(ordered, ordered[at], side="left"))
    end = int(np.searchsorted(ordered, ordered[at], side="right"))
    return begin if at - begin <= end - at else end
