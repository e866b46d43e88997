"""What nobody judges: gates and rollouts that would let a version pass that answers wrong. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlflowkit.values import Json

FEEDBACK_METRICS = ("accuracy", "log_loss", "absolute_error", "squared_error")
"""Metrics of a rollout that compare answers with what turned out to be true."""
ANSWER_METRICS = (*FEEDBACK_METRICS, "kappa", "prediction_drift", "prometheus")
"""Metrics of a rollout that depend on what a version answers; a Prometheus query may."""


def gate_warnings(task: str, gates: Sequence[Mapping[str, Json]]) -> tuple[str, ...]:
    """What the gates of a recipe leave unjudged: ``gates`` of its composed values.

    >>> gate_warnings("regression", [{"metric": "latency_p99_ms", "max": 5}])[0].partition(":")[0]
    'no gate judges the answers, only latency_p99_ms'
    >>> gate_warnings("regression", [{"metric": "rmse", "max": 5}])
    ()
    """
    metric = "rmse" if task == "regression" else "accuracy"
    remedy = f"add gates: [{{metric: {metric}, against: champion, margin: 0.01}}]"
    if not gates:
        return (f"no gate: nothing is asked of the model, and blessed only means packaged; {remedy}",)
    judging = [str(gate.get("metric")) for gate in gates if not gate.get("dry_run")]
    if not judging:
        return (f"every gate is a dry run: none can refuse the model; {remedy}",)
    if all(name.startswith("latency_") for name in judging):
        names = ", ".join(dict.fromkeys(judging))
        return (f"no gate judges the answers, only {names}: a model that is fast and wrong is blessed; {remedy}",)
    return ()


def rollout_warnings(strategy: str, metrics: Sequence[str]) -> tuple[str, ...]:
    """What the metrics of a rollout leave unjudged; a swap at once has none.

    >>> rollout_warnings("canary", ["error_rate", "accuracy"]), rollout_warnings("direct", [])
    ((), ())
    """
    if strategy == "direct" or set(metrics) & set(ANSWER_METRICS):
        return ()
    if "agreement" in metrics:
        text = "agreement alone says little where one answer is common: models that have nothing in common agree on it"
    else:
        text = f"no metric judges the answers, only {', '.join(dict.fromkeys(metrics))}: a version that is fast and "
        text += "wrong is promoted"
    return (f"{text}; add kappa with min: 0.4, or a metric of feedback, to serve.rollout.metrics",)


def recipe_warnings(recipe: Mapping[str, Json]) -> tuple[str, ...]:
    """The warnings on the composed values of a recipe."""
    rollout = (recipe.get("serve") or {}).get("rollout") or {}
    metrics = [str(metric.get("metric")) for metric in rollout.get("metrics") or ()]
    return (
        *gate_warnings(str(recipe.get("task")), recipe.get("gates") or ()),
        *rollout_warnings(str(rollout.get("strategy", "direct")), metrics),
    )
