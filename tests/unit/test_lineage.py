"""The commit and the tree of a recipe's folder, from real repositories; what git cannot say is told with a command."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mlflowkit.pipeline.lineage.checkout import read_checkout
from tests.support.git_project import GitProject


@pytest.fixture
def project(tmp_path: Path) -> GitProject:
    project = GitProject(tmp_path / "project")
    project.write("recipes/a.yaml", "name: a\n")
    project.write("README.md", "a project\n")
    project.commit()
    return project


def test_commit_and_tree_are_those_of_the_recipes_folder(project: GitProject) -> None:
    checkout = read_checkout(project.root / "recipes")
    assert (checkout.commit, checkout.entries) == (project.git("rev-parse", "HEAD"), ())
    assert checkout.tree == project.git("rev-parse", "HEAD:recipes")
    assert read_checkout(project.root).tree == project.git("rev-parse", "HEAD^{tree}")


def test_the_tree_outlives_a_squash_merge_and_other_folders_changes(project: GitProject) -> None:
    project.git("checkout", "-q", "-b", "change")
    project.write("recipes/a.yaml", "name: a\nseed: 8\n")
    project.commit()
    project.write("recipes/code.py", "x = 1\n")
    project.commit()
    on_branch = read_checkout(project.root / "recipes")
    project.git("checkout", "-q", "main")
    project.write("README.md", "another change on main\n")
    project.commit()
    project.squash("change")
    on_main = read_checkout(project.root / "recipes")
    assert on_main.tree == on_branch.tree != ""
    assert on_main.commit != on_branch.commit
    project.write("recipes/code.py", "x = 2\n")
    project.commit()
    assert read_checkout(project.root / "recipes").tree != on_main.tree


def test_a_shallow_clone_and_a_merge_ref_know_commit_and_tree(project: GitProject, tmp_path: Path) -> None:
    project.git("checkout", "-q", "-b", "change")
    project.write("recipes/a.yaml", "name: b\n")
    project.commit()
    project.git("checkout", "-q", "main")
    project.write("README.md", "main goes on\n")
    project.commit()
    project.git("checkout", "-q", "--detach")
    project.git("merge", "-q", "--no-edit", "change")
    merge = project.git("rev-parse", "HEAD")
    project.git("update-ref", "refs/pull/1/merge", merge)
    clone = GitProject(tmp_path / "clone")
    clone.git("fetch", "-q", "--depth=1", f"file://{project.root}", "refs/pull/1/merge")
    clone.git("checkout", "-q", "--detach", "FETCH_HEAD")
    assert clone.git("rev-parse", "--is-shallow-repository") == "true"
    checkout = read_checkout(clone.root / "recipes")
    assert (checkout.commit, checkout.tree) == (merge, project.git("rev-parse", "change:recipes"))


def test_outside_of_a_repository_nothing_is_wrong(tmp_path: Path) -> None:
    checkout = read_checkout(tmp_path)
    assert (checkout.commit, checkout.tree, checkout.problem) == ("", "", "")


def test_another_owner_is_told_with_the_command_that_mends_it(
    project: GitProject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    checkout = read_checkout(project.root / "recipes")
    assert checkout.commit == ""
    assert "belongs to another user" in checkout.problem
    assert checkout.hint == f"git config --global --add safe.directory {project.root}"
    subprocess.run(checkout.hint, shell=True, check=True, timeout=60)
    assert read_checkout(project.root / "recipes").commit == project.git("rev-parse", "HEAD")


def test_a_repository_without_a_commit_is_told(tmp_path: Path) -> None:
    project = GitProject(tmp_path / "new")
    project.write("a.yaml", "name: a\n")
    checkout = read_checkout(project.root)
    assert (checkout.commit, checkout.tree) == ("", "")
    assert "no commit yet" in checkout.problem
    assert checkout.hint.startswith("git -C ")


def test_a_submodule_mounted_without_its_repository_is_told(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / ".git").write_text("gitdir: ../.git/modules/code\n")
    checkout = read_checkout(tmp_path / "code")
    assert "names a repository that is not there" in checkout.problem
    assert ".git" in checkout.hint


def test_a_recipe_in_a_submodule_has_the_commit_and_tree_of_the_submodule(project: GitProject, tmp_path: Path) -> None:
    outer = GitProject(tmp_path / "outer")
    outer.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(project.root), "models")
    outer.commit()
    checkout = read_checkout(outer.root / "models" / "recipes")
    assert (checkout.commit, checkout.tree) == (
        project.git("rev-parse", "HEAD"),
        project.git("rev-parse", "HEAD:recipes"),
    )


def test_a_hooks_variables_do_not_lead_to_another_repository(
    project: GitProject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = GitProject(tmp_path / "other")
    other.write("a.txt", "a\n")
    other.commit()
    monkeypatch.setenv("GIT_DIR", str(other.root / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", ".git/index")
    checkout = read_checkout(project.root / "recipes")
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.delenv("GIT_INDEX_FILE")
    assert (checkout.commit, checkout.entries) == (project.git("rev-parse", "HEAD"), ())


def test_without_git_only_a_checkout_is_a_problem(
    project: GitProject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert read_checkout(project.root / "recipes").problem == "git is not installed"
    assert read_checkout(tmp_path).problem == ""
