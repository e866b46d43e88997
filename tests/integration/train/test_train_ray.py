"""The same training by two workers on a real Ray, one of which is killed."""

from __future__ import annotations

import glob
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from mlflowkit.errors import UsageError, UserCodeError
from mlflowkit.pipeline.storage.journal import SqliteJournal
from mlflowkit.service_state.ray_cluster import ray_environment
from mlflowkit.service_state.records import process_started
from tests.support.train_world import TrainWorld
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NET = """
import os
import time
from pathlib import Path
from torch import nn

class Net(nn.Module):
    def __init__(self, features, outputs, pids="", fail_at=0, wait_at=0):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, 12), nn.Tanh(), nn.Linear(12, outputs))
        self.idle = nn.Linear(2, 2)
        self.fail_at, self.wait_at, self.calls = fail_at, wait_at, 0
        self.waiting, self.go_on = Path(pids, "..", "waiting", str(os.getpid())), Path(pids, "..", "go on")
        if pids:
            (Path(pids) / str(os.getpid())).touch()

    def forward(self, x):
        self.calls += self.training
        if self.training and self.calls == self.fail_at:
            raise ZeroDivisionError("the third step is one too many")
        while self.training and self.calls == self.wait_at and not self.go_on.exists():
            self.waiting.touch()
            time.sleep(0.01)
        return self.layers(x)
"""

WAIT_AT = 45
"""The step at which workers wait for the kill: the fifth of the fifth epoch."""


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    """The Ray that a run would start for itself, shared by the tests of this module."""
    from mlflowkit.adapters.ray_train.ray_workers import local_ray

    before = {**os.environ}
    with local_ray(None, 2):
        yield
    added = {name for name in os.environ if name not in before}
    assert "PYTHONSAFEPATH" not in added, "processes that are started later inherit it"


@pytest.mark.usefixtures("two_cpus")
def test_two_workers_survive_a_kill_and_learn_what_one_process_learns(
    world: TrainWorld, binary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pids, waiting, go_on = (world.base / name for name in ("pids", "waiting", "go on"))
    pids.mkdir()
    waiting.mkdir()
    go_on.touch()

    def kill_one() -> int:
        try:
            wait_for(lambda: len(list(waiting.iterdir())) == 2, 240, "two workers in the fifth epoch")
            victim = max(int(path.name) for path in waiting.iterdir())
            os.kill(victim, signal.SIGKILL)
            return victim
        finally:
            go_on.touch()

    world.module(NET)
    fit = {
        "epochs": 12,
        "batch_size": 31,
        "class_weights": "balanced",
        "optimizer": {"name": "sgd", "lr": 0.02},
        "checkpoint_every": 3,
        "max_failures": 1,
    }
    model = {"kind": "torch", "module": "net:Net", "args": {"pids": str(pids), "wait_at": WAIT_AT}}
    alone = world.train(binary, model, {**fit, "shards": 2})
    for path in (*pids.iterdir(), go_on):
        path.unlink()
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_one)
        together = world.train(binary, model, {**fit, "shards": 2, "workers": 2})
        victim = killed.result()
    assert process_started(victim) is None
    assert len(list(pids.iterdir())) >= 3, "no worker took the place of the killed one"
    assert together.result.summary["resumed_from"] == 3
    assert capsys.readouterr().out == "", "stdout is for results"
    assert together.curves == alone.curves
    assert together.weights == alone.weights
    assert (together.out / "spec.json").read_text() == (alone.out / "spec.json").read_text()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "Ctrl-C in a later stage is not Ray's"


@pytest.mark.usefixtures("two_cpus")
def test_an_error_in_a_worker_reaches_the_user_with_its_line(world: TrainWorld, binary: Path) -> None:
    world.module(NET)
    model = {"kind": "torch", "module": "net:Net", "args": {"fail_at": 3}}
    with pytest.raises(UserCodeError) as caught:
        world.train(binary, model, {"epochs": 2, "batch_size": 64, "workers": 2, "max_failures": 1})
    assert "net.py:20: net:Net raised ZeroDivisionError: the third step is one too many" in caught.value.message


def test_a_batch_smaller_than_the_group_is_refused_before_ray_starts(world: TrainWorld, binary: Path) -> None:
    with pytest.raises(UsageError, match=r"batch_size 3 is smaller than train\.workers 4") as caught:
        world.train(binary, {"kind": "torch"}, {"batch_size": 3, "workers": 4})
    assert caught.value.hint == "train.batch_size=128"


def test_workers_beyond_the_shards_are_refused_before_ray_starts(world: TrainWorld, binary: Path) -> None:
    with pytest.raises(UsageError, match=r"workers 4 is larger than train\.shards 2") as caught:
        world.train(binary, {"kind": "torch"}, {"shards": 2, "workers": 4})
    assert caught.value.hint == "train.workers=2"


def test_ctrl_c_ends_workers_and_run_with_130(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=300), "b": rng.normal(size=300), "y": ["no", "yes"] * 150})
    frame.to_csv(tmp_path / "table.csv", index=False)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: endless\ntask: classification\n"
        "data: {source: {kind: csv, path: table.csv}, target: y, split: {kind: random}}\n"
        "model: {kind: torch}\ntrain: {epochs: 1000000, workers: 2}\n"
    )
    command = [sys.executable, "-m", "mlflowkit.cli", "run", str(recipe)]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    progress = f"{tmp_path}/.mlkit/**/progress.jsonl"
    wait_for(lambda: run.poll() is not None or glob.glob(progress, recursive=True), 240, "the first epoch", poll=0.2)
    assert run.poll() is None, run.communicate()
    started = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGINT)
    _, messages = run.communicate(timeout=120)
    assert run.returncode == 130, messages
    assert "Traceback" not in messages
    wait_for(lambda: not any(process.is_running() for process in started), 60, "the end of Ray", poll=0.2)
    (record,) = SqliteJournal(tmp_path / ".mlkit").runs()
    assert record.status == "interrupted"


def test_only_the_ray_of_a_living_supervisor_is_joined(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    path = tmp_path / "ray" / "cluster.json"
    environment = {"RAY_ADDRESS": "127.0.0.1:1", "RAY_AUTH_MODE": "token"}
    supervisor = {"pid": os.getpid(), "started": process_started(os.getpid())}
    assert ray_environment(tmp_path) is None
    path.write_text(json.dumps({"state": "starting", "steward": supervisor, "environment": {}}))
    assert ray_environment(tmp_path) is None
    path.write_text(json.dumps({"state": "ready", "steward": supervisor, "environment": environment}))
    assert ray_environment(tmp_path) == environment
    dead = {**supervisor, "started": supervisor["started"] - 1}
    path.write_text(json.dumps({"state": "ready", "steward": dead, "environment": environment}))
    assert ray_environment(tmp_path) is None
