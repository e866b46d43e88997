"""Generated bad requests over HTTP and gRPC against a replica in a process of its own; the whole run is
`python -m benchmarks.fuzz --requests 100000`."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from benchmarks.fuzz import Outcome, fuzz
from benchmarks.fuzz_requests import Generator

SEED = int(os.environ.get("MLKIT_FUZZ_SEED", "1"))
REQUESTS = int(os.environ.get("MLKIT_FUZZ_REQUESTS", "3000"))


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return fuzz(REQUESTS, SEED)


def test_no_answer_is_a_fault_of_the_server(outcome: Outcome) -> None:
    assert outcome.requests >= REQUESTS - 8
    assert not outcome.wrong, outcome.wrong[0]
    assert all(status < 500 or status == 503 for _, status in outcome.statuses)


def test_the_replica_lives_in_bounded_memory(outcome: Outcome) -> None:
    assert outcome.alive
    assert outcome.growth_mb < 100


def test_good_requests_among_them_are_answered_and_every_kind_was_tried(outcome: Outcome) -> None:
    kinds: Counter[str] = Counter()
    for (kind, status), count in outcome.statuses.items():
        kinds[kind] += count
        assert kind != "control" or status in (200, 503)
    assert outcome.statuses["control", 200] > 0
    assert len(kinds) == 20
    assert outcome.statuses["stalled", 408] > 0


def test_a_seed_makes_the_same_requests() -> None:
    one, two = Generator(7), Generator(7)
    assert [one() for _ in range(50)] == [two() for _ in range(50)]
