"""Child processes import nothing from the working directory, whichever of our modules they run."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mlflowkit
from mlflowkit.errors import EngineError
from mlflowkit.system import child_process
from mlflowkit.system.files import create_private_file
from tests.support import ROOT

PACKAGE = Path(mlflowkit.__file__).parent
HOSTILE = "import pathlib; pathlib.Path({marker!r}).touch(); raise SystemExit('executed')"


def test_one_module_builds_the_command_lines_of_children() -> None:
    """``sys.executable`` elsewhere would be a child that imports from its working directory."""
    naming = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "executable" and isinstance(node.value, ast.Name):
                naming.add(path.relative_to(PACKAGE).as_posix())
    others = {
        "adapters/trials/process.py",  # its script names the interpreter
        "ci/code_checks.py",  # runs the user's own tests and linter in their checkout, as they do
        "testing/delivery_suite.py",  # a suite for tests
    }
    assert naming - others == {"system/child_process.py"}


@pytest.mark.parametrize("build", [child_process.module_command, child_process.die_with_parent_command])
def test_a_module_in_the_working_directory_is_not_imported(tmp_path: Path, build: object) -> None:
    for name in ("json", "runpy", "ctypes", "argparse", "encodings"):
        (tmp_path / f"{name}.py").write_text(HOSTILE.format(marker=str(tmp_path / "ran")))
    command = build("json.tool")  # type: ignore[operator]
    done = subprocess.run(command, cwd=tmp_path, input=b"[1]", capture_output=True, timeout=60, check=False)
    assert done.stdout.split() == [b"[", b"1", b"]"], done.stderr
    assert not (tmp_path / "ran").exists()


def test_relative_entries_of_the_python_path_keep_their_meaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["lib", "", "/opt/lib"]))
    assert child_process.python_path() == {"PYTHONPATH": os.pathsep.join([str(tmp_path / "lib"), "/opt/lib"])}
    monkeypatch.delenv("PYTHONPATH")
    assert child_process.python_path() == {}


def test_a_token_is_whole_from_its_first_moment_and_written_once(tmp_path: Path) -> None:
    """Eight processes create it at once: all read the same 64 letters."""
    code = (
        "import sys, pathlib, secrets; from mlflowkit.system.files import create_private_file as create\n"
        "path = pathlib.Path(sys.argv[1]); create(path, secrets.token_hex(32).encode()); print(path.read_text())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "ray" / "token")]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(8)]
    tokens = {racer.communicate(timeout=60)[0].strip() for racer in racers}
    assert len(tokens) == 1
    assert len(tokens.pop()) == 64
    assert [path.name for path in (tmp_path / "ray").iterdir()] == ["token"]
    assert (tmp_path / "ray" / "token").stat().st_mode & 0o777 == 0o600


def test_a_crash_before_the_token_is_written_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", crash)
    with pytest.raises(KeyboardInterrupt):
        create_private_file(tmp_path / "token", b"secret")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_token_is_replaced_and_one_of_another_is_refused(tmp_path: Path) -> None:
    from mlflowkit.adapters.ray_serve import cluster as clusters

    path = tmp_path / "ray" / "auth_token"
    path.parent.mkdir()
    path.touch()
    assert clusters.ray_environment(tmp_path)["RAY_AUTH_TOKEN_PATH"] == str(path)
    token = path.read_text()
    assert len(token) == 64
    clusters.ray_environment(tmp_path)
    assert path.read_text() == token, "a token is kept"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EngineError, match="not a file of this user") as refused:
        clusters.ray_environment(tmp_path)
    assert refused.value.hint == f"rm {path}"
