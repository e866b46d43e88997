"""What a rollout is rehearsed against: challengers that are as good as the champion, or worse by a stated amount.

A scenario turns a world in which both variants behave alike into one in which the challenger does not. `beyond` says
which of a plan's metrics its true behaviour violates, so that every rollback is known to be right or false.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from mlflowkit.errors import UsageError, nearest
from mlflowkit.rollout.settings import Metric, MetricName, Rollout
from mlflowkit.rollout.simulation.synthetic_traffic import (
    SLICES,
    TAIL,
    Behaviour,
    Shares,
    World,
    binary_predictions,
    decile_predictions,
    lognormal,
    quantile,
    slower,
)

Kind = Literal[
    "aa",
    "error-rate",
    "latency",
    "latency-tail",
    "accuracy",
    "log-loss",
    "absolute-error",
    "squared-error",
    "prediction-shift",
    "disagreement",
    "disagreement-slice",
    "low-traffic",
]
LATENCIES: tuple[MetricName, ...] = ("latency_p50_ms", "latency_p90_ms", "latency_p95_ms", "latency_p99_ms")
TAILS: tuple[MetricName, ...] = ("latency_p95_ms", "latency_p99_ms")
FORBIDDEN = 2
"""Sizes of a kind are tried until the plan forbids so many: the first may be beyond its limit by a hair."""


@dataclass(frozen=True, slots=True)
class Family:
    """Scenarios of one kind: the metrics that see it, and sizes to try, growing.

    ``unit`` says what a size is: "points" is added to (or taken from) a share, "factor" multiplies, "share" is moved,
    "divisor" divides the rate of requests.
    """

    seen_by: tuple[MetricName, ...]
    sizes: tuple[float, ...]
    unit: Literal["none", "points", "factor", "share", "divisor"]


FAMILIES: Mapping[Kind, Family] = {
    "aa": Family((), (0.0,), "none"),
    "error-rate": Family(("error_rate",), (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4), "points"),
    "latency": Family(LATENCIES, (1.2, 1.5, 2.0, 3.0, 5.0, 10.0), "factor"),
    "latency-tail": Family(TAILS, (2.0, 3.0, 5.0, 10.0), "factor"),
    "accuracy": Family(("accuracy",), (0.02, 0.05, 0.1, 0.2), "points"),
    "log-loss": Family(("log_loss",), (1.1, 1.5, 2.0, 4.0), "factor"),
    "absolute-error": Family(("absolute_error",), (1.1, 1.5, 2.0, 4.0), "factor"),
    "squared-error": Family(("squared_error",), (1.1, 1.5, 2.0, 4.0), "factor"),
    "prediction-shift": Family(("prediction_drift",), (0.05, 0.1, 0.2, 0.4), "share"),
    "disagreement": Family(("agreement",), (0.05, 0.1, 0.2, 0.3, 0.5), "points"),
    "disagreement-slice": Family(("agreement",), (0.1, 0.3, 0.5, 0.9), "points"),
    "low-traffic": Family((), (20.0,), "divisor"),
}


@dataclass(frozen=True, slots=True)
class Figures:
    """What is assumed of the champion and its traffic; latencies in milliseconds, the delay in seconds.

    ``positive`` is the share of the rows that a classifier says yes to; ``latency`` is a measured distribution, by
    bin, which then stands for the two quantiles.
    """

    rate: float = 50.0
    error_rate: float = 0.01
    p50_ms: float = 5.0
    p99_ms: float = 20.0
    accuracy: float = 0.9
    positive: float = 0.2
    feedback: float = 0.2
    delay: float = 60.0
    latency: Shares | None = None


LOG_LOSS, ABSOLUTE_ERROR = 0.3, 1.0
"""Means of a champion's log loss and absolute error: only by how many times a challenger's are larger matters."""


def world(figures: Figures, task: Literal["classification", "regression"]) -> World:
    """A world in which both variants behave as the figures say. Raises UsageError where they are impossible."""
    shares = {"error rate": figures.error_rate, "accuracy": figures.accuracy, "feedback": figures.feedback}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise UsageError(f"{name} {share:g} is no share of one", hint=f"--{name.replace(' ', '-')} 0.01")
    if not (figures.rate > 0 and math.isfinite(figures.rate)) or figures.delay < 0:
        raise UsageError("a rate is above 0, a delay at least 0", hint="--rate 50 --feedback-delay 60")
    classification = task == "classification"
    # The mean square of a half-normal error whose mean is ABSOLUTE_ERROR.
    errors = {"absolute_error": ABSOLUTE_ERROR, "squared_error": ABSOLUTE_ERROR**2 * math.pi / 2}
    both = Behaviour(
        error_rate=figures.error_rate,
        latency=figures.latency or lognormal(figures.p50_ms / 1000, figures.p99_ms / 1000),
        predictions=binary_predictions(figures.positive) if classification else decile_predictions(),
        quality={"accuracy": figures.accuracy, "log_loss": LOG_LOSS} if classification else errors,
    )
    return World(figures.rate, both, both, figures.feedback, figures.delay)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing to rehearse. ``violated`` names the plan's metrics that the challenger truly violates."""

    kind: Kind
    size: float
    world: World
    violated: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The scenario in words."""
        return words(self.kind, self.size)


def words(kind: Kind, size: float) -> str:
    """A scenario in words.

    >>> words("error-rate", 0.02), words("latency", 1.5), words("aa", 0)
    ('error rate +2 points', 'latency x1.5', 'A/A')
    """
    name = kind.replace("-", " ")
    if kind == "aa":
        return "A/A"
    if kind == "low-traffic":
        return f"A/A, 1/{size:g} of the traffic"
    if FAMILIES[kind].unit == "factor":
        return f"{name} x{size:g}"
    if kind == "prediction-shift":
        return f"prediction shift {100 * size:g} %"
    sign = "+" if kind in ("error-rate", "disagreement", "disagreement-slice") else "-"
    return f"{name} {sign}{100 * size:g} points"


def scenario(kind: Kind, size: float, world: World, plan: Rollout) -> Scenario:
    """A scenario of a size, over a world in which both variants are alike.

    Raises UsageError where the size is impossible.
    """
    try:
        changed = replace(world, challenger=_changed(kind, size, world.champion))
    except ValueError as error:
        example = f"--scenario {kind}={FAMILIES[kind].sizes[0]:g}"
        raise UsageError(f"{words(kind, size)} is not possible: {error}", hint=example) from error
    if kind == "low-traffic":
        if size <= 0:
            raise UsageError(f"traffic cannot be divided by {size:g}", hint="--scenario low-traffic=20")
        changed = replace(world, rate=world.rate / size)
    violated = tuple(metric.metric for metric in plan.metrics if beyond(metric, changed))
    return Scenario(kind, size, changed, violated)


def suite(plan: Rollout, world: World) -> tuple[Scenario, ...]:
    """What is worth rehearsing for a plan: each kind that one of its metrics sees, up to sizes that it forbids."""
    judged = {metric.metric for metric in plan.metrics}
    sliced = any(metric.columns for metric in plan.metrics)
    found = [scenario("aa", 0.0, world, plan)]
    for kind, family in FAMILIES.items():
        if not judged & set(family.seen_by) or (kind == "disagreement-slice" and not sliced):
            continue
        sizes: list[Scenario] = []
        for size in family.sizes:
            if sum(bool(one.violated) for one in sizes) >= FORBIDDEN:
                break
            if possible(kind, size, world.champion):
                sizes.append(scenario(kind, size, world, plan))
        found += sizes
    return (*found, scenario("low-traffic", FAMILIES["low-traffic"].sizes[0], world, plan))


def asked(text: str, plan: Rollout, world: World) -> tuple[Scenario, ...]:
    """The scenarios of ``KIND`` or ``KIND=SIZE``. Raises UsageError for an unknown kind or an impossible size.

    >>> [one.name for one in asked("error-rate=0.03", Rollout(), World())]
    ['error rate +3 points']
    """
    kind, _, number = text.partition("=")
    known = next((name for name in FAMILIES if name == kind.strip().lower().replace("_", "-")), None)
    if known is None:
        close = nearest(kind, FAMILIES)
        hint = f"--scenario {close}" if close else f"one of {', '.join(FAMILIES)}"
        raise UsageError(f"there is no scenario {kind!r}", hint=hint)
    if not number:
        sizes = [size for size in FAMILIES[known].sizes if possible(known, size, world.champion)]
        return tuple(scenario(known, size, world, plan) for size in sizes)
    try:
        size = float(number.strip().lstrip("x+"))
    except ValueError:
        size = math.nan
    if not math.isfinite(size):
        raise UsageError(f"{number!r} is no size", hint=f"--scenario {known}={FAMILIES[known].sizes[0]:g}")
    return (scenario(known, size, world, plan),)


def possible(kind: Kind, size: float, champion: Behaviour) -> bool:
    """Whether a champion can be worsened so much."""
    try:
        _changed(kind, size, champion)
    except ValueError:
        return False
    return True


def _changed(kind: Kind, size: float, champion: Behaviour) -> Behaviour:
    """The challenger's behaviour. Raises ValueError where a share would leave [0, 1], or a size means nothing."""
    unit = FAMILIES[kind].unit
    if size < 0 or (unit == "factor" and size < 1):
        raise ValueError("a size is at least 0, a factor at least 1")
    if kind == "error-rate":
        return replace(champion, error_rate=_share("error rate", champion.error_rate + size))
    if kind in ("latency", "latency-tail"):
        beyond_quantile = TAIL if kind == "latency-tail" else 0.0
        return replace(champion, latency=slower(champion.latency, size, beyond_quantile))
    if kind in ("accuracy", "log-loss", "absolute-error", "squared-error"):
        metric = kind.replace("-", "_")
        if metric not in champion.quality:
            raise ValueError(f"{metric} is not measured for this task")
        before = champion.quality[metric]
        after = _share(metric, before - size) if kind == "accuracy" else before * size
        return replace(champion, quality={**champion.quality, metric: after})
    if kind == "prediction-shift":
        return replace(champion, predictions=shifted(champion.predictions, size))
    if kind in ("disagreement", "disagreement-slice"):
        only = ("few",) if kind == "disagreement-slice" else tuple(SLICES)
        agreement = {
            value: _share("agreement", share - size) if value in only else share
            for value, share in champion.agreement.items()
        }
        return replace(champion, agreement=agreement)
    return champion


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} would be {value:g}")
    return value


def shifted(predictions: Sequence[Shares], size: float) -> tuple[Shares, ...]:
    """Predictions of which a share moved. Raises ValueError where so much is not there to be moved."""
    try:
        for shares in predictions:
            if "label:yes" in shares:
                return binary_predictions(shares["label:yes"], size)
        return decile_predictions(size)
    except UsageError as error:
        raise ValueError(error.message) from error


def distance(first: Sequence[Shares], second: Sequence[Shares]) -> float:
    """How far two variants' predictions are apart, over the ways of counting them: the largest, as the judges take it.

    Of labels the total variation; of scores and tenths, which have an order, the largest difference of their
    distribution functions (Kolmogorov-Smirnov).

    >>> round(distance(binary_predictions(0.2), binary_predictions(0.2, 0.05)), 3)
    0.05
    """
    apart = []
    for one, two in zip(first, second, strict=True):
        differences = [two.get(key, 0.0) - share for key, share in one.items()]
        if any(key.startswith("label:") for key in one):
            apart.append(math.fsum(map(abs, differences)) / 2)
        else:
            apart += map(abs, accumulate(differences))
    return max(apart, default=0.0)


def value(metric: Metric, world: World, behaviour: Behaviour) -> float:
    """The true value of a metric, in its unit."""
    name = metric.metric
    if name == "error_rate":
        return behaviour.error_rate
    if name in LATENCIES:
        q = int(name.removeprefix("latency_p").removesuffix("_ms")) / 100
        return 1000 * quantile(behaviour.latency, q)
    if name == "prediction_drift":
        return distance(world.champion.predictions, behaviour.predictions)
    if name == "agreement":
        if metric.columns:
            return min(behaviour.agreement.values())
        return math.fsum(SLICES[one] * share for one, share in behaviour.agreement.items())
    return behaviour.quality[name]


def beyond(metric: Metric, world: World) -> bool:
    """Whether the challenger truly is beyond a limit of a metric.

    A latency counts as beyond from 2 % on, the width of a bin.
    """
    if metric.metric == "prometheus":
        return False
    first, second = value(metric, world, world.champion), value(metric, world, world.challenger)
    slack = 0.021 if metric.metric in LATENCIES else 1e-9
    over = [metric.max is not None and second > metric.max * (1 + slack)]
    over.append(metric.min is not None and second < metric.min * (1 - slack))
    unlimited = metric.margin is None and metric.ratio is None and metric.min is None and metric.max is None
    margin = 0.0 if unlimited else metric.margin
    if metric.metric == "prediction_drift":
        over.append(margin is not None and second > margin + slack)
    elif metric.metric == "agreement":
        over.append(margin is not None and second < 1 - margin - slack)
    elif metric.metric == "accuracy":
        over.append(margin is not None and first - second > margin + slack)
    else:
        over.append(margin is not None and second - first > margin + slack * first)
        over.append(metric.ratio is not None and second > first * metric.ratio * (1 + slack))
    return any(over)
