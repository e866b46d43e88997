"""`mlkit ci judge` over a real recipe in a git repository."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.ci import judgement
from mlflowkit.ci.judge_report import JudgeReport
from mlflowkit.ci.judgement import JudgeRequest
from mlflowkit.delivery.gitops.desired_delivery import DesiredChampion, DesiredDelivery
from mlflowkit.delivery.gitops.git_repository import FileReplacement, open_repository
from mlflowkit.delivery.image import bundle_artifact
from tests.support.registries import FakeRegistry
from tests.support.waiting import wait_for
from tests.support.warm_commands import warm_command

RECIPES = Path(__file__).parents[2] / "recipes"
QUICK = ("optimize.candidates=[onnx]", "train.epochs=2")


class Project:
    """A repository with the lending recipe; ``out`` is outside of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.base = folder / "project", folder
        self.folder.mkdir()
        for name in ("lending.yaml", "datasets.py"):
            shutil.copy(RECIPES / name, self.folder)
        (self.folder / ".gitignore").write_text(".mlkit\n")
        self.git("init", "-q", "-b", "main")
        self.git("add", "-A")
        self.git("-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-qm", "first")

    def git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    def judge(self, *arguments: str, out: str = "out", recipe: str = "lending.yaml") -> tuple[int, dict[str, Any], str]:
        """Exit code, report and stderr of the command."""
        folder = self.base / out
        command = [*warm_command("mlflowkit.cli"), "ci", "judge", recipe, *arguments, "--out", str(folder)]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=600)
        report = folder / "report.json"
        return done.returncode, json.loads(report.read_bytes()) if report.exists() else {}, done.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("judge"))


@pytest.mark.slow
def test_without_a_champion_a_change_gate_does_not_pass_and_with_one_it_is_judged(project: Project) -> None:
    code, report, stderr = project.judge(*QUICK)
    change = next(item for item in report["verdicts"] if item["gate"].startswith("latency_ratio against champion"))
    assert (code, report["exit_code"], report["blessed"]) == (4, 4, False)
    assert change["verdict"] == "INCONCLUSIVE"
    assert "--champion BUNDLE" in stderr
    assert not (project.base / "out" / "bundle").exists()

    code, report, _ = project.judge(*QUICK, "--first-version", out="first")
    assert (code, report["blessed"]) == (0, True)
    bundle = project.base / "first" / "bundle"
    assert report["head"] == project.git("rev-parse", "HEAD")
    assert report["tree"] == project.git("rev-parse", "HEAD^{tree}")
    manifest, blessing = (json.loads((bundle / f"{name}.json").read_bytes()) for name in ("manifest", "blessing"))
    assert manifest["git_tree"] == blessing["git_tree"] == report["tree"]
    assert {item.name for item in bundle.parent.iterdir()} == {
        "bundle", "junit.xml", "metrics.txt", "mlkit.sarif", "page.html", "report.json",
    }  # fmt: skip

    code, report, _ = project.judge(QUICK[0], "train.epochs=3", "--champion", str(bundle), out="second")
    assert report["champion"]["identity"] == json.loads((bundle / "manifest.json").read_bytes())["identity"]
    compared = next(item for item in report["verdicts"] if item["gate"].startswith("roc_auc against champion"))
    assert compared["measurement"]["samples"] > 1000
    assert report["comparisons"]["roc_auc"]["difference"]["low"] <= compared["measurement"]["value"]
    assert project.git("status", "--porcelain") == ""

    (bundle / "model.onnx").chmod(0o600)
    (bundle / "model.onnx").write_bytes(b"another")
    code, report, stderr = project.judge(QUICK[0], "train.epochs=3", "--champion", str(bundle), out="third")
    assert (code, report["status"]) == (3, "error")
    assert "model.onnx" in report["error"]


def test_a_killed_judgement_leaves_no_earlier_report(project: Project) -> None:
    out = project.base / "killed"
    out.mkdir()
    (out / "report.json").write_text("of an earlier commit")
    command = [sys.executable, "-P", "-m", "mlflowkit.cli", "ci", "judge", "lending.yaml", "--out", str(out)]
    process = subprocess.Popen([*command, "train.epochs=40"], cwd=project.folder, stderr=subprocess.DEVNULL)
    wait_for(lambda: not (out / "report.json").exists() or process.poll() is not None, 120)
    process.kill()
    process.wait(240)
    assert list(out.iterdir()) == []


def test_a_wrong_recipe_is_a_report_with_located_faults(project: Project) -> None:
    (project.folder / "wrong.yaml").write_text(
        (project.folder / "lending.yaml").read_text().replace("task: classification", "task: clasification")
    )
    code, report, _ = project.judge(recipe="wrong.yaml", out="wrong")
    [result] = json.loads((project.base / "wrong" / "mlkit.sarif").read_bytes())["runs"][0]["results"]
    assert (code, report["exit_code"], report["status"]) == (2, 2, "error")
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "wrong.yaml"
    (project.folder / "wrong.yaml").unlink()


def test_a_repository_that_git_does_not_read_is_not_judged(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a judgement of the commit ""."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    code, report, stderr = project.judge(out="foreign")
    assert (code, report) == (2, {})
    assert f"git config --global --add safe.directory {project.folder}" in stderr

    monkeypatch.delenv("GIT_TEST_ASSUME_DIFFERENT_OWNER")
    new = Project(tmp_path)
    new.git("update-ref", "-d", "HEAD")
    code, report, stderr = new.judge()
    assert (code, report) == (2, {})
    assert "has no commit yet" in stderr


def test_outputs_that_make_the_checkout_dirty_are_refused(project: Project) -> None:
    code, report, stderr = project.judge(out="project/out")
    assert (code, report) == (2, {})
    assert "the outputs would make it dirty" in stderr


def test_the_champion_of_an_environment_is_the_one_that_git_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, registry = Project(tmp_path), FakeRegistry()
    environments = tmp_path / "environments.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(environments)], check=True, timeout=60)
    recipe = project.folder / "lending.yaml"
    image = "registry.example/acme/lending"
    section = f"delivery:\n  registry: {{image: {image}}}\n  environments:\n    prod: {{repo: {environments}}}\n"
    recipe.write_text(f"{recipe.read_text()}\n{section}")
    pull = partial(bundle_artifact.pull_bundle, transport=registry.transport)
    monkeypatch.setattr(bundle_artifact, "pull_bundle", pull)

    def judged(out: str, epochs: int) -> JudgeReport:
        overrides = (QUICK[0], f"train.epochs={epochs}")
        request = JudgeRequest(recipe, tmp_path / out, tmp_path / "state", overrides, "prod")
        return judgement.judge(request, lambda event: None).report

    first = judged("first", 2)
    assert (first.exit_code, first.champion) == (0, None)
    assert "compared with no champion" in first.warnings[0]

    reference = bundle_artifact.push_bundle(
        tmp_path / "first" / "bundle", f"{image}-bundle", transport=registry.transport
    )
    with open_repository(str(environments), "main") as repository:
        desired = DesiredDelivery("lending", DesiredChampion(reference, first.identity))
        commit = FileReplacement(desired.to_yaml().encode(), "champion")
        repository.replace("deploy/overlays/prod/delivery.yaml", lambda version: commit)
    second = judged("second", 3)
    assert second.exit_code == 0, second.error
    assert second.champion is not None
    assert (second.champion.identity, second.champion.source) == (first.identity, f"prod: {reference}")
    assert any(item.change and item.measurement for item in second.verdicts)

    shutil.rmtree(tmp_path / "state" / "champions")
    registry.manifests.clear()
    third = judged("third", 4)
    assert (third.exit_code, third.status, third.verdicts) == (3, "error", ())
