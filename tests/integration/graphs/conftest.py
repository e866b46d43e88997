"""Trained and exported models, made once by the real stages."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.support.export_world import CASES, ExportWorld, write_data


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ExportWorld]:
    """The world of a case, trained and exported, made on first use. Read it only."""

    @cache
    def make(case: str) -> ExportWorld:
        frame, target, task, model = CASES[case]
        world = write_data(tmp_path_factory.mktemp("world"), frame(), target, task)
        world.train(model)
        world.export()
        return world

    return make


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[str], ExportWorld]:
    """A world of a case's data that is the test's own, with nothing trained."""

    def make(case: str) -> ExportWorld:
        frame, target, task, _ = CASES[case]
        return write_data(tmp_path, frame(), target, task)

    return make
