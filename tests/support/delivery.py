"""A service of real loans under load, for tests that take versions through it: clients, their users, and feedback."""

from __future__ import annotations

import json
import queue
import random
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

from mlflowkit.adapters.ray_serve import RayServePlatform
from mlflowkit.bundle import Bundle
from mlflowkit.rollout import state as states
from mlflowkit.rollout.state import RolloutState
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.stages import deploy
from mlflowkit.stages.deploy import ServeSection
from tests.support.waiting import wait_for


class DeliveryWorld:
    """A state folder with one service, and what a deploy stage needs of a run."""

    def __init__(self, folder: Path, recipe: Path) -> None:
        self.folder, self.recipe = folder, recipe
        self.state = folder / ".mlkit"
        self.platform = RayServePlatform(self.state, sidecars=("mlflowkit.processes.controller_main",))
        self.files = ServiceFiles(self.state / "services" / "lending")

    def deploy(self, made: Bundle, rollout: dict[str, Any]) -> Any:
        """What `mlkit run` does once a bundle is blessed."""
        out = self.folder / "out" / f"{time.monotonic_ns()}"
        out.mkdir(parents=True)
        context: Any = SimpleNamespace(
            inputs={"package": made.path.parent},
            out=out,
            ports=self,
            folder=self.recipe.parent,
            recipe=self.recipe,
            overrides=(),
            progress=lambda event: None,
            run="run-1",
        )
        routing = {"affinity": "header", "name": "x-user"}
        serve = {"service": "lending", "port": 0, "routing": routing, "rollout": rollout}
        return deploy.run(deploy.Spec(name="lending", serve=ServeSection.model_validate(serve)), context)

    @property
    def endpoint(self) -> str:
        return next(found.endpoint for found in self.platform.status() if found.service == "lending")

    def rollout(self) -> RolloutState | None:
        saved = states.read(self.files)
        return None if saved is None else saved.state

    def ended(self, digest: str, seconds: float) -> RolloutState:
        """The rollout of a digest, once it came to its end and the table says so."""

        def end() -> RolloutState | None:
            found = self.rollout()
            over = found is not None and found.candidate.digest == digest and found.ended
            return found if over else None

        found: RolloutState = wait_for(end, seconds, f"the end of the rollout: {self.rollout()}")
        return found

    def champion(self) -> str:
        table = self.files.table()
        assert table is not None
        return table.champion.digest

    def incidents(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_bytes()) for path in sorted((self.files.folder / "incidents").glob("*.json"))]


class Traffic:
    """Clients that ask rows of the table at a steady rate, each for a user, and tell the outcome some time later.

    ``failures`` has every reply that is not 200. Feedback comes delayed, out of order, and one time in ten twice.
    """

    def __init__(self, endpoint: str, rows: list[dict[str, Any]], labels: list[str], *, rate: float = 120.0) -> None:
        self.endpoint, self.rows, self.labels, self.rate = endpoint, rows, labels, rate
        self.failures: list[tuple[int, str]] = []
        self.variants: Counter[str] = Counter()
        self.feedback = False
        self._told: queue.Queue[dict[str, Any]] = queue.Queue()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(4)]
        self._threads.append(threading.Thread(target=self._tell))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def _ask(self, number: int) -> None:
        chance = random.Random(number)
        with httpx.Client(base_url=self.endpoint, timeout=15) as client:
            due = time.monotonic()
            while not self._stop.is_set():
                due += 4 / self.rate
                self._stop.wait(max(0.0, due - time.monotonic()))
                place = chance.randrange(len(self.rows))
                headers = {"x-user": f"user-{chance.randrange(2000)}"}
                reply = client.post("/predict", json={"rows": [self.rows[place]]}, headers=headers)
                self.variants[reply.headers.get("x-mlkit-variant", "")] += 1
                if reply.status_code != 200:
                    self.failures.append((reply.status_code, reply.text))
                elif self.feedback:
                    told = {"id": reply.headers["x-mlkit-request-id"], "label": self.labels[place]}
                    for _ in range(2 if chance.random() < 0.1 else 1):
                        self._told.put(told)

    def _tell(self) -> None:
        chance = random.Random(99)
        with httpx.Client(base_url=self.endpoint, timeout=15) as client:
            while not self._stop.wait(0.5):
                batch = [self._told.get_nowait() for _ in range(self._told.qsize())]
                chance.shuffle(batch)
                late = [one for one in batch if chance.random() < 0.3]  # these are told with the next batch
                now = [one for one in batch if one not in late]
                for one in late:
                    self._told.put(one)
                if now:
                    reply = client.post("/v2/feedback", json={"feedback": now})
                    if reply.status_code != 202:
                        self.failures.append((reply.status_code, reply.text))
