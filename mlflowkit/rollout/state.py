"""The state of one rollout as frozen values, and its JSON in ``<service>/rollout.json``.

The state holds everything that the policy decides by and that a restarted controller needs. It is stored together with
the decided actions that may not have been executed yet, in one file that is replaced atomically: every action is
durable before it is executed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mlflowkit.errors import ServiceError
from mlflowkit.judging.compatibility import SignatureChange
from mlflowkit.judging.online.judge import MetricResult
from mlflowkit.rollout.settings import EventName, Rollout, RolloutStep
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system.text import shell_word
from mlflowkit.values import Affinity, Json, Outcome, RoutingTable, Variant, Verdict

RECORD = "rollout.json"
VERSION = 1
"""Version of the JSON. A larger one was written by a newer mlflowkit."""
MAX_OBSERVATIONS = 400
"""Length of the history; beyond it, every second observation of the older half is dropped."""

AUTHORS: Mapping[str, str] = {"person": "a person", "monitor": "the monitor"}
"""Who decided the end of a rollout, in words; "the policy" otherwise."""

Phase = Literal[
    "pending", "preparing", "running", "paused", "awaiting_approval", "promoting", "promoted", "rolling_back",
    "rolled_back", "aborted", "kept",
]  # fmt: skip
"""pending: requested. preparing: the first table is being loaded. running, paused, awaiting_approval: a step is live.
promoting, rolling_back: the last table is on its way. The others are final; kept is a lasting shadow."""
FINAL_PHASES: frozenset[Phase] = frozenset(("promoted", "rolled_back", "aborted", "kept"))
LIVE_PHASES: frozenset[Phase] = frozenset(("running", "paused", "awaiting_approval"))
"""Phases in which both variants are measured."""


@dataclass(frozen=True, slots=True)
class MetricReading:
    """One metric at one observation, for charts: evidence (1 is the decision boundary), estimate and sample sizes."""

    name: str
    outcome: Outcome
    harm: float
    proof: float
    value: float
    low: float
    high: float
    champion: int
    challenger: int


@dataclass(frozen=True, slots=True)
class Observation:
    """One analysis of the evidence. ``weight`` is the challenger's share of the traffic, in [0, 1]."""

    time: float
    step: int
    weight: float
    phase: Phase
    readings: tuple[MetricReading, ...] = ()


@dataclass(frozen=True, slots=True)
class StepCounts:
    """Requests and failed requests of the two variants under the tables of the present step."""

    champion: int = 0
    challenger: int = 0
    champion_errors: int = 0
    challenger_errors: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """``<service>/request.json``: the request for a rollout of a candidate. ``id`` becomes the experiment.

    ``origin`` is the candidate's source: ``name`` of the recipe and ``run``. ``signature_changes`` are what changes for
    the champion's clients.
    """

    id: str
    service: str
    candidate: Variant
    plan: Rollout
    time: float
    affinity: Affinity = Affinity()  # noqa: RUF009 - frozen
    override_header: str = "x-mlkit-variant"
    origin: Mapping[str, str] = field(default_factory=dict)
    signature_changes: tuple[SignatureChange, ...] = ()

    def to_json(self) -> Json:
        return {**asdict(self), "plan": self.plan.model_dump(mode="json")}

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Request:
        """Parse the JSON of `to_json`. Raises KeyError, TypeError or ValueError when it is malformed."""
        parsed = {"candidate": Variant(**value["candidate"]), "plan": Rollout.model_validate(value["plan"]),
                  "affinity": Affinity(**value["affinity"]), "signature_changes": _parse_changes(value)}  # fmt: skip
        return cls(**{**value, **parsed})


@dataclass(frozen=True, slots=True)
class RolloutState:
    """The state of one rollout.

    champion      the variant with the rest of the traffic, as it was when the rollout began
    candidate     with its name and placement in the tables; role, weight and sampling come from the step
    others        lasting shadows of earlier rollouts, part of every table
    epoch         epoch of the last table that was decided
    step_epochs   tables of the present step
    epochs        tables under which both variants were measured, oldest first
    step_started  start of the present step, for display; deadlines use ``elapsed``
    elapsed       seconds of the present step without pauses; never decreases, whatever the clock does
    clock         time of the last observation
    held_from     ``elapsed`` since when metrics that point to worse alone hold the step; None while they do not
    ending        final phase of a rollout that is rolling back
    traces        memory of the judges between observations
    by            who decided the end: "policy", "person" or "monitor" (of live traffic, after a promotion)
    signature_changes  what changes for the champion's clients
    """

    experiment: str
    service: str
    plan: Rollout
    champion: Variant
    candidate: Variant
    phase: Phase = "pending"
    fence: int = 0
    epoch: int = 0
    step: int = 0
    begun: float = 0.0
    step_started: float = 0.0
    elapsed: float = 0.0
    clock: float = 0.0
    held_from: float | None = None
    step_epochs: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    others: tuple[Variant, ...] = ()
    salt: str = ""
    affinity: Affinity = Affinity()  # noqa: RUF009 - frozen
    override_header: str = "x-mlkit-variant"
    ending: Literal["rolled_back", "aborted"] = "rolled_back"
    reason: str = ""
    by: Literal["policy", "person", "monitor"] = "policy"
    finished: float | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    counts: StepCounts = StepCounts()
    findings: tuple[MetricResult, ...] = ()
    traces: Mapping[str, Json] = field(default_factory=dict)
    history: tuple[Observation, ...] = ()
    signature_changes: tuple[SignatureChange, ...] = ()

    @property
    def strategy(self) -> str:
        return self.plan.strategy

    @property
    def steps(self) -> tuple[RolloutStep, ...]:
        return self.plan.sequence

    @property
    def ended(self) -> bool:
        return self.phase in FINAL_PHASES

    @property
    def weight(self) -> float:
        """The candidate's present share of the traffic, in [0, 1]."""
        if self.phase == "promoted" or self.phase == "promoting":
            return 1.0
        return self.steps[self.step].weight / 100 if self.phase in LIVE_PHASES or self.phase == "preparing" else 0.0

    def to_json(self) -> Json:
        """JSON of the state; numbers in findings and history that are not finite become null."""
        value = asdict(self)
        return value | {
            "plan": self.plan.model_dump(mode="json"),
            "findings": findings_json(self.findings),
            "history": _finite(value["history"]),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> RolloutState:
        """Parse the JSON of `to_json`. Raises KeyError, TypeError or ValueError when it is malformed."""
        parsed: dict[str, Any] = {name: Variant(**value[name]) for name in ("champion", "candidate")}
        parsed |= {name: tuple(value[name]) for name in ("step_epochs", "epochs")}
        parsed |= {
            "plan": Rollout.model_validate(value["plan"]),
            "others": tuple(Variant(**variant) for variant in value["others"]),
            "affinity": Affinity(**value["affinity"]),
            "counts": StepCounts(**value["counts"]),
            "findings": tuple(map(_parse_finding, value["findings"])),
            "history": tuple(map(_parse_observation, value["history"])),
            "signature_changes": _parse_changes(value),
        }
        return cls(**{**value, **parsed})


@dataclass(frozen=True, slots=True)
class SetTable:
    """Publish a routing table; done when every replica serves it."""

    table: RoutingTable


@dataclass(frozen=True, slots=True)
class Promote:
    """Record the candidate as champion in place of ``champion``, and move the aliases."""

    candidate: Variant
    champion: Variant


@dataclass(frozen=True, slots=True)
class RollBack:
    """Reject the version ``blamed``: write an incident, and block its digest until an operator lifts the block.

    It is not blocked for the cause "drift": the traffic changed, not the version.
    """

    blamed: Variant
    reason: str
    time: float
    findings: tuple[MetricResult, ...] = ()
    cause: str = ""

    @property
    def blocks(self) -> bool:
        return self.cause != "drift"


@dataclass(frozen=True, slots=True)
class Notify:
    """Send an event to webhooks. ``key`` identifies it, so that it is sent once."""

    event: EventName
    message: str
    key: str
    time: float
    step: int
    weight: float


Action = SetTable | Promote | RollBack | Notify
ACTION_NAMES: Mapping[type[Action], str] = {
    SetTable: "SetTable", Promote: "Promote", RollBack: "RollBack", Notify: "Tell",
}  # fmt: skip
"""Names of the actions in ``rollout.json``."""


@dataclass(frozen=True, slots=True)
class SavedRollout:
    """The content of ``rollout.json``: a state, and its actions that may not have been executed yet."""

    state: RolloutState
    todo: tuple[Action, ...] = ()


def append_observation(history: tuple[Observation, ...], observation: Observation) -> tuple[Observation, ...]:
    """The history with one more observation; the older half is thinned when it exceeds MAX_OBSERVATIONS.

    >>> history: tuple[Observation, ...] = ()
    >>> for second in range(2000): history = append_observation(history, Observation(second, 0, 0.05, "running"))
    >>> len(history) <= MAX_OBSERVATIONS, history[0].time, history[-1].time
    (True, 0, 1999)
    """
    if len(history) >= MAX_OBSERVATIONS:
        half = len(history) // 2
        history = (*history[:half:2], *history[half:])
    return (*history, observation)


def read(files: ServiceFiles) -> SavedRollout | None:
    """Read ``rollout.json``; None when there is none. Raises ServiceError when it is damaged or too new."""
    content = files.read_bytes(RECORD)
    if content is None:
        return None
    place = files.location(RECORD)
    try:
        value = json.loads(content)
        if value["version"] > VERSION:
            raise ServiceError(f"{place} was written by a newer mlflowkit", hint="pip install --upgrade mlflowkit")
        return SavedRollout(RolloutState.from_json(value["state"]), tuple(map(_parse_action, value["todo"])))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ServiceError(
            f"{place} is damaged, or of another release of mlflowkit: {error!r}",
            hint=f"mv {shell_word(place)} {shell_word(f'{place}.damaged')}; mlkit status",
        ) from error


def write(files: ServiceFiles, saved: SavedRollout, *, durable: bool = True) -> None:
    """Write ``rollout.json``. Raises ServiceError when it cannot be written."""
    actions = []
    for action in saved.todo:
        fields = {"action": ACTION_NAMES[type(action)], **_finite(asdict(action))}
        if isinstance(action, RollBack):
            fields["findings"] = findings_json(action.findings)
        actions.append(fields)
    value = {"version": VERSION, "state": saved.state.to_json(), "todo": actions}
    files.write_bytes(RECORD, json.dumps(value).encode(), durable=durable)


def _finite(value: Any) -> Json:
    """JSON with null for each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


_FINDING_KEYS = {"evidence_worse": "harm", "evidence_not_worse": "proof"}
"""JSON keys of the fields of `MetricResult` that have other names."""


def findings_json(findings: Sequence[MetricResult]) -> Json:
    """The results of metrics as they are stored; null for numbers that are not finite."""
    return [
        {_FINDING_KEYS.get(name, name): item for name, item in _finite(asdict(finding)).items()} for finding in findings
    ]


def _restore_nan(value: Mapping[str, Json]) -> dict[str, Json]:
    numbers = ("value", "low", "high", "harm", "proof")
    return {name: math.nan if item is None and name in numbers else item for name, item in value.items()}


def _parse_finding(value: Mapping[str, Json]) -> MetricResult:
    verdict = dict(value["verdict"])
    if verdict["measurement"] is not None:
        verdict["measurement"] = _restore_nan(verdict["measurement"])
    parsed = {"verdict": Verdict.from_json(verdict), "samples": tuple(value["samples"])}
    fields = {**_restore_nan(value), **parsed}
    return MetricResult(**{**{name: fields.pop(key) for name, key in _FINDING_KEYS.items()}, **fields})


def _parse_changes(value: Mapping[str, Json]) -> tuple[SignatureChange, ...]:
    """The signature changes of a record; () in one of a release that did not compare signatures."""
    return tuple(SignatureChange(**change) for change in value.get("signature_changes", ()))


def _parse_observation(value: Mapping[str, Json]) -> Observation:
    readings = tuple(
        MetricReading(**{**_restore_nan(reading), "outcome": Outcome(reading["outcome"])})
        for reading in value["readings"]
    )
    return Observation(**{**value, "readings": readings})


def _parse_action(value: Mapping[str, Json]) -> Action:
    fields = {name: item for name, item in value.items() if name != "action"}
    match value["action"]:
        case "SetTable":
            return SetTable(RoutingTable.from_json(fields["table"]))
        case "Promote":
            return Promote(Variant(**fields["candidate"]), Variant(**fields["champion"]))
        case "RollBack":
            blamed, findings = Variant(**fields["blamed"]), tuple(map(_parse_finding, fields["findings"]))
            return RollBack(blamed, fields["reason"], fields["time"], findings, str(fields.get("cause", "")))
        case "Tell":
            return Notify(**fields)
    raise ValueError(f"no such action: {value['action']!r}")
