"""Every field of an engine's key matters, and a key survives its file."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflowkit.graphs.engine_key import EngineKey

words = st.text("abcdef0123456789.-_ ", min_size=0, max_size=12)
shapes = st.lists(st.integers(1, 4096), min_size=1, max_size=3).map(tuple)
keys = st.builds(
    EngineKey,
    graph=words,
    runtime=words,
    target=words,
    driver=words,
    libraries=st.dictionaries(words, words, max_size=3),
    shapes=st.dictionaries(words, st.tuples(shapes, shapes, shapes), max_size=3),
    precision=words,
)


@given(key=keys, other=keys, which=st.sampled_from([field.name for field in fields(EngineKey)]))
def test_two_keys_share_a_digest_only_when_they_are_the_same(key: EngineKey, other: EngineKey, which: str) -> None:
    changed = replace(key, **{which: getattr(other, which)})
    assert (changed.digest == key.digest) == (changed == key)
    assert bool(key.differences(changed)) == (changed != key)
    if changed != key:
        assert key.differences(changed).startswith(f"{which} is ")


@given(key=keys)
def test_a_key_survives_json(key: EngineKey) -> None:
    again = EngineKey.from_json(json.loads(json.dumps(asdict(key))))
    assert again == key
    assert again.digest == key.digest


@given(key=keys, extra=st.sampled_from(["", "0", " "]))
def test_what_moves_from_one_field_to_the_next_is_another_key(key: EngineKey, extra: str) -> None:
    moved = replace(key, target=key.target + "9" + extra, driver=key.driver)
    shifted = replace(key, target=key.target, driver="9" + extra + key.driver)
    assert moved.digest != shifted.digest


@pytest.mark.parametrize("value", [{}, {"shapes": {}}, {"shapes": {"x": [[1]]}, "libraries": {}}, {"shapes": 3}])
def test_what_is_no_key_is_not_taken_for_one(value: dict) -> None:
    with pytest.raises((TypeError, ValueError, KeyError, AttributeError)):
        EngineKey.from_json(value)
