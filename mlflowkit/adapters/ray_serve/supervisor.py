"""The guard: one process a state folder that keeps the steward and its companions running. Imports no Ray.

``python -m mlflowkit.adapters.ray_serve.supervisor STATE RUNTIME [COMPANION ...]``. It leads the session that all of
them,
and all of Ray, belong to. A steward that dies, as it does when Ray's own control service dies, is started again on what
its files say; a companion (a module that is run with the state folder as its argument) is started again later and
later. Both die with the guard, however it ends: the kernel sees to that.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from mlflowkit.adapters.ray_serve import cluster as clusters
from mlflowkit.adapters.ray_serve.cluster import Cluster
from mlflowkit.service_state.records import process_started

POLL_SECONDS = 0.1
STEADY_SECONDS = 30.0
"""A process that ran this long is started again at once."""
FIRST_BACKOFF, LAST_BACKOFF = 0.5, 30.0
STEWARD_STOP_SECONDS = 15.0
COMPANION_STOP_SECONDS = 3.0
LOG_BYTES = 8 << 20
"""A log that has grown beyond this is begun anew when its process is started."""
STEWARD = "mlflowkit.adapters.ray_serve.reconciler"
_DIE_WITH_PARENT = """\
import ctypes, os, runpy, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(0)
module = sys.argv[2]
sys.argv = sys.argv[2:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
"""Asks for SIGKILL at the parent's death (PR_SET_PDEATHSIG), then becomes the module."""
_log = logging.getLogger("mlflowkit.guard")


class Kept:
    """A module that is kept running as a process of its own."""

    def __init__(self, module: str, arguments: Sequence[str], log: Path | None, stop_seconds: float) -> None:
        self.module = module
        self.process: subprocess.Popen[bytes] | None = None
        self._arguments = arguments
        self._log_path = log
        self._stop_seconds = stop_seconds
        self._begun = 0.0
        self._backoff = FIRST_BACKOFF
        self._due = 0.0

    def ended(self) -> int | None:
        """Exit code of a process that has ended since it was last asked; None otherwise. Says when it is due again."""
        code = None if self.process is None else self.process.poll()
        if code is None:
            return None
        now = time.monotonic()
        steady = now - self._begun > STEADY_SECONDS
        self._backoff = FIRST_BACKOFF if steady else min(LAST_BACKOFF, 2 * self._backoff)
        self._due = now if steady else now + self._backoff
        self.process = None
        return code

    def start(self) -> None:
        """Start it unless it runs or is not due yet."""
        if self.process is not None or time.monotonic() < self._due:
            return
        self._begun = time.monotonic()
        command = [sys.executable, "-c", _DIE_WITH_PARENT, str(os.getpid()), self.module, *self._arguments]
        with contextlib.ExitStack() as stack:
            log = None if self._log_path is None else stack.enter_context(_log_file(self._log_path))
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self) -> None:
        """Ask it to end, and end it when it does not."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(self._stop_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False


def _log_file(path: Path) -> BinaryIO:
    long = path.exists() and path.stat().st_size > LOG_BYTES
    return path.open("wb" if long else "ab")


class Guard:
    """Keeps one steward and some companions running until told to stop."""

    def __init__(self, state: Path, runtime: str, companions: Sequence[str]) -> None:
        self._state = state
        self._steward = Kept(STEWARD, (str(state), runtime), None, STEWARD_STOP_SECONDS)
        self._companions = [
            Kept(module, (str(state),), clusters.record_path(state).with_name(f"{module.rpartition('.')[2]}.log"),
                 COMPANION_STOP_SECONDS)
            for module in companions if _exists(module)
        ]  # fmt: skip

    def follow(self, stop: threading.Event) -> int:
        """Keep them running until ``stop`` is set, the state folder is gone, or Ray never came up; the exit code."""
        ready = False
        try:
            while True:
                self._steward.start()
                if stop.wait(POLL_SECONDS):
                    return 0
                cluster = clusters.read(self._state) if self._state.is_dir() else None
                ready = ready or (cluster is not None and cluster.state == "ready")
                code = self._steward.ended()
                if code is not None and (not ready or not self._state.is_dir()):
                    return code
                if code is not None and cluster is not None:
                    self._mourn(code, cluster)
                if ready:
                    self._keep_companions()
        finally:
            for companion in self._companions:
                companion.stop()
            self._steward.stop()

    def _mourn(self, code: int, cluster: Cluster) -> None:
        """End what a dead steward left, so that the next one finds the ports and the folder free."""
        _log.warning("the steward ended with %d; it is started again", code)
        clusters.write(self._state, replace(cluster, state="starting", address="", environment={}))
        spared = {companion.process.pid for companion in self._companions if companion.process is not None}
        clusters.end_family(cluster, spared)

    def _keep_companions(self) -> None:
        for companion in self._companions:
            code = companion.ended()
            if code is not None:
                _log.warning("%s ended with %d", companion.module, code)
            companion.start()


def main(arguments: list[str]) -> int:
    """Be the guard of a state folder until told to stop; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    state, runtime, *companions = arguments
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with (Path(state) / "ray" / "steward.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("another steward has %s", state)
            return 0
        pid = os.getpid()
        record = Cluster(
            "starting", pid, process_started(pid) or 0.0, str(clusters.temp_dir(Path(state))),
            not os.environ.get("RAY_ADDRESS"),
        )  # fmt: skip
        clusters.write(Path(state), record)
        return Guard(Path(state), runtime, companions).follow(stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
