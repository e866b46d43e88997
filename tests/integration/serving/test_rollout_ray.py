"""Rollouts on a real local Ray: the deploy stage, the controller in its own process, real gateways and real traffic."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from benchmarks import planted
from mlflowkit.adapters.ray_serve import RayServePlatform
from mlflowkit.bundle import Bundle
from mlflowkit.errors import ServiceError
from mlflowkit.rollout import state as states
from mlflowkit.rollout.state import RolloutState
from mlflowkit.service_state import controller_lease
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.stages import deploy
from mlflowkit.stages.deploy import ServeSection
from mlflowkit.values import RoutingTable
from tests.support.lending_bundle import make_bundle
from tests.support.waiting import wait_for

pytestmark = pytest.mark.ray

ERRORS = {"metric": "error_rate", "margin": 0.05}
QUICK = {"min_samples": 50, "bake_seconds": 0, "max_seconds": 600, "cooldown_seconds": 0}


class RayRollouts:
    """A state folder with its platform and controller, and what a deploy stage needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / ".mlkit"
        self.platform = RayServePlatform(self.state, sidecars=("mlflowkit.processes.controller_main",))
        self.files = ServiceFiles(self.state / "services" / "lending")

    def deploy(self, made: Bundle, **rollout: Any) -> Any:
        out = self.folder / "out" / f"{time.monotonic_ns()}"
        out.mkdir(parents=True)
        context: Any = SimpleNamespace(
            inputs={"package": made.path.parent}, out=out, ports=self, progress=lambda event: None, run="run1",
            folder=self.folder, recipe=None, overrides=(),
        )  # fmt: skip
        section = {"service": "lending", "port": 0, "rollout": rollout}
        return deploy.run(deploy.Spec(name="", serve=ServeSection.model_validate(section)), context).summary

    def rollout(self) -> RolloutState:
        saved = states.read(self.files)
        assert saved is not None
        return saved.state

    def ended(self, experiment: str) -> RolloutState:
        def end() -> RolloutState | None:
            found = self.rollout()
            return found if found.experiment == experiment and found.ended else None

        found: RolloutState = wait_for(end)
        return found

    def table(self) -> RoutingTable:
        found = self.files.table()
        assert found is not None
        return found

    def champion(self) -> str:
        return self.table().champion.digest

    def mlkit(self, *arguments: str) -> dict[str, Any]:
        code = "from mlflowkit.cli.app import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments, "--json"],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "MLKIT_STATE": str(self.state)},
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found


class Traffic:
    """Clients that ask until they are told to stop; a quarter of the rows are of people of 50 and more.

    They wait while ``going`` is not set.
    """

    def __init__(self, world: RayRollouts) -> None:
        self.endpoint = next(one.endpoint for one in world.platform.status() if one.service == "lending")
        self.failures: list[tuple[int, str]] = []
        self.variants: Counter[str] = Counter()
        self.going, self._stop = threading.Event(), threading.Event()
        self.going.set()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(2)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        self.going.set()
        for thread in self._threads:
            thread.join(20)

    def _ask(self, number: int) -> None:
        chance = random.Random(number)
        with httpx.Client(base_url=self.endpoint, timeout=20) as client:
            while self.going.wait() and not self._stop.wait(0.004):
                age = chance.choice([20.0, 30.0, 40.0, 60.0])
                row = {"age": age, "income": 30_000.0, "debt": 100.0, "term": "36 months", "purpose": "car"}
                reply = client.post("/predict", json={"rows": [row]})
                self.variants[reply.headers.get("x-mlkit-variant", "")] += 1
                if reply.status_code != 200:
                    self.failures.append((reply.status_code, reply.text))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    root = tmp_path_factory.mktemp("versions")
    found = {name: make_bundle(root / name / "bundle", seed) for seed, name in enumerate(("one", "two", "three"), 1)}
    (root / "bad").mkdir()
    found["bad"] = planted.errors(found["two"], root / "bad" / "bundle", "age", 50.0)
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, bundles: dict[str, Bundle]) -> Iterator[RayRollouts]:
    made = RayRollouts(tmp_path_factory.mktemp("rollouts"))
    made.deploy(bundles["one"])
    yield made
    made.platform.down()


@pytest.fixture
def traffic(world: RayRollouts) -> Iterator[Traffic]:
    running = Traffic(world)
    yield running
    running.stop()


@pytest.mark.slow  # the next test goes on from it
def test_a_bad_version_is_rolled_back_by_itself_and_a_good_one_promoted(
    world: RayRollouts, traffic: Traffic, bundles: dict[str, Bundle]
) -> None:
    champion = bundles["one"].manifest.identity
    traffic.going.clear()  # it would be rolled back before the command says that it began
    told = world.deploy(bundles["bad"], strategy="canary", steps=[20, 50], metrics=[ERRORS], **QUICK)
    traffic.going.set()
    assert told["rollout"].startswith("canary, step ")
    found = world.ended(told["experiment"])
    assert (found.phase, found.by, world.champion()) == ("rolled_back", "policy", champion)
    assert "error_rate" in found.reason
    (path,) = (world.files.folder / "incidents").glob("*.json")
    incident = json.loads(path.read_bytes())
    assert incident["counts"]["challenger"]["errors"] > 0
    assert incident["candidate"]["digest"] == bundles["bad"].manifest.identity

    with pytest.raises(ServiceError, match=r"was rolled back.*stays blocked") as refused:
        world.deploy(bundles["bad"], strategy="canary", metrics=[ERRORS], **QUICK)
    assert "mlkit rollout forget" in refused.value.hint

    told = world.deploy(bundles["two"], strategy="canary", steps=[0, 20, 50], metrics=[ERRORS], **QUICK)
    holder = controller_lease.read_holder(world.state)
    assert holder is not None
    os.kill(holder.pid, signal.SIGKILL)  # another one is started, and goes on
    assert world.ended(told["experiment"]).phase == "promoted"
    assert world.champion() == bundles["two"].manifest.identity
    fence = holder.fence
    wait_for(lambda: (newer := controller_lease.read_holder(world.state)) is not None and newer.fence > fence)

    assert traffic.failures == []
    assert traffic.variants["challenger"] > 50


@pytest.mark.slow
def test_a_person_holds_promotes_and_goes_back_by_the_command_line(
    world: RayRollouts, traffic: Traffic, bundles: dict[str, Bundle]
) -> None:
    """After the test before: the second version is champion, the first is what to go back to."""
    three = bundles["three"]
    manual = {"steps": [10, {"weight": 30, "approval": True}, 50], "promote": "manual", **QUICK}
    told = world.deploy(three, strategy="canary", metrics=[ERRORS], **{**manual, "bake_seconds": 600})
    assert told["rollout"] == "canary, step 1 of 3 at 10 %"
    assert world.mlkit("rollout", "pause", "--reason", "lunch")["rollout"]["phase"] == "paused"
    (seen,) = world.mlkit("rollout", "status", "lending")["services"]
    assert (seen["rollout"]["phase"], seen["rollout"]["reason"]) == ("paused", "lunch")
    assert seen["previous"]["version"] == bundles["one"].manifest.version
    assert "not paused" not in world.mlkit("rollout", "resume")["message"]
    assert "is not paused" in world.mlkit("rollout", "resume")["error"]["message"]
    dry = world.mlkit("rollout", "promote", "--dry-run")
    assert (dry["message"], dry["rollout"]["step"]) == ("would go on to step 2", 1)
    assert world.mlkit("rollout", "promote")["rollout"]["step"] == 2
    assert world.mlkit("rollout", "promote", "--full")["rollout"]["phase"] == "promoted"
    assert world.champion() == three.manifest.identity

    back = world.mlkit("rollout", "rollback", "--reason", "complaints")
    assert back["rollout"]["phase"] == "rolled_back"
    assert world.champion() == bundles["two"].manifest.identity
    (seen,) = world.mlkit("rollout", "status", "lending")["services"]
    assert seen["incidents"][0]["reason"] == "complaints"
    assert three.manifest.version in [one["version"] for one in seen["turned_down"]]
    with pytest.raises(ServiceError, match="stays blocked"):
        world.deploy(three)
    world.mlkit("rollout", "forget", three.manifest.version)

    told = world.deploy(three, strategy="shadow", metrics=[{"metric": "agreement", "min": 0.01}], promote="never",
                        **{**QUICK, "max_seconds": 2})  # fmt: skip
    assert world.ended(told["experiment"]).phase == "kept"
    told = world.deploy(bundles["one"], strategy="canary", metrics=[ERRORS], **{**QUICK, "bake_seconds": 600})
    shadow = f"shadow-{three.manifest.version}"
    assert {one.name for one in world.table().variants} == {"champion", "challenger", shadow}
    world.mlkit("rollout", "abort", shadow)
    wait_for(lambda: {one.name for one in world.table().variants} == {"champion", "challenger"})
    assert world.mlkit("rollout", "abort", "lending", "--reason", "enough")["rollout"]["phase"] == "aborted"
    assert [one.name for one in world.table().variants] == ["champion"]
    assert "no rollout of lending is running" in world.mlkit("rollout", "promote")["error"]["message"]
    assert traffic.failures == []
