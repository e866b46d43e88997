"""Asks for a rollout: what a deploy does, and by which rules it is refused."""

from __future__ import annotations

import time

from mlflowkit.errors import ServiceError
from mlflowkit.rollout import commands, policy
from mlflowkit.rollout import state as states
from mlflowkit.rollout.commands import Answer
from mlflowkit.rollout.state import Request, RolloutState
from mlflowkit.service_state import version_history
from mlflowkit.service_state.records import ServiceFiles, read_json, write_json

BEGIN_SECONDS = 60.0
"""How long the controller may take to answer a request; it starts with the service."""
LIVE_SECONDS = 180.0
"""How long the first step may take to be live: versions are loaded, processes of isolated ones started."""


def refusal(files: ServiceFiles, request: Request, now: float) -> Answer | None:
    """Why a rollout does not begin; None when it does. A deploy asks the same before it leaves its request."""
    running = commands.running(files)
    service = files.service
    if running is not None and running.experiment != request.id:
        same = running.candidate.digest == request.candidate.digest
        what = "this version is" if same else f"version {running.candidate.version} is"
        message = f"{what} already being rolled out to {service} ({policy.where(running)})"
        return Answer(request.id, False, message, f"mlkit rollout status {service}, or mlkit rollout abort {service}")
    failed = version_history.failures(files).get(request.candidate.digest)
    if failed is not None:
        how = "was rolled back" if failed.ending == "rolled_back" else "was aborted"
        message = f"version {failed.version} {how}: {failed.reason}; it is not tried again unasked"
        return Answer(request.id, False, message, f"mlkit rollout forget {failed.version}, then run again")
    left = 0.0
    if request.plan.strategy != "direct":
        left = version_history.cooling(files, request.plan.cooldown_seconds, now)
    if left > 0:
        message = f"{service} cools down after a rollback: {left:.0f} s more"
        return Answer(request.id, False, message, "wait, or serve.rollout.cooldown_seconds=0")
    return None


def check(files: ServiceFiles, request: Request) -> None:
    """Raise ServiceError when a rollout would not begin now."""
    refused = refusal(files, request, time.time())
    if refused is not None:
        raise ServiceError(refused.message, hint=refused.hint)


def begin(files: ServiceFiles, request: Request) -> str:
    """Leave a request and wait until the controller took it; returns the experiment. Raises ServiceError.

    One request waits at a time: whoever changes the file holds the lock ``request``.
    """
    path = files.folder / "request.json"
    with files.lock("request"):
        check(files, request)
        if path.exists():
            raise ServiceError(
                f"another run has just asked for a rollout of {files.service}",
                hint=f"mlkit rollout status {files.service}, then run the same command again",
            )
        write_json(path, request.to_json())
    try:
        answer = commands.wait(files, request.id, BEGIN_SECONDS)
    except BaseException:
        with files.lock("request"):
            waiting = read_json(path)
            if isinstance(waiting, dict) and waiting.get("id") == request.id:
                path.unlink(missing_ok=True)
        raise
    if not answer.ok:
        raise ServiceError(answer.message, hint=answer.hint)
    return request.id


def await_live(files: ServiceFiles, experiment: str) -> RolloutState:
    """The rollout once its first step is live, or it has ended. Raises ServiceError when that takes too long."""
    deadline = time.monotonic() + LIVE_SECONDS
    while time.monotonic() < deadline:
        saved = states.read(files.folder / "rollout.json")
        if saved is None or saved.state.experiment != experiment:
            raise ServiceError(f"another rollout of {files.service} took over", hint="run the same command again")
        if saved.state.phase not in ("pending", "preparing"):
            return saved.state
        time.sleep(0.05)
    raise ServiceError(
        f"the first step of the rollout of {files.service} is not live after {LIVE_SECONDS:g} s; it goes on trying",
        hint=f"mlkit rollout status {files.service}",
    )
