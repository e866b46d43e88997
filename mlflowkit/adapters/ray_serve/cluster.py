"""The record of a supervisor and its Ray cluster; starting and stopping them. Imports no Ray."""

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
from mlflowkit.system.files import make_folder, private_opener

FORMAT = 2
"""Version of the files that reconciler, gateways and commands share. Processes of another format cannot read them."""
SUPERVISOR = "mlflowkit.adapters.ray_serve.supervisor"
START_SECONDS = 120.0
STOP_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where the Ray of a state folder is. ``owned``: we started it, rather than attached to it."""

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
        """Whether the supervisor runs; it restarts a dead reconciler."""
        return process_started(self.pid) == self.started


def record_path(state: Path) -> Path:
    return state / "ray" / "cluster.json"


def log_path(state: Path) -> Path:
    return state / "ray" / "steward.log"


def read(state: Path) -> Cluster | None:
    """The cluster of a state folder, or None when no supervisor runs (for example after a reboot)."""
    cluster = _read_record(state)
    return cluster if cluster is not None and cluster.alive else None


def _read_record(state: Path) -> Cluster | None:
    value = read_json(record_path(state))
    if value is None:
        return None
    supervisor = value.pop("steward")
    return Cluster(**{"format": 1, **value, **supervisor})


def check_format(state: Path) -> None:
    """Raise ServiceError when services of an mlflowkit release that cannot read our files are running."""
    cluster = read(state)
    if cluster is not None and cluster.format != FORMAT:
        raise ServiceError(
            f"the services in {state} were started by another release of mlflowkit, and run until they are stopped",
            hint="mlkit down, then the same command again",
        )


def write(state: Path, cluster: Cluster) -> None:
    value = asdict(cluster)
    supervisor = {"pid": value.pop("pid"), "started": value.pop("started")}
    write_json(record_path(state), {**value, "steward": supervisor})


def temp_dir(state: Path) -> Path:
    """Ray's folder: short, because Ray puts sockets 70 characters deeper and a socket path is limited to 107."""
    digest = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:8]
    base = tempfile.gettempdir()
    return Path(base if len(base) <= 16 else "/tmp") / f"mlkit-{os.getuid()}-{digest}"


def spawn(state: Path, runtime: str, sidecars: Sequence[str] = ()) -> None:
    """Start the supervisor of the reconciler and the sidecar modules, unless one runs.

    Returns at once; `wait` blocks until the cluster is ready.
    """
    folder = record_path(state).parent
    make_folder(folder)
    with open(folder / "start.lock", "w", opener=private_opener) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if read(state) is not None:
            return
        owned = not os.environ.get("RAY_ADDRESS")
        _remove_leftovers(_read_record(state))
        with open(log_path(state), "ab", opener=private_opener) as log:
            process = subprocess.Popen(
                [sys.executable, "-m", SUPERVISOR, str(state.resolve()), runtime, *sidecars],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **(ray_environment(state) if owned else {})},
            )
        started = process_started(process.pid)
        _children.append(process)
        write(state, Cluster("starting", process.pid, started or 0.0, str(temp_dir(state)), owned))


_children: list[subprocess.Popen[bytes]] = []
"""Supervisors started by this process, kept so that ended ones are reaped at the next spawn or stop."""


def wait(state: Path, seconds: float = START_SECONDS) -> Cluster:
    """The cluster, once it is ready. Raises EngineError when it fails or takes longer than ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        cluster = read(state)
        if cluster is not None and cluster.state == "ready":
            return cluster
        if cluster is None or cluster.state == "failed":
            record = _read_record(state)
            reason = "" if record is None else record.message
            raise EngineError(
                f"the local Ray did not start: {reason or 'the supervisor ended'}", hint=f"its log: {log_path(state)}"
            )
        if time.monotonic() > deadline:
            raise EngineError(f"the local Ray is not up after {seconds:g} s", hint=f"its log: {log_path(state)}")
        time.sleep(0.05)


def stop(state: Path) -> bool:
    """Stop the supervisor, and Ray if we started it; returns whether it ran. Leaves no process behind."""
    cluster = _read_record(state)
    if cluster is None:
        return False
    alive = cluster.alive
    if alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(cluster.pid, signal.SIGTERM)
        _await_end([(cluster.pid, cluster.started)], STOP_SECONDS)
    _remove_leftovers(cluster)
    write(state, replace(cluster, state="stopped", address="", environment={}))
    return alive


def process_group(cluster: Cluster) -> set[tuple[int, float]]:
    """Every process that the supervisor started, directly or not: (process id, start time).

    The supervisor leads a session and all of Ray stays in it, even after supervisor and reconciler ended. (Ray's
    processes change their titles, which overwrites command line and environment, so neither identifies them.)
    """
    members = set()
    if process_started(cluster.pid) in (None, cluster.started):  # otherwise the id has been reused
        for pid in [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]:
            with contextlib.suppress(ProcessLookupError):
                started = process_started(pid) if os.getsid(pid) == cluster.pid != pid else None
                if started is not None and started >= cluster.started:
                    members.add((pid, started))
    return members


def _auth_token(state: Path) -> Path:
    """The file with this cluster's token, readable by its owner only; created when absent."""
    path = state.resolve() / "ray" / "auth_token"
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))
    path.chmod(0o600)
    return path


def ray_environment(state: Path) -> dict[str, str]:
    """Environment variables a process needs to start or join the Ray that we own.

    They set a token, and keep Ray on loopback: it otherwise replaces 127.0.0.1 by an externally reachable address
    unless multi-machine clusters are declared unsupported (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0). Workers run at
    normal priority: at Ray's default niceness of 15 a gateway starves on a busy machine. Training lowers its own
    priority (see `ray_train`).
    """
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(_auth_token(state)),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }


def _remove_leftovers(cluster: Cluster | None) -> None:
    """Kill the remaining processes of a cluster of ours (Ray's helpers notice its end late) and remove its folder."""
    if cluster is None or not cluster.owned or cluster.state == "stopped":
        return
    _kill({*process_group(cluster), (cluster.pid, cluster.started)})
    shutil.rmtree(cluster.temp_dir, ignore_errors=True)


def kill_group(cluster: Cluster, spared: Collection[int] = ()) -> None:
    """Kill every process the supervisor started, directly or not, except the process ids in ``spared``."""
    _kill({(pid, started) for pid, started in process_group(cluster) if pid not in spared})


def _kill(processes: Collection[tuple[int, float]]) -> None:
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
