"""The record of a supervisor and its Ray cluster; starting and stopping them. Imports no Ray."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from mlflowkit.adapters.ray_serve import ownership, ray_logs, starting
from mlflowkit.adapters.ray_serve.ownership import ProcessKey, temp_dir
from mlflowkit.errors import EngineError, ServiceError
from mlflowkit.service_state.ray_cluster import check_address
from mlflowkit.service_state.records import process_started, read_json, write_json
from mlflowkit.system.child_process import SAFE_PATH, module_command, python_path
from mlflowkit.system.files import create_private_file, make_folder, private_opener
from mlflowkit.system.machine import boot_identity, command_line, is_own_process
from mlflowkit.system.text import shell_word

FORMAT = 2
"""Version of the files that reconciler, gateways and commands share. Processes of another format cannot read them."""
SUPERVISOR = "mlflowkit.adapters.ray_serve.supervisor"
STOP_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where the Ray of a state folder is. ``owned``: we started it, rather than attached to it.

    ``folder`` and ``boot`` say where it was started: the resolved state folder, and `machine.boot_identity`. Both are
    empty in records of earlier releases.
    """

    state: str
    pid: int
    started: float
    temp_dir: str
    owned: bool
    address: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    message: str = ""
    format: int = FORMAT
    folder: str = ""
    boot: str = ""
    previous: tuple[ProcessKey, ...] = ()
    """Supervisors before this one, of whose sessions some gateways still answer."""
    reason: str = ""
    """Why the last try to start Ray failed; ``message`` is for whoever waits."""

    @property
    def key(self) -> ProcessKey:
        """The supervisor, which leads the session of all processes that it started."""
        return self.pid, self.started

    @property
    def alive(self) -> bool:
        """Whether the supervisor runs; it restarts a dead reconciler."""
        return process_started(self.pid) == self.started and is_own_process(self.pid)

    def started_by(self, state: Path) -> bool:
        """Whether ``state`` started these processes, under its present path and in this boot of this machine.

        False for the record of a copied, moved or forged folder, and after a reboot. A record of an earlier release is
        believed where the supervisor runs and its command line names the folder.
        """
        if record_path(state).lstat().st_uid != os.geteuid():
            return False
        folder, line = str(state.resolve()), command_line(self.pid)
        if self.alive and SUPERVISOR not in line:
            return False
        if self.folder or self.boot:
            return self.folder == folder and self.boot == boot_identity()
        return self.alive and folder in line


def this_cluster(state: Path, pid: int, *, owned: bool) -> Cluster:
    """The record of a supervisor that starts now, as process ``pid``, after the one that the state folder names."""
    started = process_started(pid) or 0.0
    folder, boot = str(state.resolve()), boot_identity()
    before = read_record(state)
    previous: tuple[ProcessKey, ...] = ()
    if before is not None and before.started_by(state):
        sessions = (*before.previous, before.key)
        previous = tuple(key for key in sessions if key[0] != pid and ownership.session_members(key))
    return Cluster("starting", pid, started, str(temp_dir(state)), owned, folder=folder, boot=boot, previous=previous)


def record_path(state: Path) -> Path:
    return state / "ray" / "cluster.json"


def log_path(state: Path) -> Path:
    return state / "ray" / "steward.log"


def read(state: Path) -> Cluster | None:
    """The cluster of a state folder, or None when no supervisor of its own runs (for example after a reboot)."""
    cluster = read_record(state)
    return cluster if cluster is not None and cluster.alive and cluster.started_by(state) else None


def read_record(state: Path) -> Cluster | None:
    """The record of a state folder, whoever wrote it. Raises ServiceError when it is damaged."""
    value = read_json(record_path(state))
    if value is None:
        return None
    try:
        supervisor = value.pop("steward")
        value["previous"] = tuple((int(pid), float(started)) for pid, started in value.get("previous", ()))
        return Cluster(**{"format": 1, **value, "pid": int(supervisor["pid"]), "started": float(supervisor["started"])})
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError) as error:
        path = record_path(state)
        raise ServiceError(f"{path} is damaged: {error!r}", hint=f"rm {shell_word(path)}") from error


def is_abandoned(state: Path, supervisor: ProcessKey) -> bool:
    """Whether a supervisor ended without being told to, so that its services are still to be up."""
    record = read_record(state) if state.is_dir() else None
    if record is None or record.key != supervisor or not record.started_by(state):
        return False
    return not record.alive and record.state in ("starting", "ready")


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
        address = os.environ.get("RAY_ADDRESS", "")
        check_address(address)
        starting.first_seconds()  # raises here rather than in the supervisor
        owned = not address
        _remove_leftovers(state, read_record(state), spare=True)
        with open(log_path(state), "ab", opener=private_opener) as log:
            process = subprocess.Popen(
                module_command(SUPERVISOR, str(state.resolve()), runtime, *sidecars),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",  # Ray's workers import from the working directory of the process that started it
                env={**os.environ, **SAFE_PATH, **python_path(), **(_environment(state) if owned else {})},
            )
        _children.append(process)
        write(state, this_cluster(state, process.pid, owned=owned))


_children: list[subprocess.Popen[bytes]] = []
"""Supervisors started by this process, kept so that ended ones are reaped at the next spawn or stop."""


def wait(state: Path, seconds: float | None = None, progress: Callable[[str], None] = lambda message: None) -> Cluster:
    """The cluster, once it is ready; ``progress`` is told what happens meanwhile.

    Raises EngineError when it fails or takes longer than ``seconds``, by default than all tries may take.
    """
    limit = starting.total_seconds() if seconds is None else seconds
    deadline, message = time.monotonic() + limit, ""
    while True:
        cluster = read(state)
        if cluster is not None and cluster.state == "ready":
            return cluster
        if cluster is None or cluster.state == "failed":
            raise _not_started(state, "")
        if cluster.message not in ("", message):
            message = cluster.message
            progress(message)
        if time.monotonic() > deadline:
            raise _not_started(state, f"it is not up after {limit:g} s")
        time.sleep(0.05)


def _not_started(state: Path, reason: str) -> EngineError:
    """The error for a Ray that did not start, with the cause that its logs give."""
    record = read_record(state)
    if record is None:
        return EngineError("the local Ray was stopped while it started", hint="mlkit up RECIPE")
    problem = reason or record.message or "the supervisor ended"
    cause = ray_logs.cause(Path(record.temp_dir)) if record.owned else ""
    if cause and cause not in problem:
        problem = f"{problem}; {cause}"
    if not record.owned:
        address = os.environ.get("RAY_ADDRESS", "") or record.address
        message = f"the Ray that RAY_ADDRESS names ({address}) cannot be used: {problem}"
        return EngineError(message, hint="unset RAY_ADDRESS to use a local one, or look at that cluster: ray status")
    hint = f"give it more time: export {starting.SETTING}={2 * starting.first_seconds():g}"
    return EngineError(
        f"the local Ray did not start: {problem}", hint=f"{hint}; tail -n 50 {shell_word(log_path(state))}"
    )


def stop(state: Path) -> bool:
    """Stop the supervisor, and Ray if we started it; returns whether it ran. Leaves no process behind."""
    cluster = read_record(state)
    if cluster is None:
        return False
    if not cluster.started_by(state):  # of another folder or boot: whatever it names is not ours to stop
        write(state, replace(cluster, state="stopped", address="", environment={}))
        return False
    alive = cluster.alive
    write(state, replace(cluster, state="stopping"))  # so that nobody starts another supervisor in its place
    if alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(cluster.pid, signal.SIGTERM)
        ownership.await_end([cluster.key], STOP_SECONDS, _reap)
    _remove_leftovers(state, cluster, crashed=not alive or cluster.state == "failed")
    write(state, replace(cluster, state="stopped", address="", environment={}))
    return alive


def process_group(cluster: Cluster) -> set[ProcessKey]:
    """Every process that the supervisors of a verified record started, directly or not, but this one."""
    return set().union(*map(ownership.session_members, (*cluster.previous, cluster.key)))


def _auth_token(state: Path) -> Path:
    """The file with this cluster's token, readable by its owner only; created when absent. Raises EngineError."""
    path = state.resolve() / "ray" / "auth_token"
    create_private_file(path, secrets.token_hex(32).encode())
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        raise EngineError(f"{path} is not a file of this user", hint=f"rm {shell_word(path)}")
    if not status.st_size:  # of an earlier release, killed before it wrote the token
        path.unlink()
        return _auth_token(state)
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


def _environment(state: Path) -> dict[str, str]:
    """Environment of the processes that run Ray: a gateway is to go on answering when Ray ends (see `survivors`)."""
    forever = {
        "RAY_raylet_death_check_interval_milliseconds": "1000000000",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "86400",
    }
    return {**ray_environment(state), **forever}


def _remove_leftovers(state: Path, cluster: Cluster | None, *, crashed: bool = True, spare: bool = False) -> None:
    """Kill the remaining processes of a cluster of ours (Ray's helpers notice its end late) and remove its folder.

    The logs of one that ``crashed`` are kept. With ``spare``, gateways that still answer are left to do so.
    """
    if cluster is None or not cluster.owned or cluster.state == "stopped":
        return
    if cluster.started_by(state):
        members = {*process_group(cluster), cluster.key}
        ownership.kill(members - (_answering(state, members) if spare else set()), _reap)
    if crashed:
        ray_logs.save_crash_logs(Path(cluster.temp_dir), state)
    ownership.remove_temp_dir(Path(cluster.temp_dir), state)


def kill_group(state: Path, cluster: Cluster, managed: Collection[int] = ()) -> None:
    """Kill every process the supervisor started but gateways that answer, and the ``managed`` ones with their own."""
    members, managed = process_group(cluster), ownership.descendants(managed)
    spared = _answering(state, members) if cluster.owned else set()
    ownership.kill({(pid, started) for pid, started in members - spared if pid not in managed}, _reap)


def _answering(state: Path, members: Collection[ProcessKey]) -> set[ProcessKey]:
    from mlflowkit.adapters.ray_serve.survivors import answering  # not for readers

    return answering(state, members)


def _reap() -> None:
    for child in _children:
        child.poll()
