"""What is known of one rollout: frozen values, and the JSON that ``<service>/rollout.json`` holds.

The state is everything that the policy decides by and everything that a controller needs to go on after it was
killed. It is stored together with the actions that were decided and may not have been carried out yet, in one file
that is replaced whole: what is to be done is durable before any of it is done.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlflowkit.errors import ServiceError
from mlflowkit.judging.online.judge import Finding
from mlflowkit.rollout.settings import EventName, Rollout, Step
from mlflowkit.system.files import replace_file
from mlflowkit.values import Affinity, Json, Outcome, RoutingTable, Variant, Verdict

VERSION = 1
"""Of the JSON. A larger one was written by a newer mlflowkit."""
HISTORY = 400
"""Looks that are kept; beyond, every second one of the older half is left out."""

Phase = Literal[
    "pending",
    "preparing",
    "running",
    "paused",
    "awaiting_approval",
    "promoting",
    "promoted",
    "rolling_back",
    "rolled_back",
    "aborted",
    "kept",
]
"""pending: asked for. preparing: the first table is being loaded. running, paused, awaiting_approval: a step is live.
promoting, rolling_back: the last table is on its way. The others are ends; kept is a shadow that stays."""
ENDS: frozenset[Phase] = frozenset(("promoted", "rolled_back", "aborted", "kept"))
LIVE: frozenset[Phase] = frozenset(("running", "paused", "awaiting_approval"))
"""Phases in which both variants are measured."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One metric at one look, for drawing: the evidence on its scale (1 is the boundary) and the estimate."""

    name: str
    outcome: Outcome
    harm: float
    proof: float
    value: float
    low: float
    high: float
    champion: int
    """Observations of the champion."""
    challenger: int
    """Observations of the challenger."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the evidence. ``weight`` is the challenger's share of the traffic, in [0, 1]."""

    time: float
    step: int
    weight: float
    phase: Phase
    readings: tuple[Reading, ...] = ()


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests of the two variants under the tables of the present step, and those that they failed."""

    champion: int = 0
    challenger: int = 0
    champion_errors: int = 0
    challenger_errors: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """``<service>/request.json``: a candidate that wants to take over, and how. ``id`` names the experiment.

    ``origin`` says where the candidate came from: ``name`` of the recipe and ``run``.
    """

    id: str
    service: str
    candidate: Variant
    plan: Rollout
    time: float
    affinity: Affinity = Affinity()  # noqa: RUF009 - frozen
    override_header: str = "x-mlkit-variant"
    origin: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> Json:
        return {**_shallow(self), "candidate": asdict(self.candidate), "plan": self.plan.model_dump(mode="json"),
                "affinity": asdict(self.affinity), "origin": dict(self.origin)}  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Request:
        """The request that `to_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
        made = {"candidate": Variant(**value["candidate"]), "plan": Rollout.model_validate(value["plan"]),
                "affinity": Affinity(**value["affinity"])}  # fmt: skip
        return cls(**{**value, **made})


@dataclass(frozen=True, slots=True)
class RolloutState:
    """One rollout as it stands.

    champion      the variant that has what the candidate does not take, as it was when the rollout began
    candidate     as it is named and placed in the tables; its role, weight and sampling are those of the step
    others        shadows of earlier rollouts that stay in every table
    epoch         of the last table that was decided
    step_epochs   the tables of the present step; ``epochs`` all under which both variants were measured, oldest first
    step_started  when the present step began, for showing; deadlines go by ``elapsed``
    elapsed       seconds of the present step, pauses left out. It never shrinks, whatever the clock does
    clock         time of the last look
    ending        the end that a rolling_back rollout comes to
    traces        what the judges remember
    by            who decided the end: "policy" or "person"
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
    step_epochs: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    others: tuple[Variant, ...] = ()
    salt: str = ""
    affinity: Affinity = Affinity()  # noqa: RUF009 - frozen
    override_header: str = "x-mlkit-variant"
    ending: Literal["rolled_back", "aborted"] = "rolled_back"
    reason: str = ""
    by: Literal["policy", "person"] = "policy"
    finished: float | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    counts: Counts = Counts()
    findings: tuple[Finding, ...] = ()
    traces: Mapping[str, Json] = field(default_factory=dict)
    history: tuple[Look, ...] = ()

    @property
    def strategy(self) -> str:
        return self.plan.strategy

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.plan.sequence

    @property
    def ended(self) -> bool:
        return self.phase in ENDS

    @property
    def weight(self) -> float:
        """The candidate's share of the traffic now, in [0, 1]."""
        if self.phase == "promoted" or self.phase == "promoting":
            return 1.0
        return self.steps[self.step].weight / 100 if self.phase in LIVE or self.phase == "preparing" else 0.0

    def to_json(self) -> Json:
        """JSON of the state; what is not a finite number is null."""
        shallow = _shallow(self)
        shallow |= {name: list(getattr(self, name)) for name in ("step_epochs", "epochs")}
        shallow |= {name: asdict(getattr(self, name)) for name in ("champion", "candidate", "affinity", "counts")}
        return shallow | {
            "plan": self.plan.model_dump(mode="json"),
            "others": [asdict(variant) for variant in self.others],
            "origin": dict(self.origin),
            "findings": [_finite(asdict(finding)) for finding in self.findings],
            "traces": dict(self.traces),
            "history": [_finite(asdict(look)) for look in self.history],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> RolloutState:
        """The state that `to_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
        made: dict[str, Any] = {name: Variant(**value[name]) for name in ("champion", "candidate")}
        made |= {name: tuple(value[name]) for name in ("step_epochs", "epochs")}
        return cls(
            **{
                **value,
                **made,
                "plan": Rollout.model_validate(value["plan"]),
                "others": tuple(Variant(**variant) for variant in value["others"]),
                "affinity": Affinity(**value["affinity"]),
                "counts": Counts(**value["counts"]),
                "findings": tuple(map(_finding, value["findings"])),
                "history": tuple(map(_look, value["history"])),
            }
        )


@dataclass(frozen=True, slots=True)
class SetTable:
    """Publish this table. Done when every replica answers by it."""

    table: RoutingTable


@dataclass(frozen=True, slots=True)
class Promote:
    """The candidate is the champion: move the aliases."""

    candidate: Variant
    champion: Variant
    """The one before."""


@dataclass(frozen=True, slots=True)
class RollBack:
    """The candidate was turned down: keep a record of why, and do not try its digest again unasked."""

    blamed: Variant
    reason: str
    time: float
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Tell:
    """An event for those who want to know. ``key`` tells it from every other, so that it is told once."""

    event: EventName
    message: str
    key: str
    time: float
    step: int
    weight: float


Action = SetTable | Promote | RollBack | Tell


@dataclass(frozen=True, slots=True)
class Saved:
    """What ``rollout.json`` holds: a state, and the actions that were decided with it and are not known to be done."""

    state: RolloutState
    todo: tuple[Action, ...] = ()


def remember(history: tuple[Look, ...], look: Look) -> tuple[Look, ...]:
    """The history with one more look; the older half is thinned when it grows beyond HISTORY.

    >>> looks: tuple[Look, ...] = ()
    >>> for second in range(2000): looks = remember(looks, Look(second, 0, 0.05, "running"))
    >>> len(looks) <= HISTORY, looks[0].time, looks[-1].time
    (True, 0, 1999)
    """
    if len(history) >= HISTORY:
        half = len(history) // 2
        history = (*history[:half:2], *history[half:])
    return (*history, look)


def read(path: Path) -> Saved | None:
    """What ``rollout.json`` holds; None when there is none. Raises ServiceError when it is damaged or too new."""
    try:
        value = json.loads(path.read_bytes())
        if value["version"] > VERSION:
            raise ServiceError(f"{path} was written by a newer mlflowkit", hint="pip install --upgrade mlflowkit")
        return Saved(RolloutState.from_json(value["state"]), tuple(map(_action, value["todo"])))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServiceError(f"{path} cannot be read: {error.strerror}", hint=f"ls -ld {path}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ServiceError(
            f"{path} is damaged, or of another release of mlflowkit: {error!r}",
            hint=f"mv {path} {path}.damaged; mlkit status",
        ) from error


def write(path: Path, saved: Saved, *, durable: bool = True) -> None:
    """Replace ``rollout.json``. Raises StoreError when the disk does not take it."""
    value = {"version": VERSION, "state": saved.state.to_json(), "todo": [_action_json(item) for item in saved.todo]}
    replace_file(path, json.dumps(value).encode(), durable=durable)


# ------------------------------------------------------------------------------------------------------------- inside


def _shallow(value: Any) -> dict[str, Json]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _finite(value: Any) -> Json:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


_NUMBERS = ("value", "low", "high", "harm", "proof")


def _numbers(value: Mapping[str, Json]) -> dict[str, Json]:
    return {name: math.nan if item is None and name in _NUMBERS else item for name, item in value.items()}


def _finding(value: Mapping[str, Json]) -> Finding:
    verdict = dict(value["verdict"])
    if verdict["measurement"] is not None:
        verdict["measurement"] = _numbers(verdict["measurement"])
    made = {"verdict": Verdict.from_json(verdict), "samples": tuple(value["samples"])}
    return Finding(**{**_numbers(value), **made})


def _look(value: Mapping[str, Json]) -> Look:
    readings = (Reading(**{**_numbers(one), "outcome": Outcome(one["outcome"])}) for one in value["readings"])
    return Look(**{**value, "readings": tuple(readings)})


def _action_json(action: Action) -> Json:
    return {"action": type(action).__name__, **_finite(asdict(action))}


def _action(value: Mapping[str, Json]) -> Action:
    fields = {name: item for name, item in value.items() if name != "action"}
    match value["action"]:
        case "SetTable":
            return SetTable(RoutingTable.from_json(fields["table"]))
        case "Promote":
            return Promote(Variant(**fields["candidate"]), Variant(**fields["champion"]))
        case "RollBack":
            blamed, findings = Variant(**fields["blamed"]), tuple(map(_finding, fields["findings"]))
            return RollBack(blamed, fields["reason"], fields["time"], findings)
        case "Tell":
            return Tell(**fields)
    raise ValueError(f"no such action: {value['action']!r}")
