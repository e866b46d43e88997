"""The compiled Kubeflow pipeline: its text, Kubeflow's own protocol, and what its graph runs."""

from __future__ import annotations

import base64
import dataclasses
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mlflowkit.delivery.delivery_plan import DeliveryPlan, delivery_plan
from mlflowkit.delivery.delivery_settings import DeliverySection
from mlflowkit.delivery.targets import target
from mlflowkit.testing import delivery_plans
from tests.support.golden import Golden
from tests.support.kfp_runner import KfpRun, TaskFailed
from tests.support.tools import require_tool

FILE = "pipelines/mlkit-my-model.yaml"
OWN_IMAGE = f"ghcr.io/acme/steps@sha256:{'5' * 64}"
SECRETS = {
    ("registry", "token"): "registry-token",
    ("lending", "db-url"): "postgres://lending",
    ("mlkit-git", "token"): "git-token",
    ("code", "token"): "code-token",
}
STRICT = """
import sys, yaml
from google.protobuf.json_format import ParseDict
from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineDeploymentConfig, PipelineSpec, PlatformSpec
pipeline, platform = yaml.safe_load_all(open(sys.argv[1]))
ParseDict(pipeline, PipelineSpec())
ParseDict(pipeline["deploymentSpec"], PipelineDeploymentConfig())
ParseDict(platform, PlatformSpec())
for executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
    ParseDict(executor, kubernetes.KubernetesExecutorConfig())
"""


def plan(**kubeflow: object) -> DeliveryPlan:
    """The plan of a cluster, with options of the target."""
    shipped = delivery_plans()["pods"]
    section = shipped.section.model_dump(mode="json", exclude_unset=True)
    section["kubeflow"] = {**section["kubeflow"], **kubeflow}
    return delivery_plan(DeliverySection.model_validate(section), shipped.recipe, default_base=shipped.images[0].base)


def pipeline(**kubeflow: object) -> str:
    return target("kubeflow").render(plan(**kubeflow))[FILE]


def test_the_text(golden: Golden) -> None:
    golden("kubeflow.yaml", pipeline())


@pytest.mark.delivery
@pytest.mark.parametrize(
    ("text", "mutant"),
    [
        ("", ""),
        ("enableCache:", "enableCaches:"),
        ("resourceMemoryLimit:", "resourceMemorysLimit:"),
        ("dependentTasks:", "dependantTasks:"),
        ("envVar:", "envVariable:"),
        ("activeDeadlineSeconds:", "deadlineSeconds:"),
        ("cpuRequest: 4.0", "cpuRequest: four"),
    ],
)
def test_kubeflows_protocol_takes_it_and_refuses_an_unknown_field(tmp_path: Path, text: str, mutant: str) -> None:
    python = Path(require_tool("kfp")).with_name("python")
    file = tmp_path / "pipeline.yaml"
    for kubeflow in ({}, {"image": OWN_IMAGE, "code": {"name": "code", "key": "token"}}):
        assert text in pipeline(**kubeflow)
        file.write_text(pipeline(**kubeflow).replace(text, mutant) if text else pipeline(**kubeflow))
        done = subprocess.run([python, "-c", STRICT, str(file)], capture_output=True, text=True, timeout=120)
        assert (done.returncode == 0) == (mutant == ""), done.stderr


class RecordedWorld:
    """A repository, and an `mlkit` that writes down what it was asked, where and with which variables."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.repository = folder, folder / "lending.git"
        self.repository.mkdir()
        self.git("init", "-q", "-b", "main")
        self.commit("first")
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.calls: Path = folder / "calls"
        self.runs = 0
        self.program("sleep", "exit 0")
        self.answers("started")

    def git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.repository), "-c", "user.name=a", "-c", "user.email=a@example.com", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    def commit(self, text: str) -> str:
        (self.repository / "file").write_text(text)
        self.git("add", "-A")
        self.git("commit", "-qm", text)
        return self.git("rev-parse", "HEAD")

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.bin / name).chmod(0o755)

    def answers(self, action: str, codes: str = "") -> None:
        """What a trigger is answered, and the exit codes of the next judgements."""
        (self.folder / "codes").write_text(codes.replace(" ", "\n"))
        self.program(
            "mlkit",
            f"""secrets="${{DB_URL:-}} ${{MLKIT_GIT_TOKEN:-}} ${{MLKIT_REGISTRY_TOKEN:-}}"
echo "$(cat file) | $@ | $secrets" >> {self.calls}
if [ "$1" = trigger ]; then echo '{{"action": "{action}"}}'; fi
if [ "$2" = judge ]; then
  mkdir -p "$MLKIT_OUT"; echo judged > "$MLKIT_OUT/report.json"
  code=$(head -n 1 {self.folder}/codes); sed -i 1d {self.folder}/codes; exit "${{code:-0}}"
fi
if [ "$1" = image ]; then echo pushed > "$MLKIT_OUT/image.json"; fi
if [ "$2" = promote ]; then cat "$MLKIT_OUT/image.json" >> {self.folder}/promoted; fi
for word; do case "$word" in */report.json) cat "$word" > /dev/null || exit 9;; esac; done""",
        )

    def run(self, text: str, **arguments: object) -> KfpRun:
        environment = {"PATH": f"{self.bin}:{os.environ['PATH']}", "GIT_TERMINAL_PROMPT": "0"}
        self.runs += 1
        folder = self.folder / f"run-{self.runs}"
        folder.mkdir()
        return KfpRun(text, folder, environment, SECRETS, **arguments)  # type: ignore[arg-type]

    def lines(self) -> list[list[str]]:
        return [line.split(" | ") for line in self.calls.read_text().splitlines()]


@pytest.fixture
def world(tmp_path: Path) -> RecordedWorld:
    return RecordedWorld(tmp_path)


STEPS = ["trigger", "check", "judge", "finish", "image", "promote-staging", "settle-staging", "promote-production",
         "settle-production"]  # fmt: skip


def test_every_step_sees_the_commit_that_the_first_one_found(world: RecordedWorld) -> None:
    def move(name: str) -> None:
        if name == "judge":
            world.commit("second")

    run = world.run(pipeline(image=OWN_IMAGE), before=move)
    run.run(repository=str(world.repository), because="drift")
    assert run.ran == STEPS
    assert {commit for commit, _, _ in world.lines()} == {"first"}
    assert world.lines()[0][1] == "trigger recipes/my_model.yaml --because drift --json"
    assert (world.folder / "promoted").read_text().splitlines() == ["pushed"] * 2
    assert sum("--from" in line[1] for line in world.lines()) == 3


def test_a_step_has_the_secrets_that_it_needs_and_no_other(world: RecordedWorld) -> None:
    world.run(pipeline(image=OWN_IMAGE)).run(repository=str(world.repository))
    secrets = {name: line[2] for name, line in zip(STEPS, world.lines(), strict=True)}
    assert secrets["check"] == "postgres://lending  "
    assert secrets["judge"] == "postgres://lending git-token registry-token"
    assert secrets["image"] == "  registry-token"
    assert secrets["settle-production"] == " git-token "


@pytest.mark.parametrize("action", ["nothing-changed", "running", "cooldown"])
def test_nothing_runs_where_there_is_no_work(world: RecordedWorld, action: str) -> None:
    world.answers(action)
    run = world.run(pipeline(image=OWN_IMAGE))
    run.run(repository=str(world.repository))
    assert (run.ran, run.skipped) == (["trigger"], ["there-is-work"])


def test_an_inconclusive_version_is_not_delivered(world: RecordedWorld) -> None:
    world.answers("started", codes="4")
    run = world.run(pipeline(image=OWN_IMAGE))
    run.run(repository=str(world.repository))
    assert (run.ran, run.skipped) == (["trigger", "check", "judge", "finish"], ["passed"])


def test_a_failed_gate_ends_the_run_and_a_failure_of_the_world_is_tried_again(world: RecordedWorld) -> None:
    world.answers("started", codes="3 1")
    run = world.run(pipeline(image=OWN_IMAGE))
    with pytest.raises(TaskFailed, match="judge: exit code 1"):
        run.run(repository=str(world.repository))
    assert [line[1].split()[1] for line in world.lines()] == ["recipes/my_model.yaml", "check", "judge", "judge"]


def test_a_revision_is_no_text_of_a_script(world: RecordedWorld) -> None:
    run = world.run(pipeline(image=OWN_IMAGE))
    with pytest.raises(TaskFailed, match="trigger"):
        run.run(repository=str(world.repository), revision=f"main; touch {world.folder}/harmed; $(touch harmed)")
    assert not list(world.folder.rglob("harmed"))


def test_a_tag_and_an_abbreviated_commit_are_revisions_too(world: RecordedWorld) -> None:
    first = world.git("rev-parse", "HEAD")
    world.git("tag", "v1")
    world.commit("second")
    for revision in ("v1", first[:12]):
        world.run(pipeline(image=OWN_IMAGE)).run(repository=str(world.repository), revision=revision)
    assert {commit for commit, _, _ in world.lines()} == {"first"}


class _PrivateFiles(SimpleHTTPRequestHandler):
    """Files for who has the token, as a git host asks for it."""

    def do_GET(self) -> None:
        token = base64.b64encode(b"mlkit:code-token").decode()
        if self.headers.get("Authorization") == f"Basic {token}":
            super().do_GET()
        else:
            self.send_error(401)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def private_server(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_PrivateFiles, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_private_repository_is_read_with_its_token(world: RecordedWorld) -> None:
    world.git("update-server-info")
    text = pipeline(image=OWN_IMAGE, code={"name": "code", "key": "token"})
    with private_server(world.repository) as address:
        world.run(text).run(repository=f"{address}/.git")
        assert len(world.lines()) == len(STEPS)
        run = world.run(text.replace("extraHeader", "otherHeader"))
        with pytest.raises(TaskFailed, match="trigger"):
            run.run(repository=f"{address}/.git")


def test_packages_are_installed_only_where_the_image_has_none() -> None:
    assert "apt-get install" in pipeline()
    assert "-r requirements.txt" in pipeline()
    assert "apt-get" not in pipeline(image=OWN_IMAGE)
    assert "pip install" not in pipeline(image=OWN_IMAGE)


def test_a_judgement_that_may_not_be_inconclusive_has_no_branch() -> None:
    strict = plan()
    steps = tuple(dataclasses.replace(step, exit_codes=(0,)) for step in strict.steps)
    text = target("kubeflow").render(dataclasses.replace(strict, steps=steps))[FILE]
    assert "comp-passed" not in text
    assert "comp-there-is-work" in text
