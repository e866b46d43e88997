"""Wherever a run is killed or its disk fills up, the next run ends in the same digests and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.system.failpoint import POINTS, TRANSITIONS
from mlflowkit.values import STAGES
from tests.support import ROOT

pytestmark = pytest.mark.slow

DRILL = [sys.executable, "-m", "tests.support.pipeline_drill"]

OF_A_STEP = ("take-lease", "begin-step", "publish", "finish-step", "release-lease")
STAGES_TRIED = ("data", "train", "package", "deploy")
KILLS = (
    *(f"{name}.{side}@{stage}" for name in OF_A_STEP for side in ("before", "after") for stage in STAGES_TRIED),
    *(f"{name}@{stage}" for name in ("stage.returned", "store.synced", "store.renamed") for stage in STAGES_TRIED),
    *(f"publish.after@{stage}" for stage in STAGES if stage not in STAGES_TRIED),
    *(f"{name}.{side}" for name in TRANSITIONS if name not in OF_A_STEP for side in ("before", "after")),
    "stage.progress@train",
    "stage.progress@train:3",
    "report.written",
)
FULL_DISKS = tuple(
    f"{action}:{name}"
    for action, name in (
        ("enospc", "start-run.before"),
        ("enospc", "stage.progress@train:2"),
        ("enospc", "store.synced@data"),
        ("enospc", "store.renamed@train"),
        ("edquot", "store.synced@package"),
        ("enospc", "publish.before@train"),
        ("enospc", "finish-step.before@deploy"),
    )
)


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """A folder in memory where there is one: the disk's own speed is not what is tried here."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def drilled(base: Path) -> dict[str, Any]:
    """What came of every failpoint, and of the run that nothing cut (named "" there)."""
    points = ["stage.progress@never", *KILLS, *FULL_DISKS]
    done = subprocess.run([*DRILL, "kill", str(base), *points], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_point_is_tried() -> None:
    tried = {kill.partition("@")[0] for kill in KILLS}
    assert tried == set(POINTS) - {"receipt.written"}


@pytest.mark.parametrize("point", KILLS)
def test_killed_run_is_taken_up_by_the_next(drilled: dict[str, Any], point: str) -> None:
    whole, cut = drilled["stage.progress@never"], drilled[point]
    assert whole["code"] == 0
    assert cut["code"] == -signal.SIGKILL
    assert cut["second"] == 0
    assert cut["again"]["status"] == "done"
    assert cut["again"]["digests"] == whole["again"]["digests"]
    assert cut["again"]["bundle"] == cut["champion"] == cut["challenger"] == whole["champion"]
    assert cut["left"] == []
    assert cut["undelivered"] == 0
    assert cut["again"]["run"] in cut["recorded"]
    assert "running" not in cut["statuses"]


@pytest.mark.parametrize("point", KILLS)
def test_finished_steps_are_not_done_again(drilled: dict[str, Any], point: str) -> None:
    cut = drilled[point]
    again = [stage for stage in STAGES if cut["calls"].count(stage) > 1]
    assert len(again) <= 1
    assert all(stage == cut["between"][-1] for stage in again)


@pytest.mark.parametrize("point", FULL_DISKS)
def test_full_disk_is_told_and_recovered_from(drilled: dict[str, Any], point: str) -> None:
    whole, cut = drilled["stage.progress@never"], drilled[point]
    assert cut["code"] == 0, "the error is raised and caught, the process lives"
    assert cut["cut"]["error"]["kind"] == "store"
    assert cut["cut"]["code"] == 3
    assert "disk" in cut["cut"]["error"]["message"]
    assert "run the same command again" in cut["cut"]["error"]["hint"]
    assert cut["again"]["digests"] == whole["again"]["digests"]
    assert cut["left"] == []


def test_crowd_does_the_work_once(base: Path) -> None:
    done = subprocess.run(
        [*DRILL, "crowd", str(base / "crowd"), "8"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["codes"] == [0] * 8
    assert sorted(found["calls"]) == sorted(STAGES)
    assert {json.dumps(run["digests"], sort_keys=True) for run in found["runs"]} == {
        json.dumps(found["runs"][0]["digests"], sort_keys=True)
    }
    assert [run["actions"]["train"] for run in found["runs"]].count("run") == 1
    waited = [message for run in found["runs"] for message in run["messages"] if message.startswith("waiting for run")]
    assert waited
    assert found["left"] == []
