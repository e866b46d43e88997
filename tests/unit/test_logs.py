"""Logs do not grow without bound, and a writer that has one open goes on writing."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mlflowkit.adapters.ray_serve import supervisor
from mlflowkit.adapters.ray_serve.supervisor import Supervisor
from mlflowkit.system import logs
from mlflowkit.system.files import private_opener
from tests.support.waiting import wait_for


def test_a_writer_goes_on_after_the_log_was_rotated(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    code = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True)"
    with open(path, "ab", opener=private_opener) as log:
        writer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=log, text=True)
    assert writer.stdin is not None
    for text in ("first", "second"):
        writer.stdin.write(f"{text}\n")
        writer.stdin.flush()
        wait_for(lambda text=text: text in path.read_text(), 30, "the line")
        logs.rotate_log(path, 3)
        assert path.read_bytes() == b""
        assert path.with_name("a.log.1").read_text() == f"{text}\n"
    writer.stdin.close()
    writer.wait()
    assert not path.with_name("a.log.1").stat().st_mode & 0o077


def test_a_log_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    assert not logs.rotate_log(tmp_path / "none.log")


def test_the_supervisor_rotates_its_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor.ManagedProcess, "start", lambda self: None)
    path = tmp_path / "ray" / "steward.log"
    path.parent.mkdir()
    with path.open("wb") as stream:
        stream.truncate(logs.MAX_LOG_BYTES + 1)
    stop = threading.Event()
    thread = threading.Thread(target=Supervisor(tmp_path, "none", ()).run, args=(stop,))
    thread.start()
    wait_for(lambda: path.stat().st_size == 0, 60, "the log to be rotated")
    stop.set()
    thread.join(60)
    assert path.with_name("steward.log.1").stat().st_size == logs.MAX_LOG_BYTES + 1
