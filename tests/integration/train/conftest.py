"""Recipes' folders with small tables, and the train stage over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.support.train_world import TrainWorld, make_table


@pytest.fixture
def world(tmp_path: Path) -> TrainWorld:
    return TrainWorld(tmp_path)


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> TrainWorld:
    return TrainWorld(tmp_path_factory.mktemp("world"))


@pytest.fixture
def table() -> Callable[..., pd.DataFrame]:
    """`make_table`, for tests that change it."""
    return make_table


@pytest.fixture
def binary(world: TrainWorld) -> Path:
    return world.data(make_table().drop(columns="v"), "y", ("no", "yes"))


@pytest.fixture
def regression(world: TrainWorld) -> Path:
    return world.data(make_table().drop(columns="y"), "v")
