"""A recipe's rollout as Amazon SageMaker's deployment guardrails, and what of it these cannot do.

SageMaker starts instances of the new version beside the old ones, moves traffic by instances, waits, and goes back when
a CloudWatch alarm rings meanwhile. Sources: the service's API reference (DeploymentConfig) and "Deployment guardrails"
in the SageMaker developer guide.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlflowkit.delivery.delivery_plan import DeliveryPlan
from mlflowkit.delivery.delivery_target import Unsupported
from mlflowkit.rollout.settings import Rollout, RolloutMetric, RolloutStep

MAX_WAIT = 3600
"""Longest wait of SageMaker in a step, in seconds."""
ALARM_SECONDS = 180
"""What an alarm over one minute needs to ring: its period, and the time until the metric is there."""
MAX_ALARMS = 10
START_SECONDS = 1800
"""Time for instances to start, beyond the waits."""
LARGEST_SHARE = 50
SMALLEST_LINEAR = 10
ROLLOUT = ("/serve", "rollout")
_LATENCY = {f"latency_p{rank}_ms": f"p{rank}" for rank in (50, 90, 95, 99)}
_HERE_ONLY = {
    "level": "SageMaker judges by an alarm's threshold, with no error level",
    "min_samples": "SageMaker waits for a time, not for requests",
    "max_seconds": "SageMaker waits for a time and goes on; it does not wait longer for evidence",
    "max_hold_seconds": "SageMaker holds no step",
    "sampling": "SageMaker mirrors no requests to a version that it deploys",
    "promote": "SageMaker waits for no person",
    "cooldown_seconds": "SageMaker accepts another update at once",
    "webhooks": "SageMaker sends its events to EventBridge",
}
"""Keys of a rollout that SageMaker has nothing for, and why."""


def rollout_of(plan: DeliveryPlan) -> Rollout:
    return Rollout.model_validate(plan.recipe.rollout or {})


def deployment_config(plan: DeliveryPlan, endpoint: str) -> dict[str, Any]:
    """The ``DeploymentConfig`` of an update."""
    rollout = rollout_of(plan)
    wait = round(max(step.bake_seconds or 0 for step in rollout.sequence))
    kept = wait if rollout.strategy == "blue_green" else 0
    names = [alarm["AlarmName"] for alarm in alarms(plan, endpoint)]
    longest = wait * (len(rollout.sequence) + 1) + kept + START_SECONDS
    return {
        "BlueGreenUpdatePolicy": {
            "TrafficRoutingConfiguration": {**_routing(rollout), "WaitIntervalInSeconds": wait},
            "TerminationWaitInSeconds": kept,
            "MaximumExecutionTimeoutInSeconds": min(28800, longest),
        },
        **({"AutoRollbackConfiguration": {"Alarms": [{"AlarmName": name} for name in names]}} if names else {}),
    }


def _routing(rollout: Rollout) -> dict[str, Any]:
    if rollout.strategy != "canary":
        return {"Type": "ALL_AT_ONCE"}
    size = {"Type": "CAPACITY_PERCENT", "Value": round(rollout.sequence[0].weight)}
    if len(rollout.sequence) == 1:
        return {"Type": "CANARY", "CanarySize": size}
    return {"Type": "LINEAR", "LinearStepSize": size}


def alarms(plan: DeliveryPlan, endpoint: str) -> list[dict[str, Any]]:
    """The alarms that take an update back: the absolute limits of the rollout's metrics."""
    dimensions = {"EndpointName": endpoint, "VariantName": "AllTraffic"}
    values = []
    for metric in rollout_of(plan).metrics:
        latency = _LATENCY.get(metric.metric)
        measured = (
            {"MetricName": "ModelLatency", "ExtendedStatistic": latency, "Threshold": 1000.0 * (metric.max or 0)}
            if latency
            else {"MetricName": "Invocation5XXErrors", "Statistic": "Average", "Threshold": metric.max or 0.0}
        )
        values.append(
            {
                "AlarmName": f"mlkit-{endpoint}-{metric.metric.replace('_', '-')}",
                "Namespace": "AWS/SageMaker",
                **measured,
                "Dimensions": [{"Name": name, "Value": value} for name, value in dimensions.items()],
                "Period": 60,
                "EvaluationPeriods": 1,
                "ComparisonOperator": "GreaterThanThreshold",
                "TreatMissingData": "notBreaching",
            }
        )
    return values


def rollout_faults(plan: DeliveryPlan) -> Iterator[Unsupported]:
    """What of ``serve.rollout`` and ``serve.routing`` SageMaker cannot do."""
    rollout = rollout_of(plan)
    if plan.recipe.affinity != "request_id":
        message = "SageMaker assigns each request by itself: a client does not stay on one version"
        yield Unsupported(("/serve", "routing", "affinity"), message, "write affinity: request_id")
    for name, message in _HERE_ONLY.items():
        if getattr(rollout, name) != Rollout.model_fields[name].get_default(call_default_factory=True):
            yield Unsupported((*ROLLOUT, name), message, f"remove {name}")
    if rollout.strategy in ("shadow", "ab"):
        message = f"SageMaker has no rollout of the kind {rollout.strategy}"
        yield Unsupported((*ROLLOUT, "strategy"), message, "write strategy: canary, blue_green or direct")
        return
    yield from _wait_faults(rollout)
    if rollout.strategy == "canary":
        yield from _share_faults(rollout, plan.section.sagemaker.count)
    for index, metric in enumerate(rollout.metrics):
        yield from _metric_faults(index, metric)
    if len(rollout.metrics) > MAX_ALARMS:
        message = f"SageMaker watches {MAX_ALARMS} alarms, not {len(rollout.metrics)}"
        yield Unsupported((*ROLLOUT, "metrics"), message, "remove metrics")


def _wait_faults(rollout: Rollout) -> Iterator[Unsupported]:
    for index, step in enumerate(rollout.steps):
        for name in ("sampling", "min_samples", "max_seconds"):
            if getattr(step, name) is not None:
                yield Unsupported((*ROLLOUT, "steps", index, name), _HERE_ONLY[name], f"remove {name}")
        if step.approval:
            hint = "remove approval"
            yield Unsupported((*ROLLOUT, "steps", index, "approval"), _HERE_ONLY["promote"], hint)
    waits = {step.bake_seconds or 0 for step in rollout.sequence}
    key = (*ROLLOUT, "bake_seconds")
    if len(waits) > 1:
        message = "SageMaker waits equally long in each step"
        yield Unsupported((*ROLLOUT, "steps"), message, "write bake_seconds once, under rollout")
    elif max(waits) > MAX_WAIT:
        message = f"SageMaker waits for at most {MAX_WAIT} s in a step"
        yield Unsupported(key, message, f"write bake_seconds: {MAX_WAIT}")
    elif rollout.metrics and min(waits) < ALARM_SECONDS:
        message = f"an alarm of CloudWatch needs {ALARM_SECONDS} s to ring, and the step ends after {min(waits):g} s"
        yield Unsupported(key, message, "write bake_seconds: 600")


def _share_faults(rollout: Rollout, count: int) -> Iterator[Unsupported]:
    """Shares are numbers of instances: one canary, or equal steps."""
    key = (*ROLLOUT, "steps")
    weights = [step.weight for step in rollout.sequence]
    first = weights[0]
    linear = all(abs(weight - first * place) < 1e-9 for place, weight in enumerate(weights, 1))
    if len(weights) > 1 and not (linear and first >= SMALLEST_LINEAR and weights[-1] + first >= 100):
        message = (
            f"SageMaker has one canary step, or equal steps of at least {SMALLEST_LINEAR} % up to all traffic, "
            f"not {_steps_text(rollout.sequence)}"
        )
        yield Unsupported(key, message, "write steps: [10], or steps: [25, 50, 75]")
    elif not 0 < first <= LARGEST_SHARE:
        message = f"a step of SageMaker is at most {LARGEST_SHARE} % of the instances, not {first:g} %"
        yield Unsupported(key, message, "write steps: [10]")
    elif (first * count) % 100:
        message = f"SageMaker moves traffic by instances, and {first:g} % of {count} is no whole number of them"
        yield Unsupported(key, message, "write delivery.sagemaker.count: 10 and steps: [10]")


def _steps_text(steps: tuple[RolloutStep, ...]) -> str:
    return ", ".join(f"{step.weight:g}" for step in steps)


def _metric_faults(index: int, metric: RolloutMetric) -> Iterator[Unsupported]:
    key = (*ROLLOUT, "metrics", index)
    if metric.metric != "error_rate" and metric.metric not in _LATENCY:
        message = f"SageMaker takes a version back by CloudWatch's alarms, which do not have {metric.metric}"
        yield Unsupported((*key, "metric"), message, "write error_rate or a latency, with max and role: guardrail")
        return
    for name in ("margin", "ratio", "min"):
        if getattr(metric, name) is not None:
            message = "an alarm has one limit, and compares with no other version"
            yield Unsupported((*key, name), message, "write max: LIMIT")
    if metric.max is None:
        yield Unsupported((*key, "metric"), "an alarm needs an absolute limit", "write max: LIMIT")
    if metric.role == "objective":
        message = "an alarm shows that a limit is violated, never that it holds"
        yield Unsupported((*key, "role"), message, "write role: guardrail")
