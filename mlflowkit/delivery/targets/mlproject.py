"""MLflow Projects: an ``MLproject`` file with an entry point for each step that a person or a scheduler may run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlflowkit.delivery.delivery_plan import OUTPUT, DeliveryPlan
from mlflowkit.delivery.delivery_target import DeliveryTarget, Unsupported
from mlflowkit.delivery.step_script import command_line
from mlflowkit.delivery.yaml_text import yaml_text

PYTHON = "3.11"
HEADER = "Change the recipe and run `mlkit export`; what is changed here is merged when it is generated again."


class MlflowProject(DeliveryTarget):
    """MLflow Projects."""

    name = "mlproject"
    version = 1
    steps = frozenset(("check", "judge"))

    def unsupported(self, plan: DeliveryPlan) -> Iterator[Unsupported]:
        for index, trigger in enumerate(plan.triggers):
            if trigger.on in ("schedule", "data", "drift"):
                message = f"an MLflow project is run by hand and has no trigger on {trigger.on}"
                yield Unsupported(("triggers", index, "on"), message, "remove the trigger, or the target mlproject")
        for name in (environment.name for environment in plan.environments):
            message = "an MLflow project trains and judges; it promotes to no environment"
            yield Unsupported(("environments", name), message, "remove the environment, or the target mlproject")
        for name, reference in plan.secrets.items():
            if reference.env != name:
                message = f"an MLflow project takes {name} from the variable of that name only"
                yield Unsupported(("secrets", name), message, f"write env: {name}")

    def render(self, plan: DeliveryPlan) -> Mapping[str, str]:
        return {
            "MLproject": yaml_text(_project(plan), header=HEADER),
            "python_env.yaml": yaml_text(_environment(plan), header=HEADER),
        }


def _project(plan: DeliveryPlan) -> dict[str, Any]:
    steps = [step for step in plan.steps if step.id in MlflowProject.steps]
    return {
        "name": plan.name,
        "python_env": "python_env.yaml",
        "entry_points": {
            ("main" if step.id == "judge" else step.id): {
                "parameters": {"out": "string"},
                "command": _command(step.command),
            }
            for step in steps
        },
    }


def _command(words: Sequence[str]) -> str:
    """A command of an entry point; MLflow puts in the value of {out}, and quotes it for the shell itself."""
    return " ".join("{out}" if word == OUTPUT else command_line((word,)) for word in words)


def _environment(plan: DeliveryPlan) -> dict[str, Any]:
    return {"python": PYTHON, "dependencies": [f"-r {plan.section.requirements}"]}
