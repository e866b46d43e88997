"""What a recipe says about a rollout: ``serve.rollout``. Frozen; the policy and the judges read nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from mlflowkit.sections import Section

MetricName = Literal[
    "error_rate",
    "latency_p50_ms",
    "latency_p90_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "prediction_drift",
    "agreement",
    "accuracy",
    "log_loss",
    "absolute_error",
    "squared_error",
    "prometheus",
]


EventName = Literal["started", "step", "paused", "promoted", "rolled_back", "aborted"]


class Metric(Section):
    """One thing that a challenger is judged by, against the champion at the same time."""

    metric: MetricName
    """What is measured. accuracy, log_loss, absolute_error and squared_error come from feedback; agreement from
    mirrored requests; prediction_drift is the distance between the two variants' predictions, 0 to 1. Latencies are of
    answered requests: one that comes too late is an error, so they go with error_rate."""
    margin: float | None = Field(default=None, ge=0)
    """How much worse than the champion is no harm, in the metric's unit."""
    ratio: float | None = Field(default=None, gt=1)
    """Latency only: how many times the champion's is no harm."""
    min: float | None = None
    """Smallest value allowed, whatever the champion's is."""
    max: float | None = None
    """Largest value allowed, whatever the champion's is."""
    columns: list[str] = Field(default_factory=list)
    """agreement only: columns by whose values it is judged as well."""
    query: str | None = None
    """prometheus only: an instant query; {service}, {variant} and {version} are filled in."""
    url: str | None = None
    """prometheus only: the server, such as http://127.0.0.1:9090."""
    role: Literal["objective", "guardrail"] = "objective"
    """objective: must be shown to hold before promotion. guardrail: must not be shown to be violated."""


class Step(Section):
    """One step: a share of the traffic, and what must be seen before the next."""

    weight: float = Field(ge=0, le=100)
    """Percent of the traffic; 0 mirrors requests to the challenger instead."""
    sampling: float | None = Field(default=None, gt=0, le=1)
    """Share of the requests that is mirrored, for a weight of 0; the rollout's by default."""
    min_samples: int | None = Field(default=None, ge=1)
    """Requests of each variant to see first; the rollout's by default."""
    bake_seconds: float | None = Field(default=None, ge=0)
    """How long the step lasts at least; the rollout's by default."""
    max_seconds: float | None = Field(default=None, gt=0)
    """How long it lasts at most: then the rollout is rolled back; the rollout's by default."""
    approval: bool = False
    """Whether someone must say `mlkit rollout promote` before the next step."""


DEFAULT_STEPS: Mapping[str, tuple[float, ...]] = {
    "direct": (100,),
    "shadow": (0,),
    "canary": (5, 25, 50),
    "ab": (50,),
    "blue_green": (100,),
}
"""Weights of the steps of a strategy whose recipe gives none."""


def _step(value: Any) -> Any:
    return {"weight": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


WrittenStep = Annotated[
    Step, BeforeValidator(_step, json_schema_input_type=Annotated[float, Field(ge=0, le=100)] | Step)
]
"""A step as recipes write it: its share alone, or with limits of its own."""


class Webhook(Section):
    """Someone to tell. The body is signed with HMAC-SHA256 where there is a key."""

    url: str = Field(pattern=r"^https?://")
    """Where events are POSTed."""
    secret_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the signing key, set where services are started (mlkit up or run).
    What cannot be signed is not sent, and recorded as failed."""
    events: list[EventName] = Field(default_factory=lambda: list(get_args(EventName)))
    """What to tell."""


class Rollout(Section):
    """How a new version takes over."""

    strategy: Literal["direct", "shadow", "canary", "ab", "blue_green"] = "direct"
    """direct: loaded, verified and warmed beside the old one, then swapped at once. shadow: mirrored requests, its
    answers compared, then promoted. canary: a growing share of the traffic. ab: a fixed share until one is shown to be
    better. blue_green: all traffic at once, the old version kept warm to go back to."""
    steps: list[WrittenStep] = Field(default_factory=list, max_length=20)
    """Shares of the traffic in percent, growing; a number is a step with the rollout's own limits. Without any: canary
    5, 25, 50; ab 50; shadow 0 (mirrored); blue_green 100."""
    metrics: list[Metric] = Field(default_factory=list, max_length=20)
    """What the challenger is judged by."""
    level: float = Field(default=0.05, gt=0, lt=0.5)
    """Chance that a challenger as good as the champion is rolled back, over the whole rollout, however often one
    looks."""
    min_samples: int = Field(default=500, ge=1)
    """Requests of each variant to see in a step."""
    bake_seconds: float = Field(default=30.0, ge=0)
    """How long a step lasts at least."""
    max_seconds: float = Field(default=3600.0, gt=0)
    """How long a step lasts at most; a rollout that has shown nothing by then is rolled back."""
    sampling: float = Field(default=1.0, gt=0, le=1)
    """Share of the requests that is mirrored to a shadow."""
    placement: Literal["colocated", "isolated"] = "colocated"
    """Where the challenger runs: in the gateway's process, or in one of its own."""
    promote: Literal["automatic", "manual", "never"] = "automatic"
    """What follows the last step: promotion, waiting for `mlkit rollout promote`, or (shadow only) staying a shadow."""
    cooldown_seconds: float = Field(default=600.0, ge=0)
    """How long after a rollback no other rollout of the service begins."""
    webhooks: list[Webhook] = Field(default_factory=list)
    """Who is told."""

    @property
    def sequence(self) -> tuple[Step, ...]:
        """The steps with every limit filled in.

        >>> [(step.weight, step.min_samples) for step in Rollout(strategy="canary", steps=[5, 50]).sequence]
        [(5.0, 500), (50.0, 500)]
        """
        steps = self.steps or [Step(weight=weight) for weight in DEFAULT_STEPS[self.strategy]]
        return tuple(
            Step(
                weight=step.weight,
                sampling=self.sampling if step.sampling is None else step.sampling,
                min_samples=self.min_samples if step.min_samples is None else step.min_samples,
                bake_seconds=self.bake_seconds if step.bake_seconds is None else step.bake_seconds,
                max_seconds=self.max_seconds if step.max_seconds is None else step.max_seconds,
                approval=step.approval,
            )
            for step in steps
        )
