"""Follow a mounted ``delivery.yaml``: what git wants of a service becomes swaps, rollouts and aborts in its gateway.

The file may be replaced at any time, as kubelet replaces a ConfigMap: it is opened anew at each look. A file that is
missing or wrong, a registry that does not answer or a version that does not hold changes nothing: the gateway goes on
with what it serves, the follower's record says why, and it tries again.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mlflowkit.delivery.gitops.desired_delivery import (
    MAX_BYTES,
    DesiredCandidate,
    DesiredChampion,
    DesiredDelivery,
    parse_delivery,
)
from mlflowkit.delivery.gitops.follow_decision import FollowAction, FollowMemory, decide_follow, remember
from mlflowkit.delivery.gitops.served_state import read_served, withdrawn
from mlflowkit.errors import BundleError, MlkitError, ServiceError, UsageError
from mlflowkit.rollout import commands
from mlflowkit.rollout.settings import Rollout
from mlflowkit.service_state import version_history
from mlflowkit.service_state.records import DELIVERY, ServiceFiles
from mlflowkit.system.text import printable_line, shell_word, truncate
from mlflowkit.values import Json

POLL_SECONDS = 0.5
FIRST_RETRY_SECONDS = 2.0
MAX_RETRY_SECONDS = 60.0
RECORD_SECONDS = 10.0
"""Longest time between two writes of the record: whoever reads it sees that somebody looks."""
MAX_DEPLOYMENTS = 5
"""Deployments of one version that may fail before it is left alone until the file changes."""
ABORT_SECONDS = 60.0
_log = logging.getLogger("mlflowkit.delivery")

Fetch = Callable[[str, Path], Path]
"""Fetch a bundle by its reference with a digest into a folder; see `bundle_artifact.pull_bundle`."""
Deploy = Callable[[Path, Rollout | None, bool], None]
"""Deploy the bundle in a folder: by a rollout, or at once for None. The flag tells that it was champion before, so that
clients that it breaks are no reason to refuse to go back to it."""


@dataclass(frozen=True, slots=True)
class FollowStatus:
    """What the follower read last, what it did about it, and what keeps it from more.

    ``fault`` and ``hint`` are "" where nothing is wrong; ``content`` is the digest of the file.
    """

    file: str
    content: str = ""
    champion: str = ""
    candidate: str = ""
    action: str = "none"
    reason: str = ""
    fault: str = ""
    hint: str = ""
    time: float = 0.0
    served: Mapping[str, Any] = field(default_factory=dict)
    """A `ServedState`, as JSON."""
    memory: Mapping[str, Any] = field(default_factory=dict)
    """A `FollowMemory`, as JSON."""
    looked: float = 0.0
    """When the file was last looked at; ``time`` is when anything of this changed."""
    attempt: Mapping[str, Any] = field(default_factory=dict)
    """A `FollowAttempt`, as JSON."""

    def to_json(self) -> dict[str, Json]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class FollowAttempt:
    """What was begun for a file: an action on a version, how often it was deployed, and whether that went well."""

    content: str = ""
    kind: str = ""
    identity: str = ""
    deployments: int = 0
    done: bool = False

    def matches(self, other: FollowAttempt) -> bool:
        """Whether both are of the same file, action and version."""
        return (self.content, self.kind, self.identity) == (other.content, other.kind, other.identity)


def read_status(files: ServiceFiles) -> FollowStatus | None:
    """The follower's record of a service; None where nothing follows a file. Raises ServiceError for a damaged one."""
    return files.read(DELIVERY, lambda value: FollowStatus(**value))


def read_delivery(file: Path) -> tuple[DesiredDelivery, str]:
    """A delivery file and the digest of its content. Raises UsageError."""
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", hint=f"ls -l {shell_word(file)}") from error
    return parse_delivery(content, str(file), complete=True), hashlib.sha256(content).hexdigest()


def fetch_version(version: DesiredChampion | DesiredCandidate, folder: Path, fetch: Fetch) -> Path:
    """Fetch a version and check that it is the one of the file. Raises UsageError, ServiceError or BundleError."""
    from mlflowkit.bundle import open_bundle

    path = folder / version.bundle.rpartition(":")[2]
    try:
        bundle = open_bundle(fetch(version.bundle, path), blessed=True)
        assert bundle.blessing is not None
        for name, wanted, actual in (
            ("identity", version.identity, bundle.manifest.identity),
            ("blessing", version.blessing or bundle.blessing.checksum, bundle.blessing.checksum),
        ):
            if wanted != actual:
                raise BundleError(
                    f"{version.bundle} has the {name} {actual[:12]}, and delivery.yaml says {wanted[:12]}",
                    hint="git log -p shows who changed the file, where a promotion writes both",
                )
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return path


def rollout_settings(candidate: DesiredCandidate) -> Rollout:
    """The settings of a candidate's rollout. Raises UsageError for what is not of the recipe's form."""
    from pydantic import ValidationError

    try:
        return Rollout.model_validate(dict(candidate.rollout))
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(["candidate.rollout", *map(str, fault["loc"])])
        raise UsageError(
            f"{name}: {fault['msg']}",
            hint="a promotion writes it from serve.rollout of the recipe: mlkit validate RECIPE",
        ) from error


class DeliveryFollower:
    """Follows one file for one service. `step` is one look; it never raises MlkitError."""

    def __init__(
        self, file: Path, files: ServiceFiles, fetch: Fetch, deploy: Deploy, *,
        clock: Callable[[], float] = time.time, elapsed: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._file, self._files, self._fetch, self._deploy = file, files, fetch, deploy
        self._clock, self._elapsed = clock, elapsed
        self._tried = FollowAttempt()
        self._failures, self._next, self._written = 0, 0.0, 0.0
        self._failure = ("", "")
        """Message and hint of the last failed attempt."""
        self._status: FollowStatus | None = None
        self._ending = threading.Event()

    def run(self, stop: threading.Event) -> None:
        """Repeat `step` until ``stop`` is set."""
        self._ending = stop
        shutil.rmtree(self._files.state / "bundles", ignore_errors=True)  # what an earlier process left of a download
        while not stop.wait(POLL_SECONDS):
            try:
                self.step()
            except MlkitError as error:  # the record itself cannot be written: a full disk
                _log.error("%s", error.message)
            except Exception:  # noqa: BLE001 - a bug here must not end the service
                _log.exception("following %s failed and goes on", self._file)

    def step(self) -> FollowStatus:
        """Read the file, take one action towards it, and record both."""
        if self._status is None:
            self._status = self._previous_status()
        try:
            desired, content = read_delivery(self._file)
            if desired.service != self._files.service:
                raise UsageError(
                    f"{self._file} is of the service {desired.service}, not {self._files.service}",
                    hint=f"mlkit serve --delivery FILE --service {shell_word(desired.service)}",
                )
            status = self._follow(desired, content)
        except MlkitError as error:
            status = replace(
                self._status,
                fault=printable_line(error.message),
                hint=printable_line(error.hint or ""),
                served=read_served(self._files).to_json(),
            )
        return self._record(status)

    def _follow(self, desired: DesiredDelivery, content: str) -> FollowStatus:
        served = read_served(self._files)
        assert self._status is not None
        memory = remember(desired, served.versions, FollowMemory(**self._status.memory))
        action = decide_follow(desired, served.versions, memory)
        status = FollowStatus(
            str(self._file),
            content,
            "" if desired.champion is None else desired.champion.identity,
            "" if desired.candidate is None else desired.candidate.identity,
            action.kind,
            action.reason,
            served=served.to_json(),
            memory=asdict(memory),
        )
        if content == self._status.content:
            status = replace(status, attempt=self._status.attempt)
        if action.kind == "none":
            return status
        identity = "" if action.version is None else action.version.identity
        attempt = FollowAttempt(content, action.kind, identity)
        before = FollowAttempt(**status.attempt)
        if attempt.matches(before):
            attempt = before
        if attempt.done and action.kind == "roll_out":
            reason = f"the rollout of {identity[:12]} ended without a verdict; it is tried again when the file changes"
            return replace(status, action="none", reason=reason)
        if not attempt.matches(self._tried):
            self._tried, self._failures, self._next, self._failure = attempt, 0, 0.0, ("", "")
        if self._elapsed() < self._next:
            return replace(status, fault=self._failure[0], hint=self._failure[1])
        return self._attempt(action, attempt, status)

    def _attempt(self, action: FollowAction, attempt: FollowAttempt, status: FollowStatus) -> FollowStatus:
        """Execute an action; a failure is put into the status and tried again later."""
        _log.info("%s: %s: %s", self._files.service, action.kind, action.reason)
        if attempt.deployments >= MAX_DEPLOYMENTS:
            self._next = float("inf")
            failure = self._failure[0] or "its deployments did not come to an end"
            message = f"{failure} (tried {MAX_DEPLOYMENTS} times; tried again when {self._file.name} changes)"
            self._failure = (message, "mlkit status")
            return replace(status, attempt=asdict(attempt), fault=message, hint="mlkit status")
        try:
            attempt = self._execute(action, attempt, status)
        except Exception as error:  # noqa: BLE001 - whatever it is, the service goes on and the record says it
            if not isinstance(error, MlkitError):
                _log.exception("%s: %s failed", self._files.service, action.kind)
            self._failures += 1
            self._next = self._elapsed() + min(
                FIRST_RETRY_SECONDS * 2 ** min(self._failures - 1, 10), MAX_RETRY_SECONDS
            )
            message = error.message if isinstance(error, MlkitError) else f"{type(error).__name__}: {error}"
            hint = error.hint if isinstance(error, MlkitError) and error.hint else "mlkit status"
            self._failure = (truncate(printable_line(message), 1000), printable_line(hint))
            begun = {} if self._status is None else self._status.attempt
            return replace(status, fault=self._failure[0], hint=self._failure[1], attempt=begun)
        self._failures = 0
        return replace(status, attempt=asdict(attempt))

    def _execute(self, action: FollowAction, attempt: FollowAttempt, status: FollowStatus) -> FollowAttempt:
        """Execute an action; returns the attempt as done. What is begun is recorded first: it survives this process."""
        if action.kind == "abort":
            command = commands.submit(self._files, "abort", action.reason)
            commands.wait_for_reply(self._files, command.id, ABORT_SECONDS)
            return attempt
        version = action.version
        assert version is not None
        rollout = rollout_settings(version) if isinstance(version, DesiredCandidate) else None
        if rollout is not None:
            self._check_cooldown(rollout)
        self._record(replace(status, reason=f"{action.reason}: fetching {version.bundle}"))
        folder = fetch_version(version, self._files.state / "bundles", self._fetch)
        former_champions = {record.variant.digest for record in version_history.champions(self._files)}
        if withdrawn(self._files, version.identity):
            version_history.forget_rejections(self._files, version.identity)
        attempt = replace(attempt, deployments=attempt.deployments + 1)
        self._record(replace(status, attempt=asdict(attempt)))
        try:
            if self._ending.is_set():
                raise ServiceError("the service is about to stop", hint="mlkit status")
            self._deploy(folder, rollout, version.identity in former_champions)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # it was copied into the store
        return replace(attempt, deployments=0, done=True)

    def _check_cooldown(self, rollout: Rollout) -> None:
        """Raise ServiceError while the service cools down after a rollback; that is no failed deployment."""
        left = version_history.cooldown_left(self._files, rollout.cooldown_seconds, self._clock())
        if left > 0 and rollout.strategy != "direct":
            message = f"{self._files.service} cools down after a rollback: {left:.0f} s more"
            raise ServiceError(message, hint="wait, or serve.rollout.cooldown_seconds=0")

    def _previous_status(self) -> FollowStatus:
        """What this follower, or the one before a restart, recorded; a damaged record is as none."""
        from pydantic import TypeAdapter

        try:
            recorded = read_status(self._files)
            if recorded is not None:
                recorded = TypeAdapter(FollowStatus).validate_python(asdict(recorded))
                memory = TypeAdapter(FollowMemory).validate_python(recorded.memory)
                attempt = TypeAdapter(FollowAttempt).validate_python(recorded.attempt)
                return replace(recorded, memory=asdict(memory), attempt=asdict(attempt))
        except (MlkitError, TypeError, ValueError) as error:
            _log.warning("%s is damaged and is written anew: %s", self._files.location(DELIVERY), error)
        return FollowStatus(str(self._file))

    def _record(self, status: FollowStatus) -> FollowStatus:
        """Write the record where it has changed, and log what is new of it."""
        before, now = self._status, self._clock()
        assert before is not None
        status = replace(status, time=before.time, looked=before.looked)
        if status != before:
            if status.fault and status.fault != before.fault:
                _log.error("%s (%s)", status.fault, status.hint)
            elif status.reason != before.reason:
                _log.info("%s: %s", self._files.service, status.reason)
            status = replace(status, time=now)
        if status != before or not 0 <= now - self._written < RECORD_SECONDS:
            status = replace(status, looked=now)
            self._files.write_json(DELIVERY, status.to_json())
            self._written = now
        self._status = status
        return status
