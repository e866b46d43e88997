"""The split: sticky, monotone as weights grow, uniform, and independent between experiments."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflowkit.errors import ServiceError
from mlflowkit.serving.inference.router import Router, affinity_key, is_mirrored, position
from mlflowkit.values import Affinity, RoutingTable, Variant

KEYS = st.text(max_size=40)
SALTS = st.text(max_size=80)
SHARES = st.lists(st.integers(0, 100), min_size=1, max_size=4).filter(lambda shares: sum(shares) <= 100)
MANY = [f"user-{number}" for number in range(20_000)]


def table(salt: str, shares: list[tuple[float, float]], epoch: int = 1) -> RoutingTable:
    """A champion, and a challenger for each (start, weight)."""
    champion = Variant("champion", "1", "d", "b", weight=1.0 - sum(weight for _, weight in shares))
    others = [
        Variant(f"c{place}", "2", "e", "b", "challenger", weight, start) for place, (start, weight) in enumerate(shares)
    ]
    return RoutingTable("s", epoch, (champion, *others), "experiment", salt)


def side_by_side(percents: list[int]) -> list[tuple[float, float]]:
    return [(sum(percents[:place]) / 100, percent / 100) for place, percent in enumerate(percents)]


@given(SALTS, KEYS, SHARES)
def test_a_key_stays_where_it_is_whoever_asks_and_whenever(salt: str, key: str, percents: list[int]) -> None:
    shares = side_by_side(percents)
    assert Router(table(salt, shares)).assign(key) == Router(table(salt, shares, epoch=9)).assign(key)


@given(SALTS, KEYS, SHARES, st.data())
def test_raising_a_weight_moves_keys_from_the_champion_only(
    salt: str, key: str, percents: list[int], data: st.DataObject
) -> None:
    room = [percent / 100 for percent in percents]
    starts = [start for start, _ in side_by_side(percents)]
    less = [data.draw(st.floats(0, most)) for most in room]
    more = [data.draw(st.floats(small, most)) for small, most in zip(less, room, strict=True)]
    before = Router(table(salt, list(zip(starts, less, strict=True)))).assign(key)
    after = Router(table(salt, list(zip(starts, more, strict=True)))).assign(key)
    assert after == before or before == "champion"


@given(SALTS, KEYS)
def test_a_position_is_in_the_unit_interval_and_no_weight_gets_all_or_nothing(salt: str, key: str) -> None:
    assert 0.0 <= position(salt, key) < 1.0
    assert Router(table(salt, [(0.0, 1.0)])).assign(key) == "c0"
    assert Router(table(salt, [(0.0, 0.0)])).assign(key) == "champion"
    assert Router(table(salt, [])).assign(key) == "champion"


@settings(max_examples=20, deadline=None)
@given(SALTS, st.lists(st.integers(5, 30), min_size=1, max_size=3))
def test_each_variant_gets_its_share_of_many_keys(salt: str, percents: list[int]) -> None:
    router = Router(table(salt, side_by_side(percents)))
    found = Counter(map(router.assign, MANY))
    expected = {f"c{place}": percent / 100 for place, percent in enumerate(percents)}
    expected["champion"] = 1 - sum(expected.values())
    for name, share in expected.items():
        spread = math.sqrt(len(MANY) * share * (1 - share))
        assert abs(found[name] - len(MANY) * share) < 6 * spread, (name, found)


@settings(max_examples=20, deadline=None)
@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20), st.integers(1, 9), st.integers(1, 9))
def test_two_experiments_deal_independently(one: str, two: str, left: int, right: int) -> None:
    if one == two:
        return
    first = Router(table(one, [(0.0, left / 10)]))
    second = Router(table(two, [(0.0, right / 10)]))
    both = sum(first.assign(key) == second.assign(key) == "c0" for key in MANY)
    share = left * right / 100
    assert abs(both - len(MANY) * share) < 6 * math.sqrt(len(MANY) * share * (1 - share))


def test_sampling_of_a_shadow_is_independent_of_the_split_and_of_other_shadows() -> None:
    split = table("salt", [(0.0, 0.5)])
    router = Router(split)
    taken = [key for key in MANY if is_mirrored(split, "one", 0.3, key)]
    assert abs(len(taken) - 6000) < 6 * math.sqrt(20_000 * 0.21)
    challenged = sum(router.assign(key) == "c0" for key in taken)
    assert abs(challenged - len(taken) / 2) < 6 * math.sqrt(len(taken) / 4)
    other = sum(is_mirrored(split, "two", 0.3, key) for key in taken)
    assert abs(other - len(taken) * 0.3) < 6 * math.sqrt(len(taken) * 0.21)
    assert set(taken) <= {key for key in MANY if is_mirrored(split, "one", 0.4, key)}
    assert all(is_mirrored(split, "one", 1.0, key) for key in MANY[:100])


@given(st.integers(0, 100), st.integers(1, 100), st.integers(0, 100), st.integers(1, 100))
def test_shares_that_overlap_or_leave_the_interval_are_refused(a: int, wide: int, b: int, broad: int) -> None:
    shares = [(a / 100, wide / 100), (b / 100, broad / 100)]
    low, high = sorted(((a, a + wide), (b, b + broad)))
    if low[1] < high[0] and high[1] <= 100:
        Router(table("s", shares))
    elif low[1] > high[0] or high[1] > 100:
        with pytest.raises(ServiceError, match="overlap or leave"):
            Router(table("s", shares))


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=';="'), min_size=1, max_size=20))
def test_a_cookie_is_found_among_others(value: str) -> None:
    affinity = Affinity("cookie", "user")
    assert affinity_key(affinity, f"a=b; user={value}; userx=no".encode()) == value
    assert affinity_key(affinity, f"xuser={value}".encode()) == ""
