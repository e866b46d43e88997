"""Every built-in delivery target passes the shipped suite; a new one joins by being listed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mlflowkit.delivery.delivery_target import DeliveryTarget
from mlflowkit.delivery.targets import BUILT_IN, target
from mlflowkit.testing import DeliveryTargetContract, delivery_plans


class TestBuiltInTargets(DeliveryTargetContract):
    @pytest.fixture(autouse=True, params=sorted(BUILT_IN))
    def _named(self, request: pytest.FixtureRequest) -> None:
        self.name: str = request.param

    def target(self) -> DeliveryTarget:
        return target(self.name)


class _Rendering(DeliveryTarget):
    name = "rendering"
    steps = frozenset(("judge",))

    def __init__(self, text: str, path: str = "ci.yml") -> None:
        self._files = {path: text}

    def render(self, plan: Any) -> dict[str, str]:
        return self._files


class _Suite(DeliveryTargetContract):
    def __init__(self, instance: DeliveryTarget) -> None:
        self._instance = instance

    def target(self) -> DeliveryTarget:
        return self._instance

    def plans(self) -> dict[str, Any]:
        return {"smallest": delivery_plans()["smallest"]}


GOOD = "run: mlkit ci judge plain.yaml --out /out\n"


@contextmanager
def _refused() -> Iterator[None]:
    with pytest.raises((AssertionError, ValueError, SyntaxError, Exception)) as caught:
        yield
    assert not isinstance(caught.value, TypeError | NameError)


@pytest.mark.parametrize(
    ("test", "text", "path"),
    [
        ("lines_end_in_lf", "a: 1\r\n", "ci.yml"),
        ("lines_end_in_lf", "a: 1", "ci.yml"),
        ("every_file_parses", "a: [\n", "ci.yml"),
        ("every_file_parses", "{", "a.json"),
        ("every_file_parses", "def", "a.py"),
        ("no_file_has_a_time", "# at 2026-11-30T05:10\n", "ci.yml"),
        ("every_command_of_the_plan_appears", "run: mlkit ci judge other.yaml --out /out\n", "ci.yml"),
        ("references_are_pinned", "image: python:3.11\n", "ci.yml"),
        ("references_are_pinned", "FROM python:3.11\n", "Dockerfile"),
        ("references_are_pinned", "uses: actions/checkout@v5\n", "ci.yml"),
        ("paths_are_below_the_repository", GOOD, "../ci.yml"),
    ],
)  # fmt: skip
def test_the_suite_refuses(test: str, text: str, path: str) -> None:
    getattr(_Suite(_Rendering(GOOD)), f"test_{test}")()
    with _refused():
        getattr(_Suite(_Rendering(text, path)), f"test_{test}")()
