"""Samples are taken in turns, in blocks, after a warm-up, and the process is left as it was."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import pytest

from mlflowkit.bench.environment import machine_info
from mlflowkit.bench.measure import BLOCK, LEAD_IN, MAX_WARM_UP, measure, measure_blocks, requests_over, timed_source
from mlflowkit.errors import UsageError
from mlflowkit.system.machine import describe_machine


def test_candidates_are_measured_in_turns() -> None:
    asked: list[str] = []
    taken = measure({"a": lambda i: asked.append("a"), "b": lambda i: asked.append("b")}, 4 * BLOCK)
    turns = [(name, len(list(group))) for name, group in groupby(asked)]
    rounds = 4 * 2 * (BLOCK + LEAD_IN)
    measured = "".join(asked)[-rounds:]
    blocks = [measured[start : start + BLOCK + LEAD_IN] for start in range(0, rounds, BLOCK + LEAD_IN)]
    assert [set(block) for block in blocks] == [{"a"}, {"b"}, {"b"}, {"a"}] * 2, "the order of turns rotates"
    assert turns[0][0] == "a"
    assert {name: samples.microseconds.shape for name, samples in taken.items()} == {"a": (4, BLOCK), "b": (4, BLOCK)}


def test_counts_are_rounded_up_to_whole_blocks() -> None:
    assert measure({"a": lambda i: None}, BLOCK + 1)["a"].microseconds.size == 2 * BLOCK


def test_warm_up_ends_even_if_nothing_settles() -> None:
    state = {"size": 1}

    def growing(index: int) -> None:
        state["size"] *= 1.002
        sum(range(int(state["size"])))

    samples = measure({"a": growing}, BLOCK)["a"]
    assert 4 <= samples.warm_up <= MAX_WARM_UP


def test_garbage_collection_is_as_before_even_after_an_error() -> None:
    def broken(index: int) -> None:
        raise ZeroDivisionError

    for enable in (gc.enable, gc.disable):
        enable()
        before = gc.isenabled()
        try:
            measure({"a": lambda i: None}, BLOCK)
            assert gc.isenabled() == before
            with pytest.raises(ZeroDivisionError):
                measure({"a": broken}, BLOCK)
            assert gc.isenabled() == before
        finally:
            gc.enable()


def test_progress_goes_from_nothing_to_one() -> None:
    seen: list[float] = []
    measure({"a": lambda i: None}, 4 * BLOCK, progress=seen.append)
    assert seen == [0.25, 0.5, 0.75, 1.0]


def test_requests_are_cut_from_real_rows_and_wrap_around() -> None:
    got: list[list[float]] = []
    inputs = {"numeric": np.arange(5, dtype=np.float32)[:, None]}
    request = requests_over(lambda cut: got.append(cut["numeric"].ravel().tolist()), inputs, batch=2)
    for index in range(3):
        request(index)
    assert got == [[0, 1], [2, 3], [0, 1]]
    wide = requests_over(lambda cut: got.append(cut["numeric"].ravel().tolist()), inputs, batch=7)
    wide(0)
    assert got[-1] == [0, 1, 2, 3, 4, 0, 1], "fewer rows than a batch are repeated"


def test_samples_are_json_in_order() -> None:
    found = measure({"a": lambda i: None}, BLOCK)["a"].to_json()
    assert json.loads(json.dumps(found))["block"] == BLOCK
    assert len(found["samples_us"]) == BLOCK


def test_the_machine_is_named() -> None:
    about = machine_info().to_json()
    assert about["cores"] >= 1
    assert about["processor"]
    assert describe_machine().endswith(f"x{about['cores']}"), "a fingerprint counts other cores than a measurement"
    json.dumps(about)


def test_a_source_times_its_requests_itself_and_its_lead_in_is_not_counted() -> None:
    asked: list[tuple[int, int]] = []

    def source(start: int, count: int) -> list[int]:
        asked.append((start, count))
        return [1000 * (start + index) for index in range(count)]

    samples = measure_blocks({"child": source}, 2 * BLOCK)["child"]
    assert samples.microseconds.tolist() == [list(range(BLOCK)), list(range(BLOCK, 2 * BLOCK))]
    assert asked[-2:] == [(-LEAD_IN, BLOCK + LEAD_IN), (BLOCK - LEAD_IN, BLOCK + LEAD_IN)]


def test_a_source_that_lost_answers_is_refused() -> None:
    with pytest.raises(UsageError, match="child returned 3 times for 55 requests"):
        measure_blocks({"child": lambda start, count: [1, 2, 3]}, BLOCK)


def test_a_source_that_is_stopped_has_no_more_turns_and_the_others_have_all_of_theirs() -> None:
    def after_two(taken: Mapping[str, Sequence[Sequence[int]]]) -> list[str]:
        return ["b"] if len(taken["a"]) == 2 else []

    sources = {name: timed_source(lambda index: None) for name in "ab"}
    taken = measure_blocks(sources, 5 * BLOCK, stop=after_two)
    assert {name: len(samples.microseconds) for name, samples in taken.items()} == {"a": 5, "b": 2}
    assert len(measure_blocks(sources, 5 * BLOCK, stop=lambda taken: list(taken))["a"].microseconds) == 1
