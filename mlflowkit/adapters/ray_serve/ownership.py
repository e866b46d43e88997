"""What a state folder may remove and signal: Ray's temporary folder and the processes that it started. Imports no Ray.

Files can be copied, restored or forged, so no file is believed alone. A folder is removed only if its name is the one
that the state folder's path gives, and it is this user's and no link. A process is signalled only if it is
this user's and has the start time, boot and namespace of process ids that were recorded, by this same path.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from mlflowkit.errors import EngineError
from mlflowkit.service_state.records import process_started
from mlflowkit.system.machine import is_own_process, parent_ids
from mlflowkit.system.text import shell_word

ProcessKey = tuple[int, float]
"""Process id and start time."""


RAY = "r"
"""Ray's own folder in the private one: Ray opens what it is given to every user (mode 0777)."""


def temp_dir(state: Path) -> Path:
    """The private folder of Ray: short, because Ray puts sockets 72 characters deeper, of at most 107."""
    base = tempfile.gettempdir()
    return Path(base if len(base) <= 14 else "/tmp") / _temp_name(state)


def _temp_name(state: Path) -> str:
    digest = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:8]
    return f"mlkit-{os.getuid()}-{digest}"


def owns_temp_dir(folder: Path, state: Path) -> bool:
    """Whether ``folder`` is Ray's folder of this state folder: named for it, no link, and of this user."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    return own and folder.is_absolute() and folder.name == _temp_name(state)


def remove_temp_dir(folder: Path, state: Path) -> None:
    """Remove Ray's folder if `owns_temp_dir`; anything else is left alone."""
    if owns_temp_dir(folder, state):
        shutil.rmtree(folder, ignore_errors=True)


def create_temp_dir(folder: Path) -> Path:
    """Create Ray's folder, and return the one in it that Ray may use.

    Raises EngineError when something else has its name, such as a link of another user.
    """
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError as error:
        raise EngineError(
            f"{folder} exists and is not this service's private folder",
            hint=f"look at it (ls -ld {shell_word(folder)}) and remove it, or set TMPDIR to a short path of your own",
        ) from error
    return folder / RAY


def session_members(leader: ProcessKey) -> set[ProcessKey]:
    """This user's processes in the session that ``leader`` began, without itself and the caller.

    All of Ray stays in the supervisor's session, even after supervisor and reconciler ended, and an id that still names
    a session is not given to another process. (Ray's processes overwrite their command lines and environments.)
    """
    pid, started = leader
    members: set[ProcessKey] = set()
    if pid <= 1 or process_started(pid) not in (None, started):  # otherwise the id has been reused
        return members
    for other in [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]:
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(other) == pid != other != os.getpid() and is_own_process(other):
                member = process_started(other)
                if member is not None and member >= started:
                    members.add((other, member))
    return members


def descendants(roots: Collection[int]) -> set[int]:
    """Process ids in ``roots`` and of all that these started and that have not lost their parent."""
    family, parents = set(roots), parent_ids()
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def kill(processes: Collection[ProcessKey], poll: Callable[[], None] = lambda: None) -> None:
    """Kill processes that have their start time still, and wait until they are gone; see `await_end`."""
    for pid, started in processes:
        if process_started(pid) == started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    await_end(processes, 10.0, poll)


def await_end(processes: Iterable[ProcessKey], seconds: float, poll: Callable[[], None] = lambda: None) -> None:
    """Wait until processes are gone; ``poll`` reaps those that are children of this process."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(process_started(pid) == started for pid, started in processes):
        poll()
        time.sleep(0.05)
