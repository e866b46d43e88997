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

POLL_SECONDS = 2.0
FIRST_RETRY_SECONDS = 2.0
MAX_RETRY_SECONDS = 60.0
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

    def to_json(self) -> dict[str, Json]:
        return asdict(self)


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
    return parse_delivery(content, str(file)), hashlib.sha256(content).hexdigest()


def fetch_version(version: DesiredChampion | DesiredCandidate, folder: Path, fetch: Fetch) -> Path:
    """Fetch a version and check that it is the one of the file. Raises UsageError, ServiceError or BundleError."""
    from mlflowkit.bundle import open_bundle

    path = fetch(version.bundle, folder / version.bundle.rpartition(":")[2])
    bundle = open_bundle(path, blessed=True)
    assert bundle.blessing is not None
    for name, wanted, actual in (
        ("identity", version.identity, bundle.manifest.identity),
        ("blessing", version.blessing or bundle.blessing.checksum, bundle.blessing.checksum),
    ):
        if wanted != actual:
            shutil.rmtree(path, ignore_errors=True)
            raise BundleError(
                f"{version.bundle} has the {name} {actual[:12]}, and delivery.yaml says {wanted[:12]}",
                hint="git log -p shows who changed the file, where a promotion writes both",
            )
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
        self._tried: tuple[str, str, str] = ("", "", "")
        self._failures, self._deployments, self._next = 0, 0, 0.0
        self._status: FollowStatus | None = None

    def run(self, stop: threading.Event) -> None:
        """Repeat `step` until ``stop`` is set."""
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
            status = replace(self._status, fault=printable_line(error.message), hint=printable_line(error.hint or ""))
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
        if action.kind == "none":
            return status
        wanted = (content, action.kind, "" if action.version is None else action.version.identity)
        if wanted != self._tried:
            self._tried, self._failures, self._deployments, self._next = wanted, 0, 0, 0.0
        if self._elapsed() < self._next:
            return replace(status, fault=self._status.fault, hint=self._status.hint)
        return self._attempt(action, status)

    def _attempt(self, action: FollowAction, status: FollowStatus) -> FollowStatus:
        """Execute an action; a failure is put into the status and tried again later."""
        _log.info("%s: %s: %s", self._files.service, action.kind, action.reason)
        try:
            self._execute(action)
        except MlkitError as error:
            self._failures += 1
            wait = min(FIRST_RETRY_SECONDS * 2 ** min(self._failures - 1, 10), MAX_RETRY_SECONDS)
            fault = error.message
            if self._deployments >= MAX_DEPLOYMENTS:
                wait = float("inf")
                fault = f"{fault} (tried {MAX_DEPLOYMENTS} times; tried again when {self._file.name} changes)"
            self._next = self._elapsed() + wait
            return replace(
                status, fault=truncate(printable_line(fault), 1000), hint=printable_line(error.hint or "mlkit status")
            )
        self._failures = self._deployments = 0
        return status

    def _execute(self, action: FollowAction) -> None:
        if action.kind == "abort":
            command = commands.submit(self._files, "abort", action.reason)
            commands.wait_for_reply(self._files, command.id, ABORT_SECONDS)
            return
        version = action.version
        assert version is not None
        rollout = rollout_settings(version) if isinstance(version, DesiredCandidate) else None
        if rollout is not None:
            self._check_cooldown(rollout)
        folder = fetch_version(version, self._files.state / "bundles", self._fetch)
        known = {record.variant.digest for record in version_history.champions(self._files)}
        if withdrawn(self._files, version.identity):
            version_history.forget_rejections(self._files, version.identity)
        self._deployments += 1
        try:
            self._deploy(folder, rollout, version.identity in known)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # it was copied into the store

    def _check_cooldown(self, rollout: Rollout) -> None:
        """Raise ServiceError while the service cools down after a rollback; that is no failed deployment."""
        left = version_history.cooldown_left(self._files, rollout.cooldown_seconds, self._clock())
        if left > 0 and rollout.strategy != "direct":
            message = f"{self._files.service} cools down after a rollback: {left:.0f} s more"
            raise ServiceError(message, hint="wait, or serve.rollout.cooldown_seconds=0")

    def _previous_status(self) -> FollowStatus:
        """What this follower, or the one before a restart, recorded; a damaged record is as none."""
        try:
            recorded = read_status(self._files)
            if recorded is not None:
                FollowMemory(**recorded.memory)
                return recorded
        except (MlkitError, TypeError) as error:
            _log.warning("%s is damaged and is written anew: %s", self._files.location(DELIVERY), error)
        return FollowStatus(str(self._file))

    def _record(self, status: FollowStatus) -> FollowStatus:
        """Write the record where it has changed, and log what is new of it."""
        before = self._status
        assert before is not None
        status = replace(status, time=before.time)
        if status != before or not self._files.exists(DELIVERY):
            if status.fault and status.fault != before.fault:
                _log.error("%s (%s)", status.fault, status.hint)
            elif status.reason != before.reason:
                _log.info("%s: %s", self._files.service, status.reason)
            status = replace(status, time=self._clock())
            self._files.write_json(DELIVERY, status.to_json())
            self._status = status
        return status
