"""The record of a rollout is lost under way: no challenger goes on answering clients with nobody judging it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mlflowkit.errors import MlkitError, ServiceError
from mlflowkit.service_state import controller_lease
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.values import RoutingTable
from tests.support import rollout_drill as drill
from tests.support.file_limit import failing_writes


def under_way(state: Path) -> tuple[ServiceFiles, controller_lease.ControllerLease]:
    """A rollout whose challenger answers some of the clients; its controller is gone."""
    files, held = drill.set_up(state), controller_lease.acquire(state)
    assert held is not None
    one = drill.controller(files, held)
    while "challenger" not in roles(files):
        one.step()
        drill.answer_requests(files, 0.0)
    return files, held


def roles(files: ServiceFiles) -> set[str]:
    table = files.table()
    assert table is not None
    return {variant.role for variant in table.variants}


def test_the_champion_answers_everything_where_nothing_is_known_of_the_challenger(tmp_path: Path) -> None:
    files, held = under_way(tmp_path)
    (files.folder / "rollout.json").unlink()
    drill.controller(files, held).step()
    table = files.table()
    assert table is not None
    assert [(one.digest, one.weight) for one in table.variants] == [("d1", 1.0)]


def test_a_damaged_record_is_named_and_settled_once_it_is_out_of_the_way(tmp_path: Path) -> None:
    files, held = under_way(tmp_path)
    path = files.folder / "rollout.json"
    path.write_bytes(path.read_bytes()[:100])
    one = drill.controller(files, held)
    with pytest.raises(ServiceError, match=r"rollout\.json is damaged") as raised:
        one.step()
    assert f"mv {path}" in raised.value.hint
    assert "challenger" in roles(files)
    path.rename(path.with_suffix(".damaged"))
    one.step()
    assert roles(files) == {"champion"}


def test_a_table_that_a_person_published_stays(tmp_path: Path) -> None:
    files, held = drill.set_up(tmp_path), controller_lease.acquire(tmp_path)
    assert held is not None
    (files.folder / "request.json").unlink()
    by_hand = RoutingTable(
        "lending", 5,
        (replace(drill.CHAMPION, weight=0.5), replace(drill.CANDIDATE, weight=0.5)),
    )  # fmt: skip
    files.write_table(by_hand)
    drill.controller(files, held).step()
    assert files.table() == by_hand


def test_what_was_judged_as_the_disk_was_full_is_judged_again(tmp_path: Path) -> None:
    files, held = drill.set_up(tmp_path), controller_lease.acquire(tmp_path)
    assert held is not None
    one = drill.controller(files, held)
    one.step()
    while one.saved is not None and not one.saved.state.step:
        drill.answer_requests(files, 0.0)
        one.step()
    drill.answer_requests(files, 0.0)
    one.step()
    drill.answer_requests(files, 0.5)
    with failing_writes(), pytest.raises(MlkitError):
        one.step()
    assert drill.ended(files) is None
    one.step()  # there is room again, and nothing more was counted
    found = drill.ended(files)
    assert found is not None
    assert (found.phase, found.by) == ("rolled_back", "policy")
