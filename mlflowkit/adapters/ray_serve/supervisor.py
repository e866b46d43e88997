"""The supervisor: one process per state folder that keeps the reconciler and its sidecars running. Imports no Ray.

``python -m mlflowkit.adapters.ray_serve.supervisor STATE RUNTIME [SIDECAR ...]``. It leads the session that all of
them, and all of Ray, belong to. A reconciler that dies (as it does when Ray's control service dies) is restarted from
the files in the state folder; a sidecar (a module run with the state folder as its argument) is restarted with
exponential back-off. The kernel ends both with the supervisor, however it ends.
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

from mlflowkit.adapters.ray_serve import cluster as clusters
from mlflowkit.adapters.ray_serve.cluster import Cluster
from mlflowkit.system.child_process import die_with_parent_command
from mlflowkit.system.files import use_private_umask
from mlflowkit.system.logs import configure_logging

POLL_SECONDS = 0.1
STABLE_SECONDS = 30.0
"""A process that ran this long is restarted without back-off."""
FIRST_BACKOFF, LAST_BACKOFF = 0.5, 30.0
RECONCILER_STOP_SECONDS = 15.0
SIDECAR_STOP_SECONDS = 3.0
MAX_LOG_BYTES = 8 << 20
"""A larger log is truncated when its process starts."""
RECONCILER = "mlflowkit.adapters.ray_serve.reconciler"
_log = logging.getLogger("mlflowkit.supervisor")


class ManagedProcess:
    """A module that runs as a child process and is restarted with back-off."""

    def __init__(self, module: str, arguments: Sequence[str], log: Path | None, stop_seconds: float) -> None:
        self.module, self._arguments, self._log_path, self._stop_seconds = module, arguments, log, stop_seconds
        self.process: subprocess.Popen[bytes] | None = None
        self._started_at = self._restart_at = 0.0
        self._backoff = FIRST_BACKOFF

    def poll(self) -> int | None:
        """Exit code if the process has ended since the last call, else None. Schedules the restart."""
        code = None if self.process is None else self.process.poll()
        if code is None:
            return None
        now = time.monotonic()
        stable = now - self._started_at > STABLE_SECONDS
        self._backoff = FIRST_BACKOFF if stable else min(LAST_BACKOFF, 2 * self._backoff)
        self._restart_at = now if stable else now + self._backoff
        self.process = None
        return code

    def start(self) -> None:
        """Start the process unless it runs or its back-off has not passed."""
        if self.process is not None or time.monotonic() < self._restart_at:
            return
        self._started_at = time.monotonic()
        command = die_with_parent_command(self.module, *self._arguments)
        with contextlib.ExitStack() as stack:
            log = None
            if self._log_path is not None:
                too_long = self._log_path.exists() and self._log_path.stat().st_size > MAX_LOG_BYTES
                log = stack.enter_context(self._log_path.open("wb" if too_long else "ab"))
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self) -> None:
        """Terminate the process; kill it after ``stop_seconds``."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(self._stop_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


class Supervisor:
    """Keeps one reconciler and its sidecars running."""

    def __init__(self, state: Path, runtime: str, sidecars: Sequence[str]) -> None:
        self._state = state
        folder = clusters.record_path(state).parent
        self._reconciler = ManagedProcess(RECONCILER, (str(state), runtime), None, RECONCILER_STOP_SECONDS)
        self._sidecars: list[ManagedProcess] = []
        for module in sidecars:
            with contextlib.suppress(ModuleNotFoundError):  # raised when a parent package is missing
                if importlib.util.find_spec(module) is not None:
                    log = folder / f"{module.rpartition('.')[2]}.log"
                    self._sidecars.append(ManagedProcess(module, (str(state),), log, SIDECAR_STOP_SECONDS))

    def run(self, stop: threading.Event) -> int:
        """Run until ``stop`` is set, the state folder is gone, or Ray never came up; returns the exit code."""
        ready = False
        try:
            while True:
                self._reconciler.start()
                if stop.wait(POLL_SECONDS):
                    return 0
                cluster = clusters.read(self._state) if self._state.is_dir() else None
                ready = ready or (cluster is not None and cluster.state == "ready")
                code = self._reconciler.poll()
                if code is not None and (not ready or not self._state.is_dir()):
                    return code
                if code is not None and cluster is not None:
                    self._clean_up_after(code, cluster)
                for sidecar in self._sidecars if ready else ():
                    if (code := sidecar.poll()) is not None:
                        _log.warning("%s ended with %d", sidecar.module, code)
                    sidecar.start()
        finally:
            for sidecar in self._sidecars:
                sidecar.stop()
            self._reconciler.stop()

    def _clean_up_after(self, code: int, cluster: Cluster) -> None:
        """Kill what a dead reconciler left, so that the next one has the ports and the folder to itself."""
        _log.warning("the reconciler ended with %d; restarting it", code)
        clusters.write(self._state, replace(cluster, state="starting", address="", environment={}))
        spared = {sidecar.process.pid for sidecar in self._sidecars if sidecar.process is not None}
        clusters.kill_group(cluster, spared)


def main(arguments: list[str]) -> int:
    """Supervise a state folder until terminated; returns the exit code."""
    use_private_umask()
    configure_logging()
    state, (runtime, *sidecars) = Path(arguments[0]), arguments[1:]
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with (state / "ray" / "steward.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("another supervisor runs on %s", state)
            return 0
        clusters.write(state, clusters.this_cluster(state, os.getpid(), owned=not os.environ.get("RAY_ADDRESS")))
        return Supervisor(state, runtime, sidecars).run(stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
