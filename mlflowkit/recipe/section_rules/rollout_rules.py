"""Rules for ``serve.rollout``: settings that contradict each other or can never succeed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from mlflowkit.errors import closest_match
from mlflowkit.recipe.rule import Problem, RecipeView, Rule
from mlflowkit.recipe.yaml_tree import KeyPath, format_value
from mlflowkit.rollout.settings import Rollout

ROLLOUT = ("serve", "rollout")
STRATEGIES = ("shadow", "canary", "ab", "blue_green")
SHARES = ("error_rate", "prediction_drift", "agreement", "kappa", "accuracy")
"""Metrics that are at most 1."""
MIRRORED = ("agreement", "kappa")
"""Metrics of mirrored requests."""
LATENCIES = ("latency_p50_ms", "latency_p90_ms", "latency_p95_ms", "latency_p99_ms")
QUALITY = {
    "accuracy": "classification",
    "log_loss": "classification",
    "absolute_error": "regression",
    "squared_error": "regression",
}
"""Feedback metrics and their task."""
HIGHER_IS_BETTER = ("agreement", "kappa", "accuracy")
LIMITS = ("margin", "ratio", "min", "max")
EXAMPLES = {
    "error_rate": "margin: 0.01",
    "agreement": "min: 0.95",
    "kappa": "min: 0.4",
    "prediction_drift": "max: 0.1",
    "accuracy": "margin: 0.02",
    "prometheus": "max: 100",
    **dict.fromkeys(LATENCIES, "ratio: 1.5"),
}


def _has_metrics(view: RecipeView) -> Iterator[Problem]:
    """A rollout without metrics, and a direct swap with settings of a rollout."""
    strategy = view.text(*ROLLOUT, "strategy", default="direct")
    if strategy == "direct":
        for name in ("steps", "metrics", "promote"):
            if view.get(*ROLLOUT, name):
                message = f"the strategy is direct, a swap at once: {name} would be ignored"
                yield Problem((*ROLLOUT, name), message, "write strategy: canary, or remove it", at_key=True)
        return
    if strategy not in STRATEGIES:
        return
    metrics = view.items(*ROLLOUT, "metrics")
    unknown = [key for key in view.mapping(*ROLLOUT) if key not in Rollout.model_fields]
    if closest_match("metrics", unknown):
        return  # a misspelt key is told, not what follows from it
    if not metrics and (not view.has(*ROLLOUT, "metrics") or isinstance(view.get(*ROLLOUT, "metrics"), list)):
        strategy_text = "an ab" if strategy == "ab" else f"a {strategy}"
        hint = "add metrics: [{metric: error_rate, margin: 0.01}], or write strategy: direct"
        path = (*ROLLOUT, "metrics") if view.has(*ROLLOUT, "metrics") else (*ROLLOUT, "strategy")
        yield Problem(path, f"{strategy_text} rollout with nothing to judge the new version by", hint)
    named = [metric for metric in metrics if isinstance(metric, dict)]
    if strategy == "ab" and named and all(metric.get("role") == "guardrail" for metric in named):
        message = "an ab rollout is decided by an objective, and all its metrics are guardrails"
        yield Problem((*ROLLOUT, "metrics"), message, "add the metric that is to get better, such as metric: accuracy")


def _latency_needs_errors(view: RecipeView) -> Iterator[Problem]:
    """A latency metric without an error metric.

    Requests that time out count as errors and have no latency: a version that is either fast or times out would pass.
    """
    if view.text(*ROLLOUT, "strategy", default="direct") not in STRATEGIES:
        return
    metrics = [metric for metric in view.items(*ROLLOUT, "metrics") if isinstance(metric, dict)]
    named = [metric.get("metric") for metric in metrics]
    latency = next((name for name in named if name in LATENCIES), None)
    if latency is not None and not {"error_rate", "prometheus"} & set(named):
        message = f"{latency} is of answered requests: a version that times out fails them, and nothing counts those"
        hint = "add {metric: error_rate, margin: 0.01}, with role: guardrail where it only has to do no harm"
        yield Problem((*ROLLOUT, "metrics"), message, hint, at_key=True)


def _webhooks(view: RecipeView) -> Iterator[Problem]:
    """A webhook with no URL, or two."""
    for index, hook in enumerate(view.items(*ROLLOUT, "webhooks")):
        path = (*ROLLOUT, "webhooks", index)
        if not isinstance(hook, dict):
            continue
        named = [key for key in ("url", "url_env") if hook.get(key)]
        if not named:
            yield Problem(path, "a webhook needs a URL", "add url: https://ci.example.com/hook, or url_env: HOOK_URL")
        elif len(named) == 2:
            yield Problem((*path, "url_env"), "the URL is given twice", "remove one of url and url_env", at_key=True)


def _promote(view: RecipeView) -> Iterator[Problem]:
    if view.text(*ROLLOUT, "promote") == "never" and view.text(*ROLLOUT, "strategy") in ("canary", "ab", "blue_green"):
        message = "only a shadow can stay without being promoted; this one takes traffic"
        yield Problem((*ROLLOUT, "promote"), message, "write promote: manual, or strategy: shadow")


def _weights(view: RecipeView) -> list[tuple[int, float]]:
    """Index and weight of the steps with a valid weight."""
    weights = []
    for index, step in enumerate(view.items(*ROLLOUT, "steps")):
        path = (*ROLLOUT, "steps", index, "weight") if isinstance(step, dict) else (*ROLLOUT, "steps", index)
        weight = view.number(*path)
        if weight is not None and 0 <= weight <= 100:
            weights.append((index, weight))
    return weights


def _steps(view: RecipeView) -> Iterator[Problem]:
    """Steps that do not grow or do not suit the strategy."""
    weights, strategy = _weights(view), view.text(*ROLLOUT, "strategy", default="direct")
    for (_, before), (index, weight) in pairwise(weights):
        if weight <= before:
            message = f"steps grow: {format_value(weight)} % cannot come after {format_value(before)} %"
            yield Problem(_step_path(view, index), message, f"write more than {format_value(before)}")
    positive = [(index, weight) for index, weight in weights if weight > 0]
    if strategy == "shadow" and positive:
        message = f"a shadow gets mirrored requests only, and this step {format_value(positive[0][1])} % of the traffic"
        yield Problem(_step_path(view, positive[0][0]), message, "write 0, or strategy: canary")
    if strategy in ("canary", "ab") and weights and not positive:
        message = "no step gives the new version any traffic"
        yield Problem(_step_path(view, weights[-1][0]), message, "write strategy: shadow, or add a step such as 5")
    if strategy == "ab" and positive and positive[-1][1] == 100:
        message = "at 100 % there is no champion left to compare with"
        yield Problem(_step_path(view, positive[-1][0]), message, "write less, such as 50")
    if strategy == "ab" and len(positive) > 1:
        message = "an ab rollout has one share for as long as it lasts"
        yield Problem(_step_path(view, positive[1][0]), message, "keep one of them, or write strategy: canary")
    if strategy == "blue_green":
        for index, weight in positive:
            if weight < 100:
                message = f"blue_green moves all traffic at once, not {format_value(weight)} %"
                yield Problem(_step_path(view, index), message, "write 100, or strategy: canary")


def _step_path(view: RecipeView, index: int) -> KeyPath:
    """The key path of a step's weight."""
    path = (*ROLLOUT, "steps", index)
    return (*path, "weight") if isinstance(view.get(*path), dict) else path


def _limits(view: RecipeView) -> Iterator[Problem]:
    """Steps that cannot finish in time, and sampling without mirroring."""
    defaults = {name: view.number(*ROLLOUT, name) for name in ("bake_seconds", "max_seconds")}
    steps = view.items(*ROLLOUT, "steps")
    for index, step in enumerate(steps):
        if not isinstance(step, dict):
            continue
        path = (*ROLLOUT, "steps", index)
        own = {name: view.number(*path, name) for name in defaults}
        yield from _never_over(path, own, defaults)
        weight = view.number(*path, "weight")
        if weight and view.get(*path, "sampling") is not None:
            message = f"sampling is of mirrored requests, and {format_value(weight)} % of the traffic are real ones"
            yield Problem((*path, "sampling"), message, "remove it, or write weight: 0", at_key=True)
    yield from _never_over(ROLLOUT, defaults, {})


def _never_over(path: KeyPath, own: Mapping[str, Any], rollout: Mapping[str, Any]) -> Iterator[Problem]:
    if all(value is None for value in own.values()):
        return
    values = {"bake_seconds": 30.0, "max_seconds": 3600.0}
    for settings in (rollout, own):
        values |= {name: value for name, value in settings.items() if value is not None}
    bake, longest = values["bake_seconds"], values["max_seconds"]
    if bake >= longest:
        bake_text, longest_text = format_value(bake), format_value(longest)
        message = f"a step bakes for {bake_text} s and is rolled back after {longest_text} s: it is never over"
        if own["max_seconds"] is not None:
            yield Problem((*path, "max_seconds"), message, f"write more than {bake_text}")
        else:
            yield Problem((*path, "bake_seconds"), message, f"write less than {longest_text}")


def _metrics(view: RecipeView) -> Iterator[Problem]:
    metrics = view.items(*ROLLOUT, "metrics")
    for index, metric in enumerate(metrics):
        if not isinstance(metric, dict):
            continue
        path = (*ROLLOUT, "metrics", index)
        if any(other == metric for other in metrics[:index]):
            yield Problem(path, f"the same metric as metrics.{metrics.index(metric)}", "remove one of them")
            continue
        name = view.text(*path, "metric")
        task = QUALITY.get(name)
        if task is not None and view.task in ("classification", "regression") and view.task != task:
            other = "absolute_error" if view.regression else "accuracy"
            yield Problem((*path, "metric"), f"a {view.task} has no {name}", f"write {other}")
        yield from _metric_keys(view, path, name, metric)
        yield from _metric_limits(view, path, name, metric)
        yield from _measurable(view, path, name, metric)


def _metric_keys(view: RecipeView, path: KeyPath, name: str, metric: Mapping[str, Any]) -> Iterator[Problem]:
    """Keys that do not belong to the metric, and missing ones that do."""
    owners = {"ratio": LATENCIES, "columns": ("agreement",), "query": ("prometheus",), "url": ("prometheus",)}
    for key, names in owners.items():
        if name and metric.get(key) and name not in names:
            owner = "latency" if key == "ratio" else names[0]
            yield Problem((*path, key), f"{key} belongs to {owner}; {name} has no use for it", "remove it", at_key=True)
    if name != "prometheus":
        return
    for key, hint in (("query", "query: 'sum(rate(errors_total[1m]))'"), ("url", "url: http://127.0.0.1:9090")):
        if not metric.get(key):
            yield Problem(path, f"prometheus needs a {key}", f"add {hint}")
    if metric.get("url") and not view.text(*path, "url").startswith(("http://", "https://")):
        yield Problem((*path, "url"), "this is no URL of a Prometheus server", "such as http://127.0.0.1:9090")
    if metric.get("margin") is not None:
        message = "a query gives one value, not one of each version: margin has nothing to compare"
        yield Problem((*path, "margin"), message, "write max: or min: instead", at_key=True)
    elif metric.get("min") is None and metric.get("max") is None:
        yield Problem(path, "prometheus needs min or max to be judged by", "add max: 100")


def _metric_limits(view: RecipeView, path: KeyPath, name: str, metric: Mapping[str, Any]) -> Iterator[Problem]:
    """Contradicting limits, and limits that every or no value meets."""
    low, high = view.number(*path, "min"), view.number(*path, "max")
    if low is not None and high is not None and low > high:
        message = f"max {format_value(high)} is below min {format_value(low)}: no value holds"
        yield Problem((*path, "max"), message, "swap them")
    if name not in EXAMPLES and name not in QUALITY:
        return
    pointless = "max" if name in HIGHER_IS_BETTER else "min"
    if name != "prometheus" and metric.get(pointless) is not None:
        better = "higher" if pointless == "max" else "lower"
        message = f"{name} is better when it is {better}: {pointless} would turn down a good version"
        other = "min" if pointless == "max" else "max"
        yield Problem((*path, pointless), message, f"write {other}: or margin: instead", at_key=True)
        return
    if name in SHARES:
        for key in ("margin", "min", "max"):
            value = view.number(*path, key)
            if value is not None and value >= 1 and not (key == "min" and value == 1):
                hint = f"as a share: {format_value(value / 100)}" if value <= 100 else "write a number below 1"
                yield Problem((*path, key), f"{name} is a share: {key} {format_value(value)} can never fail", hint)


def _measurable(view: RecipeView, path: KeyPath, name: str, metric: Mapping[str, Any]) -> Iterator[Problem]:
    """Metrics that this rollout cannot measure, and metrics without a usable limit."""
    strategy = view.text(*ROLLOUT, "strategy", default="direct")
    if strategy not in STRATEGIES or not name:
        return
    mirrors = strategy == "shadow" or any(weight == 0 for _, weight in _weights(view))
    limits = [key for key in LIMITS if metric.get(key) is not None]
    if name in MIRRORED and not mirrors:
        message = f"{name} is measured on mirrored requests, and no step mirrors any"
        yield Problem((*path, "metric"), message, "begin steps with 0, or write strategy: shadow")
    elif strategy == "blue_green" and not mirrors and name != "prometheus" and not {"min", "max"} & set(limits):
        message = f"under blue_green the champion gets no traffic: there is no {name} to compare with"
        bound = "min" if name in HIGHER_IS_BETTER else "max"
        yield Problem((*path, "metric"), message, f"give it {bound}: instead of a margin or a ratio")
    elif not limits and name != "prometheus" and strategy != "ab" and metric.get("role") != "guardrail":
        message = f"without a limit {name} has to be shown to be better than the champion's, which an equal never is"
        yield Problem((*path, "metric"), message, f"add {EXAMPLES.get(name, 'margin: 0.05')}, or role: guardrail")


RULES: tuple[Rule, ...] = (_has_metrics, _latency_needs_errors, _webhooks, _promote, _steps, _limits, _metrics)
"""All rules for rollouts."""
