"""Simulation scenarios: challengers that are as good as the champion, or worse by a given amount.

A scenario changes the challenger of a world in which both variants behave alike. `violates` decides which of a plan's
limits the challenger truly violates, so that every simulated rollback is known to be correct or false.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from mlflowkit.errors import UsageError, closest_match
from mlflowkit.rollout.settings import MetricName, Rollout, RolloutMetric
from mlflowkit.rollout.simulation.synthetic_answers import answer_pairs, kappa_of, ranked_answers
from mlflowkit.rollout.simulation.synthetic_traffic import (
    SLICES,
    TAIL,
    Behaviour,
    Shares,
    SyntheticWorld,
    binary_predictions,
    decile_predictions,
    lognormal,
    quantile,
    slower,
)

ScenarioKind = Literal[
    "aa", "error-rate", "latency", "latency-tail", "accuracy", "log-loss", "absolute-error", "squared-error",
    "prediction-shift", "disagreement", "disagreement-slice", "kappa", "auc", "low-traffic",
]  # fmt: skip
LATENCIES: tuple[MetricName, ...] = ("latency_p50_ms", "latency_p90_ms", "latency_p95_ms", "latency_p99_ms")
TAILS: tuple[MetricName, ...] = ("latency_p95_ms", "latency_p99_ms")
MAX_VIOLATING_SIZES = 2
"""Default sizes stop after this many that violate the plan; the first may do so only barely."""


@dataclass(frozen=True, slots=True)
class ScenarioFamily:
    """Scenarios of one kind: the metrics that detect it, and default sizes in increasing order.

    ``unit`` of a size: "points" is added to (or subtracted from) a share, "factor" multiplies, "share" is moved,
    "value" replaces it, "divisor" divides the request rate.
    """

    seen_by: tuple[MetricName, ...]
    sizes: tuple[float, ...]
    unit: Literal["none", "points", "factor", "share", "value", "divisor"]


FAMILIES: Mapping[ScenarioKind, ScenarioFamily] = {
    "aa": ScenarioFamily((), (0.0,), "none"),
    "error-rate": ScenarioFamily(("error_rate",), (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4), "points"),
    "latency": ScenarioFamily(LATENCIES, (1.2, 1.5, 2.0, 3.0, 5.0, 10.0), "factor"),
    "latency-tail": ScenarioFamily(TAILS, (2.0, 3.0, 5.0, 10.0), "factor"),
    "accuracy": ScenarioFamily(("accuracy",), (0.02, 0.05, 0.1, 0.2), "points"),
    "log-loss": ScenarioFamily(("log_loss",), (1.1, 1.5, 2.0, 4.0), "factor"),
    "absolute-error": ScenarioFamily(("absolute_error",), (1.1, 1.5, 2.0, 4.0), "factor"),
    "squared-error": ScenarioFamily(("squared_error",), (1.1, 1.5, 2.0, 4.0), "factor"),
    "prediction-shift": ScenarioFamily(("prediction_drift",), (0.05, 0.1, 0.2, 0.4), "share"),
    "disagreement": ScenarioFamily(("agreement",), (0.05, 0.1, 0.2, 0.3, 0.5), "points"),
    "disagreement-slice": ScenarioFamily(("agreement",), (0.1, 0.3, 0.5, 0.9), "points"),
    "kappa": ScenarioFamily(("kappa",), (0.2, 0.4, 0.6, 0.9), "points"),
    "auc": ScenarioFamily(("kappa",), (0.41,), "value"),
    "low-traffic": ScenarioFamily((), (20.0,), "divisor"),
}


@dataclass(frozen=True, slots=True)
class TrafficFigures:
    """Assumed champion metrics and traffic; latencies in milliseconds, the feedback delay in seconds.

    ``positive`` is the share of positive predictions; ``latency`` is a measured distribution by bin that replaces the
    two quantiles.
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


CHAMPION_AUC = 0.75
"""The champion's AUC where the challenger's is given."""
LIKE_KAPPA = 0.9
"""Kappa of two versions that are as good as each other."""
LOG_LOSS, ABSOLUTE_ERROR = 0.3, 1.0
"""The champion's mean log loss and absolute error; only the challenger's ratio to them matters."""


def synthetic_world(figures: TrafficFigures, task: Literal["classification", "regression"]) -> SyntheticWorld:
    """A world in which both variants behave alike. Raises UsageError for impossible figures."""
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
        pairs=answer_pairs(LIKE_KAPPA),
    )
    return SyntheticWorld(figures.rate, both, both, figures.feedback, figures.delay)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario. ``violated`` lists the plan's metrics whose limits the challenger truly violates."""

    kind: ScenarioKind
    size: float
    world: SyntheticWorld
    violated: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return scenario_name(self.kind, self.size)


def scenario_name(kind: ScenarioKind, size: float) -> str:
    """The display name of a scenario.

    >>> scenario_name("error-rate", 0.02), scenario_name("latency", 1.5), scenario_name("aa", 0)
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
    if kind == "auc":
        return f"AUC {size:g} after {CHAMPION_AUC:g}"
    if kind == "kappa":
        return f"kappa -{size:g}"
    sign = "+" if kind in ("error-rate", "disagreement", "disagreement-slice") else "-"
    return f"{name} {sign}{100 * size:g} points"


def build_scenario(kind: ScenarioKind, size: float, world: SyntheticWorld, plan: Rollout) -> Scenario:
    """A scenario of a size in a world of two alike variants. Raises UsageError for an impossible size."""
    try:
        if kind == "auc":
            changed = _ranked_world(size, world)
        else:
            changed = replace(world, challenger=_change_behaviour(kind, size, world.champion))
    except ValueError as error:
        example = f"--scenario {kind}={FAMILIES[kind].sizes[0]:g}"
        raise UsageError(f"{scenario_name(kind, size)} is not possible: {error}", hint=example) from error
    if kind == "low-traffic":
        if size <= 0:
            raise UsageError(f"traffic cannot be divided by {size:g}", hint="--scenario low-traffic=20")
        changed = replace(world, rate=world.rate / size)
    violated = tuple(metric.metric for metric in plan.metrics if violates(metric, changed))
    return Scenario(kind, size, changed, violated)


def default_scenarios(plan: Rollout, world: SyntheticWorld) -> tuple[Scenario, ...]:
    """Default scenarios of a plan: each kind that its metrics detect, up to sizes that violate it."""
    metrics = {metric.metric for metric in plan.metrics}
    sliced = any(metric.columns for metric in plan.metrics)
    suite = [build_scenario("aa", 0.0, world, plan)]
    for kind, family in FAMILIES.items():
        if not metrics & set(family.seen_by) or (kind == "disagreement-slice" and not sliced):
            continue
        sizes: list[Scenario] = []
        for size in family.sizes:
            if sum(bool(scenario.violated) for scenario in sizes) >= MAX_VIOLATING_SIZES:
                break
            if is_possible(kind, size, world.champion):
                sizes.append(build_scenario(kind, size, world, plan))
        suite += sizes
    return (*suite, build_scenario("low-traffic", FAMILIES["low-traffic"].sizes[0], world, plan))


def parse_scenarios(text: str, plan: Rollout, world: SyntheticWorld) -> tuple[Scenario, ...]:
    """Parse ``KIND`` or ``KIND=SIZE``. Raises UsageError for an unknown kind or an impossible size.

    >>> [scenario.name for scenario in parse_scenarios("error-rate=0.03", Rollout(), SyntheticWorld())]
    ['error rate +3 points']
    """
    kind, _, number = text.partition("=")
    family = next((name for name in FAMILIES if name == kind.strip().lower().replace("_", "-")), None)
    if family is None:
        close = closest_match(kind, FAMILIES)
        hint = f"--scenario {close}" if close else f"one of {', '.join(FAMILIES)}"
        raise UsageError(f"there is no scenario {kind!r}", hint=hint)
    if not number:
        sizes = [size for size in FAMILIES[family].sizes if is_possible(family, size, world.champion)]
        return tuple(build_scenario(family, size, world, plan) for size in sizes)
    try:
        size = float(number.strip().lstrip("x+"))
    except ValueError:
        size = math.nan
    if not math.isfinite(size):
        raise UsageError(f"{number!r} is no size", hint=f"--scenario {family}={FAMILIES[family].sizes[0]:g}")
    return (build_scenario(family, size, world, plan),)


def _ranked_world(auc: float, world: SyntheticWorld) -> SyntheticWorld:
    """A world in which the challenger ranks rows with that AUC. Raises ValueError for a regression, or no AUC."""
    positive = _positive_share(world.champion)
    if positive is None:
        raise ValueError("only a model of two classes has an AUC")
    if not 0 < auc < 1:
        raise ValueError("it is between 0 and 1")
    answers = ranked_answers(positive, CHAMPION_AUC, auc)
    both = [
        replace(world.champion, predictions=predictions, quality={**world.champion.quality, "accuracy": accuracy})
        for predictions, accuracy in zip(answers.predictions, answers.accuracy, strict=True)
    ]
    agreement = dict.fromkeys(SLICES, answers.agreement)
    return replace(world, champion=both[0], challenger=replace(both[1], agreement=agreement, pairs=answers.pairs))


def _positive_share(behaviour: Behaviour) -> float | None:
    return next((shares["label:yes"] for shares in behaviour.predictions if "label:yes" in shares), None)


def is_possible(kind: ScenarioKind, size: float, champion: Behaviour) -> bool:
    """Whether the champion's behaviour can be degraded by that size."""
    try:
        if kind == "auc":
            _ranked_world(size, SyntheticWorld(champion=champion))
        else:
            _change_behaviour(kind, size, champion)
    except ValueError:
        return False
    return True


def _change_behaviour(kind: ScenarioKind, size: float, champion: Behaviour) -> Behaviour:
    """The challenger's behaviour. Raises ValueError if a share would leave [0, 1] or the size is invalid."""
    unit = FAMILIES[kind].unit
    if size < 0 or (unit == "factor" and size < 1):
        raise ValueError("a size is at least 0, a factor at least 1")
    if kind == "error-rate":
        return replace(champion, error_rate=_checked_share("error rate", champion.error_rate + size))
    if kind in ("latency", "latency-tail"):
        from_quantile = TAIL if kind == "latency-tail" else 0.0
        return replace(champion, latency=slower(champion.latency, size, from_quantile))
    if kind in ("accuracy", "log-loss", "absolute-error", "squared-error"):
        metric = kind.replace("-", "_")
        if metric not in champion.quality:
            raise ValueError(f"{metric} is not measured for this task")
        before = champion.quality[metric]
        after = _checked_share(metric, before - size) if kind == "accuracy" else before * size
        return replace(champion, quality={**champion.quality, metric: after})
    if kind == "prediction-shift":
        positive = _positive_share(champion)
        try:
            shifted = decile_predictions(size) if positive is None else binary_predictions(positive, size)
        except UsageError as error:
            raise ValueError(error.message) from error
        return replace(champion, predictions=shifted)
    if kind in ("disagreement", "disagreement-slice"):
        affected = ("few",) if kind == "disagreement-slice" else tuple(SLICES)
        less = {value: _checked_share("agreement", champion.agreement[value] - size) for value in affected}
        return replace(champion, agreement={**champion.agreement, **less})
    if kind == "kappa":
        return replace(champion, pairs=answer_pairs(round(LIKE_KAPPA - size, 6)))
    return champion


def _checked_share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} would be {value:g}")
    return value


def prediction_distance(first: Sequence[Shares], second: Sequence[Shares]) -> float:
    """The distance between two variants' predictions as the judges compute it: the maximum over ways of counting.

    Labels: total variation. Scores and deciles: Kolmogorov-Smirnov distance.

    >>> round(prediction_distance(binary_predictions(0.2), binary_predictions(0.2, 0.05)), 3)
    0.05
    """
    distances = []
    for shares, others in zip(first, second, strict=True):
        differences = [others.get(key, 0.0) - share for key, share in shares.items()]
        if any(key.startswith("label:") for key in shares):
            distances.append(math.fsum(map(abs, differences)) / 2)
        else:
            distances += map(abs, accumulate(differences))
    return max(distances, default=0.0)


def true_value(metric: RolloutMetric, world: SyntheticWorld, behaviour: Behaviour) -> float:
    """The true value of a metric, in its unit."""
    name = metric.metric
    if name == "error_rate":
        return behaviour.error_rate
    if name in LATENCIES:
        q = int(name.removeprefix("latency_p").removesuffix("_ms")) / 100
        return 1000 * quantile(behaviour.latency, q)
    if name == "prediction_drift":
        return prediction_distance(world.champion.predictions, behaviour.predictions)
    if name == "agreement":
        if metric.columns:
            return min(behaviour.agreement.values())
        return math.fsum(SLICES[value] * share for value, share in behaviour.agreement.items())
    if name == "kappa":
        return kappa_of(behaviour.pairs)
    return behaviour.quality[name]


def violates(metric: RolloutMetric, world: SyntheticWorld) -> bool:
    """Whether the challenger truly violates a limit of a metric; latencies by more than 2 %, the width of a bin."""
    if metric.metric == "prometheus":
        return False
    first, second = true_value(metric, world, world.champion), true_value(metric, world, world.challenger)
    slack = 0.021 if metric.metric in LATENCIES else 1e-9
    unlimited = metric.margin is None and metric.ratio is None and metric.min is None and metric.max is None
    margin = 0.0 if unlimited else metric.margin
    harms = {"prediction_drift": second, "agreement": 1 - second, "kappa": 1 - second, "accuracy": first - second}
    harm, tolerance = harms.get(metric.metric, second - first), slack if metric.metric in harms else slack * first
    ratio = None if metric.metric in harms else metric.ratio
    return (
        (metric.max is not None and second > metric.max * (1 + slack))
        or (metric.min is not None and second < metric.min * (1 - slack))
        or (margin is not None and harm > margin + tolerance)
        or (ratio is not None and second > first * ratio * (1 + slack))
    )
