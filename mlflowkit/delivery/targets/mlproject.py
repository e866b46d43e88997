"""MLflow Projects: an ``MLproject`` file with an entry point for each step that a person runs.

MLflow runs an entry point on the machine where it is called, with the environment of the caller. It has no triggers,
machines or approvals; they are those of a pipeline's target beside this one, or faults where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlflowkit.delivery.delivery_plan import DeliveryPlan, DeliveryStep
from mlflowkit.delivery.delivery_target import PIPELINES, DeliveryTarget, Unsupported
from mlflowkit.delivery.step_script import step_script
from mlflowkit.delivery.yaml_text import Commented, yaml_text

PYTHON = "3.11"
ENTRY_POINTS = {"judge": "main", "check": "check"}
"""Entry points by step; ``mlflow run`` starts ``main`` where none is named."""
MACHINE = ("label", "cpus", "memory_mb", "gpus", "timeout")
"""What a recipe says of a pipeline's machine, and ``mlflow run`` cannot ask for."""
HEADER = "Change the recipe and run `mlkit export RECIPE`; what is changed here is merged when it is generated again."


class MlflowProject(DeliveryTarget):
    """MLflow Projects."""

    name = "mlproject"
    version = 1
    steps = frozenset(ENTRY_POINTS)

    def unsupported(self, plan: DeliveryPlan) -> Iterator[Unsupported]:
        for name, reference in plan.secrets.items():
            kind = next(key for key, value in reference if value is not None)
            if kind != "env":
                message = f"an MLflow project takes secrets from the caller's environment, not from {kind}"
                yield Unsupported(("secrets", name, kind), message, "write env: NAME, which the caller exports")
        if not PIPELINES & set(plan.section.targets):
            yield from _pipeline_faults(plan)

    def render(self, plan: DeliveryPlan) -> Mapping[str, str]:
        return {
            "MLproject": yaml_text(_project(plan), header=HEADER),
            "python_env.yaml": yaml_text(_environment(plan), header=HEADER),
        }

    def checks(self) -> Mapping[str, str]:
        return {"run": "mlflow run . -e check --env-manager local -P out=/tmp/out"}


def _pipeline_faults(plan: DeliveryPlan) -> Iterator[Unsupported]:
    """What only a pipeline does, where the recipe asks for it and has none."""
    section, remedy = plan.section, f"add one of {', '.join(sorted(PIPELINES))} to targets, or remove the key"
    if "triggers" in section.model_fields_set:
        for index, trigger in enumerate(plan.triggers):
            message = f"an MLflow project is run by a person: nothing starts it on {trigger.on}"
            yield Unsupported(("triggers", index, "on"), message, remedy)
    for environment in plan.environments:
        message = "an MLflow project checks and judges: it builds no image and promotes to no environment"
        yield Unsupported(("environments", environment.name), message, remedy)
    for key in MACHINE:
        if key in section.runner.model_fields_set:
            message = f"an MLflow project runs on the machine of its caller and cannot ask for {key}"
            yield Unsupported(("runner", key), message, remedy)
    if section.policy.signed:
        yield Unsupported(("policy", "signed"), "an MLflow project builds no image, so none is signed", remedy)


def _project(plan: DeliveryPlan) -> dict[str, Any]:
    return {
        "name": plan.name,
        "python_env": "python_env.yaml",
        "entry_points": {entry: _entry_point(plan, plan.step(id)) for id, entry in ENTRY_POINTS.items()},
    }


def _entry_point(plan: DeliveryPlan, step: DeliveryStep) -> dict[str, Any]:
    return {
        "parameters": {
            "out": Commented("string", "absolute path of a folder for the outputs, outside of the checkout")
        },
        "command": _command(plan, step),
    }


def _command(plan: DeliveryPlan, step: DeliveryStep) -> str:
    """The step under bash. MLflow fills in the parameter and quotes it; what it does not know it appends to the last
    line, where it is an error: nothing that a caller writes is ignored.
    """
    variables = {name: f'"${{{plan.secrets[name].env}:?}}"' for name in step.secrets if plan.secrets[name].env != name}
    if "read-image" in step.permissions and plan.environments and plan.credentials.env:
        host = plan.registry.partition("/")[0]
        variables |= {"MLKIT_REGISTRY": host, "MLKIT_REGISTRY_TOKEN": f'"${plan.credentials.env}"'}
    lines = [f"export {name}={value}" for name, value in variables.items()]
    script = "\n".join([*lines, step_script(step)]).rstrip("\n")
    return "export MLKIT_OUT={out}\n" + script.replace("{", "{{").replace("}", "}}")  # MLflow formats it


def _environment(plan: DeliveryPlan) -> dict[str, Any]:
    return {"python": PYTHON, "dependencies": [f"-r {plan.section.requirements}"]}
