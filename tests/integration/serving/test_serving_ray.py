"""The platform and the deploy stage on a real local Ray: one cluster for the whole module, real bundles, real ports."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from mlflowkit.adapters.ray_serve import RayServePlatform, ownership
from mlflowkit.adapters.ray_serve import cluster as clusters
from mlflowkit.adapters.ray_serve.isolated import read_addresses
from mlflowkit.adapters.ray_serve.supervisor import KEEPER, RECONCILER
from mlflowkit.bundle import Bundle
from mlflowkit.errors import BundleError, ServiceError
from mlflowkit.service_state.records import ServiceFiles, process_started, read_json
from mlflowkit.stages import deploy
from mlflowkit.stages.deploy import ServeSection
from mlflowkit.system.machine import command_line
from mlflowkit.values import RoutingTable, ServiceStatus, Variant
from tests.support import ROOT
from tests.support.lending_bundle import ROWS, expected, make_bundle, table
from tests.support.waiting import wait_for

pytestmark = pytest.mark.ray

RECIPE = """
name: lending
task: classification
data:
  source: {kind: csv, path: rows.csv}
  target: outcome
  split: {kind: random}
model: {kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}
serve: {service: lending, port: 0}
"""


class RayService:
    """A state folder with its platform, and what a deploy stage needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / ".mlkit"
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(RECIPE)
        (folder / "rows.csv").write_text("age,outcome\n1,bad\n")
        self.platform = RayServePlatform(self.state, sidecars=("tests.support.sidecar", "no.such_sidecar"))

    def deploy(self, bundle: Bundle, **serve: Any) -> Any:
        out = self.folder / "out" / f"{time.monotonic_ns()}"
        out.mkdir(parents=True)
        context: Any = SimpleNamespace(
            inputs={"package": bundle.path.parent},
            out=out,
            ports=self,
            folder=self.folder,
            recipe=None,
            overrides=(),
            run="run1",
            progress=lambda event: None,
        )
        spec = deploy.Spec(name="lending", serve=ServeSection(service="lending", **{"port": 0, **serve}))
        return deploy.run(spec, context), json.loads((out / "service.json").read_text())

    def status(self) -> ServiceStatus:
        return next(status for status in self.platform.status() if status.service == "lending")

    def mlkit(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        code = "from mlflowkit.cli.app import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "MLKIT_STATE": str(self.state)},
        )


def packaged(folder: Path, seed: int, **more: Any) -> Bundle:
    """As the package stage leaves it: a folder with ``bundle/`` in it."""
    return make_bundle(folder / "bundle", seed, **more)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return packaged(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return packaged(tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayService]:
    """A state folder whose Ray is started once; whatever a test leaves, nothing outlives the module."""
    world = RayService(tmp_path_factory.mktemp("world"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        with patch.context() as there:
            there.chdir(hostile_folder(world.folder))
            world.platform.prewarm()
        yield world
        world.platform.down()


def child_of(supervisor: int, module: str) -> int:
    """The process of a supervisor that runs ``module``."""
    return next(pid for pid in ownership.descendants({supervisor}) if module in command_line(pid))


VENDORS = ("ray", "onnxruntime", "numpy", "uvicorn", "orjson", "starlette", "pyarrow", "psutil", "mlflowkit", "json")


def hostile_folder(folder: Path) -> Path:
    """A working directory with modules named like those that services import; each would leave a file if it ran."""
    hostile = folder / "hostile"
    hostile.mkdir()
    for name in VENDORS:
        (hostile / f"{name}.py").write_text(f"import pathlib; pathlib.Path({str(folder / name)!r}).touch()\n")
    return hostile


@pytest.fixture
def lending(world: RayService, one: Bundle) -> RayService:
    """The service, answering with the first bundle."""
    world.deploy(one)
    assert world.status().variants[0].version == one.manifest.version
    return world


def ask(world: RayService) -> dict[str, Any]:
    reply = httpx.post(f"{world.status().endpoint}/predict", json={"rows": ROWS}, timeout=20)
    assert reply.status_code == 200
    return dict(reply.json())


def test_a_port_in_use_is_told_before_ray_is_started(tmp_path: Path, one: Bundle) -> None:
    other = RayService(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"port {port} on 127.0.0.1 is in use") as refused:
            other.deploy(one, port=port)
    assert "serve.port=" in refused.value.hint
    assert clusters.read(other.state) is None
    assert not clusters.record_path(other.state).exists()


def test_what_a_dead_machine_left_is_down(tmp_path: Path, one: Bundle) -> None:
    from mlflowkit.service_state.records import Desired, GatewaySettings, ReplicaReport

    files = ServiceFiles(tmp_path / "services" / "lending")
    files.write_desired(Desired(1, True, GatewaySettings("lending", port=1)))
    files.write_table(table(3, one))
    files.write_report(
        ReplicaReport("r1", 2**22 + 1, socket.gethostname(), 1.0, 1, 1, "serving", 3, heartbeat=time.time())
    )
    (status,) = RayServePlatform(tmp_path).status()
    assert (status.state, status.ready, status.replicas, status.epoch) == ("down", False, 0, 3)
    assert RayServePlatform(tmp_path).down() == ["lending"]
    assert RayServePlatform(tmp_path).down() == []


def test_deploy_prints_a_curl_line_that_answers_and_is_idempotent(
    lending: RayService, one: Bundle, two: Bundle
) -> None:
    result, served = lending.deploy(one)
    assert served == {key: result.summary[key] for key in ("service", "endpoint", "version", "epoch")}
    assert served["version"] == one.manifest.version
    answered = subprocess.run(result.summary["curl"], shell=True, capture_output=True, text=True, timeout=30)
    share = json.loads(answered.stdout)["predictions"][0]["probabilities"]["bad"]
    assert share == pytest.approx(expected(one.path, ROWS)["probabilities"][0][0], rel=1e-5)
    redeployed, _ = lending.deploy(one)
    assert redeployed.summary["epoch"] == served["epoch"]
    later, _ = lending.deploy(two)
    assert later.summary["epoch"] == served["epoch"] + 1
    assert later.summary["endpoint"] == served["endpoint"]
    assert ask(lending)["model_version"] == two.manifest.version


def test_no_process_of_a_service_imports_from_the_directory_that_it_was_started_in(lending: RayService) -> None:
    assert ask(lending)["predictions"]
    assert [name for name in VENDORS if (lending.folder / name).exists()] == []


def test_a_swap_under_load_fails_no_request(lending: RayService, one: Bundle, two: Bundle) -> None:
    url = lending.status().endpoint
    seen: list[tuple[int, str]] = []
    stop = threading.Event()

    def client() -> None:
        with httpx.Client(base_url=url, timeout=20) as session:
            while not stop.is_set():
                reply = session.post("/predict", json={"rows": ROWS})
                seen.append((reply.status_code, reply.headers.get("x-mlkit-version", "")))

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    epoch = lending.status().epoch
    for step in range(1, 5):
        before = len(seen)
        lending.platform.publish(table(epoch + step, (one, two)[step % 2]))
        wait_for(lambda before=before: len(seen) > before + 30)
    stop.set()
    for thread in threads:
        thread.join()
    assert {code for code, _ in seen} == {200}
    assert {version for _, version in seen} == {one.manifest.version, two.manifest.version}


def test_a_bad_bundle_is_refused_while_the_version_before_answers(
    lending: RayService, one: Bundle, tmp_path: Path
) -> None:
    epoch = lending.status().epoch
    tampered = packaged(tmp_path / "tampered", 3)
    (tampered.path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ServiceError, match=r"model\.onnx was altered.*still answers"):
        lending.platform.publish(table(epoch + 1, tampered))
    with pytest.raises(ServiceError, match=f"{epoch} is not newer"):
        lending.platform.publish(table(epoch, one))
    with pytest.raises(BundleError, match="not blessed"):
        lending.deploy(packaged(tmp_path / "unblessed", 4, blessed=False))
    assert ask(lending)["model_version"] == one.manifest.version
    assert (lending.status().epoch, lending.status().state) == (epoch, "serving")


def test_a_table_of_a_controller_that_lost_its_lease_is_refused(lending: RayService, one: Bundle) -> None:
    files = ServiceFiles(lending.state / "services" / "lending")

    def publish(fence: int) -> int:
        before = files.table()
        assert before is not None
        lending.platform.publish(replace(table(before.epoch + 1, one), fence=fence))
        after = files.table()
        assert after is not None
        assert after.epoch == before.epoch + 1
        return after.fence

    assert publish(5) == 5
    with pytest.raises(ServiceError, match="led by controller 5; controller 4 has lost its lease"):
        publish(4)
    assert publish(5) == 5
    assert publish(0) == 5, "who holds no lease keeps the fence that there is"
    assert publish(6) == 6


def test_weights_roles_and_fewer_versions_are_swapped_to_without_a_proposal(
    lending: RayService, one: Bundle, two: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ServiceFiles(lending.state / "services" / "lending")
    epoch = lending.status().epoch
    champion = table(0, one).champion
    challenger = replace(table(0, two).champion, name="challenger", role="challenger")

    def publish(weight: float) -> None:
        nonlocal epoch
        epoch += 1
        pair = (replace(champion, weight=1 - weight), replace(challenger, weight=weight))
        lending.platform.publish(RoutingTable("lending", epoch, pair if weight else (champion,), salt="s"))

    publish(0.1)
    monkeypatch.setattr(ServiceFiles, "write_proposal", None)  # whoever calls it fails
    for weight in (0.2, 0.5, 1.0, 0.0):
        publish(weight)
        assert {report.epoch for report in files.reports()} == {epoch}


@pytest.mark.slow
def test_an_isolated_version_that_cannot_be_loaded_is_refused_and_one_that_can_answers(
    lending: RayService, one: Bundle, two: Bundle, tmp_path: Path
) -> None:
    lending.deploy(one, isolated={"cpus": 0.1})
    files = ServiceFiles(lending.state / "services" / "lending")
    epoch = lending.status().epoch
    champion = replace(table(0, one).champion, weight=0.5)

    def beside(bundle: Bundle) -> tuple[Variant, Variant]:
        other = replace(table(0, bundle).champion, name="challenger", role="challenger", weight=0.5)
        return champion, replace(other, placement="isolated")

    tampered = packaged(tmp_path / "tampered", 7)
    (tampered.path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ServiceError, match=r"own.*model\.onnx was altered.*still answers"):
        lending.platform.publish(RoutingTable("lending", epoch + 1, beside(tampered), salt="s"))
    assert not (files.folder / "proposal.json").exists()
    assert ask(lending)["model_version"] == one.manifest.version

    lending.platform.publish(RoutingTable("lending", epoch + 1, beside(two), salt="s"))
    truth = expected(two.path, ROWS)["probabilities"][0][0]
    versions = wait_for(lambda: (answer := ask(lending))["model_version"] == two.manifest.version and answer)
    assert versions["predictions"][0]["probabilities"]["bad"] == pytest.approx(truth, rel=1e-5)
    processes = read_addresses(files, two.manifest.identity)
    assert len(processes) == 1
    lending.platform.publish(table(epoch + 2, one))


@pytest.mark.slow
def test_two_replicas_share_the_port_and_a_killed_one_comes_back_with_the_same_table(
    lending: RayService, one: Bundle
) -> None:
    lending.deploy(one, replicas=2)
    files = ServiceFiles(lending.state / "services" / "lending")
    before = {report.pid for report in files.reports()}
    assert len(before) == 2
    page = httpx.get(f"{lending.status().endpoint}/metrics").text
    assert all(f'replica="{report.replica}"' in page for report in files.reports())
    assert page.count("# TYPE mlkit_requests_total counter") == 1
    victim = max(before)
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: process_started(victim) is None)
    wait_for(lambda: lending.status().ready)  # connections that the dying one had accepted are lost with it
    assert ask(lending)["model_version"] == one.manifest.version
    back = wait_for(lambda: [report for report in files.reports() if report.pid not in before])
    wait_for(lambda: all(r.epoch == lending.status().epoch for r in files.reports()) and len(files.reports()) == 2)
    assert back
    lending.deploy(one, replicas=1)
    wait_for(lambda: len(files.reports()) == 1)
    assert ask(lending)["model_version"] == one.manifest.version


def test_limits_of_a_changed_recipe_hold_without_a_restart(lending: RayService, one: Bundle) -> None:
    pid = ServiceFiles(lending.state / "services" / "lending").reports()[0].pid
    lending.deploy(one, max_body_mb=0.0005)
    big = httpx.post(f"{lending.status().endpoint}/predict", json={"rows": ROWS * 5})
    assert big.status_code == 413
    lending.deploy(one)
    assert ServiceFiles(lending.state / "services" / "lending").reports()[0].pid == pid
    assert ask(lending)["predictions"]


def test_the_token_is_private_and_ray_listens_on_loopback_only(lending: RayService) -> None:
    import psutil

    cluster = clusters.wait(lending.state)
    token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(cluster.temp_dir).stat().st_mode) == 0o700
    assert cluster.address.startswith("127.0.0.1:")
    processes = {cluster.pid, *(child.pid for child in psutil.Process(cluster.pid).children(recursive=True))}
    ours = [c for c in psutil.net_connections("tcp") if c.pid in processes and c.status == "LISTEN"]
    assert int(lending.status().endpoint.rsplit(":")[-1]) in {c.laddr.port for c in ours}
    assert {c.laddr.ip.removeprefix("::ffff:") for c in ours} == {"127.0.0.1"}, ours


def test_the_command_line_asks_shows_stops_and_starts_again(lending: RayService, one: Bundle, tmp_path: Path) -> None:
    truth = expected(one.path, ROWS)["probabilities"]

    def shares(done: subprocess.CompletedProcess[str]) -> list[float]:
        assert done.returncode == 0, done.stderr
        return [row["probabilities"]["bad"] for row in json.loads(done.stdout)["predictions"]]

    want = pytest.approx([row[0] for row in truth], rel=1e-5)
    assert shares(lending.mlkit("predict", "lending", "--rows", json.dumps(ROWS), "--json")) == want
    assert shares(lending.mlkit("predict", "--json", stdin=json.dumps({"rows": ROWS}))) == want
    text = "age,income,debt,term,purpose\n41,52000,,36 months,car\n23,18000,900,60 months,\n"
    assert shares(lending.mlkit("predict", "--json", stdin=text)) == want
    (tmp_path / "rows.csv").write_text(text)
    url = lending.status().endpoint
    by_file = lending.mlkit("predict", "--endpoint", url, "--file", str(tmp_path / "rows.csv"), "--json")
    assert shares(by_file) == want
    wrong = lending.mlkit("predict", "lending", "--rows", '[{"agee": 1}]', "--json")
    assert wrong.returncode == 2
    assert "Did you mean age?" in json.loads(wrong.stdout)["error"]["message"]
    assert lending.mlkit("predict", "landing", "--rows", "[]").returncode == 2

    shown = json.loads(lending.mlkit("status", "--json").stdout)["services"]
    listed = [(service["service"], service["endpoint"], service["state"]) for service in shown]
    assert listed == [("lending", url, "serving")]
    variant = {
        "name": "champion",
        "version": one.manifest.version,
        "role": "champion",
        "weight": 1.0,
        "state": "serving",
    }
    assert [{key: shown_variant[key] for key in variant} for shown_variant in shown[0]["variants"]] == [variant]

    assert lending.mlkit("down", "lendin").returncode == 2
    assert json.loads(lending.mlkit("down", "lending", "--json").stdout) == {"stopped": ["lending"]}
    assert lending.status().state == "down"
    gone = lending.mlkit("predict", "lending", "--rows", json.dumps(ROWS))
    assert gone.returncode == 3
    assert "nothing answers" in gone.stderr
    up = lending.mlkit("up", str(lending.recipe), "--json")
    assert up.returncode == 0, up.stderr
    assert json.loads(up.stdout)["version"] == one.manifest.version
    assert ask(lending)["model_version"] == one.manifest.version


def test_status_loads_neither_ray_nor_the_libraries_of_models(lending: RayService) -> None:
    code = (
        "import sys; from mlflowkit.adapters.ray_serve import RayServePlatform; from pathlib import Path; "
        "assert RayServePlatform(Path(sys.argv[1])).status()[0].ready; "
        "print([name for name in ('ray', 'numpy', 'pandas', 'torch', 'onnxruntime', 'uvicorn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(lending.state)], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_a_service_that_nobody_supervises_says_so_and_goes_on_under_the_next_supervisor(
    lending: RayService, one: Bundle
) -> None:
    cluster = clusters.wait(lending.state)
    epoch, endpoint = lending.status().epoch, lending.status().endpoint
    processes = clusters.process_group(cluster)
    assert len(processes) > 3
    keeper = child_of(cluster.pid, KEEPER)
    for pid in (keeper, cluster.pid):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: clusters.read(lending.state) is None)
    assert ask(lending)["model_version"] == one.manifest.version
    assert lending.status().supervision == "nothing would start it again: mlkit up RECIPE"
    assert "supervision  nothing would start it again" in lending.mlkit("status").stdout
    assert lending.platform.ensure(ServeSection(service="lending", port=0)) == endpoint
    wait_for(lambda: not [pid for pid, started in processes if process_started(pid) == started])
    assert ask(lending)["model_version"] == one.manifest.version
    assert (lending.status().epoch, lending.status().supervision) == (epoch, "")


def test_an_isolated_version_that_no_table_has_any_more_is_stopped(lending: RayService, two: Bundle) -> None:
    files = ServiceFiles(lending.state / "services" / "lending")
    addresses = files.folder / "isolated" / two.manifest.identity[:16]
    wait_for(lambda: not addresses.exists())  # they are kept for a while
    wait_for(lambda: not read_json(files.folder / "isolated.json"))


@pytest.mark.slow
def test_a_reconciler_or_a_sidecar_that_dies_is_restarted(lending: RayService, one: Bundle) -> None:
    cluster = clusters.wait(lending.state)
    epoch, endpoint = lending.status().epoch, lending.status().endpoint
    pid_file = lending.state / "sidecar.pid"
    sidecar = int(wait_for(lambda: pid_file.exists() and pid_file.read_text()))
    os.kill(sidecar, signal.SIGKILL)
    restarted = int(wait_for(lambda: int(pid_file.read_text()) != sidecar and pid_file.read_text()))
    reconciler = child_of(cluster.pid, RECONCILER)
    kept = {restarted, child_of(cluster.pid, KEEPER)}
    ray = {(pid, started) for pid, started in clusters.process_group(cluster) if pid not in kept}
    os.kill(reconciler, signal.SIGKILL)
    wait_for(lambda: not [pid for pid, started in ray if process_started(pid) == started])
    wait_for(lambda: lending.status().ready)
    assert (lending.status().epoch, lending.status().endpoint) == (epoch, endpoint)
    assert ask(lending)["model_version"] == one.manifest.version
    assert clusters.wait(lending.state).pid == cluster.pid
    assert int(pid_file.read_text()) == restarted
    assert process_started(restarted) is not None


def test_down_leaves_no_process_and_no_folder(lending: RayService, two: Bundle) -> None:
    cluster = clusters.wait(lending.state)
    processes = {*clusters.process_group(cluster), (cluster.pid, cluster.started)}
    assert list(lending.platform.down()) == ["lending"]
    assert [pid for pid, started in processes if process_started(pid) == started] == []
    assert clusters.process_group(cluster) == set()
    assert not Path(cluster.temp_dir).exists()
    with pytest.raises(ServiceError, match="not up"):
        lending.platform.publish(RoutingTable("lending", 99, table(99, two).variants))


def test_a_port_in_use_is_told_before_anything_is_prewarmed(tmp_path: Path) -> None:
    platform = RayServePlatform(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"port {port} on 127.0.0.1 is in use") as refused:
            platform.prewarm(ServeSection(service="early", port=port))
    assert "serve.port=" in refused.value.hint
    assert not (tmp_path / "ray").exists()
