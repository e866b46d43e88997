"""Gateways in this process that answer with real bundles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mlflowkit import bundle
from mlflowkit.service_state.records import GatewaySettings
from tests.support.gateways import InProcess
from tests.support.lending_bundle import make_bundle, table


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "one", 1)


@pytest.fixture(scope="session")
def second(tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "two", 2)


@pytest.fixture
def start() -> Iterator[Callable[..., InProcess]]:
    """Starts gateways in this process and stops them at the end of the test."""
    running: list[InProcess] = []

    def make(**settings: Any) -> InProcess:
        running.append(InProcess(GatewaySettings("lending", **settings)))
        return running[-1]

    yield make
    for one in running:
        one.close()


@pytest.fixture(scope="module")
def served(first: bundle.Bundle) -> Iterator[InProcess]:
    """A gateway that answers with the first bundle."""
    running = InProcess(GatewaySettings("lending", max_body_bytes=1 << 20, timeout_seconds=2.0))
    running.swap(table(1, first))
    yield running
    running.close()
