"""State folders that were copied, moved, unpacked from anywhere or forged: nothing of anyone else's is removed or
signalled on the word of a file in them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.adapters.ray_serve import cluster as clusters
from mlflowkit.adapters.ray_serve import ownership
from mlflowkit.adapters.trials import MAX_UNUSED_SECONDS, ProcessTrials
from mlflowkit.errors import EngineError, ServiceError, StoreError
from mlflowkit.pipeline.storage.store import FolderStore
from mlflowkit.service_state.file_records import FileRecords
from mlflowkit.service_state.records import process_started
from mlflowkit.serving.observer import prediction_log
from mlflowkit.system.machine import boot_identity
from tests.support.processes import WITH_CHILD, alive, orphan, session, supervisor_process
from tests.support.waiting import wait_for

pytestmark = pytest.mark.heavy


def forge(state: Path, **fields: Any) -> Path:
    """Write a record of a cluster as an earlier release or an attacker would."""
    record = {"state": "ready", "temp_dir": "/nowhere", "owned": True, "address": "", "environment": {}, "format": 2}
    path = clusters.record_path(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**record, "message": "", "steward": {"pid": 999_999_9, "started": 1.0}, **fields}))
    return state


def begin(state: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a state's cluster, or start another with a supervisor that ends at once."""
    if what == "down":
        code = "from mlflowkit.cli.app import main; main()"
        done = subprocess.run([sys.executable, "-c", code, "down", "--state", str(state)], timeout=120, check=False)
        assert done.returncode == 0
    else:
        monkeypatch.setattr(clusters, "module_command", lambda *arguments: ["true"])
        clusters.spawn(state, "runtime")


@pytest.mark.parametrize("what", ["down", "up"])
def test_no_folder_that_a_record_names_is_removed(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state, victim = tmp_path / ".mlkit", tmp_path / "victim"
    victim.mkdir(mode=0o700)
    (victim / "thesis.txt").write_text("years")
    for boot in ({}, {"folder": str(state), "boot": boot_identity()}):
        forge(state, temp_dir=str(victim), **boot)
        begin(state, what, monkeypatch)
        assert (victim / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize(
    "claim",
    [
        {},
        {"folder": "/elsewhere", "boot": boot_identity()},
        {"folder": "{state}", "boot": "another boot"},
        {"folder": "{state}", "boot": boot_identity()},
    ],
)
@pytest.mark.parametrize("what", ["down", "up"])
def test_no_process_that_a_record_names_is_signalled(
    tmp_path: Path, what: str, claim: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / ".mlkit"
    with session(code=WITH_CHILD) as victim:
        steward = {"pid": victim.pid, "started": process_started(victim.pid)}
        forge(state, steward=steward, **{key: value.format(state=state) for key, value in claim.items()})
        members = ownership.session_members((victim.pid, process_started(victim.pid) or 0.0))
        assert len(members) == 1
        begin(state, what, monkeypatch)
        assert alive(victim.pid)
        assert all(process_started(pid) == started for pid, started in members)


def test_the_session_of_a_leader_that_ended_is_not_killed_on_the_word_of_a_record(tmp_path: Path) -> None:
    leader, member = orphan()
    try:
        clusters.stop(forge(tmp_path / "old", steward={"pid": leader, "started": 0.0}))
        claim = {"folder": str(tmp_path / "new"), "boot": "another boot"}
        clusters.stop(forge(tmp_path / "new", steward={"pid": leader, "started": 0.0}, **claim))
        assert alive(member)
        own = {"folder": str((tmp_path / "own").resolve()), "boot": boot_identity()}
        clusters.stop(forge(tmp_path / "own", steward={"pid": leader, "started": 0.0}, **own))
        assert not alive(member), "what this very folder started in this boot is ended"
    finally:
        if alive(member):
            os.kill(member, signal.SIGKILL)


@pytest.mark.parametrize("pid", [-1, 0, 1])
def test_ids_that_name_no_session_name_no_member(pid: int) -> None:
    assert ownership.session_members((pid, 0.0)) == set()


def test_a_record_of_another_user_is_not_believed(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file to another user")
    state = tmp_path / ".mlkit"
    with supervisor_process(state) as pid:
        clusters.write(state, clusters.this_cluster(state, pid, owned=True))
        assert clusters.read(state) is not None
        os.chown(clusters.record_path(state), 65534, 65534)
        assert clusters.read(state) is None
        assert not clusters.stop(state)
        assert alive(pid)


def test_a_copied_state_leaves_the_service_of_the_original_alone(tmp_path: Path) -> None:
    state, copy = tmp_path / "original", tmp_path / "copy"
    folder = clusters.temp_dir(state)
    ownership.create_temp_dir(folder)
    try:
        with supervisor_process(state) as pid:
            cluster = replace(clusters.this_cluster(state, pid, owned=True), state="ready")
            clusters.write(state, cluster)
            shutil.copytree(state, copy)
            assert clusters.read(copy) is None, "the copy has no service"
            assert not clusters.stop(copy)
            assert clusters.read(state) == cluster
            assert folder.is_dir()
            assert clusters.stop(state)
            wait_for(lambda: not alive(pid))
        assert not folder.exists()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_supervisor_of_the_release_before_is_stopped(tmp_path: Path) -> None:
    with supervisor_process(tmp_path) as pid:
        forge(tmp_path, steward={"pid": pid, "started": process_started(pid)})
        assert clusters.read(tmp_path) is not None
        assert clusters.stop(tmp_path)
        wait_for(lambda: not alive(pid))


def test_a_link_in_the_place_of_rays_folder_is_neither_followed_nor_removed(tmp_path: Path) -> None:
    state, victim = tmp_path / ".mlkit", tmp_path / "victim"
    victim.mkdir(mode=0o700)
    (victim / "thesis.txt").write_text("years")
    folder = clusters.temp_dir(state)
    folder.symlink_to(victim)
    try:
        own = {"folder": str(state), "boot": boot_identity()}
        clusters.stop(forge(state, temp_dir=str(folder), **own))
        with pytest.raises(EngineError, match="private folder") as refused:
            ownership.create_temp_dir(folder)
        assert f"ls -ld {folder}" in refused.value.hint
        assert [path.name for path in victim.iterdir()] == ["thesis.txt"]
    finally:
        folder.unlink()


def test_rays_folder_is_private_and_told_from_that_of_another_state(tmp_path: Path) -> None:
    folder = tmp_path / clusters.temp_dir(tmp_path).name
    inner = ownership.create_temp_dir(folder)
    assert inner.parent == folder, "Ray opens its own folder to every user"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert ownership.owns_temp_dir(folder, tmp_path)
    assert not ownership.owns_temp_dir(folder, tmp_path / "other")
    assert not ownership.owns_temp_dir(Path(folder.name), tmp_path)
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
        assert not ownership.owns_temp_dir(folder, tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", '"x"', '{"steward": 1}', '{"steward": {"pid": "x", "started": 1}}'])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    path = clusters.record_path(tmp_path)
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ServiceError, match=r"cluster\.json is damaged") as damaged:
        clusters.stop(tmp_path)
    assert damaged.value.hint == f"rm {path}"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder outside the state, with an old folder and an old file."""
    folder = tmp_path / "elsewhere"
    (folder / "work").mkdir(parents=True)
    (folder / "a.txt").write_text("kept")
    long_ago = time.time() - 2 * MAX_UNUSED_SECONDS
    for path in (folder / "work", folder / "a.txt"):
        os.utime(path, (long_ago, long_ago))
    return folder


def linked(tmp_path: Path, name: str, target: Path) -> Path:
    """A state folder in which ``name`` is a link."""
    state = tmp_path / "state"
    (state / name).parent.mkdir(parents=True, exist_ok=True)
    (state / name).symlink_to(target)
    return state


def test_no_leftover_is_swept_beyond_a_link(tmp_path: Path, elsewhere: Path) -> None:
    before = sorted(elsewhere.iterdir())
    for name in ("tmp", "scratch"):
        store = FolderStore(linked(tmp_path, name, elsewhere))
        store.sweep(lambda: set(), lambda names: set(names))
    with pytest.raises(StoreError, match="outside the state folder"):
        store.workspace("work", 1)
    ProcessTrials(linked(tmp_path, "trials", elsewhere))._sweep()
    prediction_log.sweep(
        linked(tmp_path, "services/a/predictions", elsewhere) / "services/a/predictions", days=1, megabytes=0
    )
    assert sorted(elsewhere.iterdir()) == before


def test_no_record_is_removed_beyond_a_link(tmp_path: Path, elsewhere: Path) -> None:
    records = FileRecords(linked(tmp_path, "services/a/isolated", elsewhere))
    with pytest.raises(ServiceError, match="is a link out of"):
        records.delete("services/a/isolated/work")
    records.delete("services/a/isolated")
    assert sorted(path.name for path in elsewhere.iterdir()) == ["a.txt", "work"]
    assert not (tmp_path / "state/services/a/isolated").exists(), "the link itself is the record's"
