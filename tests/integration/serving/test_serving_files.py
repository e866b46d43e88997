"""Damaged files of a service: told by name, and no other service is touched."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mlflowkit.adapters.ray_serve import RayServePlatform
from mlflowkit.adapters.ray_serve import cluster as clusters
from mlflowkit.adapters.ray_serve.reconciler import IsolatedDeployments, Reconciler
from mlflowkit.errors import ServiceError
from mlflowkit.service_state.records import Desired, GatewaySettings, ServiceFiles
from mlflowkit.stages.deploy import ServeSection
from tests.support.processes import supervisor_process
from tests.support.waiting import wait_for


@pytest.mark.parametrize("content", ["{", "{}", "[]", '"x"', '{"generation": 1, "up": true, "settings": {"port": 1}}'])
@pytest.mark.parametrize("name", ["service.json", "table.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    files = ServiceFiles(tmp_path / "services" / "lending")
    files.write_desired(Desired(1, True, GatewaySettings("lending")))
    (files.folder / name).write_text(content)
    with pytest.raises(ServiceError, match=name) as told:
        RayServePlatform(tmp_path).status()
    assert told.value.hint.startswith("rm ")


def test_a_damaged_service_does_not_stop_the_reconciler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = (ServiceFiles(tmp_path / "services" / name) for name in ("good", "bad"))
    bad.folder.mkdir(parents=True)
    (bad.folder / "service.json").write_text("{")
    good.write_desired(Desired(1, True, GatewaySettings("good")))
    scaled: list[tuple[str, int]] = []
    monkeypatch.setattr(Reconciler, "_scale", lambda self, files, replicas: scaled.append((files.service, replicas)))
    monkeypatch.setattr(IsolatedDeployments, "reconcile", lambda self, desired: None)  # no Ray is started here
    stop = threading.Event()
    thread = threading.Thread(target=Reconciler(tmp_path, "").run, args=(stop,), daemon=True)
    thread.start()
    wait_for(lambda: good.observed())
    bad.write_desired(Desired(1, True, GatewaySettings("bad")))
    wait_for(lambda: bad.observed())
    stop.set()
    thread.join(10)
    assert scaled[:2] == [("good", 1), ("bad", 1)]


def test_services_of_another_release_are_left_alone_until_they_are_stopped(tmp_path: Path) -> None:
    with supervisor_process(tmp_path) as pid:
        clusters.write(tmp_path, replace(clusters.this_cluster(tmp_path, pid, owned=True), state="ready"))
        _is_left_alone(tmp_path)


def _is_left_alone(tmp_path: Path) -> None:
    record = json.loads(clusters.record_path(tmp_path).read_bytes())
    del record["format"]  # as the release before wrote it
    clusters.record_path(tmp_path).write_text(json.dumps(record))
    files = ServiceFiles(tmp_path / "services" / "lending")
    for begin in (RayServePlatform(tmp_path).ensure, RayServePlatform(tmp_path).prewarm):
        with pytest.raises(ServiceError, match="another release") as told:
            begin(ServeSection(service="lending", port=0))
        assert told.value.hint.startswith("mlkit down")
    assert files.desired() is None
