"""Retraining in processes that may be killed: a real driver over real records, whose runs only note that they ran.

``runs.jsonl`` gets a line for each run of the recipe, with the version of the data that lie in ``data.txt``. A run that
trains makes its version the champion, as a rollout at once does.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlflowkit.bundle import MANIFEST, Manifest, _write_checksummed
from mlflowkit.monitoring.retrain import attempt_work, episodes
from mlflowkit.monitoring.retrain.episodes import Episode
from mlflowkit.monitoring.retrain.retrain_driver import (
    RetrainDeps,
    RetrainDriver,
    RetrainPlan,
    RetrainReport,
    RetrainSituation,
)
from mlflowkit.monitoring.retrain.retrain_policy import ColumnAlarm, RetrainTerms
from mlflowkit.monitoring.retrain.steady_clock import Moment, this_moment
from mlflowkit.service_state import controller_lease
from mlflowkit.service_state.records import Desired, GatewaySettings, ServiceFiles
from mlflowkit.system import failpoint
from mlflowkit.values import Json, RoutingTable, Variant
from tests.support.rollout_drill import enter, entries
from tests.support.waiting import wait_for

DRIFT = ColumnAlarm("amount", "distribution", since=1000.0, importance=0.5)
TERMS = RetrainTerms(cooldown=0.0)
DAY = 86_400.0


@dataclass
class DrillRecipe:
    """In the place of ``mlkit run``: notes its calls, reads the data version from a file, and deploys at once."""

    files: ServiceFiles
    episode: Episode
    attempt: str

    @property
    def objects(self) -> Path:
        return self.files.state / "objects"

    def run(self, *options: str) -> tuple[int, Mapping[str, Json]]:
        failpoint.hit("retrain.working")
        folder = self.files.state
        version = (folder / "data.txt").read_text()
        plan = json.loads((folder / "runs.json").read_text()) if (folder / "runs.json").exists() else {}
        step = {"stage": "train", "action": "run"}
        steps = [] if options else [step]
        summary = {"run": f"run-{self.attempt}", "lineage": {"data_version": version}, "steps": steps}
        if options:
            enter(folder / "looks.jsonl", [self.episode.id, self.attempt, *options])
            return 0, summary
        enter(folder / "runs.jsonl", [self.episode.id, self.attempt, version])
        code = int(plan.get("code", 0))
        if code:
            return code, {**summary, "error": {"message": f"planned code {code}"}}
        digest = f"digest-{version}"
        table = self.files.table()
        if table is not None and table.champion.digest != digest:
            variant = replace(table.champion, digest=digest, version=version, bundle=str(bundle(folder, version)))
            self.files.write_table(replace(table, epoch=table.epoch + 1, variants=(variant,)))
        return 0, {**summary, "identity": digest, "version": version}


def bundle(state: Path, data_version: str) -> Path:
    """A folder with the manifest of a bundle that was trained on a version of the data."""
    folder = state / "bundles" / data_version
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(
        name="fraud", version=data_version, identity=f"digest-{data_version}", evidence="", files={}, git_commit="",
        git_dirty=False, data_version=data_version, recipe_digest="", policy="",
    )  # fmt: skip
    _write_checksummed(folder / MANIFEST, manifest)
    return folder


def set_up(state: Path, data: str = "v2") -> ServiceFiles:
    """A service whose champion was trained on data v1, while the source has ``data``."""
    files = ServiceFiles(state / "services" / "fraud")
    files.write_desired(Desired(1, True, GatewaySettings("fraud", port=1)))
    champion = Variant("champion", "v1", "digest-v1", str(bundle(state, "v1")))
    files.write_table(RoutingTable("fraud", 4, (champion,)))
    (state / "data.txt").write_text(data)
    return files


@dataclass
class ForkLauncher:
    """Forks a process for each attempt; a failpoint applies in the first process of the attempt ``at`` only."""

    point: str = ""
    at: str = "train-1"
    children: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    codes: dict[int, int] = field(default_factory=dict)

    def start(self, files: ServiceFiles, id: str, attempt: str) -> None:
        first = (id, attempt) not in self.children
        pid = os.fork()
        if pid:
            self.children.setdefault((id, attempt), []).append(pid)
            return
        try:
            os.environ.pop(failpoint.VARIABLE, None)
            if self.point and attempt == self.at and first:
                os.environ[failpoint.VARIABLE] = self.point
            attempt_work.make_attempt(ServiceFiles(files.folder), id, attempt, DrillRecipe)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a forked child must not unwind into its parent's frames
            os._exit(70)

    def ended(self, id: str, attempt: str) -> int | None:
        pids = self.children.get((id, attempt))
        if not pids:
            return None
        pid = pids[-1]
        if pid not in self.codes:
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                return None
            self.codes[pid] = os.waitstatus_to_exitcode(status)
        return self.codes[pid]


class Drill:
    """A driver, and the windows of a service that go by."""

    def __init__(
        self, files: ServiceFiles, launcher: ForkLauncher | None = None, terms: RetrainTerms = TERMS,
        clock: Callable[[], Moment] = this_moment, **deps: object,
    ) -> None:  # fmt: skip
        self.files = files
        self.window = 10_000.0
        self.launcher = launcher or ForkLauncher()
        self.driver = RetrainDriver(
            files, RetrainPlan(terms, "/recipes/fraud.yaml", ("seed=1",)),
            RetrainDeps(self.launcher, clock=clock, **deps),  # type: ignore[arg-type]
        )  # fmt: skip

    def situation(self, alarms: tuple[ColumnAlarm, ...], healthy: int, lasting: bool = False) -> RetrainSituation:
        """The situation now. The alarms are about the first champion, or about every one where they are lasting."""
        table = self.files.table()
        assert table is not None
        drifted = lasting or table.champion.digest == "digest-v1"
        return RetrainSituation(table.champion, self.window, alarms if drifted else (), healthy=healthy)

    def close_window(
        self, alarms: tuple[ColumnAlarm, ...] = (DRIFT,), healthy: int = 0, *, lasting: bool = False
    ) -> RetrainReport:
        """Close a window, and tick until nothing is under way."""
        self.window += DAY
        reports: list[RetrainReport] = []

        def settled() -> bool:
            reports.append(self.driver.tick(self.situation(alarms, healthy, lasting)))
            episode = self.driver.episode
            return episode is None or episode.current is None

        wait_for(settled, what="the end of a window's attempts")
        sentences = tuple(text for report in reports for text in report.sentences)
        return replace(reports[-1], sentences=sentences)


def control(state: Path, point: str = "", child_point: str = "", at: str = "train-1") -> None:
    """Take the lease and drive until the champion is another or there is nothing to do, or a point kills it."""
    held = None
    while (held := controller_lease.acquire(state)) is None:
        time.sleep(0.05)
    files = ServiceFiles(state / "services" / "fraud")
    drill = Drill(files, ForkLauncher(child_point, at), guard=held.guard)
    if point:
        os.environ[failpoint.VARIABLE] = point
    for _ in range(3):
        drill.close_window()


def trained(state: Path) -> list[list[str]]:
    """The runs of the recipe, as [episode, attempt, data version]."""
    return entries(state / "runs.jsonl")


def only_episode(files: ServiceFiles) -> Episode:
    (episode,) = episodes.read_episodes(files)
    return episode
