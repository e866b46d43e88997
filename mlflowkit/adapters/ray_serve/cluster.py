"""The record of a steward and its Ray, and how to start and stop them. Imports no Ray."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from mlflowkit.errors import EngineError, ServiceError
from mlflowkit.service_state.records import process_started, read_json, write_json

FORMAT = 2
"""Of the files that steward, gateways and commands share. Processes started under another do not read them."""
GUARD = "mlflowkit.adapters.ray_serve.supervisor"
START_SECONDS = 120.0
STOP_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where the Ray of a state folder is. ``owned`` tells one that we started from one that we attached to."""

    state: str
    pid: int
    started: float
    temp_dir: str
    owned: bool
    address: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    message: str = ""
    format: int = FORMAT

    @property
    def alive(self) -> bool:
        """Whether the steward runs, or its guard is about to start it again."""
        return process_started(self.pid) == self.started


def record_path(state: Path) -> Path:
    return state / "ray" / "cluster.json"


def log_path(state: Path) -> Path:
    return state / "ray" / "steward.log"


def read(state: Path) -> Cluster | None:
    """The cluster of a state folder, or None when no steward runs. A machine that rebooted has none."""
    cluster = _recorded(state)
    return cluster if cluster is not None and cluster.alive else None


def _recorded(state: Path) -> Cluster | None:
    value = read_json(record_path(state))
    if value is None:
        return None
    steward = value.pop("steward")
    return Cluster(**{"format": 1, **value, **steward})


def check_format(state: Path) -> None:
    """Raise ServiceError where another release of mlflowkit keeps services running that could not read our files."""
    cluster = read(state)
    if cluster is not None and cluster.format != FORMAT:
        raise ServiceError(
            f"the services in {state} were started by another release of mlflowkit, and run until they are stopped",
            hint="mlkit down, then the same command again",
        )


def write(state: Path, cluster: Cluster) -> None:
    value = asdict(cluster)
    steward = {"pid": value.pop("pid"), "started": value.pop("started")}
    write_json(record_path(state), {**value, "steward": steward})


def temp_dir(state: Path) -> Path:
    """Ray's folder: short, because Ray puts sockets 70 characters deeper and a socket's path ends at 107."""
    digest = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:8]
    base = tempfile.gettempdir()
    return Path(base if len(base) <= 16 else "/tmp") / f"mlkit-{os.getuid()}-{digest}"


def spawn(state: Path, runtime: str, companions: Sequence[str] = ()) -> None:
    """Start the guard, which keeps the steward and the companions' modules running, unless there is one.

    Returns at once; `wait` tells when the steward is ready.
    """
    folder = record_path(state).parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if read(state) is not None:
            return
        owned = not os.environ.get("RAY_ADDRESS")
        temporary = temp_dir(state)
        _clear(_recorded(state))
        with log_path(state).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", GUARD, str(state.resolve()), runtime, *companions],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=_environment(state, owned),
            )
        started = process_started(process.pid)
        _children.append(process)
        write(state, Cluster("starting", process.pid, started or 0.0, str(temporary), owned))


_children: list[subprocess.Popen[bytes]] = []
"""Stewards that this process started: kept so that one which ends is reaped when the next is spawned or stopped."""


def wait(state: Path, seconds: float = START_SECONDS) -> Cluster:
    """The cluster, once it is ready. Raises EngineError when it fails or takes longer than ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        cluster = read(state)
        if cluster is not None and cluster.state == "ready":
            return cluster
        if cluster is None or cluster.state == "failed":
            found = _recorded(state)
            reason = "" if found is None else found.message
            raise EngineError(
                f"the local Ray did not start: {reason or 'the steward ended'}",
                hint=f"its log: {log_path(state)}",
            )
        if time.monotonic() > deadline:
            raise EngineError(f"the local Ray is not up after {seconds:g} s", hint=f"its log: {log_path(state)}")
        time.sleep(0.05)


def stop(state: Path) -> bool:
    """Stop the steward, and Ray when we started it; returns whether there was one. Leaves no process behind."""
    cluster = _recorded(state)
    if cluster is None:
        return False
    alive = cluster.alive
    if alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(cluster.pid, signal.SIGTERM)
        _await_end([(cluster.pid, cluster.started)], STOP_SECONDS)
    _clear(cluster)
    write(state, replace(cluster, state="stopped", address="", environment={}))
    return alive


def family(cluster: Cluster) -> set[tuple[int, float]]:
    """Every process that the guard started, directly or not: (process id, start time).

    The guard leads a session and all of Ray stays in it, also when guard and steward are gone. (Ray's processes change
    their titles, which wipes command line and environment: neither can be relied on to find them.)
    """
    found = set()
    if process_started(cluster.pid) in (None, cluster.started):  # otherwise the id names another process by now
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != cluster.pid and _session(int(entry.name)) == cluster.pid:
                started = process_started(int(entry.name))
                if started is not None and started >= cluster.started:
                    found.add((int(entry.name), started))
    return found


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def auth_token(state: Path) -> Path:
    """The file with this cluster's token, readable by its owner only; made when absent."""
    path = state.resolve() / "ray" / "auth_token"
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))
    path.chmod(0o600)
    return path


def ray_environment(state: Path) -> dict[str, str]:
    """What a process needs in its environment to start or join the Ray that we own.

    A token, and loopback only: Ray otherwise replaces 127.0.0.1 by an address that other machines reach, except
    where it takes clusters of several machines for impossible, which is what the second variable says. Workers are as
    urgent as any process: by default Ray runs them at a niceness of 15, and a gateway would answer last on a busy
    machine. What trains makes itself nice (see `ray_train`).
    """
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(auth_token(state)),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }


def _environment(state: Path, owned: bool) -> dict[str, str]:
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "1"}
    return {**os.environ, **quiet, **(ray_environment(state) if owned else {})}


def _clear(cluster: Cluster | None) -> None:
    """End what is left of a cluster of ours (helpers of Ray notice its end late) and remove its folder."""
    if cluster is None or not cluster.owned or cluster.state == "stopped":
        return
    _end({*family(cluster), (cluster.pid, cluster.started)})
    shutil.rmtree(cluster.temp_dir, ignore_errors=True)


def end_family(cluster: Cluster, spared: Collection[int] = ()) -> None:
    """End every process that the guard started, directly or not, but those whose ids are ``spared``."""
    _end({(pid, started) for pid, started in family(cluster) if pid not in spared})


def _end(processes: Collection[tuple[int, float]]) -> None:
    for pid, started in processes:
        if process_started(pid) == started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    _await_end(processes, 10.0)


def _await_end(processes: Iterable[tuple[int, float]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(process_started(pid) == started for pid, started in processes):
        for child in _children:
            child.poll()
        time.sleep(0.05)
