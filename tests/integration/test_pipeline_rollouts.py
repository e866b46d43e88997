"""Runs whose deploy begins a rollout: what the journal, the tracker and the next run make of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.pipeline.promotion import promote, reject
from mlflowkit.pipeline.storage.journal import SqliteJournal
from mlflowkit.ports import StageContext
from mlflowkit.rollout import commands, requests
from mlflowkit.rollout import state as states
from mlflowkit.rollout.controller import ControllerDeps as Effects
from mlflowkit.rollout.controller import ServiceController
from mlflowkit.rollout.state import Request
from mlflowkit.service_state import controller_lease, version_history
from mlflowkit.service_state.records import Desired, GatewaySettings, ServiceFiles, write_json
from mlflowkit.values import RoutingTable, RunRecord, ServiceStatus, StageResult, Variant
from tests.support import rollout_drill as drill
from tests.support.pipeline_world import PipelineWorld, lay_out


class Delivered(PipelineWorld):
    """A world whose service answers by a routing table, and whose deploys after the first begin a rollout."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.state = folder / ".mlkit"
        self.files = ServiceFiles(self.state / "services" / "tiny")
        self.controller: Any = None

    def deploy(self, spec: Any, context: StageContext) -> StageResult:
        self.called("deploy", context)
        digest = json.loads((context.inputs["package"] / "bundle" / "manifest.json").read_text())["identity"]
        variant = Variant("champion", digest[:12], digest, str(context.inputs["package"] / "bundle"))
        (context.out / "service.json").write_text("{}")
        if self.files.table() is None:
            self.files.write_desired(Desired(1, True, GatewaySettings("tiny", port=1)))
            self.files.write_table(RoutingTable("tiny", 1, (variant,)))
            return StageResult(summary={"endpoint": "http://127.0.0.1:1"})
        origin = {"name": spec.name, "run": context.run}
        plan = drill.PLAN.model_copy(update={"cooldown_seconds": 0.0, "webhooks": []})
        request = Request(f"e-{time.time_ns()}", "tiny", variant, plan, time.time(), origin=origin)
        requests.check(self.files, request)
        write_json(self.files.folder / "request.json", request.to_json())
        self.control().step()
        return StageResult(summary={"endpoint": "http://127.0.0.1:1", "rollout": "canary, step 1"})

    def control(self) -> ServiceController:
        if self.controller is None:
            held = controller_lease.acquire(self.state)
            assert held is not None

            def promoted(service: str, champion: Variant, origin: Mapping[str, str]) -> None:
                tracker: Any = self
                assert promote(self, tracker, origin.get("name") or "tiny", champion.digest)

            def rejected(service: str, version: Variant, origin: Mapping[str, str]) -> None:
                tracker: Any = self
                reject(tracker, origin.get("name") or "tiny", version.digest)

            self.controller = ServiceController(
                self.files, held, Effects(drill.Platform(self.files), promoted, rejected)
            )
        controller: ServiceController = self.controller
        return controller

    def roll(self, error_rate: float) -> states.RolloutState:
        """Traffic and looks until the rollout has ended."""
        saved = states.read(self.files)
        assert saved is not None
        for _ in range(drill.ROUNDS):
            ended = drill.ended(self.files)
            if ended is not None:
                return ended
            drill.answer_requests(self.files, error_rate, saved.state.candidate.digest)
            self.control().step()
        raise AssertionError("it has no end")

    def status(self) -> Sequence[ServiceStatus]:
        table = self.files.table()
        return () if table is None else (ServiceStatus("tiny", "http://127.0.0.1:1", 1, True, table.variants, 1),)

    def aliases(self) -> dict[str, str]:
        with SqliteJournal(self.state) as journal:
            aliases = {name: journal.alias("tiny", name) for name in ("champion", "challenger")}
        return {name: alias.identity for name, alias in aliases.items() if alias is not None}


def reasons(record: RunRecord) -> tuple[set[str], str]:
    """The actions of a run's steps, and why deploy was visited or not."""
    return {step.action for step in record.steps}, next(s.reason for s in record.steps if s.stage == "deploy")


@pytest.fixture
def world(tmp_path: Path) -> Delivered:
    """The first version answers, the second is being rolled out."""
    lay_out(tmp_path)
    delivered = Delivered(tmp_path)
    delivered.run()
    return delivered


def test_the_champion_is_the_old_version_until_the_new_one_is_promoted(world: Delivered) -> None:
    first = world.aliases()["champion"]
    record = world.run({"train.epochs": 4})
    assert record.status == "done"
    assert world.aliases() == {"champion": first, "challenger": record.bundle}
    assert record.bundle != first
    assert world.noted("registered") == ["tiny@challenger", "tiny@champion", "tiny@challenger"]

    actions, reason = reasons(world.run({"train.epochs": 4}))  # again, while it rolls
    assert (actions, reason.startswith("its rollout runs (canary, step 1")) == ({"reuse"}, True)

    assert world.roll(0.0).phase == "promoted"
    assert world.aliases() == {"champion": record.bundle, "challenger": record.bundle}
    assert world.noted("registered")[-1] == "tiny@champion"
    calls = len(world.calls())
    actions, reason = reasons(world.run({"train.epochs": 4}))
    assert (actions, reason.startswith("unchanged since run")) == ({"reuse"}, True)
    assert len(world.calls()) == calls

    commands.submit(world.files, "rollback", "complaints")
    world.control().step()
    assert world.aliases()["champion"] == first
    assert world.noted("registered")[-1] == "tiny@champion"
    assert world.noted("unaliased") == [f"tiny@challenger {record.bundle}"]  # it was champion, and is nothing now
    actions, reason = reasons(world.run({"train.epochs": 4}))
    assert (actions, "complaints" in reason) == ({"reuse"}, True)


def test_a_version_that_was_turned_down_is_not_deployed_again_unasked(world: Delivered) -> None:
    first = world.aliases()["champion"]
    record = world.run({"train.epochs": 4})
    assert world.roll(0.3).phase == "rolled_back"
    assert world.aliases() == {"champion": first, "challenger": record.bundle}
    assert world.noted("unaliased") == [f"tiny@challenger {record.bundle}"]
    registered = world.noted("registered")
    actions, reason = reasons(world.run({"train.epochs": 4}))
    assert world.noted("registered") == registered  # it does not become the challenger again
    assert actions == {"reuse"}
    assert reason.startswith("it was rolled back: error_rate")
    assert f"mlkit rollout forget tiny {record.bundle[:12]}" in reason

    version_history.forget_rejections(world.files, record.bundle)
    actions, reason = reasons(world.run({"train.epochs": 4}))
    assert (actions, reason) == ({"run", "reuse"}, "service tiny answers with another version")
    assert drill.ended(world.files) is None
