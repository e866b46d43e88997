"""`mlkit deploy BUNDLE`: a bundle that came from elsewhere serves without its recipe, data or journal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.lending_bundle import ROWS, expected, make_bundle


def mlkit(*arguments: str | Path, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from mlflowkit.cli.app import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=dict(os.environ), check=False)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_bundle_alone_is_served_and_outlives_its_origin(tmp_path: Path) -> None:
    made, state = make_bundle(tmp_path / "usb" / "bundle"), tmp_path / "state"
    try:
        done = mlkit("deploy", made.path, "--state", state, "--port", "0", "--json")
        assert done.returncode == 0, done.stderr
        value = json.loads(done.stdout)
        assert (value["service"], value["version"]) == ("lending", made.manifest.version)
        answers = expected(made.path, ROWS)
        shutil.rmtree(tmp_path / "usb")
        reply = httpx.post(f"{value['endpoint']}/predict", json={"rows": ROWS}, timeout=30)
        assert [row["label"] for row in reply.json()["predictions"]] == answers["label"]
        again = mlkit("predict", "lending", "--state", state, "--rows", json.dumps(ROWS), "--json")
        assert json.loads(again.stdout)["model_version"] == made.manifest.version
    finally:
        mlkit("down", "--state", state)


def test_a_dry_run_verifies_and_changes_nothing(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle")
    done = mlkit("deploy", made.path, "--state", tmp_path / "state", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] == made.manifest.version
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("unblessed", "is not blessed"),
        ("altered", "was altered"),
        ("absent", "there is no folder"),
        ("empty", "is missing"),
    ],
)
def test_what_may_not_serve_is_refused_before_anything_starts(damage: str, reason: str, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    if damage in ("unblessed", "altered"):
        make_bundle(folder, blessed=damage != "unblessed")
    if damage == "altered":
        (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b" ")
    if damage == "empty":
        folder.mkdir()
    done = mlkit("deploy", folder, "--state", tmp_path / "state")
    assert done.returncode in (2, 3)
    assert reason in done.stderr
    assert "hint: " in done.stderr
    assert not (tmp_path / "state").exists()


def test_a_service_name_that_is_none_is_refused(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle")
    done = mlkit("deploy", made.path, "--state", tmp_path / "state", "--service", "A B")
    assert done.returncode == 2
    assert "--service 'A B'" in done.stderr
