"""What a gateway serves, tries and has rejected: from its records, or as it tells over HTTP; and what became of a
candidate by that.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from mlflowkit.delivery.gitops.follow_decision import ServedVersions
from mlflowkit.delivery.gitops.promotion_decision import RolloutVerdict
from mlflowkit.rollout import state as states
from mlflowkit.service_state import version_history
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.values import Json

WITHDRAWN = "git no longer names"
"""Begins the reason of an abort that a follower ordered: no judgement of the version, which may be tried again."""
MAX_REJECTIONS = 500
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
    rejections: tuple[ServedRejection, ...] = ()

    @property
    def versions(self) -> ServedVersions:
        return ServedVersions(self.champion, self.candidate, frozenset(item.identity for item in self.rejections))

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
        return cls(**{name: _text(value, name) for name in _TEXTS}, rejections=rejections)


def read_served(files: ServiceFiles) -> ServedState:
    """What the records of a service say. Raises ServiceError for damaged ones."""
    table, saved = files.table(), states.read(files)
    running = None if saved is None or saved.state.ended else saved.state
    rejections = [
        ServedRejection(item.digest, item.reason, item.ending, item.experiment, item.time)
        for item in version_history.rejections(files).values()
        if not item.reason.startswith(WITHDRAWN)
    ]
    return ServedState(
        files.service,
        "" if table is None else table.champion.digest,
        "" if running is None else running.candidate.digest,
        "" if running is None else f"its rollout is {running.phase}, step {running.step + 1} of {len(running.steps)}",
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
