"""The jobs of a generated workflow that deliver, executed by act: buildah, a real registry, and environments in git."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from mlflowkit.bundle import Bundle
from mlflowkit.ci.environments.environment_file import environment_file
from mlflowkit.ci.recipe_export import export_recipe
from mlflowkit.delivery.gitops.desired_delivery import DesiredDelivery, parse_delivery
from mlflowkit.delivery.gitops.served_state import ServedState
from mlflowkit.delivery.image.image_record import FILE, read_image_record
from tests.support.act_world import CANARIES, ActWorld
from tests.support.git_project import GitProject
from tests.support.image_world import ImageWorld, image_world
from tests.support.lending_bundle import make_bundle

pytestmark = [pytest.mark.delivery, pytest.mark.heavy, pytest.mark.slow, pytest.mark.timeout(900)]
WORKFLOW = ".github/workflows/mlkit-lending.yml"
OVERLAY = "deploy/overlays/staging"


@dataclass
class FakeGateway:
    """What answers `GET /v2/delivery`, and notes the keys that it is shown."""

    url: str = ""
    champion: str = ""
    content: Callable[[], str] = lambda: ""
    """The digest of the delivery.yaml that it acts on."""
    keys: list[str] = field(default_factory=list)


class DeliveryRunner:
    """A project that is delivered: its workflow, its registry, its environments' repository, and a judged bundle."""

    def __init__(self, folder: Path, images: ImageWorld, gateway: FakeGateway) -> None:
        self.images, self.remote, self.logs = images, folder / "environments.git", list[str]()
        self.gateway = gateway
        recipe = images.recipe
        recipe.write_text(
            recipe.read_text() + f"  secrets: {{DB_URL: {{env: DB_URL}}}}\n"
            f"  environments:\n    staging: {{promote: automatic, repo: {self.remote}, gateway: '{gateway.url}'}}\n"
            "  targets: [github, kubernetes, docker]\n"
        )
        export_recipe(recipe)
        GitProject(folder / "seed").git("init", "-q", "--bare", "-b", "main", str(self.remote))
        images.git("remote", "add", "origin", "https://github.com/acme/lending.git")
        images.git("add", "-A")
        images.git("commit", "-qm", "Deliver")
        images.git("push", "-q", str(self.remote), "HEAD:main")  # the overlays
        self.act = ActWorld(folder / "act", images.root)
        policy = environment_file(recipe, "staging").policy
        judged = self.act.artifacts / "mlkit-lending" / "mlkit"
        judged.mkdir(parents=True)
        self.bundle: Bundle = make_bundle(judged / "bundle", 1, policy=policy)
        report = {
            "schema": 1, "recipe": "lending", "path": "recipe.yaml", "status": "done", "exit_code": 0,
            "identity": self.identity, "run": "run-1",
        }  # fmt: skip
        (judged / "report.json").write_text(json.dumps(report))

    @property
    def identity(self) -> str:
        return self.bundle.manifest.identity

    def run(self, job: str) -> int:
        settings = ("CONTAINERS_REGISTRIES_CONF", "CONTAINERS_STORAGE_CONF", "BUILDAH_ISOLATION")
        env = {name: self.images.environment[name] for name in settings}
        env |= {name: value for name, value in CANARIES.items() if not name.startswith(("GITHUB_", "MLKIT_"))}
        workflow = self.act.alone(WORKFLOW, job)
        done = self.act.run(workflow, "push", env=env, secrets=CANARIES, timeout=600)
        self.logs.append(done.stdout + done.stderr)
        return done.returncode

    def file(self, path: str) -> str:
        return self.images.git("--git-dir", str(self.remote), "show", f"main:{path}")

    def content(self) -> str:
        """The digest of the environment's file."""
        command = ["git", "--git-dir", str(self.remote), "show", f"main:{OVERLAY}/delivery.yaml"]
        return hashlib.sha256(subprocess.run(command, capture_output=True, check=True).stdout).hexdigest()

    def desired(self) -> DesiredDelivery:
        return parse_delivery(self.file(f"{OVERLAY}/delivery.yaml") + "\n")


@contextmanager
def fake_gateway() -> Iterator[FakeGateway]:
    """A gateway on a port of this machine."""
    gateway = FakeGateway()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            gateway.keys.append(self.headers.get("authorization", ""))
            served = ServedState("lending", gateway.champion).to_json()
            record = {"served": served, "content": gateway.content(), "action": "none", "fault": "", "age": 1.0}
            body = json.dumps(record).encode()
            self.send_response(200 if self.path == "/v2/delivery" else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *values: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        gateway.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield gateway
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def delivery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeliveryRunner]:
    with fake_gateway() as served, image_world(tmp_path_factory.mktemp("images")) as images:
        runner = DeliveryRunner(tmp_path_factory.mktemp("delivery"), images, served)
        served.champion, served.content = runner.identity, runner.content
        yield runner


def test_the_job_image_pushes_image_and_bundle_and_hands_their_digests_on(delivery: DeliveryRunner) -> None:
    assert delivery.run("image") == 0, delivery.logs[-1][-4000:]
    record = read_image_record(delivery.act.artifacts / "mlkit-lending-image" / FILE)
    assert record.bundle is not None
    assert record.bundle.identity == delivery.identity
    assert record.images["serve"].revision == delivery.images.git("rev-parse", "HEAD")
    assert not record.images["serve"].dirty


def test_the_job_promote_commits_the_version_and_the_digest_of_its_image(delivery: DeliveryRunner) -> None:
    assert delivery.run("promote-staging") == 0, delivery.logs[-1][-4000:]
    candidate = delivery.desired().candidate
    record = read_image_record(delivery.act.artifacts / "mlkit-lending-image" / FILE)
    assert candidate is not None
    assert candidate.identity == delivery.identity
    assert record.bundle is not None
    assert candidate.bundle == record.bundle.reference
    assert record.images["serve"].digest in delivery.file(f"{OVERLAY}/images/kustomization.yaml")
    assert delivery.run("promote-staging") == 0, delivery.logs[-1][-4000:]
    assert delivery.images.git("--git-dir", str(delivery.remote), "rev-list", "--count", "main") == "3"


def test_the_job_settle_asks_the_gateway_and_commits_the_champion(delivery: DeliveryRunner) -> None:
    assert delivery.run("settle-staging") == 0, delivery.logs[-1][-4000:]
    desired = delivery.desired()
    assert desired.candidate is None
    assert desired.champion is not None
    assert desired.champion.identity == delivery.identity
    assert delivery.gateway.keys == [f"Bearer {CANARIES['MLKIT_API_KEY']}"]


def test_no_secret_is_in_a_log_an_artifact_the_registry_or_the_environments(delivery: DeliveryRunner) -> None:
    assert len(delivery.logs) >= 4
    artifacts = [path.read_bytes() for path in delivery.act.artifacts.rglob("*") if path.is_file()]
    commits = delivery.images.git("--git-dir", str(delivery.remote), "log", "-p", "--all")
    where = {
        "logs": "".join(delivery.logs).encode(), "artifacts": b"".join(artifacts),
        "the registry": delivery.images.stored(), "the environments": commits.encode(),
    }  # fmt: skip
    leaks = [
        (name, place) for place, text in where.items() for name, value in CANARIES.items() if value.encode() in text
    ]
    assert not leaks
