"""What people tell the controller and what it answers: a file each way, so that neither need be there for the other.

``<service>/commands/<id>.json`` is a `Told`; ``<service>/answers/<id>.json`` an `Answer`, to a command or a request of
that id. Answers are kept for an hour. A command is removed once its answer is there.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from mlflowkit.errors import ServiceError, UsageError
from mlflowkit.rollout import state as states
from mlflowkit.rollout.state import RolloutState
from mlflowkit.service_state import version_history
from mlflowkit.service_state.records import ServiceFiles, read_json, write_json

Kind = Literal["promote", "pause", "resume", "abort", "rollback"]
KEEP_SECONDS = 3600.0
POLL_SECONDS = 0.05
_log = logging.getLogger("mlflowkit.rollout")


@dataclass(frozen=True, slots=True)
class Told:
    """A command. ``variant`` names a lasting shadow that abort removes; ``full`` promotes past all steps.

    ``experiment`` is the rollout that it was said to, "" for none: said to one that has ended meanwhile, it is void.
    """

    id: str
    command: Kind
    reason: str = ""
    full: bool = False
    variant: str = ""
    time: float = 0.0
    experiment: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a command or a request."""

    id: str
    ok: bool
    message: str
    hint: str = ""
    time: float = 0.0


def say(files: ServiceFiles, command: Kind, reason: str = "", *, full: bool = False, variant: str = "") -> Told:
    """Leave a command for the controller. Raises UsageError when it makes no sense now."""
    _sensible(files, command, variant)
    now = time.time()
    state = running(files)
    experiment = "" if state is None else state.experiment
    told = Told(f"{time.time_ns():020d}-{secrets.token_hex(4)}", command, reason, full, variant, now, experiment)
    write_json(files.folder / "commands" / f"{told.id}.json", asdict(told))
    return told


def effect(files: ServiceFiles, command: Kind, *, full: bool = False, variant: str = "") -> str:
    """What a command would do now, in words. Raises UsageError when it makes no sense now."""
    _sensible(files, command, variant)
    state = running(files)
    if state is None and command == "abort":
        return f"remove the shadow {variant}"
    if state is None:
        before = version_history.previous(files, _champion(files))
        return f"go back to version {before.variant.version}" if before is not None else ""
    champion, candidate = state.champion.version, state.candidate.version
    if command in ("abort", "rollback"):
        return f"give all traffic to version {champion} and turn {candidate} down"
    if command == "promote":
        left = len(state.steps) - state.step - 1
        return f"make {candidate} the champion" if full or not left else f"go on to step {state.step + 2}"
    return {"pause": "stay at the present step", "resume": "go on judging and stepping"}[command]


def pending(files: ServiceFiles) -> tuple[Told, ...]:
    """Commands that wait for the controller, oldest first. One that cannot be read is removed."""
    folder = files.folder / "commands"
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            found.append(Told(**read_json(path)))
        except (ServiceError, TypeError) as error:
            _log.error("%s is damaged and was removed: %s", path, error)
            path.unlink(missing_ok=True)
    return tuple(found)


def answer(files: ServiceFiles, found: Answer) -> None:
    """Answer a command or a request, remove the command, and sweep answers that are old."""
    folder = files.folder / "answers"
    write_json(folder / f"{found.id}.json", asdict(found), durable=False)
    (files.folder / "commands" / f"{found.id}.json").unlink(missing_ok=True)
    for path in folder.glob("*.json"):
        try:
            old = time.time() - path.stat().st_mtime > KEEP_SECONDS
        except FileNotFoundError:
            continue
        if old:
            path.unlink(missing_ok=True)


def answered(files: ServiceFiles, id: str) -> Answer | None:
    """The answer, once there is one."""
    value = read_json(files.folder / "answers" / f"{id}.json")
    return None if value is None else Answer(**value)


def wait(files: ServiceFiles, id: str, seconds: float, alive: Callable[[], bool] = lambda: True) -> Answer:
    """The answer to a command or a request. Raises ServiceError when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = answered(files, id)
        if found is not None:
            return found
        if not alive():
            break
        time.sleep(POLL_SECONDS)
    raise ServiceError(
        f"the rollout controller of {files.service} did not answer within {seconds:g} s; what was asked stays asked",
        hint="mlkit status; mlkit up RECIPE starts what is not running",
    )


def running(files: ServiceFiles) -> RolloutState | None:
    """The rollout that a service is in; None when there is none, or it has ended."""
    saved = states.read(files.folder / "rollout.json")
    return None if saved is None or saved.state.ended else saved.state


def _champion(files: ServiceFiles) -> str:
    table = files.table()
    return "" if table is None else table.champion.digest


def _sensible(files: ServiceFiles, command: Kind, variant: str) -> None:
    """Raise UsageError for a command that would do nothing now."""
    table = files.table()
    if table is None:
        raise UsageError(f"{files.service} serves nothing yet", hint="mlkit run RECIPE")
    if variant:
        shadows = [one.name for one in table.variants if one.role == "shadow"]
        if command != "abort" or variant not in shadows:
            there = ", ".join(shadows) or "none"
            raise UsageError(f"{files.service} has no shadow {variant!r}; there is {there}", hint="mlkit status")
        return
    state = running(files)
    if state is not None and command == "resume" and state.phase != "paused":
        raise UsageError(f"the rollout of {files.service} is not paused", hint=f"mlkit rollout status {files.service}")
    if state is not None:
        return
    if command == "rollback" and version_history.previous(files, table.champion.digest) is not None:
        return
    what = "and no version before the present one is known" if command == "rollback" else ""
    raise UsageError(
        f"no rollout of {files.service} is running {what}".rstrip(), hint=f"mlkit rollout status {files.service}"
    )
