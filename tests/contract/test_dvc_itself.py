"""What DVC itself writes is what the fixture of the other tests writes, and is read."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mlflowkit.adapters.data_sources.dvc_source import DvcSource
from mlflowkit.data_access.remote_source import RemoteAccess, fetch_remote, resolve_remote
from tests.support.dvc_repository import DvcFixture
from tests.support.tools import require_tool

FILES = {"a.csv": b"x,y\n1,2\n", "m=1/b.csv": b"x,y\n3,4\n"}


@pytest.mark.delivery
@pytest.mark.slow
def test_a_repository_that_dvc_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dvc = require_tool("dvc", "python -m venv .tools && .tools/bin/pip install dvc")
    for name, value in (("HOME", str(tmp_path)), ("XDG_CONFIG_HOME", str(tmp_path)), ("DVC_NO_ANALYTICS", "1")):
        monkeypatch.setenv(name, value)
    by_hand = DvcFixture.create(tmp_path / "hand" / "loans")
    real = DvcFixture(tmp_path / "real" / "loans")
    real.root.mkdir(parents=True)
    real.git("init", "-q", "-b", "main")

    def run(*arguments: str) -> None:
        done = subprocess.run(
            [dvc, *arguments], cwd=real.root, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr

    run("init", "-q")
    run("remote", "add", "-q", "-d", "storage", "../loans-storage")
    for path, content in {"loans.csv": FILES["a.csv"], **{f"data/{name}": FILES[name] for name in FILES}}.items():
        (real.root / path).parent.mkdir(parents=True, exist_ok=True)
        (real.root / path).write_bytes(content)
    run("add", "-q", "loans.csv", "data")
    run("push", "-q")
    real.git("add", "-A")
    real.git("commit", "-q", "-m", "data")
    by_hand.add_file("loans.csv", FILES["a.csv"])
    by_hand.add_folder("data", FILES)

    for name in ("loans.csv.dvc", "data.dvc", ".dvc/config"):
        assert (real.root / name).read_text() == (by_hand.root / name).read_text()
    trees = [
        {
            path.relative_to(made.remote).as_posix(): path.read_bytes()
            for path in made.remote.rglob("*")
            if path.is_file()
        }
        for made in (real, by_hand)
    ]
    assert trees[0] == trees[1]
    source = DvcSource(kind="dvc", repository=str(real.root), path="data", format="csv")
    access = RemoteAccess(real.root, tmp_path / "state")
    files = fetch_remote(source, access, resolve_remote(source, access))
    assert {path: file.read_bytes() for path, file in files.items()} == FILES
