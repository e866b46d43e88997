"""A results file says again all that a later run needs, and a file that is damaged is refused by what it lacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflowkit.bench.environment import machine_info
from mlflowkit.bench.measure import Samples
from mlflowkit.bench.result_file import document, parse, read, write
from mlflowkit.errors import UsageError

MADE = "2026-11-20T12:00:00+00:00"


def samples(seed: int = 0, *, parts: bool = False) -> Samples:
    blocks = np.random.default_rng(seed).gamma(9, 10, size=(8, 50))
    told = {"device": blocks / 2, "copy_in": blocks / 8} if parts else {}
    return Samples(blocks, 5, True, told)


def row(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "batch": 1, "status": "ok", "reason": "", **more}


def shown(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"machine": machine_info().to_json(), "quantile": "p99", "candidates": list(rows), "notes": ["busy"]}


def whole() -> dict[str, Any]:
    starts = {("onnx", 1): [samples(0), samples(1)], ("gpu", 8): [samples(2, parts=True)]}
    found = shown(row("onnx"), row("gpu", batch=8), row("absent", status="unavailable", reason="no GPU"))
    return json.loads(json.dumps(document(found, starts, MADE)))  # type: ignore[no-any-return]


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    write(path, whole())
    found = read(path)
    assert (found.quantile, found.time, found.notes) == (0.99, MADE, ("busy",))
    assert found.machine["processor"] == machine_info().processor
    assert set(found.rows) == {("onnx", 1), ("gpu", 8), ("absent", 1)}
    assert set(found.starts) == {("onnx", 1), ("gpu", 8)}, "what was not measured has a row and no samples"
    assert [len(starts) for starts in found.starts.values()] == [2, 1]
    again = found.starts["onnx", 1][1]
    assert np.abs(again.microseconds - samples(1).microseconds).max() <= 0.05, "to a tenth of a microsecond, in order"
    assert (again.warm_up, again.settled) == (5, True)
    assert sorted(found.starts["gpu", 8][0].parts) == ["copy_in", "device"]


def test_keys_that_this_version_does_not_know_are_kept_apart() -> None:
    found = parse(whole() | {"comparisons": [1], "something": {"new": True}})
    assert set(found.starts) == {("onnx", 1), ("gpu", 8)}


def damaged(change: Any) -> dict[str, Any]:
    value = whole()
    change(value)
    return value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.pop("format"), "is not a results file of mlkit bench"),
        (lambda v: v.update(version=2), "has version 2 of the format; this mlkit reads version 1"),
        (lambda v: v.pop("machine"), "machine: Field required"),
        (lambda v: v.update(quantile="ninety"), "quantile"),
        (lambda v: v["measured"][0]["starts"][0]["samples_us"].append(1.0), "401 samples of onnx are not whole blocks"),
        (lambda v: v["measured"][0]["starts"][0].update(samples_us=[]), "samples_us"),
        (lambda v: v["measured"][0]["starts"][0]["samples_us"].__setitem__(0, -1.0), "samples_us"),
        (lambda v: v["measured"][0]["starts"][0]["samples_us"].__setitem__(0, float("nan")), "samples_us"),
        (lambda v: v["measured"].append(v["measured"][0]), "onnx at batch 1 is in it twice"),
        (
            lambda v: v["measured"][1]["starts"][0]["parts_us"]["device"].pop(),
            "399 samples of gpu are not whole blocks",
        ),
    ],
)
def test_a_damaged_file_is_refused_by_what_is_wrong_with_it(change: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(damaged(change), "old.json")
    assert "old.json" in caught.value.message
    assert said in caught.value.message
    assert "--out baseline.json" in caught.value.hint


def test_what_is_no_file_and_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "absent.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        read(tmp_path / "text.json")


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(key=st.sampled_from(["made", "quantile", "machine", "candidates", "measured", "notes"]), value=junk)
def test_whatever_stands_in_a_file_is_read_or_refused(key: str, value: Any) -> None:
    try:
        parse(whole() | {key: value})
    except UsageError as error:
        assert error.hint  # noqa: PT017 - either way is right; another exception is not
