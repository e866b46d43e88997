"""Frozen values shared between packages. No I/O, no vendor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

Json = Any
"""A value that ``json.dumps`` accepts without a default."""

STAGES: tuple[str, ...] = ("data", "validate", "train", "export", "optimize", "evaluate", "package", "deploy")
"""The stages, in the order of a run."""

STAGE_INPUTS: Mapping[str, tuple[str, ...]] = {
    "data": (),
    "validate": ("data",),
    "train": ("data",),
    "export": ("data", "train"),
    "optimize": ("data", "export"),
    "evaluate": ("data", "export", "optimize"),
    "package": ("data", "validate", "export", "optimize", "evaluate"),
    "deploy": ("package",),
}
"""The stages whose output each stage reads; a stage is stale when one of these is."""


class Outcome(StrEnum):
    """The outcome of a gate."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    INCONCLUSIVE = "INCONCLUSIVE"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True)
class Measurement:
    """A number with its interval: ``low <= value <= high`` at ``confidence`` from ``samples`` observations.

    ``unit`` is "" for dimensionless metrics; ``method`` names the interval's method ("DeLong", ...).

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
    """The result of one data check: ``failed`` values, of which ``failures`` are the first few (row, value)."""

    check: str
    column: str
    passed: bool
    message: str
    failed: int = 0
    failures: tuple[tuple[int, Json], ...] = ()
    error: bool = False
    """Whether the check could not be evaluated: it is not passed then."""
    inconclusive: bool = False
    """Whether it cannot be judged, or not with these rows; ``message`` says why and what to do."""
    blocking: bool = True
    """Whether the run ends where it did not pass."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one gate."""

    gate: str
    outcome: Outcome
    message: str
    metric: str
    measurement: Measurement | None = None
    threshold: float | None = None
    """The bound that the interval was compared with (for a change threshold: minus or plus the margin)."""
    direction: Literal["min", "max"] = "min"
    blocking: bool = True
    """False for a gate in dry-run, or an INCONCLUSIVE that the recipe allows."""
    slice: str = ""
    """``column=value`` for a slice, else empty."""
    change: bool = False
    """Whether the measurement is a difference, candidate minus champion."""
    remeasure: bool = False
    """Whether a time was measured that did not decide: the next run measures it anew instead of reusing it."""

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Verdict:
        """The verdict whose ``dataclasses.asdict`` was written as JSON. Raises KeyError, TypeError or ValueError.

        >>> from dataclasses import asdict
        >>> verdict = Verdict("roc_auc >= 0.7", Outcome.PASSED, "0.74 [0.71, 0.77]", "roc_auc")
        >>> Verdict.from_json(asdict(verdict)) == verdict
        True
        """
        measurement = value["measurement"] and Measurement(**value["measurement"])
        return cls(**{**value, "outcome": Outcome(value["outcome"]), "measurement": measurement})


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage reports besides its folder. JSON throughout; kept in the journal."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    summary: Mapping[str, Json] = field(default_factory=dict)
    """With a key ``remeasure`` that is true, times were measured that did not decide."""
    verdicts: tuple[Verdict, ...] = ()

    @property
    def remeasure(self) -> bool:
        """Whether it holds a time that did not decide: evidence of one moment, which no later run reuses."""
        return bool(self.summary.get("remeasure")) or any(verdict.remeasure for verdict in self.verdicts)


@dataclass(frozen=True, slots=True)
class DataObject:
    """A file of a remote data source."""

    path: str
    """POSIX path below the source's own folder; what names of folders tell (``month=01``) is in it."""
    size: int
    """Bytes."""
    digest: str
    """``algorithm:value``, as the store tells it: ``md5:9e10...``, ``sha256:...``, ``etag:...``. Equal means equal
    content; only some algorithms can be computed from the content."""
    locator: str = ""
    """How the store names it, for the adapter that fetches it."""


@dataclass(frozen=True, slots=True)
class DataSnapshot:
    """One version of a remote data source: what a plan decides by and a run reads. Holds no credentials."""

    kind: str
    uri: str
    """Where the data is, without user information: ``lakefs://lending/loans/``."""
    asked: str
    """What the recipe asked for: a branch, a tag, a time; equal to ``version`` where it is pinned."""
    version: str
    """The commit or version that this was resolved to; "" where a store has none (SQL, S3)."""
    objects: tuple[DataObject, ...]
    details: Mapping[str, str] = field(default_factory=dict)
    """What else is known of the version, for people: ``author``, ``time`` (seconds since the epoch), ``message``,
    ``shown`` (the place with what was asked for, as the store writes it), ``credentials`` (whose were used, where the
    recipe names none)."""

    @property
    def tree(self) -> str:
        """SHA-256 over the path, size and digest of each object, sorted: what a fingerprint depends on.

        >>> snapshot = DataSnapshot("lakefs", "lakefs://r/", "main", "3f", (DataObject("a", 1, "md5:9e"),))
        >>> snapshot.tree == DataSnapshot("s3", "s3://b/", "", "", (DataObject("a", 1, "md5:9e", "x"),)).tree
        True
        """
        rows = sorted([item.path, item.size, item.digest] for item in self.objects)
        return hashlib.sha256(json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all objects."""
        return sum(item.size for item in self.objects)

    def to_json(self) -> dict[str, Json]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> DataSnapshot:
        """The snapshot of `to_json`. Raises KeyError or TypeError."""
        return cls(**{**value, "objects": tuple(DataObject(**item) for item in value["objects"])})


@dataclass(frozen=True, slots=True)
class Lineage:
    """Code, data and recipe of a result."""

    git_commit: str
    """Full hash, or "" outside a git checkout."""
    git_dirty: bool
    data_version: str
    """Digest of the data's content, or the commit of its store."""
    recipe_digest: str
    git_tree: str = ""
    """Digest of git's tree of the recipe's folder at ``git_commit``; "" where it is not known."""
    git_changes: str = ""
    """What makes it dirty: inputs that no commit holds."""
    data_source: str = ""
    """Where remote data is, without user information (``lakefs://lending/loans/``); "" for local data."""
    data_commit: str = ""
    """The commit or version of the store that was read; "" for local data, and for stores without versions."""

    def to_json(self) -> dict[str, Json]:
        """For the journal: without what earlier versions do not know, where it is empty."""
        added = ("data_source", "data_commit")
        return {name: value for name, value in asdict(self).items() if value or name not in added}

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Lineage:
        """The lineage of `to_json`, also of a later version. Raises TypeError.

        >>> lineage = Lineage("3f", False, "d", "r", data_commit="9b")
        >>> Lineage.from_json({**lineage.to_json(), "of_a_later_version": 1}) == lineage
        True
        """
        known = cls.__dataclass_fields__
        return cls(**{name: item for name, item in value.items() if name in known})


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan."""

    stage: str
    action: Literal["run", "reuse"]
    reason: str
    fingerprint: str
    ingredients: Mapping[str, str] = field(default_factory=dict)
    """Name of each ingredient of the fingerprint and its digest."""
    origin: str = ""
    """Digest of its ingredients and of those of all that it depends on: the same before and after anything ran."""
    awaits: tuple[str, ...] = ()
    """Inputs that run first: with what they publish it is decided again, and only then is its fingerprint known."""
    conditional: bool = False
    """Whether it runs only if one of these publishes another content than before."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of a run in the journal."""

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


TRACKING_TARGET = "mlflow"
"""The target of deliveries to the tracker. Every run is delivered there, by its id."""

DeliveryStatus = Literal["pending", "delivered", "failed"]


@dataclass(frozen=True, slots=True)
class RunDelivery:
    """What a finished run owes to a system outside of the state folder. Times are seconds since the epoch.

    ``target`` names the system, ``key`` what is delivered there: of one target and key there is one delivery, whichever
    runs owe it; ``run`` is the first. A ``failed`` delivery is not tried again unless a person asks for it.
    """

    run: str
    target: str
    key: str
    status: DeliveryStatus = "pending"
    attempts: int = 0
    error: str = ""
    """What the last attempt met; "" before the first, and after one that succeeded."""
    receipt: str = ""
    """Where the system has it."""
    created: float = 0.0
    tried: float = 0.0
    """When the last attempt ended; 0 before the first."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run in the journal. Times are seconds since the epoch."""

    run: str
    name: str
    recipe_path: str
    status: RunStatus
    started: float
    finished: float | None
    lineage: Lineage
    recipe: Mapping[str, Json]
    """The composed recipe."""
    overrides: tuple[str, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    bundle: str = ""
    """Identity digest of the bundle; "" when there is none."""
    blessed: bool = False
    endpoint: str = ""
    report: str = ""
    error: str = ""
    deliveries: tuple[RunDelivery, ...] = ()


EventKind = Literal["planned", "started", "progress", "warning", "done", "reused", "failed"]


@dataclass(frozen=True, slots=True)
class Event:
    """Progress of a run. ``fraction`` is in [0, 1] or None when unknown; ``metrics`` are the latest values."""

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
    """Start of a challenger's share of [0, 1). Fixed over an experiment, so raising a weight only moves keys from the
    champion, never back."""
    sampling: float = 1.0
    """Share of the requests mirrored to a shadow."""
    placement: Literal["colocated", "isolated"] = "colocated"
    """colocated: in the gateway's process. isolated: in its own process, whose crash affects nothing else."""


@dataclass(frozen=True, slots=True)
class Affinity:
    """The key that keeps a client on one variant: a header, a cookie, a request parameter or (none) the request id."""

    kind: Literal["header", "cookie", "parameter", "request_id"] = "request_id"
    name: str = ""


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """The variants of a service and their weights. Immutable; a larger epoch replaces a smaller one."""

    service: str
    epoch: int
    variants: tuple[Variant, ...]
    experiment: str = ""
    """Id of the rollout that this table belongs to, or "". Evidence is kept per experiment."""
    salt: str = ""
    """Hashed with each affinity key; fixed over an experiment, different between experiments."""
    affinity: Affinity = Affinity()
    override_header: str = "x-mlkit-variant"
    """Header that selects a variant by name, for tests; "" disables it. Such responses are not evidence."""
    fence: int = 0
    """Fencing number of the controller that wrote this table; tables with a smaller one are rejected."""

    @property
    def champion(self) -> Variant:
        """The variant that takes the traffic challengers do not. Raises StopIteration when there is none."""
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
    """One running service."""

    service: str
    endpoint: str
    epoch: int
    ready: bool
    variants: tuple[Variant, ...]
    replicas: int
    state: str = ""
    grpc_endpoint: str = ""
    supervision: str = ""
    """Why the service would not be started again at once if its gateways ended; "" when it would."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, identified by machine (name, boot, pid namespace), pid and start time in clock ticks."""

    host: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"{self.host}|{self.pid}|{self.started}"

    @classmethod
    def parse(cls, text: str) -> Owner:
        """
        >>> Owner.parse(str(Owner("host", 7, "99"))) == Owner("host", 7, "99")
        True
        """
        host, pid, started = text.rsplit("|", 2)
        return cls(host, int(pid), started)


@dataclass(frozen=True, slots=True)
class StepLease:
    """The right to compute the result of ``fingerprint``."""

    fingerprint: str
    fence: int


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A lease held by another owner, when last read. ``heartbeat`` is a counter that a live owner increments."""

    owner: Owner
    run: str
    stage: str
    heartbeat: int
    fence: int


@dataclass(frozen=True, slots=True)
class Published:
    """A folder in the store: its digest and the size of each of its files by relative name."""

    digest: str
    files: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of a fingerprint. ``inputs`` are the digests of the folders that it was computed from."""

    fingerprint: str
    stage: str
    name: str
    published: Published
    result: StageResult
    ingredients: Mapping[str, str]
    inputs: Mapping[str, str]
    run: str
    seconds: float = 0.0
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for a version: ``champion`` is served, ``challenger`` was blessed last.

    ``digest`` is that of the package stage's folder, ``optimize`` the fingerprint of the graph, ``judged_*`` the
    champion that its gates compared with ("" for none).
    """

    name: str
    alias: str
    identity: str
    digest: str
    optimize: str
    judged_identity: str
    judged_digest: str
    run: str
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class RunEnd:
    """The final state of a run."""

    status: RunStatus
    bundle: str = ""
    blessed: bool = False
    endpoint: str = ""
    report: str = ""
    error: str = ""
    deliveries: tuple[RunDelivery, ...] = ()
    """What the run owes to other systems, written with its end; those that are known already stay as they are."""


def candidate_alias(identity: str) -> str:
    """The alias of a version that may become champion or was one.

    >>> candidate_alias("3f9a" * 16)
    'v-3f9a3f9a3f9a3f'
    """
    return f"v-{identity[:14]}"
