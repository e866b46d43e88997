"""When a pipeline says that the training of a claim is done: after a bad verdict, or after the image of a good one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from mlflowkit.delivery.targets import target
from mlflowkit.testing import delivery_plans


def test_it_comes_after_the_image_in_the_plan() -> None:
    steps = [step.id for step in delivery_plans()["pipeline"].steps]
    assert steps.index("image") < steps.index("finish") < steps.index("promote-staging")
    assert "image" in delivery_plans()["pipeline"].step("finish").needs


def test_github_jenkins_and_airflow_wait_for_the_image_of_a_good_verdict() -> None:
    jobs = yaml.safe_load(target("github").render(delivery_plans()["pipeline"])[".github/workflows/mlkit-my-model.yml"])
    finish = jobs["jobs"]["finish"]
    assert set(finish["needs"]) == {"trigger", "judge", "image"}
    assert "(needs.judge.outputs.code != '0' || needs.image.result == 'success')" in finish["if"]
    stages = next(iter(target("jenkins").render(delivery_plans()["pipeline"]).values()))
    assert stages.index("stage('image')") < stages.index("stage('finish')") < stages.index("stage('staging')")
    dag = next(iter(target("airflow").render(delivery_plans()["airflow"]).values()))
    assert "image >> finish" in dag


@pytest.mark.parametrize(
    ("code", "files", "ends"),
    [
        ("", [], False),
        ("0", ["report.json"], False),
        ("0", ["report.json", "image.json"], True),
        ("1", ["report.json"], True),
        ("4", ["report.json"], True),
    ],
)
def test_gitlabs_job_looks_what_there_is(tmp_path: Path, code: str, files: list[str], ends: bool) -> None:
    jobs = yaml.safe_load(target("gitlab").render(delivery_plans()["gitlab"])[".gitlab/mlkit-my-model.yml"])
    job = jobs["mlkit-my-model-finish"]
    assert {rule["when"] for rule in job["rules"]} == {"always"}
    out = tmp_path / ".mlkit-ci" / "out"
    out.mkdir(parents=True)
    for name in files:
        (out / name).write_text("{}")
    program = tmp_path / "mlkit"
    program.write_text(f"#!/bin/sh\necho $* > {tmp_path}/call\n")
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MLKIT_OUT": str(out)}
    environment |= {"MLKIT_CODE": code} if code else {}
    script = "\n".join(job["script"])
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0
    assert (tmp_path / "call").exists() == ends
