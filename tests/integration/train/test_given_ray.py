"""A Ray that RAY_ADDRESS names is used or refused; it is never replaced by another in silence."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mlflowkit.errors import EngineError
from mlflowkit.service_state.ray_cluster import check_address
from tests.support.train_world import TrainWorld

pytestmark = pytest.mark.heavy


def test_an_address_where_nothing_answers_is_named(
    world: TrainWorld, binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(EngineError, match=f"RAY_ADDRESS names {address}, where nothing answers") as caught:
            world.train(binary, {"kind": "torch"}, {"workers": 2})
    assert caught.value.hint.startswith("unset RAY_ADDRESS")


def test_the_address_of_a_dashboard_is_told_apart(
    world: TrainWorld, binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(EngineError, match="a dashboard; Ray's own address is needed") as caught:
        world.train(binary, {"kind": "torch"}, {"workers": 2})
    assert "RAY_ADDRESS=127.0.0.1:6379" in caught.value.hint


@pytest.mark.parametrize("address", ["", "auto", "local"])
def test_addresses_without_a_host_are_left_to_ray(address: str) -> None:
    check_address(address)
