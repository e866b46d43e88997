"""A version that breaks clients: a deployment to a real gateway, with clients that go on sending what they sent."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlflowkit.bundle import Bundle
from mlflowkit.errors import UsageError
from mlflowkit.rollout import state as states
from mlflowkit.rollout.controller import ControllerDeps, ServiceController
from mlflowkit.rollout.state import Request
from mlflowkit.service_state import controller_lease
from mlflowkit.service_state.records import Desired, GatewaySettings, ServiceFiles
from mlflowkit.stages import deploy
from mlflowkit.stages.deploy import ServeSection
from mlflowkit.values import Event, RoutingTable, ServiceStatus
from tests.support.columns_bundle import make_columns_bundle
from tests.support.gateways import InProcess

ROW = {"age": 41.0, "income": 1.0}
ERRORS = [{"metric": "error_rate", "margin": 0.05}]


class Deployed:
    """A state folder, and a platform whose gateway runs in this process."""

    def __init__(self, state: Path, gateway: InProcess) -> None:
        self.state, self.gateway = state, gateway
        self.files = ServiceFiles(state / "services" / "lending")
        self.warnings: list[str] = []
        self.settings: list[Any] = []
        self.platform = self
        self.columns: dict[str, str] = {}

    def folder(self, service: str) -> Path:
        return self.state / "services" / service

    def ensure(self, section: Any, *_: Any, **__: Any) -> str:
        self.settings.append(section)
        self.files.write_desired(Desired(1, True, GatewaySettings("lending", port=1)))
        return self.gateway.url

    def status(self) -> tuple[ServiceStatus, ...]:
        table = self.files.table()
        variants = () if table is None else table.variants
        return (ServiceStatus("lending", self.gateway.url, 0, True, variants, 1, "serving"),)

    def publish(self, table: RoutingTable) -> None:
        self.gateway.swap(table)
        self.files.write_table(table)

    def deploy(self, made: Bundle, **rollout: Any) -> Any:
        out = self.state / "out" / f"{time.monotonic_ns()}"
        out.mkdir(parents=True)

        def progress(event: Event) -> None:
            if event.kind == "warning":
                self.warnings.append(event.message)

        context: Any = SimpleNamespace(
            inputs={"package": made.path.parent},
            out=out,
            ports=self,
            progress=progress,
            run="run1",
            folder=self.state,
            recipe=None,
            overrides=(),
        )
        section = {"service": "lending", "port": 0, "rollout": rollout, **self.columns}
        return deploy.run(deploy.Spec(name="lending", serve=ServeSection.model_validate(section)), context).summary

    def ask(self) -> tuple[int, str]:
        """The status and the version of an answer to a client of the first version."""
        reply = self.gateway.client.post("/predict", json={"rows": [ROW]})
        return reply.status_code, str(reply.json().get("model_version", ""))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    root = tmp_path_factory.mktemp("versions")
    columns = {"first": ("age", "income"), "fewer": ("age",), "more": ("age", "income", "debt")}
    made = {name: make_columns_bundle(root / name / "bundle", of) for name, of in columns.items()}
    made["classes"] = make_columns_bundle(root / "classes" / "bundle", columns["first"], ("bad", "good", "ugly"))
    return made


@pytest.fixture
def world(tmp_path: Path, start: Callable[..., InProcess], bundles: dict[str, Bundle]) -> Deployed:
    deployed = Deployed(tmp_path / ".mlkit", start())
    deployed.deploy(bundles["first"])
    assert deployed.ask() == (200, bundles["first"].manifest.version)
    return deployed


@pytest.mark.parametrize(
    ("name", "told", "answer"),
    [
        ("fewer", "column income is gone: requests that have it are refused", 400),
        ("more", "column debt (numeric) is new: requests without it are refused", 400),
        ("classes", "other classes: with 'ugly'", 200),
    ],
)
def test_a_swap_that_breaks_clients_is_refused_unless_it_is_allowed(
    world: Deployed, bundles: dict[str, Bundle], name: str, told: str, answer: int
) -> None:
    version, before = bundles[name].manifest.version, len(world.settings)
    with pytest.raises(UsageError) as refused:
        world.deploy(bundles[name])
    assert refused.value.message == f"version {version} breaks the clients of lending and was not swapped in: {told}"
    assert "--allow-breaking" in refused.value.hint
    assert "+rollout=canary" in refused.value.hint
    assert len(world.settings) == before  # nothing was touched
    assert world.ask() == (200, bundles["first"].manifest.version)

    summary = world.deploy(bundles[name], allow_breaking=True)
    assert world.warnings == [f"breaks clients: {told}"]
    assert [change["message"] for change in summary["signature_changes"]] == [told]
    assert world.ask()[0] == answer  # what was told is what happens


def test_a_version_with_the_same_signature_is_swapped_in_without_a_word(world: Deployed, tmp_path: Path) -> None:
    again = make_columns_bundle(tmp_path / "again" / "bundle", ("age", "income"), scale=2.0)
    summary = world.deploy(again)
    assert (world.warnings, "signature_changes" in summary) == ([], False)
    assert world.ask() == (200, again.manifest.version)


@pytest.mark.parametrize(
    ("name", "key", "value"), [("fewer", "unknown_columns", "ignore"), ("more", "missing_columns", "null")]
)
def test_a_service_that_takes_other_columns_swaps_and_goes_on_answering(
    tmp_path: Path, start: Callable[..., InProcess], bundles: dict[str, Bundle], name: str, key: str, value: str
) -> None:
    world = Deployed(tmp_path / ".mlkit", start(**{key: value}))
    world.deploy(bundles["first"])
    with pytest.raises(UsageError) as refused:
        world.deploy(bundles[name])
    assert f"mlkit run RECIPE serve.{key}={value}" in refused.value.hint
    world.columns = {key: value}
    summary = world.deploy(bundles[name])
    assert [change["breaking"] for change in summary["signature_changes"]] == [False]
    assert len(world.warnings) == 1  # it is told all the same
    assert world.ask() == (200, bundles[name].manifest.version)


def test_the_way_back_tells_whose_requests_it_refuses(world: Deployed, bundles: dict[str, Bundle]) -> None:
    from mlflowkit.rollout import commands

    world.deploy(bundles["fewer"], allow_breaking=True)
    effect = commands.describe_effect(world.files, "rollback")
    version = bundles["first"].manifest.version
    told = "column income (numeric) is new: requests without it are refused"
    assert effect == f"go back to version {version}; clients of the present version break: {told}"


def test_a_champion_whose_bundle_is_gone_is_told(world: Deployed, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    table = world.files.table()
    assert table is not None
    lost = table.champion.__class__(**{**_fields(table.champion), "bundle": str(tmp_path / "gone")})
    world.files.write_table(RoutingTable("lending", table.epoch + 1, (lost,)))
    world.deploy(bundles["fewer"])
    assert world.warnings == [
        f"the signature of version {lost.version} cannot be read: whether clients break is unknown"
    ]


def _fields(variant: Any) -> dict[str, Any]:
    return {name: getattr(variant, name) for name in variant.__dataclass_fields__}


def test_a_canary_tells_it_in_its_state_its_first_event_and_its_incident(
    world: Deployed, bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflowkit.rollout import requests
    from mlflowkit.rollout.admin.snapshot import ServiceMonitor

    lease = controller_lease.acquire(world.state)
    assert lease is not None
    events: list[str] = []
    monkeypatch.setattr(
        "mlflowkit.rollout.controller.webhooks.enqueue", lambda files, state, action: events.append(action.message)
    )
    controller = ServiceController(world.files, lease, ControllerDeps(world, lambda *_: None))

    def begin(files: ServiceFiles, request: Request) -> str:
        files.create_json(requests.REQUEST, request.to_json())
        controller.step()
        return request.id

    monkeypatch.setattr(requests, "begin", begin)
    version, told = bundles["fewer"].manifest.version, "column income is gone: requests that have it are refused"
    deployed = world.deploy(bundles["fewer"], strategy="canary", steps=[0, 50], metrics=ERRORS)
    assert '"income"' in deployed["curl"], "the champion answers until the version is promoted"
    controller.step()
    assert world.warnings == [f"breaks clients: {told}"]
    assert world.ask() == (200, bundles["first"].manifest.version)  # mirrored requests only
    saved = states.read(world.files)
    assert saved is not None
    assert [change.message for change in saved.state.signature_changes] == [told]
    assert any(event.endswith(f"; it breaks clients: {told}") for event in events)
    view = ServiceMonitor(world.state).view("lending")
    assert view is not None
    assert view.rollout is not None
    assert f"breaks clients: {told}" in view.rollout.warnings
    assert any(warning.startswith("no metric judges the answers") for warning in view.rollout.warnings)

    from mlflowkit.rollout import commands

    with pytest.raises(UsageError, match="breaks the clients of lending") as refused:
        commands.submit(world.files, "promote", full=True)
    assert "mlkit rollout promote lending --full --allow-breaking" in refused.value.hint
    commands.submit(world.files, "abort", "enough")
    controller.step()
    controller.step()
    (path,) = world.files.list("incidents/*.json")
    incident = world.files.read_json(path.key)
    assert [change["subject"] for change in incident["signature_changes"]] == ["income"]
    text = world.files.read_bytes(path.key.replace(".json", ".md"))
    assert text is not None
    assert f"- breaking: {told}" in text.decode()
    assert version in text.decode()
