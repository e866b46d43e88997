"""Ray that does not start at once: tried again with more time, told meanwhile, and the cause named when it fails."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mlflowkit.adapters.ray_serve import RayServePlatform, ownership, ray_logs, starting
from mlflowkit.adapters.ray_serve import cluster as clusters
from mlflowkit.errors import EngineError, UsageError
from mlflowkit.stages.deploy import ServeSection
from tests.support import ROOT
from tests.support.processes import alive
from tests.support.waiting import wait_for

pytestmark = pytest.mark.ray

FATAL = """\
[2026-11-29 10:00:00,1 I 12 12] (raylet) main.cc:1: all is well
[2026-11-29 10:00:01,2 C 12 12] (raylet) node_manager.cc:7:  Check failed: agent.has_value() its agent took 31 s
*** StackTrace Information ***
/usr/lib/libc.so(+0x1) [0x1] Check failed
"""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder, stopped at the end."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv(starting.SETTING, raising=False)
    state = tmp_path / ".mlkit"
    yield state
    clusters.stop(state)
    shutil.rmtree(clusters.temp_dir(state), ignore_errors=True)


def ray_folder(state: Path, **logs: str) -> Path:
    """Ray's folder after a run that left these logs."""
    folder = clusters.temp_dir(state)
    inner = ownership.create_temp_dir(folder)
    session = inner / "session_2026-11-29_1"
    (session / "logs").mkdir(parents=True)
    (inner / "session_latest").symlink_to(session)
    for name, text in logs.items():
        (session / "logs" / name.replace("_dot_", ".")).write_text(text)
    return folder


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "nowhere.invalid:6379"])
def test_a_dead_address_is_named_before_anything_is_started(
    state: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = address.format(port=free.getsockname()[1])
    monkeypatch.setenv("RAY_ADDRESS", address)
    for begin in (RayServePlatform(state).ensure, RayServePlatform(state).prewarm):
        with pytest.raises(EngineError) as refused:
            begin(ServeSection(service="lending", port=0))
        assert refused.value.message.startswith(f"RAY_ADDRESS names {address}, where nothing answers")
        assert refused.value.message.endswith("unset it, or start that cluster")
        assert refused.value.hint.startswith("unset RAY_ADDRESS")
    assert not clusters.record_path(state).exists()


@pytest.mark.parametrize("value", ["soon", "0", "1e9", "nan"])
def test_a_setting_that_is_no_number_of_seconds_is_refused(
    state: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(starting.SETTING, value)
    with pytest.raises(UsageError, match=f"{starting.SETTING}={value}"):
        RayServePlatform(state).prewarm()
    assert not clusters.record_path(state).exists()


def test_each_try_has_twice_the_time_and_rays_own_limits_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(starting.SETTING, "45")
    assert [starting.seconds_of(number) for number in (1, 2, 3, 4)] == [45, 90, 180, 180]
    assert starting.ray_limits(2)["RAY_agent_register_timeout_ms"] == "90000"
    assert starting.total_seconds() > sum(starting.limit_of(number) for number in (1, 2, 3))


def test_the_cause_is_the_fatal_line_without_its_stack(state: Path) -> None:
    folder = ray_folder(state, raylet_dot_err=FATAL, gcs_server_dot_out="gcs: fine\n")
    try:
        assert ray_logs.cause(folder) == "raylet.err: Check failed: agent.has_value() its agent took 31 s"
        (folder / "r/session_latest/logs/raylet.err").write_text("")
        assert ray_logs.cause(folder) == ""
    finally:
        shutil.rmtree(folder)


def test_logs_of_the_last_crashes_are_kept_and_no_more(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ray_folder(state, raylet_dot_err=FATAL, empty_dot_err="")
    try:
        clock = [1_790_000_000.0 + 100 * crash for crash in range(5)]
        for now in clock:
            monkeypatch.setattr(time, "gmtime", lambda now=now: time.localtime(now))
            ray_logs.save_crash_logs(folder, state)
        kept = sorted((state / "ray" / "crashes").iterdir())
        assert len(kept) == ray_logs.KEPT_CRASHES
        assert [path.name for path in kept[-1].iterdir()] == ["raylet.err"]
        assert (kept[-1] / "raylet.err").read_text() == FATAL
        assert ray_logs.save_crash_logs(folder, state / "other") is None, "the folder of another state"
    finally:
        shutil.rmtree(folder)


def raylet_of(supervisor: int) -> int | None:
    """The raylet below a supervisor, if there is one."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(supervisor).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name() == "raylet":
                    return int(child.pid)
    return None


@contextlib.contextmanager
def without_raylet(supervisor: int) -> Iterator[None]:
    """Stop each raylet below a supervisor (SIGSTOP): Ray is not ready, however fast the machine is."""
    ended = threading.Event()

    def stop_raylets() -> None:
        while not ended.wait(0.01):
            if (pid := raylet_of(supervisor)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)

    thread = threading.Thread(target=stop_raylets)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.slow
def test_a_raylet_that_dies_while_ray_starts_is_told_and_ray_is_tried_again(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = RayServePlatform(state)
    platform.prewarm()
    supervisor = wait_for(lambda: clusters.read(state)).pid
    first = wait_for(lambda: raylet_of(supervisor), 240, "a raylet")
    os.kill(first, signal.SIGKILL)
    messages: list[str] = []
    cluster = clusters.wait(state, progress=messages.append)
    assert cluster.pid == supervisor
    assert "second try, up to 120 s" in messages[0]
    assert len(set(messages)) == len(messages)
    assert not alive(first)
    assert [path.name for path in (state / "ray" / "crashes").iterdir()], "the logs of the first try are kept"
    assert clusters.stop(state)


@pytest.mark.slow
def test_when_no_try_succeeds_the_cause_and_the_setting_are_named(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(starting.SETTING, "1")
    platform = RayServePlatform(state)
    platform.prewarm()
    supervisor = wait_for(lambda: clusters.read(state)).pid
    with without_raylet(supervisor), pytest.raises(EngineError, match=r"were not ready after \d+ s") as refused:
        clusters.wait(state, 300)
    assert "did not start: Ray and Serve" in refused.value.message
    assert refused.value.hint.startswith(f"give it more time: export {starting.SETTING}=2")
    assert str(clusters.log_path(state)) in refused.value.hint
