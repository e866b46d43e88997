"""The generated GitLab pipeline: its text, its schema, and what its scripts do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlflowkit.delivery.targets import target
from mlflowkit.testing import delivery_plans
from tests.support.golden import Golden
from tests.support.tools import require_tool

FILE = ".gitlab/mlkit-my-model.yml"


def pipeline() -> str:
    return target("gitlab").render(delivery_plans()["gitlab"])[FILE]


def test_the_text(golden: Golden) -> None:
    golden("gitlab.yml", pipeline())


@pytest.mark.delivery
def test_gitlabs_schema_takes_it_and_refuses_a_misspelt_key(tmp_path: Path) -> None:
    tool = require_tool("check-jsonschema")
    command = [tool, "--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci"]
    for text, code in ((pipeline(), 0), (pipeline().replace("interruptible:", "interuptible:"), 1)):
        (tmp_path / "ci.yml").write_text(text)
        done = subprocess.run([*command, str(tmp_path / "ci.yml")], capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stdout


class Job:
    """A job's scripts under bash, with an `mlkit` that writes its arguments down and ends with the next exit code."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.job: dict[str, Any] = yaml.safe_load(pipeline())[f"mlkit-my-model-{name}"]
        self._bin = folder / "bin"
        self._bin.mkdir()
        (folder / ".mlkit-ci").mkdir()
        self._program("sleep", "exit 0")

    def _program(self, name: str, text: str) -> None:
        (self._bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self._bin / name).chmod(0o755)

    def run(self, codes: tuple[int, ...] = (0,), answer: str = "", **variables: str) -> int:
        """The exit code of the job's script, of which each call of `mlkit` ends with the next code."""
        (self.folder / "codes").write_text("".join(f"{code}\n" for code in codes))
        self._program(
            "mlkit",
            f"cd {self.folder}; echo \"$@\" >> calls; echo '{answer}'\n"
            "code=$(head -n 1 codes); sed -i 1d codes; exit $code",
        )
        environment = {
            "PATH": f"{self._bin}:{os.environ['PATH']}", "CI_PROJECT_DIR": str(self.folder),
            "MLKIT_OUT": f"{self.folder}/.mlkit-ci/out", "MLKIT_STATE": f"{self.folder}/.mlkit-ci/state",
            "MLKIT_BECAUSE": "drift", **variables,
        }  # fmt: skip
        script = "\n".join(self.job["script"])
        command = ["bash", "-e", "-o", "pipefail", "-c", script]
        return subprocess.run(command, cwd=self.folder, env=environment, timeout=60, check=False).returncode

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


def test_judging_is_tried_again_after_the_world_failed_and_its_code_is_kept(tmp_path: Path) -> None:
    job = Job(tmp_path, "judge")
    assert job.run((3, 4)) == 4
    assert (
        job.calls() == [f"ci judge recipes/my_model.yaml --environment production --out {tmp_path}/.mlkit-ci/out"] * 2
    )
    assert (tmp_path / ".mlkit-ci" / "judge.env").read_text() == "MLKIT_CODE=4\n"
    assert job.job["allow_failure"] == {"exit_codes": [4]}


@pytest.mark.parametrize(("code", "ended", "called"), [("4", 4, 0), ("0", 0, 1)])
def test_an_inconclusive_version_is_not_delivered(tmp_path: Path, code: str, ended: int, called: int) -> None:
    job = Job(tmp_path, "image")
    assert (job.run(MLKIT_CODE=code), len(job.calls())) == (ended, called)


@pytest.mark.parametrize("name", ["check", "judge", "image", "promote-staging", "settle-production"])
def test_nothing_runs_where_there_is_no_work(tmp_path: Path, name: str) -> None:
    job = Job(tmp_path, name)
    assert (job.run(MLKIT_ACTION="nothing-changed"), job.calls()) == (0, [])


def test_what_a_trigger_answers_is_handed_on(tmp_path: Path) -> None:
    job = Job(tmp_path, "trigger")
    assert job.run(answer='{"action": "cooldown"}') == 0
    assert job.calls() == ["trigger recipes/my_model.yaml --because drift --json"]
    assert (tmp_path / ".mlkit-ci" / "trigger.env").read_text() == "MLKIT_ACTION=cooldown\n"


def test_approval_secrets_and_one_promotion_at_a_time() -> None:
    jobs = yaml.safe_load(pipeline())
    production = jobs["mlkit-my-model-promote-production"]
    assert {rule["when"] for rule in production["rules"]} == {"manual"}
    assert "when" not in jobs["mlkit-my-model-promote-staging"]["rules"][0]
    assert production["resource_group"] == "my-model-production"
    assert jobs["mlkit-my-model-judge"]["secrets"]["DB_URL"]["vault"] == "acme/lending/url"
    assert all("DB_URL" not in job.get("variables", {}) for name, job in jobs.items() if name != "workflow")
