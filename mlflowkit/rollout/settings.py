"""The recipe section ``serve.rollout``: the whole plan that the policy and the judges go by. Frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from mlflowkit.sections import Section

MetricName = Literal[
    "error_rate", "latency_p50_ms", "latency_p90_ms", "latency_p95_ms", "latency_p99_ms", "prediction_drift",
    "agreement", "kappa", "accuracy", "log_loss", "absolute_error", "squared_error", "prometheus",
]  # fmt: skip
EventName = Literal["started", "step", "paused", "promoted", "rolled_back", "aborted"]


class RolloutMetric(Section):
    """One metric that a challenger is judged by, against the champion over the same period."""

    metric: MetricName
    """The metric. accuracy, log_loss, absolute_error and squared_error come from feedback; agreement and kappa from
    mirrored requests. kappa is agreement beyond chance (Cohen's; of scores where there are two classes or a number): 0
    for models that have nothing in common, 1 for the same answers. prediction_drift is the distance between the two
    variants' predictions, 0 to 1. Latencies are of answered requests: a timeout is an error, so combine them with
    error_rate."""
    margin: float | None = Field(default=None, ge=0)
    """How much worse than the champion is acceptable, in the metric's unit."""
    ratio: float | None = Field(default=None, gt=1)
    """Latency only: how many times the champion's latency is acceptable."""
    min: float | None = None
    """Smallest acceptable value, whatever the champion's is."""
    max: float | None = None
    """Largest acceptable value, whatever the champion's is."""
    columns: list[str] = Field(default_factory=list)
    """agreement only: columns whose values are judged as slices as well."""
    query: str | None = None
    """prometheus only: an instant query; {service}, {variant} and {version} are filled in."""
    url: str | None = None
    """prometheus only: the server, such as http://127.0.0.1:9090."""
    role: Literal["objective", "guardrail"] = "objective"
    """objective: must be shown to hold before promotion. guardrail: must not be shown to be violated."""


class RolloutStep(Section):
    """One step: a share of the traffic, and the conditions for the next step."""

    weight: float = Field(ge=0, le=100)
    """Percent of the traffic; 0 mirrors requests to the challenger instead."""
    sampling: float | None = Field(default=None, gt=0, le=1)
    """Share of the requests that is mirrored at weight 0; the rollout's by default."""
    min_samples: int | None = Field(default=None, ge=1)
    """Requests of each variant before the next step; the rollout's by default."""
    bake_seconds: float | None = Field(default=None, ge=0)
    """Minimum duration of the step; the rollout's by default."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Maximum duration, after which the rollout is rolled back; the rollout's by default."""
    approval: bool = False
    """Whether the next step requires `mlkit rollout promote`."""


DEFAULT_STEPS: Mapping[str, tuple[float, ...]] = {
    "direct": (100,),
    "shadow": (0,),
    "canary": (5, 25, 50),
    "ab": (50,),
    "blue_green": (100,),
}
"""Step weights of each strategy when the recipe gives none."""


def _expand_step(value: Any) -> Any:
    return {"weight": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


StepInput = Annotated[
    RolloutStep,
    BeforeValidator(_expand_step, json_schema_input_type=Annotated[float, Field(ge=0, le=100)] | RolloutStep),
]
"""A step in a recipe: a weight alone, or a section with its own limits."""


class Webhook(Section):
    """A URL that receives rollout events. Bodies are signed with HMAC-SHA256 when there is a key."""

    url: str | None = Field(default=None, pattern=r"^https?://")
    """Where events are POSTed. It lies in the state folder: where it is itself a secret, give url_env instead."""
    url_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable with the URL, set where services are started (mlkit up or run)."""
    secret_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable with the signing key, set where services are started (mlkit up or run). An event that
    cannot be signed is not sent, and recorded as failed."""
    events: list[EventName] = Field(default_factory=lambda: list(get_args(EventName)))
    """Events to send."""


class Rollout(Section):
    """How a new version takes over."""

    strategy: Literal["direct", "shadow", "canary", "ab", "blue_green"] = "direct"
    """direct: load, verify and warm beside the old version, then swap. shadow: mirror requests, compare answers, then
    promote. canary: a growing share of the traffic. ab: a fixed share until one version is shown to be better.
    blue_green: all traffic at once, with the old version kept warm for rollback."""
    steps: list[StepInput] = Field(default_factory=list, max_length=20)
    """Shares of the traffic in percent, increasing; a number is a step with the rollout's limits. Default: canary
    5, 25, 50; ab 50; shadow 0 (mirrored); blue_green 100."""
    metrics: list[RolloutMetric] = Field(default_factory=list, max_length=20)
    """Metrics that the challenger is judged by."""
    level: float = Field(default=0.05, gt=0, lt=0.5)
    """False rollback probability: that of a challenger as good as the champion, over the whole rollout."""
    min_samples: int = Field(default=500, ge=1)
    """Minimum requests of each variant in a step."""
    bake_seconds: float = Field(default=30.0, ge=0)
    """Minimum duration of a step."""
    max_seconds: float = Field(default=3600.0, gt=0)
    """Maximum duration of a step; a rollout that is still inconclusive then is rolled back."""
    max_hold_seconds: float | None = Field(default=None, gt=0)
    """Longest time that a step is held by metrics that point to worse, after which the rollout is rolled back; until
    the step's max_seconds by default."""
    sampling: float = Field(default=1.0, gt=0, le=1)
    """Share of the requests that is mirrored to a shadow."""
    placement: Literal["colocated", "isolated"] = "colocated"
    """Where the challenger runs: in the gateway's process, or in its own."""
    promote: Literal["automatic", "manual", "never"] = "automatic"
    """After the last step: promote, wait for `mlkit rollout promote`, or (shadow only) keep the shadow."""
    cooldown_seconds: float = Field(default=600.0, ge=0)
    """Seconds after a rollback during which no other rollout of the service can begin."""
    webhooks: list[Webhook] = Field(default_factory=list)
    """Receivers of events."""
    allow_breaking: bool = False
    """Whether all traffic may move at once to a version whose signature breaks clients (other columns, kinds of
    columns, classes or outputs); `mlkit run --allow-breaking` says so for one run."""

    @property
    def sequence(self) -> tuple[RolloutStep, ...]:
        """The steps with every limit filled in.

        >>> [(step.weight, step.min_samples) for step in Rollout(strategy="canary", steps=[5, 50]).sequence]
        [(5.0, 500), (50.0, 500)]
        """
        steps = self.steps or [RolloutStep(weight=weight) for weight in DEFAULT_STEPS[self.strategy]]
        limits = {name: getattr(self, name) for name in ("sampling", "min_samples", "bake_seconds", "max_seconds")}
        return tuple(
            step.model_copy(update={name: limit for name, limit in limits.items() if getattr(step, name) is None})
            for step in steps
        )
