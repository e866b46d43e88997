"""Processes that stand for others: victims of a forged record, supervisors without a Ray."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from mlflowkit.adapters.ray_serve.cluster import SUPERVISOR
from mlflowkit.service_state.records import process_started
from tests.support.waiting import wait_for

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
WITH_CHILD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); {SLEEP}"


@contextlib.contextmanager
def session(*arguments: str, code: str = SLEEP) -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a session of its own; all of it is killed at the end."""
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def supervisor_process(state: Path) -> Iterator[int]:
    """A process whose command line is that of a supervisor of ``state``; its id."""
    with session(SUPERVISOR, str(state.resolve())) as process:
        yield process.pid


def alive(pid: int) -> bool:
    return process_started(pid) is not None


def orphan() -> tuple[int, int]:
    """A leader that has ended and a member of its session that goes on: (leader, member)."""
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True)"
    leader = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    assert leader.stdout is not None
    lines = [leader.stdout.readline() for _ in range(2)]
    member = next(int(line) for line in lines if line.strip().isdigit())
    leader.wait()
    leader.stdout.close()
    wait_for(lambda: not alive(leader.pid))
    return leader.pid, member


def free_port() -> int:
    """A port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
