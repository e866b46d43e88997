"""The loop closed on a real local Ray: drift in live traffic, no run on old data, one run and a promotion on new."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from mlflowkit.monitoring.monitor_view import MonitorView, read_view
from mlflowkit.monitoring.retrain import episodes
from mlflowkit.service_state.records import ServiceFiles
from tests.support import ROOT
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]
RECIPE = """
name: fraud
task: classification
seed: 3
data:
  source: {kind: csv, path: rows.csv}
  target: y
  split: {kind: random}
model: {kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}
optimize: {candidates: [onnx]}
gates: [{metric: roc_auc, min: 0.6}]
serve:
  service: fraud
  port: 0
  rollout:
    strategy: canary
    steps: [50]
    metrics: [{metric: error_rate, margin: 0.3}]
    min_samples: 40
    bake_seconds: 0
    max_seconds: 300
    cooldown_seconds: 0
monitor:
  window: 10s
  grace: 1s
  min_rows: 30
  margin: 0.3
  predictions: {margin: 0.3}
  baseline: {kind: live, windows: 7}
retrain:
  cooldown: 1s
  importance: 0.1
"""


class LiveService:
    """A service that `mlkit run` made, under traffic whose column ``amount`` can be moved."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / ".mlkit"
        self.files = ServiceFiles(self.state / "services" / "fraud")
        self.shift = 0.0
        self.stop = threading.Event()
        self.seed = 0
        (folder / "recipe.yaml").write_text(RECIPE)
        self.write_rows(0.0)

    def write_rows(self, shift: float) -> None:
        self.seed += 1
        random = np.random.default_rng(self.seed)
        amount, age = random.normal(shift, 1, 3000), random.normal(0, 1, 3000)
        label = (random.random(3000) < 1 / (1 + np.exp(-2 * (amount - shift) - 0.5 * age))).astype(int)
        lines = [f"{first:.4f},{second:.4f},{y}" for first, second, y in zip(amount, age, label, strict=True)]
        temporary = self.folder / "rows.new"
        temporary.write_text("\n".join(["amount,age,y", *lines]) + "\n")
        temporary.replace(self.folder / "rows.csv")

    def mlkit(self, *arguments: str) -> Any:
        words = [sys.executable, "-m", "mlflowkit.cli", *arguments, "--state", str(self.state), "--json"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def send(self, endpoint: str) -> None:
        random = np.random.default_rng(99)
        with httpx.Client(timeout=30) as client:
            while not self.stop.wait(0.02):
                row = {"amount": float(random.normal(self.shift, 1)), "age": float(random.normal(0, 1))}
                try:
                    client.post(f"{endpoint}/predict", json={"rows": [row]})
                except httpx.HTTPError:
                    continue

    @property
    def view(self) -> MonitorView | None:
        return read_view(self.files)

    def attempts(self) -> list[str]:
        """What became of the runs that retraining started."""
        return [run.outcome for episode in episodes.read_episodes(self.files) for run in episode.runs]

    def settled(self, what: str, seconds: float, condition: Any) -> MonitorView:
        view: MonitorView = wait_for(
            lambda: (view := self.view) is not None and condition(view) and view, seconds, what, poll=0.5
        )
        return view


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    service = LiveService(tmp_path_factory.mktemp("fraud"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        run = service.mlkit("run", str(service.folder / "recipe.yaml"))
        sender = threading.Thread(target=service.send, args=(run["endpoint"],), daemon=True)
        sender.start()
        yield service
        service.stop.set()
        sender.join(60)
        subprocess.run(
            [sys.executable, "-m", "mlflowkit.cli", "down", "--state", str(service.state)], timeout=200, check=False
        )


def test_drift_is_answered_by_one_run_when_the_data_have_changed(live: LiveService) -> None:
    view = live.settled("a healthy version", 240, lambda view: view.state == "HEALTHY")
    first = view.version
    assert view.retrain.state == "idle"
    live.shift = 2.0
    view = live.settled("a retraining that waits for data", 240, lambda view: view.retrain.state == "waiting")
    assert view.state == "DRIFTING"
    assert "is the champion's" in view.retrain.reason
    assert any(alert.column == "amount" for alert in view.alerts)
    looked = view.windows[-1].start
    live.settled("two more windows", 240, lambda view: view.windows[-1].start >= looked + 10)
    assert live.attempts() == []
    live.write_rows(2.0)
    view = live.settled("another champion", 400, lambda view: view.version != first)
    wait_for(lambda: live.attempts() == ["promoted"], what="the end of the episode", poll=0.5)
    (episode,) = episodes.read_episodes(live.files)
    assert episode.ending == "promoted"
    table = live.files.table()
    assert table is not None
    assert table.champion.version == view.version
    after = live.settled("windows of the new version", 240, lambda view: len(view.windows) >= 4)
    assert after.version == view.version
    assert live.attempts() == ["promoted"]
    assert any("train:" in line.text for line in [*view.decisions, *after.decisions]) or episode.cause
