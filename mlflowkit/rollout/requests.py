"""Request a rollout, and the rules by which a request is rejected."""

from __future__ import annotations

import time

from mlflowkit.errors import ConflictError, ServiceError
from mlflowkit.rollout import commands, policy
from mlflowkit.rollout import state as states
from mlflowkit.rollout.commands import CommandReply
from mlflowkit.rollout.state import Request, RolloutState
from mlflowkit.service_state import version_history
from mlflowkit.service_state.records import ServiceFiles

REQUEST = "request.json"
BEGIN_SECONDS = 60.0
"""Timeout for the controller's reply; the controller starts with the service."""
LIVE_SECONDS = 180.0
"""Timeout for the first step to be live, including loading versions and starting isolated processes."""


def reason_to_reject(files: ServiceFiles, request: Request, now: float) -> CommandReply | None:
    """Why a rollout cannot begin, or None. A deploy checks this before it writes its request."""
    running = commands.running_rollout(files)
    service = files.service
    if running is not None and running.experiment != request.id:
        same = running.candidate.digest == request.candidate.digest
        version = "this version" if same else f"version {running.candidate.version}"
        message = f"{version} is already being rolled out to {service} ({policy.describe(running)})"
        return CommandReply(
            request.id, False, message, f"mlkit rollout status {service}, or mlkit rollout abort {service}"
        )
    rejected = version_history.rejections(files).get(request.candidate.digest)
    if rejected is not None:
        ending = "was rolled back" if rejected.ending == "rolled_back" else "was aborted"
        message = f"version {rejected.version} {ending}: {rejected.reason}; it stays blocked until it is forgotten"
        return CommandReply(
            request.id, False, message, f"mlkit rollout forget {service} {rejected.version}, then run again"
        )
    left = 0.0
    if request.plan.strategy != "direct":
        left = version_history.cooldown_left(files, request.plan.cooldown_seconds, now)
    if left > 0:
        message = f"{service} cools down after a rollback: {left:.0f} s more"
        return CommandReply(request.id, False, message, "wait, or serve.rollout.cooldown_seconds=0")
    return None


def check(files: ServiceFiles, request: Request) -> None:
    """Raise ServiceError if a rollout cannot begin now."""
    rejection = reason_to_reject(files, request, time.time())
    if rejection is not None:
        raise ServiceError(rejection.message, hint=rejection.hint)


def begin(files: ServiceFiles, request: Request) -> str:
    """Write a request and wait until the controller took it; returns the experiment. Raises ServiceError.

    Only one request can wait at a time: the lock ``request`` guards the record.
    """
    with files.lock("request"):
        check(files, request)
        try:
            files.create_json(REQUEST, request.to_json())
        except ConflictError as error:
            raise ServiceError(
                f"another run has just requested a rollout of {files.service}",
                hint=f"mlkit rollout status {files.service}, then run the same command again",
            ) from error
    try:
        reply = commands.wait_for_reply(files, request.id, BEGIN_SECONDS)
    except BaseException:
        with files.lock("request"):
            waiting = files.read_json(REQUEST)
            if isinstance(waiting, dict) and waiting.get("id") == request.id:
                files.delete(REQUEST)
        raise
    if not reply.ok:
        raise ServiceError(reply.message, hint=reply.hint)
    return request.id


def await_live(files: ServiceFiles, experiment: str) -> RolloutState:
    """Wait until the first step of a rollout is live or it has ended. Raises ServiceError on timeout."""
    deadline = time.monotonic() + LIVE_SECONDS
    while time.monotonic() < deadline:
        saved = states.read(files)
        if saved is None or saved.state.experiment != experiment:
            raise ServiceError(f"another rollout of {files.service} took over", hint="run the same command again")
        if saved.state.phase not in ("pending", "preparing"):
            return saved.state
        time.sleep(0.05)
    raise ServiceError(
        f"the first step of the rollout of {files.service} is not live after {LIVE_SECONDS:g} s; it is retried",
        hint=f"mlkit rollout status {files.service}",
    )
