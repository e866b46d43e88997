"""A rollout in a process that may be killed: a real controller over real files, and gateways that only count.

What the controller publishes is entered in ``published.jsonl`` by the rules of a platform (newer epochs, no smaller
fence), whose promotions go to ``promoted.jsonl``: both outlive the process.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlflowkit.errors import ServiceError
from mlflowkit.judging.online.evidence import Evidence, Moments, VariantCounts
from mlflowkit.rollout import state as states
from mlflowkit.rollout.controller import ControllerDeps, ServiceController
from mlflowkit.rollout.settings import Rollout
from mlflowkit.rollout.state import Request, RolloutState
from mlflowkit.service_state import controller_lease
from mlflowkit.service_state.controller_lease import ControllerLease
from mlflowkit.service_state.records import Desired, GatewaySettings, ServiceFiles, write_json
from mlflowkit.serving.inference.variants import check_table
from mlflowkit.system import failpoint
from mlflowkit.values import RoutingTable, Variant

ROUNDS = 400
CHAMPION = Variant("champion", "1", "d1", "/bundles/1")
CANDIDATE = Variant("challenger", "2", "d2", "/bundles/2", role="challenger", weight=0.0)
PLAN = Rollout.model_validate(
    {
        "strategy": "canary",
        "steps": [0, 20, 50],
        "metrics": [{"metric": "error_rate", "margin": 0.05}],
        "min_samples": 100,
        "bake_seconds": 0,
        "max_seconds": 600,
        "webhooks": [{"url": "http://127.0.0.1:9/hook"}],
    }
)


def enter(path: Path, value: Any) -> None:
    with path.open("a") as stream:
        stream.write(json.dumps(value) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def entries(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Platform:
    """Publishes by the rules of a platform, to files only."""

    def __init__(self, files: ServiceFiles) -> None:
        self.files = files

    def publish(self, table: RoutingTable) -> None:
        check_table(table)
        with self.files.lock("publish"):
            current = self.files.table()
            if current is not None and (table.epoch <= current.epoch or table.fence < current.fence):
                raise ServiceError(f"table {table.epoch} under fence {table.fence} is not newer")
            enter(self.files.folder / "published.jsonl", asdict(table))
            self.files.write_table(table)


def set_up(state: Path, plan: Rollout = PLAN) -> ServiceFiles:
    """A service that answers with its champion, and a request for a rollout."""
    files = ServiceFiles(state / "services" / "lending")
    files.write_desired(Desired(1, True, GatewaySettings("lending", port=1)))
    files.write_table(RoutingTable("lending", 4, (CHAMPION,)))
    request = Request("e1", "lending", CANDIDATE, plan, time.time(), origin={"name": "lending", "run": "run1"})
    write_json(files.folder / "request.json", request.to_json())
    return files


def answer_requests(files: ServiceFiles, error_rate: float, bad: str = CANDIDATE.digest) -> None:
    """A thousand requests under the table that is live, counted; the version ``bad`` fails its share of them."""
    table = files.table()
    assert table is not None
    path = files.folder / "evidence" / "r1.json"
    before = Evidence(table.experiment)
    if path.exists():
        evidence = Evidence.from_json(json.loads(path.read_bytes()))
        before = evidence if evidence.experiment == table.experiment else before
    epochs = {epoch: dict(variants) for epoch, variants in before.epochs.items()}
    here = epochs.setdefault(table.epoch, {})
    for variant in table.variants:
        wrong = error_rate if variant.digest == bad else 0.0
        if variant.role == "shadow":
            new = VariantCounts(mirrored=1000, agreement={"": Moments(1000, 990.0, 990.0)})
        else:
            requests = round(1000 * variant.weight)
            new = VariantCounts(requests, round(requests * wrong), latency={300: requests})
        here[variant.name] = here.get(variant.name, VariantCounts()) + new
    files.write_evidence("r1", json.dumps(Evidence(table.experiment, epochs).to_json()).encode())


def controller(files: ServiceFiles, held: ControllerLease) -> ServiceController:
    def promoted(service: str, champion: Variant, origin: Any) -> None:
        enter(files.folder / "promoted.jsonl", [champion.digest, dict(origin)])

    return ServiceController(files, held, ControllerDeps(Platform(files), promoted))


def control(state: Path, error_rate: float, point: str = "") -> None:
    """Take the lease and control until the rollout has ended, or the point kills this process."""
    if point:
        os.environ[failpoint.VARIABLE] = point
    held = None
    while held is None:
        held = controller_lease.acquire(state)
    files = ServiceFiles(state / "services" / "lending")
    service = controller(files, held)
    for _ in range(ROUNDS):
        try:
            service.step()
        except OSError:  # a disk that is full for a moment
            continue
        if ended(files) is not None:
            return
        answer_requests(files, error_rate)
    raise AssertionError(f"no end after {ROUNDS} rounds: {states.read(files)}")


def ended(files: ServiceFiles) -> RolloutState | None:
    """The rollout, once it has ended and nothing is left to do."""
    saved = states.read(files)
    return saved.state if saved is not None and saved.state.ended and not saved.todo else None
