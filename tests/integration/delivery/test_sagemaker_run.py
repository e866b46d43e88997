"""A recipe delivered to a fake of SageMaker: its jobs run here, its versions go through the endpoints."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_aws import FakeAws
from tests.support.sagemaker_project import (
    CODE,
    IMAGE,
    RECIPE,
    DeliveryCommands,
    git,
    make_sagemaker_project,
    mlkit,
)
from tests.support.warm_commands import warm_command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_sagemaker_project(tmp_path / "project")


def run_job(aws: FakeAws, folder: Path, step: dict[str, Any], parameters: dict[str, str]) -> Path:
    """Run a processing job's container as a process, its folders below ``folder``; returns the folder of outputs."""
    place = folder / step["Name"]
    text = json.dumps(step["Arguments"])
    for name, here in (("/tmp/code", "code"), ("/tmp/mlkit-state", "state"), ("/opt/ml/processing", "job")):
        text = text.replace(name, f"{place}/{here}")
    arguments = json.loads(text)

    def value(item: Any) -> str:
        return parameters[item["Get"].removeprefix("Parameters.")] if isinstance(item, dict) else item

    for item in arguments["ProcessingInputs"]:
        aws.download(value(item["S3Input"]["S3Uri"]), Path(item["S3Input"]["LocalPath"]))
    out = Path(arguments["ProcessingOutputConfig"]["Outputs"][0]["S3Output"]["LocalPath"])
    out.mkdir(parents=True)
    binaries = place / "bin"
    binaries.mkdir()
    (binaries / "mlkit").write_text(f'#!/bin/sh\nexec {shlex.join(warm_command("mlflowkit.cli"))} "$@"\n')
    (binaries / "mlkit").chmod(0o755)
    container = arguments["AppSpecification"]
    words = [value(item) for item in (*container["ContainerEntrypoint"], *container["ContainerArguments"])]
    words = [word.replace("/opt/ml/processing", f"{place}/job") for word in words]
    environment = {**os.environ, **arguments["Environment"], "PATH": f"{binaries}:{os.environ['PATH']}"}
    done = subprocess.run(words, env=environment, cwd=place, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_a_version_is_judged_by_the_jobs_and_goes_through_the_endpoints(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aws, project = FakeAws(), tmp_path / "project"
    deliver = DeliveryCommands(folder, aws, capsys)
    code, started, _ = deliver("start", "--environment", "production")
    assert (code, started["ChampionOption"]) == (0, "--first-version")
    steps = json.loads((folder / "pipeline.json").read_bytes())["Steps"]
    assert [step["Name"] for step in steps] == ["check", "judge"]
    outs = [run_job(aws, tmp_path / "first", step, started) for step in steps]
    report = outs[1] / "report.json"
    identity = json.loads(report.read_bytes())["identity"]
    assert json.loads(report.read_bytes())["git_commit"] == git(project, "rev-parse", "HEAD")
    local = mlkit(project, "ci", "judge", "cells.yaml", "--first-version", "--out", str(tmp_path / "local"))
    assert local.returncode == 0, local.stderr
    assert json.loads((tmp_path / "local" / "report.json").read_bytes())["identity"] == identity

    code, _, error = deliver("deploy", "production", "--image", IMAGE, "--from", str(report))
    assert (code, "staging does not serve version" in error) == (1, True)
    for environment in ("staging", "production"):
        code, result, error = deliver("deploy", environment, "--image", IMAGE, "--from", str(report))
        assert (code, result.get("status")) == (0, "sent"), error
        aws.calls.clear()
        _, result, _ = deliver("deploy", environment, "--image", IMAGE, "--from", str(report))
        assert (result["calls"], result["status"]) == ([], "InService")
        assert aws.calls == []

    code, started, _ = deliver("start", "--environment", "production")
    assert started["ChampionOption"] == "--champion=/opt/ml/processing/input/champion"
    out = run_job(aws, tmp_path / "second", steps[1], started)
    assert json.loads((out / "report.json").read_bytes())["champion"]["identity"] == identity


def judged(folder: Path, identity: str, *, exit_code: int = 0) -> Path:
    """A report with a bundle's manifest beside it: `deliver.py` reads no more of a bundle."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "bundle").mkdir(parents=True)
    (folder / "bundle" / "manifest.json").write_text(json.dumps({"identity": identity}))
    (folder / "bundle" / "blessing.json").write_text("{}")
    (folder / "report.json").write_text(json.dumps({"identity": identity, "exit_code": exit_code}))
    return folder / "report.json"


def test_versions_take_over_or_are_taken_back(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aws = FakeAws()
    deliver = DeliveryCommands(folder, aws, capsys)

    def deploy(identity: str, *more: str) -> tuple[int, dict[str, Any], str]:
        report = judged(tmp_path / "out", identity)
        return deliver("deploy", "staging", "--image", IMAGE, "--from", str(report), *more)

    code, dry, _ = deploy("a" * 64, "--dry-run")
    assert (code, aws.calls, len(dry["calls"])) == (0, [], 5)
    code, first, _ = deploy("a" * 64)
    assert (code, first["calls"], first["status"]) == (0, dry["calls"], "sent")
    code, second, _ = deploy("b" * 64)
    assert (code, second["status"], second["model"] != first["model"]) == (0, "sent", True)
    aws.calls.clear()
    again = deploy("b" * 64)[1]
    assert (again["calls"], again["status"], aws.calls) == ([], "Updating", [])
    code, _, error = deploy("c" * 64)
    assert (code, "try again when it is InService" in error) == (3, True)
    aws.settle("cells-staging", taken=True)
    assert deploy("b" * 64)[1]["status"] == "InService"

    deploy("c" * 64)
    aws.settle("cells-staging", taken=False)
    assert aws.describe_endpoint("cells-staging")["EndpointConfigName"] == second["config"]
    aws.calls.clear()
    code, again, _ = deploy("a" * 64)
    assert (code, aws.calls) == (0, ["Put alarm", "Update endpoint"])
    assert again["config"] == first["config"]


@pytest.mark.parametrize("taken", [True, False])
def test_waiting_says_whether_it_was_taken(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    aws = FakeAws()
    deliver = DeliveryCommands(folder, aws, capsys)
    endpoint = aws.kinds["endpoint"]

    def sleep(seconds: float) -> None:
        if endpoint["cells-staging"]["EndpointStatus"] == "Updating":
            aws.settle("cells-staging", taken=taken)

    monkeypatch.setattr(deliver.module.time, "sleep", sleep)
    for identity in ("a" * 64, "b" * 64):
        report = judged(tmp_path / "out", identity)
        code, _, error = deliver("deploy", "staging", "--image", IMAGE, "--from", str(report), "--wait", "600")
    assert code == (0 if taken else 1), error
    assert ("did not take" in error) is not taken
    if taken:
        return
    aws.calls.clear()
    words = ("deploy", "staging", "--image", IMAGE, "--from", str(report))
    code, _, error = deliver(*words)
    assert (code, aws.calls) == (1, []), "what was taken back is not tried again"
    assert "was taken back before (an alarm rang" in error
    assert deliver(*words, "--again")[1]["status"] == "sent"
    assert aws.calls == ["Put alarm", "Update endpoint"]


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"exit_code": 4}, 1, "the gates did not pass"),
        ({"identity": "f" * 64}, 1, "and the bundle is"),
        ({"image": f"{IMAGE.partition('@')[0]}:latest"}, 2, "@sha256:DIGEST"),
        ({"image": f"{IMAGE.replace('/cells', '/other')}"}, 2, "@sha256:DIGEST"),
        ({"blessing": None}, 1, "the gates did not pass"),
    ],
)
def test_what_must_not_be_delivered(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], code: int, message: str
) -> None:
    aws = FakeAws()
    report = judged(tmp_path / "out", "a" * 64)
    report.write_text(json.dumps({**json.loads(report.read_bytes()), **change}))
    if "blessing" in change:
        (report.parent / "bundle" / "blessing.json").unlink()
    image = str(change.get("image", IMAGE))
    answer = DeliveryCommands(folder, aws, capsys)("deploy", "staging", "--image", image, "--from", str(report))
    assert (answer[0], aws.calls) == (code, [])
    assert message in answer[2]


def test_a_pipeline_is_defined_once_and_a_key_starts_one_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aws = FakeAws()
    deliver = DeliveryCommands(folder, aws, capsys)
    assert [deliver("define")[1]["calls"] for _ in range(2)] == [["CreatePipeline mlkit-cells"], []]
    definition = folder / "pipeline.json"
    definition.write_text(definition.read_text().replace("ml.m5.large", "ml.m5.xlarge"))
    assert [deliver("define")[1]["calls"] for _ in range(2)] == [["UpdatePipeline mlkit-cells"], []]
    assert {deliver("start")[1]["execution"] for _ in range(3)} == {"arn:0"}
    answer = tmp_path / "trigger.json"
    answer.write_text(json.dumps({"action": "started", "key": "3f" * 32}))
    assert {deliver("start", "--trigger", str(answer))[1]["execution"] for _ in range(3)} == {"arn:1"}
    assert list(aws.executions)[1] == "3f" * 32
    answer.write_text(json.dumps({"action": "nothing-changed", "key": "4f" * 32}))
    aws.calls.clear()
    assert deliver("start", "--trigger", str(answer))[1]["action"] == "nothing-changed"
    assert aws.calls == []


@pytest.mark.parametrize(
    ("key", "value", "place", "message"),
    [
        ("steps: [50]", "steps: [5, 25, 50]", "[5, 25, 50]", "one canary step, or equal steps"),
        ("steps: [50]", "steps: [60]", "[60]", "at most 50 % of the instances"),
        ("metric: error_rate", "metric: prediction_drift", "prediction_drift", "do not have prediction_drift"),
        ("service: cells", "routing: {affinity: header, name: x-user}\n  service: cells", "header", "on one version"),
        ("{oidc: aws}", "{env: TOKEN}", "TOKEN", "no secret by reference"),
    ],
)
def test_what_sagemaker_cannot_do_has_a_place(tmp_path: Path, key: str, value: str, place: str, message: str) -> None:
    recipe = RECIPE.replace(key, value)
    assert recipe != RECIPE
    (tmp_path / "cells.yaml").write_text(recipe)
    (tmp_path / "cells.py").write_text(CODE)
    git(tmp_path, "init", "-q")
    before, _, _ = recipe.partition(place)
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    done = mlkit(tmp_path, "export", "cells.yaml")
    assert done.returncode == 2
    [fault] = [text for text in done.stderr.splitlines() if message in text]
    assert f"cells.yaml:{line}:{column}:" in fault
