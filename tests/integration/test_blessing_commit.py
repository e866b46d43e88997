"""From a pull request's branch through a squash merge to main: nothing is trained again, and main's commit is named."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.bundle import open_bundle
from tests.support.git_project import GitProject
from tests.support.warm_commands import warm_command

RECIPE = """
name: rows
task: classification
seed: 7
data:
  source: {kind: csv, path: rows.csv}
  target: label
  split: {kind: random, validation: 0.2, test: 0.3}
model: {kind: sklearn, module: "model:Model"}
optimize: {candidates: [onnx]}
gates: [{metric: roc_auc, min: 0.6}]
serve: {service: rows}
delivery:
  registry: {image: ghcr.io/acme/rows}
  environments: {staging: {path: models/deploy}}
"""
CODE = """
from sklearn.linear_model import LogisticRegression as Model

STRENGTH = {strength}
"""


class SquashProject(GitProject):
    """A repository with a small recipe in ``models``; its state is outside of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        generator = random.Random(3)
        rows = [(generator.gauss(0, 1), generator.gauss(0, 1)) for _ in range(900)]
        lines = [f"{a:.4f},{b:.4f},{'yes' if a + 0.3 * b + generator.gauss(0, 0.5) > 0 else 'no'}" for a, b in rows]
        self.write("models/rows.csv", "\n".join(["a,b,label", *lines, ""]))
        self.write("models/rows.yaml", RECIPE)
        self.write("models/model.py", CODE.format(strength=1.0))
        self.write("README.md", "a project\n")
        self.commit("first")
        self.state = root.parent / "state"

    def mlkit(self, *arguments: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, JSON and stderr of a command."""
        command = [*warm_command("mlflowkit.cli"), *arguments, "--json"]
        environment = {**os.environ, "MLKIT_STATE": str(self.state)}
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, timeout=250, env=environment)
        return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr

    def run(self) -> dict[str, Any]:
        code, answer, stderr = self.mlkit("run", "models/rows.yaml", "--until", "package")
        assert code == 0, stderr
        return answer

    def bless(self, *arguments: str) -> tuple[int, dict[str, Any], str]:
        return self.mlkit("bless", "models/rows.yaml", "--rebind", *arguments)


def ran(answer: dict[str, Any]) -> list[str]:
    return [step["stage"] for step in answer["steps"] if step["action"] == "run"]


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> tuple[SquashProject, dict[str, Any]]:
    """A project whose branch was run and squashed into main, and the run on the branch."""
    project = SquashProject(tmp_path_factory.mktemp("squash") / "project")
    project.git("checkout", "-q", "-b", "change")
    project.write("models/model.py", CODE.format(strength=0.5))
    project.commit("weaker")
    project.write("models/model.py", CODE.format(strength=0.2))
    project.commit("weaker still")
    (project.root / "models" / "run.json").write_text("{}\n")  # as `mlkit run ... > run.json` leaves it
    answer = project.run()
    project.git("checkout", "-q", "main")
    project.write("README.md", "main went on meanwhile\n")
    project.git("commit", "-q", "-m", "main", "README.md")
    project.git("merge", "-q", "--squash", "change")
    project.git("commit", "-q", "-m", "Squashed change")
    return project, answer


def test_a_squash_merge_retrains_nothing_and_the_blessing_names_mains_commit(
    merged: tuple[SquashProject, dict[str, Any]],
) -> None:
    project, branch = merged
    change, main = project.git("rev-parse", "change"), project.git("rev-parse", "HEAD")
    assert (branch["lineage"]["git_commit"], branch["lineage"]["git_dirty"]) == (change, False)
    again = project.run()
    assert ran(again) == []
    assert again["blessing"]["git_commit"] == change
    assert project.git("merge-base", "change", "main") != change  # a commit that main never has

    code, dry, _ = project.bless("--dry-run")
    assert (code, dry["action"], dry["git_commit"], dry["before"]) == (0, "rebound", main, change)
    assert project.run()["blessing"] == again["blessing"]

    code, rebound, stderr = project.bless()
    assert (code, rebound["action"]) == (0, "rebound"), stderr
    bundle = open_bundle(Path(rebound["bundle"]), blessed=True)
    assert bundle.blessing is not None
    tree = project.git("rev-parse", "HEAD:models")
    assert (bundle.manifest.git_commit, bundle.manifest.git_tree, bundle.manifest.git_dirty) == (main, tree, False)
    assert (bundle.blessing.git_commit, bundle.blessing.rebound_from) == (main, change)
    assert (bundle.blessing.run, bundle.blessing.created) == (branch["run"], branch["blessing"]["created"])
    assert (bundle.manifest.identity, bundle.manifest.evidence) == (branch["identity"], branch["blessing"]["evidence"])

    after = project.run()
    assert ran(after) == []
    assert (after["identity"], after["blessing"]["git_commit"]) == (branch["identity"], main)
    assert after["lineage"]["git_commit"] == main
    assert project.bless()[1]["action"] == "unchanged"


def test_a_bundle_from_elsewhere_is_rebound_into_a_new_folder(
    merged: tuple[SquashProject, dict[str, Any]], tmp_path: Path
) -> None:
    """As on a runner without the branch's state and without its data."""
    project, branch = merged
    source, main = Path(branch["bundle"]), project.git("rev-parse", "main")
    clone = SquashProject.__new__(SquashProject)
    clone.root, clone.state = tmp_path / "clone", tmp_path / "none"
    subprocess.run(["git", "clone", "-q", "--depth=1", f"file://{project.root}", str(clone.root)], check=True)
    code, answer, stderr = clone.bless("--bundle", str(source), "--out", str(tmp_path / "new"))
    assert (code, answer["git_commit"]) == (0, main), stderr
    rebound = open_bundle(tmp_path / "new", blessed=True)
    assert rebound.manifest.identity == branch["identity"]
    assert open_bundle(source).manifest.git_commit == branch["lineage"]["git_commit"]
    code, answer, _ = clone.bless("--bundle", str(source), "--out", str(tmp_path / "new"))
    assert (code, answer["error"]["kind"]) == (2, "usage")


def test_another_tree_is_refused_and_what_differs_is_said(
    merged: tuple[SquashProject, dict[str, Any]], tmp_path: Path
) -> None:
    project, branch = merged
    other = SquashProject.__new__(SquashProject)
    other.root, other.state = tmp_path / "other", tmp_path / "none"
    subprocess.run(["git", "clone", "-q", str(project.root), str(other.root)], check=True)
    other.write("models/model.py", CODE.format(strength=9))
    other.write("models/new.txt", "new\n")
    options = ("--bundle", branch["bundle"], "--out", str(tmp_path / "new"))
    code, answer, _ = other.bless(*options)
    assert (code, answer["error"]["message"]) == (
        2, f"commit {other.git('rev-parse', 'HEAD')[:12]} is not what the checkout holds: models/model.py (modified)",
    )  # fmt: skip
    other.commit("differs")
    code, answer, _ = other.bless(*options)
    assert code == 2
    assert "model.py (modified), new.txt (added)" in answer["error"]["message"]

    shallow = SquashProject.__new__(SquashProject)
    shallow.root, shallow.state = tmp_path / "shallow", tmp_path / "none"
    subprocess.run(["git", "clone", "-q", "--depth=1", f"file://{other.root}", str(shallow.root)], check=True)
    code, answer, _ = shallow.bless(*options)
    assert (code, answer["error"]["hint"]) == (2, f"git -C {shallow.root} fetch --unshallow")
    assert not (tmp_path / "new").exists()


def test_promotions_into_the_recipes_folder_change_nothing_that_a_bundle_is_made_from(
    merged: tuple[SquashProject, dict[str, Any]], tmp_path: Path
) -> None:
    project, branch = merged
    other = SquashProject.__new__(SquashProject)
    other.root, other.state = tmp_path / "other", tmp_path / "none"
    subprocess.run(["git", "clone", "-q", str(project.root), str(other.root)], check=True)
    other.write("models/deploy/delivery.yaml", "service: rows\n")
    other.write("models/deploy/images/kustomization.yaml", "images: []\n")
    commit = other.commit("a promotion")
    code, answer, stderr = other.bless("--bundle", branch["bundle"], "--out", str(tmp_path / "new"))
    assert (code, answer.get("git_commit")) == (0, commit), (answer, stderr)
    other.write("models/deploy/other.yaml", "a: 1\n")
    other.commit("something else")
    code, answer, _ = other.bless("--bundle", branch["bundle"], "--out", str(tmp_path / "newer"))
    assert code == 2
    assert "deploy/other.yaml (added)" in answer["error"]["message"]


def test_altered_and_unblessed_bundles_are_refused(
    merged: tuple[SquashProject, dict[str, Any]], tmp_path: Path
) -> None:
    project, branch = merged
    copy = tmp_path / "copy"
    shutil.copytree(branch["bundle"], copy, copy_function=shutil.copyfile)
    (copy / "blessing.json").unlink()
    code, answer, _ = project.bless("--bundle", str(copy), "--out", str(tmp_path / "new"))
    assert (code, answer["error"]["kind"]) == (3, "bundle")
    assert "not blessed" in answer["error"]["message"]
    (copy / "model.onnx").write_bytes(b"another")
    assert "altered" in project.bless("--bundle", str(copy), "--out", str(tmp_path / "new"))[1]["error"]["message"]
    code, answer, _ = project.mlkit("bless", "models/rows.yaml")
    assert (code, answer["error"]["hint"]) == (2, "mlkit bless --rebind models/rows.yaml")


def test_without_a_result_to_reuse_there_is_nothing_to_rebind(
    merged: tuple[SquashProject, dict[str, Any]], tmp_path: Path
) -> None:
    code, answer, _ = merged[0].mlkit("bless", "models/rows.yaml", "--rebind", "--state", str(tmp_path / "empty"))
    assert code == 2
    assert "a run would not reuse" in answer["error"]["message"]
    assert not (tmp_path / "empty").exists()


def test_a_judgement_on_main_packages_again_and_trains_nothing(
    merged: tuple[SquashProject, dict[str, Any]], tmp_path: Path
) -> None:
    project, branch = merged
    commits, reports = [project.git("rev-parse", name) for name in ("change", "main")], []
    for commit in commits:
        project.git("checkout", "-q", "--detach", commit)
        out = tmp_path / commit
        code, report, stderr = project.mlkit("ci", "judge", "models/rows.yaml", "--out", str(out))
        assert code == 0, stderr
        bundle = open_bundle(out / "bundle", blessed=True)
        assert (bundle.manifest.git_commit, bundle.manifest.git_tree) == (commit, report["tree"])
        assert (report["git_commit"], report["git_dirty"], report["git_changes"]) == (commit, False, [])
        reports.append(report)
    project.git("checkout", "-q", "main")
    assert ran(reports[1]) == ["package"]
    assert reports[0]["identity"] == reports[1]["identity"] == branch["identity"]
    assert reports[0]["tree"] == reports[1]["tree"]

    project.write("models/notes.txt", "not read by the run\n")
    project.write("models/rows.yaml", RECIPE + "# a comment\n")
    report = project.mlkit("ci", "judge", "models/rows.yaml", "--out", str(tmp_path / "dirty"))[1]
    assert (report["git_dirty"], report["git_changes"]) == (True, ["models/rows.yaml (modified)"])
    assert ran(report) == []
    assert open_bundle(tmp_path / "dirty" / "bundle").manifest.git_commit == commits[1]
    project.git("checkout", "-q", "--", ".")


def test_what_a_run_reads_and_no_commit_holds_is_told_and_bars_a_rebinding(
    merged: tuple[SquashProject, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project, _ = merged
    force = ("run", "models/rows.yaml", "--until", "package", "--force", "package")
    project.git("rm", "-q", "--cached", "models/model.py")
    project.git("commit", "-q", "-m", "forgotten")
    code, answer, stderr = project.mlkit(*force)
    assert (code, answer["lineage"]["git_changes"]) == (0, "models/model.py (untracked)")
    assert answer["blessing"]["git_dirty"] is True
    assert "no commit holds models/model.py (untracked), which this run reads" in stderr
    project.commit("found again")
    code, refused, _ = project.bless()
    assert (code, "made from changes that no commit holds" in refused["error"]["message"]) == (2, True)
    assert refused["error"]["hint"] == f"mlkit run {project.root}/models/rows.yaml --force package"

    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    code, answer, stderr = project.mlkit(*force)
    assert (code, answer["lineage"]["git_commit"]) == (0, "")
    assert f"git config --global --add safe.directory {project.root}" in stderr
    assert project.bless()[1]["error"]["hint"].startswith("git config --global --add safe.directory")
