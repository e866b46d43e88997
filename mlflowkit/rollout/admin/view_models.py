"""What is read of a service and what is shown of it: frozen values, JSON once ``dataclasses.asdict`` had them.

What is not known, and what is not finite, is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from mlflowkit.judging.online.evidence import Evidence
from mlflowkit.rollout.state import RolloutState
from mlflowkit.service_state.records import Desired, ReplicaReport
from mlflowkit.values import Json, Outcome, RoutingTable

NOTHING = Evidence("")
Command = Literal["promote", "pause", "resume", "abort", "rollback"]


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests by variant at a time, to make rates of."""

    time: float
    epoch: int
    requests: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Controller:
    """Who controls the rollouts of a state folder, as its lease says. ``seen`` is seconds since the epoch."""

    alive: bool
    fence: int
    pid: int
    seen: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the files of one service said at one time.

    ``evidence`` is of the experiment of the routing table, ``trial`` of the rollout's; ``comparisons`` are by shadow,
    ``incidents`` newest first. ``previous`` is the version that a rollback would
    go back to when no rollout is running. ``problems`` are files that could not be read.
    """

    service: str
    time: float
    desired: Desired | None = None
    table: RoutingTable | None = None
    reports: tuple[ReplicaReport, ...] = ()
    rollout: RolloutState | None = None
    evidence: Evidence = NOTHING
    trial: Evidence = NOTHING
    comparisons: Mapping[str, ComparisonView] = field(default_factory=dict)
    incidents: tuple[IncidentView, ...] = ()
    incident_count: int = 0
    previous: str = ""
    admin: str = ""
    controller: Controller | None = None
    webhooks: tuple[Mapping[str, Json], ...] = ()
    waiting_webhooks: int = 0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VariantView:
    """One variant that a service has now. Latencies in milliseconds, rates a second; counts are of its experiment."""

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
    """One step of the plan. ``weight`` is a share in [0, 1]; limits are those that hold, defaults filled in."""

    number: int
    weight: float
    state: Literal["done", "now", "ahead", "ended", "left"]
    """ended: the rollout was turned down here. left: it never got so far."""
    min_samples: int
    bake_seconds: float
    max_seconds: float | None
    sampling: float
    """Share of the requests that is mirrored where the weight is 0."""
    approval: bool


@dataclass(frozen=True, slots=True)
class FindingView:
    """What a metric says now. ``harm`` and ``proof`` are on the scale on which 1 decides."""

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
    """One metric at one look."""

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
    """Counts of two arms over the same bins, which have ``edges`` (one more than bins) or, being classes, ``names``."""

    edges: tuple[float, ...]
    names: tuple[str, ...]
    champion: tuple[int, ...]
    challenger: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExampleView:
    """A row to which a shadow gave another answer than the champion. Answers are by output of the graph."""

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
    """What was seen of one shadow. ``difference`` is the mean of its score minus the champion's, ``rank`` the mean of
    Spearman's correlation of the two, ``latency`` its own mean seconds minus those of the request that it mirrors."""

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
    """A rollout that was turned down, and by what."""

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
    """In a few words."""
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
    """Seconds left of the step; None when none is running."""
    finished: float | None
    reason: str
    by: str
    waiting: tuple[str, ...]
    commands: tuple[Command, ...]
    findings: tuple[FindingView, ...]
    history: Mapping[str, tuple[PointView, ...]]
    """Looks by name of the metric, oldest first."""
    weights: tuple[tuple[float, float], ...]
    """(time, the candidate's share) whenever it changed, and at the end."""
    requests: tuple[int, int]
    """Of champion and candidate in the present step."""
    latency: Histogram | None
    predictions: Histogram | None
    fence: int
    looked: float
    """When the controller last looked at it."""


@dataclass(frozen=True, slots=True)
class ServiceView:
    """A service as it is shown."""

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
    """The newest ones, newest first."""
    incident_count: int
    previous: str
    """Version that a rollback would go back to, when no rollout is running; "" when none is known."""
    controller: Controller | None
    webhooks: tuple[Mapping[str, Json], ...]
    """What became of the last deliveries, newest first."""
    waiting_webhooks: int
    problems: tuple[str, ...]

    def to_json(self) -> Json:
        """JSON of the view."""
        return asdict(self)
