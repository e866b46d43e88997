"""API keys over the wire, and a replica that follows its file of them."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.bundle import Bundle
from mlflowkit.errors import ServiceError
from mlflowkit.service_state.records import Desired, Proposal, ServiceFiles
from mlflowkit.serving import auth, key_file
from mlflowkit.serving.key_file import KeyFile
from mlflowkit.serving.replica import Replica
from tests.support.gateways import InProcess
from tests.support.lending_bundle import ROWS, table
from tests.support.waiting import wait_for
from tests.support.warm_commands import warm_command

from .test_serving_gateway import tensors
from .test_serving_versions import report, service


@pytest.fixture(scope="module")
def locked(first: Bundle):  # type: ignore[no-untyped-def]
    """A gateway with a key for each scope, and their tokens."""
    from mlflowkit.service_state.records import GatewaySettings

    running = InProcess(GatewaySettings("lending"))
    running.swap(table(1, first))
    made = {scope: auth.make_key([scope]) for scope in auth.SCOPES}
    running.plane.keys = auth.Keyring(key for key, _ in made.values())
    yield running, {scope: token for scope, (_, token) in made.items()}
    running.close()


PREDICT = ("POST", "/predict", {"rows": ROWS})
INFER = ("POST", "/v2/models/lending/infer", {"inputs": tensors(ROWS)})
FEEDBACK = ("POST", "/v2/feedback", {"id": "a", "label": "good"})


@pytest.mark.parametrize(
    ("request_", "allowed"),
    [
        (PREDICT, {"infer"}),
        (INFER, {"infer"}),
        (FEEDBACK, {"feedback"}),
        (("GET", "/metrics", None), {"infer", "feedback", "admin", "metrics"}),
        (("GET", "/v2/models/lending", None), {"infer", "feedback", "admin"}),
        (("GET", "/v2", None), {"infer", "feedback", "admin"}),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_each_door_opens_for_its_scope(
    locked: tuple[InProcess, dict[str, str]], request_: tuple[str, str, object], allowed: set[str]
) -> None:
    running, tokens = locked
    method, path, body = request_
    bare = running.client.request(method, path, json=body)
    assert (bare.status_code, list(bare.json())) == (401, ["error"])
    assert bare.headers["www-authenticate"].startswith("Bearer")
    assert bare.headers["x-mlkit-request-id"]
    for scope, token in tokens.items():
        for headers in (
            {"authorization": f"Bearer {token}"},
            {"authorization": f"bearer {token}"},
            {"x-api-key": token},
        ):
            reply = running.client.request(method, path, json=body, headers=headers)
            assert (reply.status_code == 403) == (scope not in allowed), reply.text
            assert reply.status_code != 401


def test_wrong_keys_are_refused_counted_and_never_repeated(locked: tuple[InProcess, dict[str, str]]) -> None:
    running, tokens = locked
    token = tokens["infer"]
    wrong = [f"Bearer {token}x", f"Basic {token}", token, "Bearer", "Bearer mlk_00000000_" + "a" * 43, "Bearer \xff"]
    for value in wrong:
        reply = running.client.post("/predict", json={"rows": ROWS}, headers={"authorization": value.encode("latin-1")})
        assert reply.status_code == 401, value
        assert token not in reply.text
    page = running.client.get("/metrics", headers={"x-api-key": token}).text
    refused = next(
        line for line in page.splitlines() if line.startswith("mlkit_auth_refusals_total{") and '"401"' in line
    )
    assert float(refused.split()[-1]) >= len(wrong)
    assert token not in page


def test_health_is_everybodys_and_keys_are_checked_before_the_body(locked: tuple[InProcess, dict[str, str]]) -> None:
    running, _ = locked
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/lending/ready"):
        assert running.client.get(path).status_code == 200
    assert running.client.post("/predict", content=b"{").status_code == 401
    assert running.client.post("/predict", content=b"x" * (9 << 20)).status_code == 401


def problems(files: ServiceFiles) -> list[str]:
    """What `mlkit status` and `mlkit rollout status` say is wrong with the service."""
    state = str(files.folder.parent.parent)
    found = []
    for command in (["status"], ["rollout", "status"]):
        done = subprocess.run(
            [*warm_command("mlflowkit.cli"), *command, "--state", state, "--json"], capture_output=True, check=True
        )
        found.append(json.loads(done.stdout)["services"][0]["problems"])
    assert found[0] == found[1]
    return list(found[0])


def test_a_replica_follows_its_keys_while_it_runs(tmp_path: Path, first: Bundle) -> None:
    path = tmp_path / "keys.json"
    key, token = auth.make_key(["infer"])
    auth.write_keys(path, [key])
    files = service(tmp_path, keys=str(path))
    files.write_table(table(1, first))
    replica = Replica(files.folder, OnnxRuntime(), "r1")
    try:
        report(files, lambda found: found.state == "serving")
        url = files.desired().settings.endpoint  # type: ignore[union-attr]

        def code(token: str) -> int:
            return httpx.post(f"{url}/predict", json={"rows": ROWS}, headers={"x-api-key": token}).status_code

        assert (code(token), code("")) == (200, 401)
        other, second = auth.make_key(["infer"])
        auth.write_keys(path, [other])
        wait_for(lambda: (code(token), code(second)) == (401, 200))
        auth.write_private(path, b"{ damaged")
        third, _ = auth.make_key(["infer"])
        told = report(files, lambda found: found.warning != "")
        assert f"API keys: {path} is not JSON" in told.warning
        assert "the previous keys stay valid for 60 s; mlkit key create" in told.warning
        assert told.state == "serving"
        assert problems(files) == [told.warning]
        assert code(second) == 200
        path.unlink()
        wait_for(lambda: code(second) == 401)
        assert "every request is rejected" in report(files, lambda found: "there is no file" in found.warning).warning
        auth.write_keys(path, [other, third])
        wait_for(lambda: code(second) == 200)
        report(files, lambda found: found.warning == "")
        assert problems(files) == []
        replica.check()
    finally:
        replica.stop()


def test_a_damaged_file_keeps_the_former_keys_for_a_while_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaking the file is a way to revoke, too; a moment of it, while an editor writes, is not."""
    path = tmp_path / "keys.json"
    key, token = auth.make_key(["infer"])
    auth.write_keys(path, [key])
    applied: list[auth.Keyring | None] = []
    follower = KeyFile(applied.append)
    try:
        follower.follow(str(path))
        assert applied[-1] is not None
        applied[-1].check(token.encode(), "infer")
        path.write_text("{ dam")
        wait_for(lambda: "stay valid for 60 s" in follower.warning)
        applied[-1].check(token.encode(), "infer")
        monkeypatch.setattr(key_file, "DAMAGED_SECONDS", 0.2)
        wait_for(lambda: len(applied[-1] or ()) == 0)
        assert follower.warning
        auth.write_keys(path, [key])
        wait_for(lambda: len(applied[-1] or ()) == 1)
        assert follower.warning == ""
        stamp = path.stat()
        auth.write_keys(path, [])
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as a copied file has it: another inode
        wait_for(lambda: len(applied[-1] or ()) == 0)
    finally:
        follower.stop()


def test_a_revocation_does_not_wait_for_a_version_that_loads(
    tmp_path: Path, first: Bundle, second: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"
    key, token = auth.make_key(["infer"])
    auth.write_keys(path, [key])
    files = service(tmp_path, keys=str(path))
    files.write_table(table(1, first))
    loading, go_on = threading.Event(), threading.Event()

    class Slow(OnnxRuntime):
        def load(self, model: Path, **more: Any) -> Any:
            if model.parent == second.path:
                loading.set()
                go_on.wait(30)
            return super().load(model, **more)

    replica = Replica(files.folder, Slow(), "r1")
    try:
        report(files, lambda found: found.state == "serving")
        url = files.desired().settings.endpoint  # type: ignore[union-attr]
        files.write_proposal(Proposal("t1", table(2, second)))
        assert loading.wait(30)
        auth.write_keys(path, [])
        headers = {"x-api-key": token}
        wait_for(lambda: httpx.post(f"{url}/predict", json={"rows": ROWS}, headers=headers).status_code == 401)
        assert not go_on.is_set()
    finally:
        go_on.set()
        replica.stop()


def test_a_replica_refuses_to_be_reached_without_keys(tmp_path: Path, first: Bundle) -> None:
    files = service(tmp_path, host="0.0.0.0")
    with pytest.raises(ServiceError, match="no API keys"):
        Replica(files.folder, OnnxRuntime(), "r1")
    path = tmp_path / "keys.json"
    auth.write_keys(path, [auth.make_key(["infer"])[0]])
    desired = files.desired()
    assert desired is not None
    files.write_desired(replace(desired, settings=replace(desired.settings, keys=str(path))))
    files.write_table(table(1, first))
    replica = Replica(files.folder, OnnxRuntime(), "r1")
    try:
        report(files, lambda found: found.state == "serving")
        exposed = replace(desired.settings, keys="")
        files.write_desired(Desired(2, True, exposed))
        found = report(files, lambda found: found.generation == 2)
        assert "no API keys" in found.message
        assert httpx.post(f"{exposed.endpoint}/predict", json={"rows": ROWS}).status_code == 401
        replica.check()
    finally:
        replica.stop()


def test_the_platform_maps_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import stat

    from mlflowkit.adapters.ray_serve import platform
    from mlflowkit.service_state.records import ServiceFiles
    from mlflowkit.stages.deploy import ServeSection

    files = ServiceFiles(tmp_path / "state" / "services" / "lending")
    wanted: Callable[[ServeSection], object] = lambda section: platform.requested_settings(files, section)  # noqa: E731
    with pytest.raises(ServiceError, match="no API keys"):
        wanted(ServeSection(service="lending", port=0, host="0.0.0.0"))
    path = tmp_path / "keys.json"
    named = ServeSection.model_validate({"service": "lending", "port": 0, "auth": {"keys": "keys.json"}}).beside(
        tmp_path
    )
    with pytest.raises(ServiceError, match="no file of API keys"):
        wanted(named)
    auth.write_keys(path, [auth.make_key(["infer"])[0]])
    assert platform.requested_settings(files, named).keys == str(path)
    section = ServeSection.model_validate({"service": "lending", "port": 0, "auth": {"keys_env": "LENDING_KEYS"}})
    monkeypatch.delenv("LENDING_KEYS", raising=False)
    with pytest.raises(ServiceError, match="LENDING_KEYS is not set"):
        wanted(section)
    monkeypatch.setenv("LENDING_KEYS", path.read_text())
    settings = platform.requested_settings(files, section)
    platform.write_environment_keys(files, section)
    assert auth.read_keys(Path(settings.keys)) == auth.read_keys(path)
    assert stat.S_IMODE(Path(settings.keys).stat().st_mode) == 0o600


def test_mlkit_predict_takes_a_key(
    locked: tuple[InProcess, dict[str, str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    from mlflowkit.cli.app import main

    running, tokens = locked
    monkeypatch.delenv("MLKIT_API_KEY", raising=False)
    command = ["predict", "--endpoint", running.url, "--rows", json.dumps(ROWS), "--json"]

    def run(*more: str) -> tuple[int, dict[str, object]]:
        with pytest.raises(SystemExit) as ended:
            main([*command, *more])
        return int(ended.value.code or 0), json.loads(capsys.readouterr().out)

    code, told = run()
    assert (code, "MLKIT_API_KEY" in str(told)) == (2, True)
    assert len(run("--key", tokens["infer"])[1]["predictions"]) == len(ROWS)  # type: ignore[arg-type]
    monkeypatch.setenv("MLKIT_API_KEY", tokens["infer"])
    assert run()[0] == 0
    assert run("--key", tokens["feedback"])[0] == 2
