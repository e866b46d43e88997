"""The snapshot of a service's files and the views made from it: frozen values; views become JSON by ``asdict``.

Unknown values and numbers that are not finite are None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from mlflowkit.judging.compatibility import SignatureChange
from mlflowkit.judging.online.evidence import Evidence
from mlflowkit.rollout.commands import CommandKind
from mlflowkit.rollout.state import RolloutState
from mlflowkit.service_state.records import Desired, ReplicaReport
from mlflowkit.values import Json, Outcome, RoutingTable

NO_EVIDENCE = Evidence("")


@dataclass(frozen=True, slots=True)
class RequestSample:
    """Cumulative requests by variant at one time; two samples give rates."""

    time: float
    epoch: int
    requests: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ControllerStatus:
    """The controller that holds the lease of a state folder. ``seen`` is seconds since the epoch."""

    alive: bool
    fence: int
    pid: int
    seen: float


@dataclass(frozen=True, slots=True)
class ServiceSnapshot:
    """The content of one service's files at one time.

    evidence          of the routing table's experiment; ``rollout_evidence`` of the rollout's
    comparisons       by shadow
    incidents         newest first
    previous          version that a rollback returns to when no rollout is running
    problems          files that could not be read, warnings of replicas
    """

    service: str
    time: float
    desired: Desired | None = None
    table: RoutingTable | None = None
    reports: tuple[ReplicaReport, ...] = ()
    rollout: RolloutState | None = None
    evidence: Evidence = NO_EVIDENCE
    rollout_evidence: Evidence = NO_EVIDENCE
    comparisons: Mapping[str, ComparisonView] = field(default_factory=dict)
    incidents: tuple[IncidentView, ...] = ()
    incident_count: int = 0
    previous: str = ""
    admin: str = ""
    controller: ControllerStatus | None = None
    webhooks: tuple[Mapping[str, Json], ...] = ()
    waiting_webhooks: int = 0
    feedback: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VariantView:
    """One current variant. Latencies in milliseconds, rates per second; counts cover its experiment."""

    name: str
    version: str
    digest: str
    role: Literal["champion", "challenger", "shadow"]
    weight: float
    sampling: float
    placement: str
    state: str
    requests: int
    errors: int
    error_rate: float | None
    p50_ms: float | None
    p99_ms: float | None
    per_second: float | None
    mirrored: int
    dropped: int


@dataclass(frozen=True, slots=True)
class ShareView:
    """A share of rows with its interval (Wilson, 95 %); ``slice`` is "" for all rows."""

    slice: str
    rows: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class StepView:
    """One step of the plan. ``weight`` is a share in [0, 1]; limits have their defaults filled in."""

    number: int
    weight: float
    state: Literal["done", "now", "ahead", "ended", "left"]
    """ended: the rollout was rolled back here. left: the rollout did not reach it."""
    min_samples: int
    bake_seconds: float
    max_seconds: float | None
    sampling: float
    """Share of the requests that is mirrored at weight 0."""
    approval: bool


@dataclass(frozen=True, slots=True)
class FindingView:
    """The current result of a metric. ``harm`` and ``proof`` are the evidence that it is worse, and not worse, than
    allowed; 1 is the decision boundary."""

    name: str
    metric: str
    role: Literal["objective", "guardrail"]
    outcome: Outcome
    message: str
    harm: float | None
    proof: float | None
    value: float | None
    low: float | None
    high: float | None
    threshold: float | None
    direction: Literal["min", "max"]
    change: bool
    unit: str
    method: str
    slice: str
    champion: int
    challenger: int


@dataclass(frozen=True, slots=True)
class PointView:
    """One metric at one observation."""

    time: float
    champion: int
    challenger: int
    harm: float | None
    proof: float | None
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of both variants over the same bins, given by ``edges`` (bins + 1) or, for classes, by ``names``."""

    edges: tuple[float, ...]
    names: tuple[str, ...]
    champion: tuple[int, ...]
    challenger: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExampleView:
    """A row on which a shadow and the champion disagree. Answers are by output of the graph."""

    time: float
    id: str
    row: int
    slices: tuple[str, ...]
    inputs: Mapping[str, Json]
    champion: Mapping[str, Json]
    shadow: Mapping[str, Json]
    difference: float | None


@dataclass(frozen=True, slots=True)
class ComparisonView:
    """Comparison of a shadow with the champion: means of the score difference (shadow minus champion), of the scores'
    Spearman correlation (``rank``), and of the extra seconds over the mirrored request (``latency``)."""

    shadow: str
    version: str
    rows: int
    disagreements: int
    difference: float | None
    rank: float | None
    latency: float | None
    examples: tuple[ExampleView, ...]
    """A uniform sample of the disagreements, newest first."""


@dataclass(frozen=True, slots=True)
class IncidentView:
    """A rollout that was rolled back or aborted, with its evidence."""

    id: str
    experiment: str
    time: float
    began: float
    ending: str
    by: str
    reason: str
    strategy: str
    step: int
    steps: tuple[float, ...]
    champion_version: str
    candidate_version: str
    candidate_digest: str
    findings: tuple[FindingView, ...]
    counts: Mapping[str, Mapping[str, int]]
    lineage: Mapping[str, str]
    examples: tuple[ExampleView, ...]


@dataclass(frozen=True, slots=True)
class RolloutView:
    """The last rollout of a service, running or ended. Times are seconds since the epoch, spans seconds."""

    experiment: str
    summary: str
    strategy: str
    phase: str
    ended: bool
    step: int
    steps: tuple[StepView, ...]
    weight: float
    champion: str
    champion_version: str
    candidate: str
    candidate_version: str
    candidate_digest: str
    level: float
    begun: float
    step_started: float
    elapsed: float
    deadline: float | None
    """Seconds left of the step; None if no step is live."""
    finished: float | None
    reason: str
    by: str
    waiting: tuple[str, ...]
    commands: tuple[CommandKind, ...]
    findings: tuple[FindingView, ...]
    history: Mapping[str, tuple[PointView, ...]]
    """Observations by metric name, oldest first."""
    weights: tuple[tuple[float, float], ...]
    """(time, the candidate's share) at each change and at the end."""
    requests: tuple[int, int]
    """Requests of champion and candidate in the present step."""
    latency: Histogram | None
    predictions: Histogram | None
    fence: int
    looked: float
    """Time of the controller's last observation."""
    signature_changes: tuple[SignatureChange, ...] = ()
    """What changes for the champion's clients; breaking changes first."""
    warnings: tuple[str, ...] = ()
    """What an operator should know: changes for clients, and what the metrics cannot show."""


@dataclass(frozen=True, slots=True)
class ServiceView:
    """The view of a service."""

    service: str
    time: float
    endpoint: str
    grpc_endpoint: str
    admin: str
    epoch: int
    state: str
    replicas: int
    replicas_wanted: int
    variants: tuple[VariantView, ...]
    rollout: RolloutView | None
    agreement: Mapping[str, tuple[ShareView, ...]]
    comparisons: Mapping[str, ComparisonView]
    incidents: tuple[IncidentView, ...]
    """The most recent ones, newest first."""
    incident_count: int
    previous: str
    """Version that a rollback returns to when no rollout is running, or ""."""
    controller: ControllerStatus | None
    webhooks: tuple[Mapping[str, Json], ...]
    """Results of the last deliveries, newest first."""
    waiting_webhooks: int
    feedback: Mapping[str, int]
    """Items of feedback by what became of them; empty before the first."""
    problems: tuple[str, ...]

    def to_json(self) -> Json:
        return asdict(self)
