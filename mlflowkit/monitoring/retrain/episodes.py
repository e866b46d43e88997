"""The records of retraining: episodes, the claims of their processes, and what came of them.

::

    services/<service>/monitor/
      episodes/<id>.json              Episode: written by the controller of the service only, before it acts
      attempts/<id>.<task>-<n>.json   Claim of a process on attempt n; create-only, so that one process makes it
      attempts/<id>.<task>-<n>.done   AttemptResult, written by that process as its last act

An attempt is decided durably before a process is started for it. Any number of processes may be started for one
attempt, by controllers that were killed in between: the first to create the claim does the work, the others end. So an
attempt is made exactly once, or its process is lost, which its id and start time tell.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from mlflowkit.errors import ConflictError, ServiceError
from mlflowkit.monitoring.retrain.retrain_policy import PastRun
from mlflowkit.monitoring.retrain.steady_clock import Moment, age
from mlflowkit.service_state.records import ServiceFiles, process_started
from mlflowkit.system.machine import boot_identity
from mlflowkit.values import Json

FORMAT = 1
KEPT_EPISODES = 50
"""Closed episodes that are kept; older ones are removed with their claims."""
MAX_TEXT = 2000
"""Characters of a message that a record keeps."""
_log = logging.getLogger("mlflowkit.monitoring")

Task = Literal["look", "train"]
"""look: resolve the data version, check the data and count the training rows. train: the whole run."""
AttemptStatus = Literal["starting", "running", "done", "lost"]
RunStatus = Literal["running", "rolling out", "promoted", "rejected", "failed"]


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """What a process came to.

    code          exit code of ``mlkit run``: 0 done, 1 a gate FAILED, 4 INCONCLUSIVE, others as in errors.py
    run           id of the run; ``identity`` and ``version`` of its bundle, "" for none
    experiment    the rollout that it started, "" for none
    data_version  of the data that were read, "" when they could not be
    counts        of the new training rows in the cells of the champion's reference, by column; only of a look
    message       the error, or what the run says of itself
    """

    code: int
    run: str = ""
    identity: str = ""
    version: str = ""
    experiment: str = ""
    data_version: str = ""
    counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    quantiles: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    message: str = ""
    trained: bool = False

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> AttemptResult:
        """The result that `asdict` gave. Raises KeyError, TypeError or ValueError for anything else."""
        texts = {name: str(value.get(name, "")) for name in
                 ("run", "identity", "version", "experiment", "data_version", "message")}  # fmt: skip
        counts = {str(name): tuple(map(int, row)) for name, row in value.get("counts", {}).items()}
        quantiles = {str(name): tuple(map(float, row)) for name, row in value.get("quantiles", {}).items()}
        return cls(int(value["code"]), **texts, counts=counts, quantiles=quantiles, trained=bool(value.get("trained")))


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a task. ``outcome`` is that of a train attempt once it is known."""

    task: Task
    number: int
    begun: Moment
    status: AttemptStatus = "starting"
    outcome: RunStatus = "running"
    result: AttemptResult | None = None
    message: str = ""

    @property
    def name(self) -> str:
        return f"{self.task}-{self.number}"

    @property
    def under_way(self) -> bool:
        """Whether its process may be at work."""
        return self.status in ("starting", "running")

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Attempt:
        result = value.get("result")
        parsed = {"begun": Moment.from_json(value["begun"]),
                  "result": None if result is None else AttemptResult.from_json(result)}  # fmt: skip
        return cls(**{**_known(cls, value), **parsed})


@dataclass(frozen=True, slots=True)
class Episode:
    """What began with an alarm of one champion. ``id`` is the idempotency key of all that it starts.

    champion, version, bundle   of the service when the episode began; ``champion_data`` is its data version
    since, cause   the first window of the alarm, and what asked for a new model
    recipe, overrides   what is run, absolute
    by             "monitor", or "person" who asked for it
    look, looks    the newest look at the data, and how many there were
    window         start of the window for which the newest look was made, or at whose end it was decided by
    judged         whether anything was decided by the newest look: it may end after the window that it was made for
    runs           train attempts, oldest first
    decision, reason   the newest decision
    ending         why it is closed: promoted, resolved (the alarm ended), superseded (another champion, or a person
                   asked), answered (the person who asked was told why not); "" while open
    """

    id: str
    service: str
    champion: str
    version: str
    bundle: str
    since: float
    cause: str
    opened: Moment
    recipe: str = ""
    overrides: tuple[str, ...] = ()
    champion_data: str = ""
    by: Literal["monitor", "person"] = "monitor"
    look: Attempt | None = None
    looks: int = 0
    window: float | None = None
    judged: bool = False
    runs: tuple[Attempt, ...] = ()
    decision: str = "none"
    reason: str = ""
    ending: str = ""

    @property
    def open(self) -> bool:
        return not self.ending

    @property
    def current(self) -> Attempt | None:
        """The attempt whose process may be at work."""
        attempts = (*self.runs[-1:], *((self.look,) if self.look else ()))
        return next((attempt for attempt in attempts if attempt.under_way), None)

    @property
    def rolling_out(self) -> bool:
        """Whether the version of the newest run is being rolled out."""
        return bool(self.runs) and self.runs[-1].outcome == "rolling out"

    def with_attempt(self, attempt: Attempt) -> Episode:
        """The episode with an attempt added, or replaced by number."""
        if attempt.task == "look":
            return replace(self, look=attempt, looks=max(self.looks, attempt.number))
        kept = tuple(other for other in self.runs if other.number != attempt.number)
        return replace(self, runs=(*kept, attempt))

    def to_json(self) -> Json:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Episode:
        """The episode that `to_json` returned. Raises KeyError, TypeError or ValueError for anything else."""
        if value["format"] > FORMAT:
            raise ValueError(f"format {value['format']} of an episode is not known")
        look = value.get("look")
        parsed = {
            "opened": Moment.from_json(value["opened"]),
            "look": None if look is None else Attempt.from_json(look),
            "runs": tuple(map(Attempt.from_json, value.get("runs", ()))),
            "overrides": tuple(map(str, value.get("overrides", ()))),
        }
        return cls(**{**_known(cls, value), **parsed})


@dataclass(frozen=True, slots=True)
class Claim:
    """The process that makes an attempt: its id and start time, valid on ``node`` during its ``boot``."""

    pid: int
    started: float
    node: str
    boot: str

    @property
    def is_gone(self) -> bool:
        """Whether the process is known to have ended. One on another machine is not known of."""
        if self.node != socket.gethostname():
            return False
        return self.boot != boot_identity() or process_started(self.pid) != self.started


def this_claim() -> Claim:
    """The claim of the calling process."""
    return Claim(os.getpid(), process_started(os.getpid()) or 0.0, socket.gethostname(), boot_identity())


def write_episode(files: ServiceFiles, episode: Episode) -> None:
    """Write an episode durably. The caller holds the lease on the service's control."""
    files.write_json(_episode(episode.id), episode.to_json())


def read_episode(files: ServiceFiles, id: str) -> Episode | None:
    """Read an episode; None when there is none. Raises ServiceError when it is damaged."""
    try:
        return files.read(_episode(id), Episode.from_json)
    except ValueError as error:
        raise ServiceError(f"{files.location(_episode(id))} is damaged: {error}", hint="mlkit status") from error


def read_episodes(files: ServiceFiles) -> tuple[Episode, ...]:
    """All episodes of a service, oldest first. A damaged one is skipped and logged: it must not stop the others."""
    episodes = []
    for entry in files.list("monitor/episodes/*.json"):
        try:
            episode = read_episode(files, entry.key.rpartition("/")[2].removesuffix(".json"))
        except ServiceError as error:
            _log.error("%s", error.message)
            continue
        if episode is not None:
            episodes.append(episode)
    return tuple(sorted(episodes, key=lambda episode: (episode.opened.wall, episode.id)))


def claim_attempt(files: ServiceFiles, id: str, attempt: str) -> bool:
    """Claim an attempt for the calling process; False when another process has claimed it."""
    try:
        files.create_json(f"{_attempt(id, attempt)}.json", asdict(this_claim()))
    except ConflictError:
        return False
    return True


def read_claim(files: ServiceFiles, id: str, attempt: str) -> Claim | None:
    """The claim on an attempt; None when no process has made one. Raises ServiceError when it is damaged."""
    return files.read(f"{_attempt(id, attempt)}.json", lambda value: Claim(**value))


def write_result(files: ServiceFiles, id: str, attempt: str, result: AttemptResult) -> None:
    """Write what an attempt came to."""
    files.write_json(f"{_attempt(id, attempt)}.done", asdict(replace(result, message=result.message[:MAX_TEXT])))


def read_result(files: ServiceFiles, id: str, attempt: str) -> AttemptResult | None:
    """What an attempt came to; None while it is not known. Raises ServiceError when the record is damaged."""
    try:
        return files.read(f"{_attempt(id, attempt)}.done", AttemptResult.from_json)
    except ValueError as error:
        place = files.location(f"{_attempt(id, attempt)}.done")
        raise ServiceError(f"{place} is damaged: {error}", hint="mlkit status") from error


def forget_attempt(files: ServiceFiles, id: str, attempt: str) -> None:
    """Remove the records of a look, which is made again for each window."""
    for suffix in ("json", "done"):
        files.delete(f"{_attempt(id, attempt)}.{suffix}")


def sweep_episodes(files: ServiceFiles, episodes: Sequence[Episode]) -> None:
    """Remove the oldest closed episodes beyond KEPT_EPISODES, and the records of their attempts."""
    closed = [episode for episode in episodes if not episode.open]
    for episode in closed[: max(0, len(closed) - KEPT_EPISODES)]:
        files.delete(_episode(episode.id))
        for entry in files.list(f"monitor/attempts/{episode.id}.*"):
            files.delete(entry.key)


def past_runs(episodes: Sequence[Episode], now: Moment) -> tuple[PastRun, ...]:
    """The runs of all episodes for the policy, oldest first."""
    runs = [
        PastRun(episode.id, age(run.begun, now), _POLICY_STATUS[run.outcome], _data_version(episode, run))
        for episode in episodes
        for run in episode.runs
    ]
    return tuple(sorted(runs, key=lambda run: -run.age))


_POLICY_STATUS: Mapping[RunStatus, Literal["promoted", "rejected", "failed", "running"]] = {
    "running": "running", "rolling out": "running", "promoted": "promoted", "rejected": "rejected", "failed": "failed",
}  # fmt: skip


def _data_version(episode: Episode, run: Attempt) -> str:
    """The data of a run; those of the look before it while the run has not told its own."""
    if run.result is not None and run.result.data_version:
        return run.result.data_version
    return episode.look.result.data_version if episode.look is not None and episode.look.result is not None else ""


def _known(kind: type[Any], value: Mapping[str, Json]) -> dict[str, Any]:
    return {name: value[name] for name in kind.__dataclass_fields__ if name in value}


def _episode(id: str) -> str:
    return f"monitor/episodes/{id}.json"


def _attempt(id: str, attempt: str) -> str:
    return f"monitor/attempts/{id}.{attempt}"
