"""An export that is cut off or refused leaves the old files whole, or the new ones."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.delivery.regeneration import file_writer
from mlflowkit.delivery.regeneration.export_lock import LOCK
from mlflowkit.errors import StoreError, UsageError
from tests.support.export_project import export_texts, tree

OLD = {"a.yml": "a: 1\n", "gone/b.yml": "b: 1\n", "c.yml": "c: 1\n"}
NEW = {"a.yml": "a: 2\n", "c.yml": "c: 2\n", "new/d.yml": "d: 2\n"}
CALLS = ("os.replace", "os.fsync", "os.link", "os.fchmod")
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.faults.test_export_writes import NEW
from tests.support.export_project import export_texts
root, name, number = sys.argv[1:]
module, _, attribute = name.partition(".")
function, count = getattr(os, attribute), 0
def failing(*arguments, **options):
    global count
    if count == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    count += 1
    return function(*arguments, **options)
setattr(os, attribute, failing)
export_texts(Path(root), NEW)
"""


def _fresh(folder: Path, files: dict[str, str]) -> dict[str, bytes]:
    folder.mkdir()
    export_texts(folder, files)
    return tree(folder)


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, dict[str, bytes], dict[str, bytes]]:
    """A root with the old set, and both sets as they are when nothing goes wrong."""
    root = tmp_path / "root"
    old = _fresh(root, OLD)
    expected = tmp_path / "expected"
    _fresh(expected, OLD)
    export_texts(expected, NEW)
    return root, old, tree(expected)


def _failing(name: str, number: int, act: Callable[[], None]) -> Callable[..., Any]:
    function = getattr(os, name)
    count = 0

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == number + 1:
            act()
        return function(*arguments, **options)

    return failing


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _refusal(root: Path) -> StoreError | None:
    try:
        export_texts(root, NEW)
    except StoreError as error:
        return error
    return None


@pytest.mark.parametrize("name", CALLS)
def test_a_full_disk_at_any_point_leaves_the_old_set(
    sets: tuple[Path, dict[str, bytes], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    root, old, new = sets
    attribute = name.partition(".")[2]
    for number in range(50):
        with monkeypatch.context() as patch:
            patch.setattr(os, attribute, _failing(attribute, number, _full))
            error = _refusal(root)
        if error is None:
            break
        assert "full" in error.message
        assert tree(root) == old, f"after call {number} of {name}"
    assert number >= 3 or name == "os.link"  # a file system without links copies
    assert tree(root) == new


@pytest.mark.parametrize("name", ["os.replace", "os.fsync"])
def test_a_kill_at_any_point_leaves_the_old_set_or_the_next_export_finishes(tmp_path: Path, name: str) -> None:
    expected = tmp_path / "expected"
    _fresh(expected, OLD)
    export_texts(expected, NEW)
    finished = 0
    for number in range(50):
        root = tmp_path / f"root-{number}"
        old = _fresh(root, OLD)
        command = [sys.executable, "-c", KILLED, str(root), name, str(number)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        if file_writer.was_cut(root):
            assert export_texts(root, NEW, write=False).stale
            with file_writer.exclusive(root):
                file_writer.recover(root)
            assert tree(root) == tree(expected), f"after call {number} of {name}"
            finished += 1
        else:
            left = {path: content for path, content in tree(root).items() if not path.startswith(file_writer.STAGING)}
            assert left in (old, tree(expected)), f"after call {number} of {name}"
            export_texts(root, NEW)
            assert tree(root) == tree(expected)
    assert number >= 3
    assert finished or name != "os.replace"


def test_an_edit_after_a_kill_is_kept(sets: tuple[Path, dict[str, bytes], dict[str, bytes]]) -> None:
    root, _, new = sets
    command = [sys.executable, "-c", KILLED, str(root), "os.replace", "1"]
    subprocess.run(command, check=False, capture_output=True, cwd=Path(__file__).parents[2])
    assert file_writer.was_cut(root)
    edited = (root / "c.yml").read_bytes() + b"mine: 1\n"
    (root / "c.yml").write_bytes(edited)
    result = export_texts(root, NEW)
    assert set(result.recovered) == {"a.yml", "gone/b.yml", "new/d.yml"}
    assert {path: content for path, content in tree(root).items() if path not in ("c.yml", LOCK)} == {
        path: content for path, content in new.items() if path not in ("c.yml", LOCK)
    }
    assert b"mine: 1" in (root / "c.yml").read_bytes()


def test_an_edit_during_an_export_stops_it(
    sets: tuple[Path, dict[str, bytes], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, old, _ = sets

    def edit() -> None:
        (root / "c.yml").write_text("mine\n")

    monkeypatch.setattr(os, "fsync", _failing("fsync", 0, edit))
    with pytest.raises(UsageError, match=r"c\.yml was changed"):
        export_texts(root, NEW)
    assert tree(root) == {**old, "c.yml": b"mine\n"}


def test_two_exports_at_once_do_not_mix(sets: tuple[Path, dict[str, bytes], dict[str, bytes]]) -> None:
    root, old, _ = sets
    with file_writer.exclusive(root), pytest.raises(UsageError, match="another command generates files"):
        export_texts(root, NEW)
    assert tree(root) == old


def test_a_damaged_journal_is_named(sets: tuple[Path, dict[str, bytes], dict[str, bytes]]) -> None:
    root, old, _ = sets
    (root / file_writer.STAGING).mkdir()
    (root / file_writer.STAGING / "journal.json").write_text('[{"path": "../x"}]')
    with pytest.raises(StoreError, match="damaged"):
        export_texts(root, NEW)
    assert old.items() <= tree(root).items()
