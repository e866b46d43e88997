"""Frozen values that cross rooms. No behaviour beyond reading themselves; no vendor, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

Json = Any
"""A value that ``json.dumps`` accepts without a default."""

STAGES: tuple[str, ...] = (
    "data",
    "validate",
    "train",
    "export",
    "optimize",
    "evaluate",
    "package",
    "deploy",
)
"""The stages, in the order in which a run visits them."""

STAGE_INPUTS: Mapping[str, tuple[str, ...]] = {
    "data": (),
    "validate": ("data",),
    "train": ("data",),
    "export": ("data", "train"),
    "optimize": ("data", "export"),
    "evaluate": ("data", "optimize"),
    "package": ("data", "validate", "export", "optimize", "evaluate"),
    "deploy": ("package",),
}
"""What each stage reads. A stage is stale when one of these is, and for no other stage's sake."""


class Outcome(StrEnum):
    """What a gate can say."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    INCONCLUSIVE = "INCONCLUSIVE"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True)
class Measurement:
    """A number with its interval: ``low <= value <= high`` at ``confidence`` from ``samples`` observations.

    ``unit`` is "" for dimensionless metrics. ``method`` names how the interval was made ("DeLong", ...).

    >>> Measurement("roc_auc", 0.74, 0.69, 0.79, samples=1479).low
    0.69
    """

    name: str
    value: float
    low: float
    high: float
    samples: int
    confidence: float = 0.95
    unit: str = ""
    method: str = ""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one check of the data said. ``failures`` are the first few (row, value); ``failed`` counts all."""

    check: str
    column: str
    passed: bool
    message: str
    failed: int = 0
    failures: tuple[tuple[int, Json], ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one gate said, in numbers and in words."""

    gate: str
    outcome: Outcome
    message: str
    metric: str
    measurement: Measurement | None = None
    threshold: float | None = None
    """The bound that the interval was held against (for a change threshold: minus or plus the margin)."""
    direction: Literal["min", "max"] = "min"
    blocking: bool = True
    """False for a gate in dry-run, or an INCONCLUSIVE that the recipe allows."""
    slice: str = ""
    """``column=value`` for a slice, else empty."""
    change: bool = False
    """Whether the measurement is a difference, candidate minus champion."""

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Verdict:
        """The verdict whose ``dataclasses.asdict`` was written as JSON. Raises KeyError, TypeError or ValueError.

        >>> from dataclasses import asdict
        >>> verdict = Verdict("roc_auc >= 0.7", Outcome.PASSED, "0.74 [0.71, 0.77]", "roc_auc")
        >>> Verdict.from_json(asdict(verdict)) == verdict
        True
        """
        measurement = value["measurement"]
        return cls(
            **{
                **value,
                "outcome": Outcome(value["outcome"]),
                "measurement": None if measurement is None else Measurement(**measurement),
            }
        )


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage says about what it published. Everything here is JSON and is kept in the journal."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    summary: Mapping[str, Json] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a result came from."""

    git_commit: str
    """Full hash, or "" outside a git checkout."""
    git_dirty: bool
    data_version: str
    """Digest of the data's content, or the commit of the store that it came from."""
    recipe_digest: str


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan."""

    stage: str
    action: Literal["run", "reuse"]
    reason: str
    fingerprint: str
    ingredients: Mapping[str, str] = field(default_factory=dict)
    """Name of each ingredient of the fingerprint and its digest."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of a run, as the journal keeps it."""

    stage: str
    action: Literal["run", "reuse"]
    reason: str
    fingerprint: str
    status: Literal["pending", "running", "done", "failed", "interrupted"]
    seconds: float = 0.0
    digest: str = ""
    """Digest of the published folder in the store; "" until it is published."""
    result: StageResult | None = None
    error: str = ""


RunStatus = Literal["running", "done", "failed", "gate-failed", "inconclusive", "interrupted"]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run, as the journal keeps it. Times are seconds since the epoch."""

    run: str
    name: str
    recipe_path: str
    status: RunStatus
    started: float
    finished: float | None
    lineage: Lineage
    recipe: Mapping[str, Json]
    """The composed recipe, whole."""
    overrides: tuple[str, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    bundle: str = ""
    """Identity digest of the bundle; "" when the run did not get that far."""
    blessed: bool = False
    endpoint: str = ""
    report: str = ""
    error: str = ""


EventKind = Literal["planned", "started", "progress", "warning", "done", "reused", "failed"]


@dataclass(frozen=True, slots=True)
class Event:
    """Progress of a run. ``fraction`` is in [0, 1] or None when unknown; ``metrics`` are the latest figures."""

    stage: str
    kind: EventKind
    message: str = ""
    fraction: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Variant:
    """One model version behind a service. ``bundle`` is the folder of a bundle, ``digest`` its identity."""

    name: str
    version: str
    digest: str
    bundle: str
    role: Literal["champion", "challenger", "shadow"] = "champion"
    weight: float = 1.0
    """Share of the traffic, in [0, 1]; the weights of a table sum to 1. A shadow has none."""
    start: float = 0.0
    """Where a challenger's share of [0, 1) begins. It stays for as long as an experiment lasts, so raising a weight
    moves keys from the champion only, and nobody back."""
    sampling: float = 1.0
    """Share of the requests that is mirrored to a shadow."""
    placement: Literal["colocated", "isolated"] = "colocated"
    """colocated: in the gateway's process. isolated: in a process of its own, which may crash alone."""


@dataclass(frozen=True, slots=True)
class Affinity:
    """What keeps a client with one variant: a header, a cookie or a request parameter; or nothing, its request id."""

    kind: Literal["header", "cookie", "parameter", "request_id"] = "request_id"
    name: str = ""


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """What a gateway answers with. Immutable, swapped whole; a larger epoch replaces a smaller one."""

    service: str
    epoch: int
    variants: tuple[Variant, ...]
    experiment: str = ""
    """Names the rollout that this table is a step of; "" when there is none. Evidence is kept apart by it."""
    salt: str = ""
    """Hashed with each affinity key; fixed over an experiment, different between experiments."""
    affinity: Affinity = Affinity()
    override_header: str = "x-mlkit-variant"
    """Header in which a tester names the variant to be answered by; "" honours none. Such answers are not evidence."""
    fence: int = 0
    """Number of the controller's lease that made this table; a table with a smaller one is refused."""

    @property
    def champion(self) -> Variant:
        """The variant that has what no challenger takes. Raises StopIteration in a table that has none."""
        return next(variant for variant in self.variants if variant.role == "champion")

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> RoutingTable:
        """The table whose ``dataclasses.asdict`` was written as JSON. Raises KeyError or TypeError.

        >>> from dataclasses import asdict
        >>> table = RoutingTable("lending", 3, (Variant("champion", "1", "d", "b"),), affinity=Affinity("header", "x"))
        >>> RoutingTable.from_json(asdict(table)) == table
        True
        """
        variants = tuple(Variant(**variant) for variant in value["variants"])
        affinity = Affinity(**value.get("affinity", {}))
        return cls(**{**value, "variants": variants, "affinity": affinity})


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service as ``mlkit status`` shows it."""

    service: str
    endpoint: str
    epoch: int
    ready: bool
    variants: tuple[Variant, ...]
    replicas: int
    state: str = ""
    grpc_endpoint: str = ""
