"""What a gateway serves, tries and has rejected: from its records, or as it tells over HTTP; and what became of a
candidate by that.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from mlflowkit.delivery.gitops.follow_decision import WITHDRAWN, ServedVersions
from mlflowkit.delivery.gitops.promotion_decision import RolloutVerdict
from mlflowkit.rollout import state as states
from mlflowkit.service_state import version_history
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system.text import printable_line, truncate
from mlflowkit.values import Json

MAX_REJECTIONS = 500
MAX_REASON = 400
MAX_AGE_SECONDS = 30.0
"""A record that is older says nothing: its writer has stopped or hangs."""
_TEXTS = ("service", "champion", "candidate", "progress")
_REJECTION_TEXTS = ("identity", "reason", "ending", "experiment")


@dataclass(frozen=True, slots=True)
class ServedRejection:
    """A version that was rolled back or aborted; ``ending`` tells which, ``time`` is in seconds since the epoch."""

    identity: str
    reason: str
    ending: str
    experiment: str
    time: float


@dataclass(frozen=True, slots=True)
class ServedState:
    """Identities, "" for none: of the champion, and of the candidate of a running rollout with its ``progress``."""

    service: str
    champion: str = ""
    candidate: str = ""
    progress: str = ""
    busy: bool = False
    """Whether a rollback is being executed."""
    rejections: tuple[ServedRejection, ...] = ()

    @property
    def versions(self) -> ServedVersions:
        rejected = frozenset(item.identity for item in self.rejections)
        return ServedVersions(self.champion, self.candidate, rejected, self.busy)

    def to_json(self) -> dict[str, Json]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Json) -> ServedState:
        """Raises ValueError for anything that is not of this form."""
        if not isinstance(value, Mapping):
            raise ValueError(f"{type(value).__name__} instead of an object")
        listed = value.get("rejections", [])
        if not isinstance(listed, list | tuple) or len(listed) > MAX_REJECTIONS:
            raise ValueError(f"rejections is no list of at most {MAX_REJECTIONS}")
        rejections = tuple(
            ServedRejection(**{name: _text(item, name) for name in _REJECTION_TEXTS}, time=_number(item))
            for item in listed
        )
        return cls(
            **{name: _text(value, name) for name in _TEXTS}, busy=value.get("busy") is True, rejections=rejections
        )


@dataclass(frozen=True, slots=True)
class FollowedState:
    """What a gateway serves, and how far it is with its delivery.yaml.

    ``content`` is the SHA-256 of the file that it acts on, ``pending`` what keeps it from all that the file says.
    """

    served: ServedState
    content: str
    pending: str = ""

    @classmethod
    def from_record(cls, record: Json, age: float, served: ServedState | None = None) -> FollowedState:
        """The record of a follower, ``age`` seconds old, with what is ``served`` unless the record itself says it.

        Raises ValueError for anything that is not of this form.
        """
        if not isinstance(record, Mapping):
            raise ValueError(f"{type(record).__name__} instead of an object")
        fault, reason, action = (_text(record, name) for name in ("fault", "reason", "action"))
        pending = fault or ("" if action == "none" else reason or action)
        if not 0 <= age <= MAX_AGE_SECONDS:
            pending = f"the gateway looked at the file {age:.0f} s ago"
        served = ServedState.from_json(record.get("served")) if served is None else served
        return cls(served, _text(record, "content"), pending)


def read_served(files: ServiceFiles) -> ServedState:
    """What the records of a service say. Raises ServiceError for damaged ones."""
    table, saved = files.table(), states.read(files)
    running = None if saved is None or saved.state.ended else saved.state
    rejections = [
        ServedRejection(
            item.digest, truncate(printable_line(item.reason), MAX_REASON), item.ending, item.experiment, item.time
        )
        for item in version_history.rejections(files).values()
        if not item.reason.startswith(WITHDRAWN)
    ]
    return ServedState(
        files.service,
        "" if table is None else table.champion.digest,
        "" if running is None else running.candidate.digest,
        "" if running is None else f"its rollout is {running.phase}, step {running.step + 1} of {len(running.steps)}",
        running is not None and running.phase == "rolling_back",
        tuple(sorted(rejections, key=lambda item: item.time)[-MAX_REJECTIONS:]),
    )


def withdrawn(files: ServiceFiles, identity: str) -> bool:
    """Whether a version is blocked only because git dropped it while it was tried."""
    rejection = version_history.rejections(files).get(identity)
    return rejection is not None and rejection.reason.startswith(WITHDRAWN)


def verdict_of(served: ServedState, identity: str) -> RolloutVerdict:
    """What became of a candidate."""
    if served.champion == identity:  # a rollout whose decision to promote is executed has not ended yet
        return RolloutVerdict("promoted", "the gateway serves it as champion", _iso(None))
    if served.candidate == identity:
        return RolloutVerdict("running", served.progress)
    rejection = next((item for item in served.rejections if item.identity == identity), None)
    if rejection is None:
        return RolloutVerdict("unknown", "the gateway has not taken it up")
    incident = f"{rejection.reason} ({rejection.ending}, experiment {rejection.experiment})"
    return RolloutVerdict("rolled_back", incident, _iso(rejection.time))


def _text(value: Json, name: str) -> str:
    text = value.get(name, "") if isinstance(value, Mapping) else None
    if not isinstance(text, str) or len(text) > 2000:
        raise ValueError(f"{name} is no text of at most 2,000 characters")
    return text


def _number(value: Json) -> float:
    number = value.get("time", 0.0) if isinstance(value, Mapping) else None
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < 1e11:
        raise ValueError("time is no number of seconds since 1970")
    return float(number)


def _iso(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
