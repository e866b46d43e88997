"""Splits: every row in one part, the same for the same seed, and each kind's own promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflowkit.stages.splitting import TEST, TRAIN, VALIDATION, group_parts, random_parts, stratified_parts, time_parts

shares = st.tuples(st.floats(0.05, 0.45), st.floats(0.05, 0.45))
seeds = st.integers(0, 2**32 - 1)
labels = st.lists(st.integers(0, 5), min_size=1, max_size=400).map(np.array)


@given(rows=st.integers(0, 2000), share=shares, seed=seeds)
def test_random_parts_have_the_shares_asked_and_hang_on_the_seed_alone(
    rows: int, share: tuple[float, float], seed: int
) -> None:
    parts = random_parts(rows, *share, seed)
    assert parts.shape == (rows,)
    assert set(parts.tolist()) <= {TRAIN, VALIDATION, TEST}
    assert (parts == VALIDATION).sum() == round(rows * share[0])
    assert (parts == TEST).sum() == round(rows * share[1])
    assert np.array_equal(parts, random_parts(rows, *share, seed))


def test_another_seed_is_another_split() -> None:
    assert not np.array_equal(random_parts(100, 0.2, 0.2, 1), random_parts(100, 0.2, 0.2, 2))


@given(labels=labels, share=shares, seed=seeds)
@settings(max_examples=200)
def test_stratified_parts_keep_each_class_to_within_one_row(
    labels: np.ndarray, share: tuple[float, float], seed: int
) -> None:
    parts = stratified_parts(labels, *share, seed)
    assert np.array_equal(parts, stratified_parts(labels, *share, seed))
    for label in np.unique(labels):
        mine = parts[labels == label]
        for part, wanted in ((VALIDATION, share[0]), (TEST, share[1])):
            assert abs((mine == part).sum() - len(mine) * wanted) <= 1
        if len(mine) >= 3:
            assert set(mine.tolist()) == {TRAIN, VALIDATION, TEST}


@given(labels=st.lists(st.integers(0, 3), min_size=100, max_size=400).map(np.array), share=shares, seed=seeds)
def test_stratified_totals_are_as_asked_where_no_class_is_tiny(
    labels: np.ndarray, share: tuple[float, float], seed: int
) -> None:
    counts = np.bincount(labels)
    parts = stratified_parts(labels, *share, seed)
    if (counts[counts > 0] * min(share) >= 1).all():
        assert (parts == TEST).sum() == round(len(labels) * share[1])
        assert abs((parts == VALIDATION).sum() - round(len(labels) * share[0])) <= len(np.unique(labels))


@given(groups=st.lists(st.integers(0, 30), min_size=1, max_size=300), share=shares, seed=seeds)
def test_a_group_is_in_one_part(groups: list[int], share: tuple[float, float], seed: int) -> None:
    codes = np.unique(groups, return_inverse=True)[1]
    parts = group_parts(codes, *share, seed)
    assert np.array_equal(parts, group_parts(codes, *share, seed))
    for code in np.unique(codes):
        assert len(set(parts[codes == code].tolist())) == 1
    in_test = {code for code in codes.tolist() if parts[codes == code][0] == TEST}
    assert len(in_test) == round((codes.max() + 1) * share[1])


@given(times=st.lists(st.integers(0, 50), min_size=1, max_size=300).map(np.array), share=shares)
def test_time_goes_from_train_to_test_and_ties_stay_together(times: np.ndarray, share: tuple[float, float]) -> None:
    parts = time_parts(times, *share)
    of_time: dict[int, set[int]] = {}
    for time, part in zip(times.tolist(), parts.tolist(), strict=True):
        of_time.setdefault(time, set()).add(part)
    assert all(len(found) == 1 for found in of_time.values())
    ordered = [next(iter(of_time[time])) for time in sorted(of_time)]
    assert ordered == sorted(ordered)


@pytest.mark.parametrize("rows", [10, 101, 1000])
def test_distinct_times_have_the_shares_asked(rows: int) -> None:
    parts = time_parts(np.random.default_rng(0).permutation(rows), 0.2, 0.1)
    assert (parts == TEST).sum() == pytest.approx(rows * 0.1, abs=1)
    assert (parts == VALIDATION).sum() == pytest.approx(rows * 0.2, abs=1)
