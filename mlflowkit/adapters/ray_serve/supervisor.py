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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mlflowkit.adapters.ray_serve import cluster as clusters
from mlflowkit.adapters.ray_serve import starting
from mlflowkit.adapters.ray_serve.cluster import Cluster
from mlflowkit.system.child_process import die_with_parent_command, module_command
from mlflowkit.system.files import private_opener, use_private_umask
from mlflowkit.system.logs import configure_logging, rotate_log
from mlflowkit.system.machine import is_stopped

POLL_SECONDS = 0.1
STABLE_SECONDS = 30.0
"""A process that ran this long is restarted without back-off."""
FIRST_BACKOFF, LAST_BACKOFF = 0.5, 30.0
RECONCILER_STOP_SECONDS = 15.0
SIDECAR_STOP_SECONDS = 3.0
RECONCILER = "mlflowkit.adapters.ray_serve.reconciler"
KEEPER = "mlflowkit.adapters.ray_serve.keeper"
STOPPED_SECONDS = 10.0
"""A process that somebody stopped (SIGSTOP) is killed after this long, and started again."""
_log = logging.getLogger("mlflowkit.supervisor")


class ManagedProcess:
    """A module that runs as a child process and is restarted with back-off."""

    def __init__(
        self, module: str, arguments: Sequence[str], log: Path | None, stop_seconds: float, *, outlives: bool = False
    ) -> None:
        self._stopped_since: float | None = None
        self._command = module_command if outlives else die_with_parent_command
        self.module, self._arguments, self._log_path, self._stop_seconds = module, arguments, log, stop_seconds
        self.process: subprocess.Popen[bytes] | None = None
        self.environment: Mapping[str, str] = {}
        self.lasted = 0.0
        """Seconds that the last process ran."""
        self._started_at = self._restart_at = 0.0
        self._backoff = FIRST_BACKOFF

    def poll(self) -> int | None:
        """Exit code if the process has ended since the last call, else None. Schedules the restart."""
        self._kill_if_stopped()
        code = None if self.process is None else self.process.poll()
        if code is None:
            return None
        now = time.monotonic()
        self.lasted = now - self._started_at
        stable = now - self._started_at > STABLE_SECONDS
        self._backoff = FIRST_BACKOFF if stable else min(LAST_BACKOFF, 2 * self._backoff)
        self._restart_at = now if stable else now + self._backoff
        self.process = None
        return code

    def _kill_if_stopped(self) -> None:
        now = time.monotonic()
        if self.process is None or not is_stopped(self.process.pid):
            self._stopped_since = None
        elif self._stopped_since is None:
            self._stopped_since = now
        elif now - self._stopped_since > STOPPED_SECONDS:
            _log.warning("%s was stopped for %g s; it is started again", self.module, STOPPED_SECONDS)
            self.process.kill()
            self.process.wait()

    def start(self) -> None:
        """Start the process unless it runs or its back-off has not passed."""
        if self.process is not None or time.monotonic() < self._restart_at:
            return
        self._started_at = time.monotonic()
        command = self._command(self.module, *self._arguments)
        with contextlib.ExitStack() as stack:
            log = None
            if self._log_path is not None:
                log = stack.enter_context(open(self._log_path, "ab", opener=private_opener))
            environment = {**os.environ, **self.environment}
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    @property
    def seconds(self) -> float:
        """How long the process has run."""
        return 0.0 if self.process is None else time.monotonic() - self._started_at

    def stop(self, *, kill: bool = False) -> None:
        """Terminate the process; kill it after ``stop_seconds``, or at once."""
        if self.process is None:
            return
        self.process.kill() if kill else self.process.terminate()
        try:
            self.process.wait(self._stop_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.lasted = time.monotonic() - self._started_at
        self.process = None


class Supervisor:
    """Keeps one reconciler and its sidecars running."""

    def __init__(self, state: Path, runtime: str, sidecars: Sequence[str]) -> None:
        self._state = state
        folder = clusters.record_path(state).parent
        self._reconciler = ManagedProcess(RECONCILER, (str(state), runtime), None, RECONCILER_STOP_SECONDS)
        self._sidecars: list[ManagedProcess] = []
        self._logs = [clusters.log_path(state)]
        arguments = (str(state), str(os.getpid()), runtime, *sidecars)
        self._keeper = ManagedProcess(KEEPER, arguments, None, SIDECAR_STOP_SECONDS, outlives=True)
        cluster = clusters.read(state)
        self._ready = cluster is not None and bool(cluster.previous)  # services are up: Ray must come back
        self._try = starting.TRIES if self._ready else 1
        for module in sidecars:
            with contextlib.suppress(ModuleNotFoundError):  # raised when a parent package is missing
                if importlib.util.find_spec(module) is not None:
                    log = folder / f"{module.rpartition('.')[2]}.log"
                    self._logs.append(log)
                    self._sidecars.append(ManagedProcess(module, (str(state),), log, SIDECAR_STOP_SECONDS))

    def run(self, stop: threading.Event) -> int:
        """Run until ``stop`` is set, the state folder is gone, or Ray never came up; returns the exit code."""
        try:
            while True:
                self._keeper.poll()
                self._keeper.start()
                self._reconciler.environment = starting.ray_limits(self._try)
                self._reconciler.start()
                if stop.wait(POLL_SECONDS) or not self._state.is_dir():
                    return 0
                for log in self._logs:
                    rotate_log(log)
                cluster = clusters.read(self._state)
                if cluster is not None and cluster.state == "ready":
                    self._ready, self._try = True, starting.TRIES  # a restart takes what time it needs
                code = self._ended(cluster)
                if code is not None and cluster is not None and not self._restart(code, cluster):
                    return code
                for sidecar in self._sidecars if self._ready else ():
                    if (code := sidecar.poll()) is not None:
                        _log.warning("%s ended with %d", sidecar.module, code)
                    sidecar.start()
        finally:
            for child in (self._keeper, *self._sidecars, self._reconciler):
                child.stop()

    def _ended(self, cluster: Cluster | None) -> int | None:
        """Exit code of the reconciler if it has ended, also because it took too long to start Ray."""
        limit, is_starting = starting.limit_of(self._try), cluster is not None and cluster.state == "starting"
        if is_starting and self._reconciler.seconds > limit:
            _log.warning("the reconciler has not started Ray within %g s", limit)
            self._reconciler.stop(kill=True)
            return starting.FAILED_START
        return self._reconciler.poll()

    def _restart(self, code: int, cluster: Cluster) -> bool:
        """Prepare a restart of the reconciler; False, with the reason in the record, when Ray will not start."""
        message = ""
        if not self._ready:
            lasted = self._reconciler.lasted
            reason = cluster.reason or f"Ray and Serve were not ready after {lasted:.0f} s"
            if code != starting.FAILED_START or self._try >= starting.TRIES or not cluster.owned:
                clusters.write(self._state, replace(cluster, state="failed", message=reason))
                return False
            message = starting.retry_message(self._try, lasted, os.getloadavg()[0], cluster.reason)
            self._try += 1
        self._clean_up_after(code, replace(cluster, message=message))
        return True

    def _clean_up_after(self, code: int, cluster: Cluster) -> None:
        """Kill what a dead reconciler left, so that the next one has the ports and the folder to itself."""
        _log.warning("the reconciler ended with %d; restarting it", code)
        clusters.write(self._state, replace(cluster, state="starting", address="", environment={}, reason=""))
        managed = {child.process.pid for child in (self._keeper, *self._sidecars) if child.process is not None}
        clusters.kill_group(self._state, cluster, managed)


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
