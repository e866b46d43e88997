"""Fingerprints, folders and values, whatever they hold."""

from __future__ import annotations

import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflowkit.pipeline.change_reasons import describe_changes
from mlflowkit.pipeline.fingerprint import fingerprint, flatten
from mlflowkit.pipeline.storage import codec
from mlflowkit.pipeline.storage.store import FolderStore, describe
from mlflowkit.system.failpoint import parse
from mlflowkit.values import Measurement, Outcome, StageResult, Verdict

NAMES = st.text("abcxyz._-", min_size=1, max_size=8).filter(lambda name: set(name) != {"."})
TREES = st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.binary(max_size=64), max_size=6)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
PLAIN = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))
KINDS = st.sampled_from(["seed", "machine", "code:a.py", "library:x", "spec:k"])
INGREDIENTS = st.dictionaries(KINDS, st.text(max_size=4))


def lay(folder: Path, tree: dict[str, bytes]) -> dict[str, bytes]:
    """Write a tree, leaving out names that another name already uses as a folder."""
    written: dict[str, bytes] = {}
    for name, content in sorted(tree.items()):
        path = folder / name
        if any(parent.is_file() for parent in path.parents) or path.is_dir():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written[name] = content
    return written


@settings(max_examples=50, deadline=None)
@given(TREES)
def test_published_folder_is_what_was_written(tree: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as place:
        store = FolderStore(Path(place))
        out = store.workspace("f" * 64, 1)
        written = lay(out, tree)
        published = store.publish(out)
        folder = store.path(published.digest)
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(written)
        assert all((folder / name).read_bytes() == content for name, content in written.items())
        assert describe(folder).digest == published.digest
        assert store.intact(published)
        again = store.workspace("f" * 64, 2)
        lay(again, tree)
        assert store.publish(again) == published
        assert not list(store.tmp.iterdir())


@settings(max_examples=50, deadline=None)
@given(TREES, TREES)
def test_folders_have_one_digest_only_if_they_are_alike(a: dict[str, bytes], b: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as place:
        first, second = Path(place) / "one", Path(place) / "two"
        first.mkdir()
        second.mkdir()
        assert (lay(first, a) == lay(second, b)) == (describe(first).digest == describe(second).digest)


@given(INGREDIENTS, INGREDIENTS)
def test_fingerprints_agree_exactly_where_ingredients_do(a: dict[str, str], b: dict[str, str]) -> None:
    assert (fingerprint("train", a) == fingerprint("train", b)) == (a == b)
    assert fingerprint("train", a) != fingerprint("export", a)
    assert bool(describe_changes("train", a, b)) == (a != b)


@given(PLAIN, PLAIN)
def test_flattened_values_have_leaves_only(a: Any, b: Any) -> None:
    flat = flatten({"a": a, "b": b})
    assert flat
    assert not any(value for value in flat.values() if isinstance(value, dict | list))


@given(st.recursive(LEAVES | st.just(math.nan) | st.just(math.inf), lambda inner: st.lists(inner, max_size=3)))
def test_strict_values_are_json_for_everybody(value: Any) -> None:
    import json

    json.dumps(codec.strict(value), allow_nan=False)


@given(st.floats(), st.text(max_size=5), st.sampled_from(list(Outcome)), st.booleans())
def test_results_survive_the_journal(number: float, text: str, outcome: Outcome, blocking: bool) -> None:
    measured = Measurement(text, 1.0, 0.0, 2.0, samples=3)
    verdict = Verdict("gate", outcome, text, "m", measured, 0.5, "max", blocking, text)
    result = StageResult({"m": number}, {"note": [text]}, (verdict,))
    back = codec.result_from(codec.loads(codec.dumps(codec.result_json(result))))
    assert back is not None
    assert repr(asdict(back)) == repr(asdict(result))


@given(st.text(max_size=20))
def test_unknown_failpoints_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no such failpoint"):
        parse(text)
