"""Operator commands and the controller's replies, exchanged as records so that neither side needs the other running.

``<service>/commands/<id>.json`` is an `OperatorCommand`; ``<service>/answers/<id>.json`` is the `CommandReply` to the
command or rollout request of that id. Replies are kept for an hour; a command is removed once its reply is written.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mlflowkit.errors import ConflictError, ServiceError, UsageError
from mlflowkit.judging.compatibility import Leniency, breaking_changes, summarize_changes
from mlflowkit.rollout import state as states
from mlflowkit.rollout.signature_check import compare_bundles
from mlflowkit.rollout.state import RolloutState
from mlflowkit.service_state import version_history
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.values import Json, Variant

CommandKind = Literal["promote", "pause", "resume", "abort", "rollback"]
Author = Literal["person", "monitor"]
REPLY_TTL_SECONDS = 3600.0
POLL_SECONDS = 0.05
_log = logging.getLogger("mlflowkit.rollout")


@dataclass(frozen=True, slots=True)
class OperatorCommand:
    """A command. ``variant`` names a lasting shadow that abort removes; ``full`` promotes past all steps.

    ``experiment`` is the rollout that it is for, "" for none; it is rejected if that rollout ended meanwhile. The
    monitor of live traffic commands, too (``by``): a rollback with its ``cause``, and "shadow", which lets the version
    ``shadow`` answer mirrored requests.
    """

    id: str
    command: CommandKind | Literal["shadow"]
    reason: str = ""
    full: bool = False
    variant: str = ""
    time: float = 0.0
    experiment: str = ""
    by: Author = "person"
    cause: str = ""
    shadow: Mapping[str, Json] | None = None


@dataclass(frozen=True, slots=True)
class CommandReply:
    """The controller's reply to a command or a request."""

    id: str
    ok: bool
    message: str
    hint: str = ""
    time: float = 0.0


def submit(
    files: ServiceFiles, kind: CommandKind, reason: str = "", *, full: bool = False, variant: str = "",
    allow_breaking: bool = False,
) -> OperatorCommand:  # fmt: skip
    """Write a command for the controller. Raises UsageError if it would have no effect now.

    Promoting past the rest of a rollout also raises it when the version breaks clients, unless ``allow_breaking``.
    """
    _validate(files, kind, variant)
    state = running_rollout(files)
    if kind == "promote" and state is not None and not (allow_breaking or state.plan.allow_breaking):
        _require_unbroken_clients(state, full)
    experiment = "" if state is None else state.experiment
    id = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
    command = OperatorCommand(id, kind, reason, full, variant, time.time(), experiment)
    files.write_json(f"commands/{id}.json", asdict(command))
    return command


def submit_rollback(files: ServiceFiles, id: str, reason: str, cause: str) -> None:
    """Write the monitor's command to go back to the previous champion, unless it has been written under this id."""
    _submit_once(files, OperatorCommand(id, "rollback", reason, time=time.time(), by="monitor", cause=cause))


def submit_shadow(files: ServiceFiles, id: str, shadow: Variant) -> None:
    """Write the monitor's command to mirror requests to a version, unless it has been written under this id."""
    _submit_once(files, OperatorCommand(id, "shadow", time=time.time(), by="monitor", shadow=asdict(shadow)))


def submit_removal(files: ServiceFiles, id: str, shadow: str) -> None:
    """Write the monitor's command to remove a lasting shadow, unless it has been written under this id."""
    _submit_once(files, OperatorCommand(id, "abort", variant=shadow, time=time.time(), by="monitor"))


def _submit_once(files: ServiceFiles, command: OperatorCommand) -> None:
    if read_reply(files, command.id) is None:
        with contextlib.suppress(ConflictError):
            files.create_json(f"commands/{command.id}.json", asdict(command))


def describe_effect(files: ServiceFiles, kind: CommandKind, *, full: bool = False, variant: str = "") -> str:
    """The effect that a command would have now, as text. Raises UsageError if it would have none."""
    _validate(files, kind, variant)
    state = running_rollout(files)
    if state is None and kind == "abort":
        return f"remove the shadow {variant}"
    if state is None:
        table = files.table()
        previous = version_history.previous_champion(files, "" if table is None else table.champion.digest)
        breaks = rollback_breaks(files)
        suffix = f"; clients of the present version break: {breaks}" if breaks else ""
        return f"go back to version {previous.variant.version}{suffix}" if previous is not None else ""
    champion, candidate = state.champion.version, state.candidate.version
    if kind in ("abort", "rollback"):
        return f"give all traffic to version {champion} and turn {candidate} down"
    if kind == "promote":
        last = state.step == len(state.steps) - 1
        return f"make {candidate} the champion" if full or last else f"go on to step {state.step + 2}"
    return {"pause": "stay at the present step", "resume": "go on judging and stepping"}[kind]


def rollback_breaks(files: ServiceFiles) -> str:
    """What breaks for clients of the champion when the previous one comes back; "" while a rollout runs, or nothing."""
    table = files.table()
    if table is None or running_rollout(files) is not None:
        return ""
    previous = version_history.previous_champion(files, table.champion.digest)
    changes = previous and compare_bundles(table.champion, Path(previous.variant.bundle), Leniency())
    return summarize_changes(breaking_changes(changes or ()))


def pending(files: ServiceFiles) -> tuple[OperatorCommand, ...]:
    """Commands without a reply, oldest first. A damaged one is removed."""
    commands = []
    for entry in files.list("commands/*.json"):
        try:
            commands.append(OperatorCommand(**files.read_json(entry.key)))
        except (ServiceError, TypeError) as error:
            _log.error("%s is damaged and was removed: %s", files.location(entry.key), error)
            files.delete(entry.key)
    return tuple(commands)


def write_reply(files: ServiceFiles, reply: CommandReply) -> None:
    """Reply to a command or a request, remove the command, and delete expired replies."""
    files.write_json(f"answers/{reply.id}.json", asdict(reply), durable=False)
    files.delete(f"commands/{reply.id}.json")
    for entry in files.list("answers/*.json"):
        if time.time() - entry.modified > REPLY_TTL_SECONDS:
            files.delete(entry.key)


def read_reply(files: ServiceFiles, id: str) -> CommandReply | None:
    """The reply to a command or a request; None while there is none."""
    value = files.read_json(f"answers/{id}.json")
    return None if value is None else CommandReply(**value)


def wait_for_reply(
    files: ServiceFiles, id: str, seconds: float, alive: Callable[[], bool] = lambda: True
) -> CommandReply:
    """Wait for the reply to a command or a request. Raises ServiceError on timeout."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        reply = read_reply(files, id)
        if reply is not None:
            return reply
        if not alive():
            break
        time.sleep(POLL_SECONDS)
    raise ServiceError(
        f"the rollout controller of {files.service} did not answer within {seconds:g} s; the command stays queued",
        hint="mlkit status; mlkit up RECIPE starts what is not running",
    )


def running_rollout(files: ServiceFiles) -> RolloutState | None:
    """The running rollout of a service, if any."""
    saved = states.read(files)
    return None if saved is None or saved.state.ended else saved.state


def _require_unbroken_clients(state: RolloutState, full: bool) -> None:
    """Raise UsageError if a promotion now would move all traffic to a version that breaks clients."""
    breaking = breaking_changes(state.signature_changes)
    if breaking and (full or state.step == len(state.steps) - 1):
        service, skip = state.service, " --full" if full else ""
        raise UsageError(
            f"version {state.candidate.version} breaks the clients of {service}: {summarize_changes(breaking)}",
            hint=f"mlkit rollout promote {service}{skip} --allow-breaking, or mlkit rollout abort {service}",
        )


def _validate(files: ServiceFiles, kind: CommandKind, variant: str) -> None:
    """Raise UsageError for a command that would have no effect now."""
    table, status = files.table(), f"mlkit rollout status {files.service}"
    if table is None:
        raise UsageError(f"{files.service} serves nothing yet", hint="mlkit run RECIPE")
    if variant:
        shadows = [shadow.name for shadow in table.variants if shadow.role == "shadow"]
        if kind != "abort" or variant not in shadows:
            raise UsageError(
                f"{files.service} has no shadow {variant!r}; there is {', '.join(shadows) or 'none'}",
                hint="mlkit status",
            )
        return
    state = running_rollout(files)
    if state is not None:
        if kind == "resume" and state.phase != "paused":
            raise UsageError(f"the rollout of {files.service} is not paused", hint=status)
        return
    if kind != "rollback":
        raise UsageError(f"no rollout of {files.service} is running", hint=status)
    if version_history.previous_champion(files, table.champion.digest) is None:
        message = f"no rollout of {files.service} is running and no version before the present one is known"
        raise UsageError(message, hint=status)
