"""The keeper: waits for the end of a supervisor, and starts another in its place unless it was to end. Imports no Ray.

``python -m mlflowkit.adapters.ray_serve.keeper STATE PID RUNTIME [SIDECAR ...]``. Supervisor and keeper restart each
other, so that services survive the end of either. A supervisor that is stopped (SIGSTOP) for long is killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mlflowkit.adapters.ray_serve import cluster as clusters
from mlflowkit.adapters.ray_serve.ownership import ProcessKey
from mlflowkit.errors import MlkitError
from mlflowkit.service_state.records import process_started
from mlflowkit.system.files import use_private_umask
from mlflowkit.system.logs import configure_logging
from mlflowkit.system.machine import is_stopped

POLL_SECONDS = 2.5
STOPPED_POLLS = 4
"""A supervisor found stopped this often in a row is killed."""
SHORT_SECONDS = 10.0
"""A supervisor that ended sooner is not replaced before this time is over."""
_log = logging.getLogger("mlflowkit.keeper")


def restart_after(state: Path, supervisor: ProcessKey, runtime: str, sidecars: Sequence[str]) -> None:
    """Wait until ``supervisor`` has ended, and start another if its services are still to be up."""
    began = time.monotonic()
    wait_for_end(supervisor)
    if not clusters.is_abandoned(state, supervisor):
        return
    _log.warning("supervisor %d has ended; starting another", supervisor[0])
    if time.monotonic() - began < SHORT_SECONDS:
        time.sleep(SHORT_SECONDS)
    while clusters.is_abandoned(state, supervisor):
        try:
            clusters.spawn(state, runtime, sidecars)
        except MlkitError as error:
            _log.error("%s", error.message)
            time.sleep(SHORT_SECONDS)


def wait_for_end(supervisor: ProcessKey) -> None:
    """Return once the process has ended; one that stays stopped is killed."""
    pid, started = supervisor
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            polls = 0
            while process_started(pid) == started and not select.select([handle], [], [], POLL_SECONDS)[0]:
                polls = polls + 1 if is_stopped(pid) else 0
                if polls >= STOPPED_POLLS:
                    _log.warning("supervisor %d was stopped for %g s; killing it", pid, polls * POLL_SECONDS)
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def main(arguments: list[str]) -> int:
    """Keep a state folder's supervisor running; returns the exit code."""
    use_private_umask()
    configure_logging()
    state, pid, (runtime, *sidecars) = Path(arguments[0]), int(arguments[1]), arguments[2:]
    started = process_started(pid)
    if started is not None and os.getppid() == pid:
        restart_after(state, (pid, started), runtime, sidecars)
    else:
        record = clusters.read_record(state)
        if record is not None and record.pid == pid:
            restart_after(state, record.key, runtime, sidecars)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
