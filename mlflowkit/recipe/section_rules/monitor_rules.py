"""Rules for ``monitor`` and ``retrain``: settings that contradict each other, the task, the service or the data."""

from __future__ import annotations

from collections.abc import Iterator

from mlflowkit.errors import closest_match
from mlflowkit.judging import metrics
from mlflowkit.monitoring.monitor_settings import MAX_WINDOW, MIN_WINDOW, PANE_SECONDS, seconds_of
from mlflowkit.recipe.rule import Problem, RecipeView, Rule
from mlflowkit.recipe.yaml_tree import KeyPath, format_value
from mlflowkit.system import entry_points
from mlflowkit.system.entry_points import METRICS

MONITOR, RETRAIN = ("monitor",), ("retrain",)
ESTIMATED = {"classification": ("roc_auc", "precision", "recall", "f1", "brier", "accuracy", "log_loss"),
             "regression": ("mae", "rmse")}  # fmt: skip
"""Metrics that can be estimated without labels, by task."""
REALISED = {
    "classification": (*metrics.BINARY, *metrics.CLASSIFICATION),
    "regression": metrics.REGRESSION,
}
"""Metrics of labelled answers, by task."""


def _is_set(view: RecipeView, *path: str) -> bool:
    """Whether there is a section, be it an empty one."""
    return isinstance(view.get(*path), dict)


def _seconds(view: RecipeView, *path: str) -> float | None:
    """The duration at a key path; None where there is none that is valid."""
    try:
        return seconds_of(view.text(*path))
    except ValueError:
        return None


def _owners(view: RecipeView) -> Iterator[Problem]:
    """Sections without the section that they need."""
    if _is_set(view, *MONITOR) and not _is_set(view, "serve"):
        message = "monitor watches the traffic of a service, and the recipe has no serve section"
        yield Problem(MONITOR, message, "add serve: {service: …}, or remove monitor", at_key=True)
    if _is_set(view, *MONITOR) and view.get("serve", "log", "profile") is False:
        message = "monitor judges the profiles of live traffic, and serve.log.profile is off"
        yield Problem(("serve", "log", "profile"), message, "write profile: true, or remove monitor")
    if _is_set(view, *RETRAIN) and not view.has(*MONITOR):
        message = "retrain acts on what monitor finds, and the recipe has no monitor section"
        yield Problem(RETRAIN, message, "add monitor: {window: 1d}, or remove retrain", at_key=True)


def _window(view: RecipeView) -> Iterator[Problem]:
    path = (*MONITOR, "window")
    window = _seconds(view, *path)
    if window is None:
        return
    if not MIN_WINDOW <= window <= MAX_WINDOW:
        message = f"a window lasts from 5s to 7d, and this one {view.text(*path)}"
        yield Problem(path, message, "write 5s" if window < MIN_WINDOW else "write 7d")
    elif window > PANE_SECONDS and window % PANE_SECONDS:
        nearest = max(1, round(window / PANE_SECONDS)) * 5
        message = f"live rows are counted in panes of 5m, and {view.text(*path)} is no multiple of that"
        yield Problem(path, message, f"write {nearest}m")
    elif window <= PANE_SECONDS and window % 1:
        yield Problem(path, "a window lasts whole seconds", f"write {round(window)}s")


def _season(view: RecipeView) -> Iterator[Problem]:
    """Seasons that windows do not fit into."""
    path = (*MONITOR, "baseline")
    if view.text(*path, "kind") != "season" and view.text(*path) != "season":
        return
    window = _seconds(view, *MONITOR, "window") if view.has(*MONITOR, "window") else 86_400.0
    period = _seconds(view, *path, "period") if view.has(*path, "period") else 7 * 86_400.0
    if window and period and (period < window or period % window):
        text = view.text(*MONITOR, "window", default="1d")
        message = f"a season is a whole number of windows of {text}"
        where = (*path, "period") if view.has(*path, "period") else path
        yield Problem(where, message, f"write period: {round(max(1, round(period / window)) * window)}s")


def _positive(view: RecipeView) -> Iterator[Problem]:
    """Durations that may not be zero."""
    for path in (
        (*MONITOR, "performance", "realised", "mature"),
        (*MONITOR, "latency", "budget"),
        (*MONITOR, "rollback", "probation"),
        (*MONITOR, "export", "evidently"),
        (*RETRAIN, "budget", "per"),
    ):
        if _seconds(view, *path) == 0:
            yield Problem(path, f"{path[-1]} must be longer than nothing", "write 1d")


def _columns(view: RecipeView) -> Iterator[Problem]:
    """Columns that are no features, and segments that are no categories."""
    target, drop = view.text("data", "target"), view.items("data", "drop")
    kinds = view.mapping("data", "columns")
    paths: list[tuple[KeyPath, object, bool]] = [
        ((*MONITOR, "columns", name), name, True) for name in view.mapping(*MONITOR, "columns")
    ]
    segments = view.items(*MONITOR, "segments")
    paths += [((*MONITOR, "segments", index), name, False) for index, name in enumerate(segments)]
    for path, name, at_key in paths:
        if name == target and target:
            yield Problem(path, f"{name!r} is the target: requests do not have it", "remove it", at_key=at_key)
        elif name in drop or (isinstance(name, str) and kinds.get(name) in ("ignore", "group", "time")):
            yield Problem(path, f"{name!r} is no feature: requests do not have it", "remove it", at_key=at_key)
    for index, name in enumerate(segments):
        path = (*MONITOR, "segments", index)
        if name in segments[:index]:
            yield Problem(path, f"{name!r} is listed twice", "remove one")
        elif isinstance(name, str) and kinds.get(name) == "numeric":
            yield Problem(path, f"{name!r} is declared numeric: segments are of categories", "name another column")


def _performance(view: RecipeView) -> Iterator[Problem]:
    for kind, allowed in (("estimated", ESTIMATED), ("realised", REALISED)):
        path = (*MONITOR, "performance", kind)
        metric, names = view.text(*path, "metric"), allowed.get(view.task, ())
        if metric and names and metric not in names and not _is_plugin(metric, view.task, kind):
            close = closest_match(metric, names)
            message = f"the {kind} performance of a {view.task} has no {metric!r}; there are {', '.join(names)}"
            hint = f"did you mean {close}?" if close else f"write {names[0]}"
            yield Problem((*path, "metric"), message, hint)
    path = (*MONITOR, "performance", "realised")
    metric = view.text(*path, "metric")
    if not metric or not metrics.is_built_in(metric):
        return
    bound = "max" if metrics.lower_is_better(metric) else "min"
    other = "min" if bound == "max" else "max"
    if view.get(*path, other) is not None:
        better = "lower" if bound == "max" else "higher"
        message = f"{metric} is better when it is {better}: {other} would call a good model bad"
        yield Problem((*path, other), message, f"write {bound}:", at_key=True)
    elif view.get(*path, bound) is None:
        example = "0.6" if bound == "min" else "1"
        yield Problem(path, f"realised performance needs a bound: {bound}", f"add {bound}: {example}")
    value, (floor, ceiling) = view.number(*path, bound), metrics.limits(metric)
    if value is not None and ceiling == 1 and floor == 0 and not 0 < value <= 1:
        message = f"{metric} lies between 0 and 1: {bound} {format_value(value)} decides nothing"
        yield Problem((*path, bound), message, f"write {bound}: 0.6")


def _is_plugin(metric: str, task: str, kind: str) -> bool:
    """Whether an installed plugin gives the metric; only labelled answers are judged by those."""
    if kind != "realised" or metrics.is_built_in(metric) or entry_points.find(METRICS, metric) is None:
        return False
    return metrics.is_defined(metric, task)


def _latency(view: RecipeView) -> Iterator[Problem]:
    path = (*MONITOR, "latency")
    if _is_set(view, *path) and view.get(*path, "p99_ms") is None and view.get(*path, "error_rate") is None:
        yield Problem(path, "latency needs a limit: p99_ms or error_rate", "add p99_ms: 20", at_key=True)


def _actions(view: RecipeView) -> Iterator[Problem]:
    """Rollbacks and retrainings on evidence that nothing gives."""
    if not _is_set(view, *MONITOR):
        return
    performance = view.mapping(*MONITOR, "performance")
    if (
        view.has(*MONITOR, "rollback")
        and view.get(*MONITOR, "rollback") is not None
        and not performance.get("realised")
    ):
        message = "a rollback is decided by labels, and monitor.performance.realised is not there"
        hint = "add monitor.performance: {realised: {metric: accuracy, min: 0.6}}, or remove rollback"
        yield Problem((*MONITOR, "rollback"), message, hint, at_key=True)
    reasons = view.items(*RETRAIN, "on")
    for index, reason in enumerate(reasons):
        if reason in reasons[:index]:
            yield Problem((*RETRAIN, "on", index), f"{reason!r} is listed twice", "remove one")
    if reasons == ["performance"] and not performance:
        message = "performance asks for a retraining, and monitor.performance measures none"
        yield Problem((*RETRAIN, "on", 0), message, "add monitor.performance, or write drift")


def _receivers(view: RecipeView) -> Iterator[Problem]:
    """A webhook with no URL, or two."""
    for index, hook in enumerate(view.items(*MONITOR, "alerts", "webhooks")):
        path = (*MONITOR, "alerts", "webhooks", index)
        if not isinstance(hook, dict):
            continue
        named = [key for key in ("url", "url_env") if hook.get(key)]
        if not named:
            yield Problem(path, "a webhook needs a URL", "add url: https://ci.example.com/hook, or url_env: HOOK_URL")
        elif len(named) == 2:
            yield Problem((*path, "url_env"), "the URL is given twice", "remove one of url and url_env", at_key=True)


RULES: tuple[Rule, ...] = (
    _owners, _window, _season, _positive, _columns, _performance, _latency, _actions, _receivers,
)  # fmt: skip
"""All rules for monitoring and retraining."""
