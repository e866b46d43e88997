"""A service in the foreground, as a container runs it: started, kept up, drained and stopped by one process.

The process splits in two. The first reaps whatever ends below it (it may be PID 1, or a subreaper otherwise) and passes
signals on; the second starts the service, watches it, and ends it in order. Neither outlives the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mlflowkit.errors import MlkitError, ServiceError
from mlflowkit.service_state.records import DRAINING, ServiceFiles
from mlflowkit.system.files import make_folder, private_opener
from mlflowkit.system.text import printable

if TYPE_CHECKING:
    from mlflowkit.ports import Platform
    from mlflowkit.values import ServiceStatus

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
POLL_SECONDS = 1.0
BESIDE_SECONDS = 10.0
"""How long what runs beside the service has to come to its end before the service is stopped."""
_SUBREAPER, _PARENT_DEATH = 36, 1
_FAILED = 3
_log = logging.getLogger("mlflowkit.serve")


class StopRequested(BaseException):
    """A signal asked the service to stop."""


@dataclass(frozen=True, slots=True)
class ForegroundLimits:
    """Seconds: ``drain`` between the end of readiness and the end of the listeners, ``give_up`` without a ready
    service before the process fails."""

    drain: float = 5.0
    give_up: float = 120.0


def split_off_init(after_crash: Callable[[], None]) -> None:
    """Fork. Returns in the child; the parent reaps and forwards signals until the child ends, and exits as it did.

    A child that a signal ended is a failure: ``after_crash`` then stops what it left.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # until both sides have their handlers
    parent, child = os.getpid(), os.fork()
    if child:
        _reap_until_end(child, after_crash)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    libc.prctl(_PARENT_DEATH, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(_FAILED)
    raise_on_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)


def raise_on_signals() -> None:
    """Have the first SIGTERM, SIGINT, SIGHUP or SIGQUIT raise StopRequested, and later ones do nothing."""

    def stop(number: int, _: object) -> None:
        for other in FORWARDED:
            signal.signal(other, signal.SIG_IGN)
        raise StopRequested(signal.Signals(number).name)

    for number in FORWARDED:
        signal.signal(number, stop)


def _reap_until_end(child: int, after_crash: Callable[[], None]) -> NoReturn:
    def forward(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid != child:
            continue
        if os.WIFSIGNALED(status):
            _log.error("mlkit serve was ended by signal %d", os.WTERMSIG(status))
            threading.Thread(target=_reap_forever, daemon=True).start()
            with contextlib.suppress(MlkitError):
                after_crash()
            os._exit(_FAILED)
        os._exit(os.waitstatus_to_exitcode(status))


def _reap_forever() -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def serve_in_foreground(
    platform: Platform,
    state: Path,
    service: str,
    start: Callable[[], str],
    limits: ForegroundLimits,
    beside: Callable[[threading.Event], None] | None = None,
) -> int:
    """Start a service, keep it up until a signal, drain it and stop it; returns the exit code 0.

    ``start`` returns the endpoint; ``beside`` then runs in a thread of its own until the event that it is given is set.
    Propagates the errors of ``start``; raises ServiceError when the service is not ready for longer than
    ``limits.give_up``. Whatever happens, the service and its Ray are stopped at the end.

    One process a state folder, on all machines that share it: a second one would stop the service of the first when it
    ends. Raises ServiceError for it, before anything is touched.
    """
    with _only_one(state):
        return _serve(platform, state, service, start, limits, beside)


@contextlib.contextmanager
def _only_one(state: Path) -> Iterator[None]:
    make_folder(state / "ray")
    with open(state / "ray" / "foreground.lock", "a", opener=private_opener) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"another mlkit serve runs on {state}, here or on a machine that shares it"
            hint = "stop it, or give this one another folder: mlkit serve --state FOLDER"
            raise ServiceError(message, hint=hint) from error
        yield


def _serve(
    platform: Platform,
    state: Path,
    service: str,
    start: Callable[[], str],
    limits: ForegroundLimits,
    beside: Callable[[threading.Event], None] | None,
) -> int:
    files = ServiceFiles(platform.folder(service))
    log = _LogFollower(state / "ray" / "steward.log")
    ending, beside_thread = threading.Event(), None
    try:
        files.delete(DRAINING)
        endpoint = start()
        _log.info("%s answers at %s", service, endpoint)
        if beside is not None:
            beside_thread = threading.Thread(target=beside, args=(ending,), name="mlkit-delivery", daemon=True)
            beside_thread.start()
        _watch(platform, service, limits.give_up)
    except StopRequested as request:
        ending.set()
        _log.info("%s: %s is not ready any more, and stops in %g s", request, service, limits.drain)
        _drain(files, limits.drain)
        return 0
    finally:
        ending.set()
        if beside_thread is not None:
            beside_thread.join(BESIDE_SECONDS)  # what it has begun would start the service again
        platform.down()
        files.delete(DRAINING)
        log.stop()
        _log.info("%s has stopped", service)


def _drain(files: ServiceFiles, seconds: float) -> None:
    """Have the service say that it is not ready, and answer on while load balancers notice."""
    if files.exists("service.json") and files.reports():
        files.write_json(DRAINING, {"since": time.time()})
        time.sleep(seconds)


def _watch(platform: Platform, service: str, give_up: float) -> NoReturn:
    """Look at a service until a signal. Raises ServiceError when it stays down, StopRequested."""
    down_since: float | None = None
    while True:
        time.sleep(POLL_SECONDS)
        status = _status(platform, service)
        now = time.monotonic()
        if status is not None and status.ready:
            if down_since is not None:
                _log.info("%s is ready again after %.0f s", service, now - down_since)
            down_since = None
            continue
        if down_since is None:
            down_since = now
            _log.warning("%s is not ready: %s", service, "it is gone" if status is None else status.state)
        if now - down_since > give_up:
            state = "it is gone" if status is None else status.state
            raise ServiceError(
                f"{service} was not ready for {give_up:g} s: {state}", hint="the log above says why; mlkit status"
            )


def _status(platform: Platform, service: str) -> ServiceStatus | None:
    try:
        return next((status for status in platform.status() if status.service == service), None)
    except ServiceError as error:
        _log.warning("%s", error.message)
        return None


class _LogFollower:
    """Copies what is appended to a log file to standard error, from now on."""

    def __init__(self, path: Path) -> None:
        self._path, self._stopping = path, threading.Event()
        self._position = path.stat().st_size if path.exists() else 0
        self._thread = threading.Thread(target=self._run, name="mlkit-log", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        while not self._stopping.wait(0.2):
            self._copy()
        self._copy()

    def _copy(self) -> None:
        try:
            if self._path.stat().st_size < self._position:  # rotated
                self._position = 0
            with self._path.open("rb") as stream:
                stream.seek(self._position)
                content = stream.read(1 << 20)
        except OSError:
            return
        self._position += len(content)
        sys.stderr.write(printable(content.decode(errors="replace")))
        sys.stderr.flush()
