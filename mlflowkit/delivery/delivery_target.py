"""What a delivery target is: a class that renders a plan for one system."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from mlflowkit.delivery.delivery_plan import DeliveryPlan

PIPELINES = frozenset(("github", "gitlab", "jenkins", "airflow", "kubeflow", "sagemaker"))
"""Targets that start a pipeline themselves. Beside one of them, others leave triggers and the steps of a pipeline to
it, and an MLflow project need not promote."""


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Something in the plan that a system cannot express: a recipe fault at ``key``, a path below ``delivery`` or
    from the recipe's root where it begins with ``/``."""

    key: tuple[str | int, ...]
    message: str
    hint: str = ""


class DeliveryTarget:
    """Renders a `DeliveryPlan` for one system. Pure: no file is read but the package's own templates, no clock, no
    vendor imported. ``version`` rises when the rendered text changes for an equal plan."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    steps: ClassVar[frozenset[str]] = frozenset(
        ("trigger", "check", "judge", "finish", "comment", "image", "promote", "settle")
    )
    """The kinds of steps that it renders (``promote-staging`` is a ``promote``): each command of one appears."""

    def unsupported(self, plan: DeliveryPlan) -> Iterator[Unsupported]:
        """What of the plan this system cannot express; each becomes a fault of the recipe."""
        yield from ()

    def render(self, plan: DeliveryPlan) -> Mapping[str, str]:
        """The generated files: text (LF) by path from the repository's root, without the generated header."""
        raise NotImplementedError

    def checks(self) -> Mapping[str, str]:
        """Commands that check the files with the system's own tools, by a word for each; shown, not run."""
        return {}


def machine_faults(plan: DeliveryPlan, system: str, label: str) -> Iterator[Unsupported]:
    """What the runner asks for and a system that finds machines by their label cannot promise, unless the recipe names
    the label; ``label`` says what that is there."""
    given = plan.section.runner.model_fields_set
    for name in ("cpus", "memory_mb", "gpus"):
        if name in given and "label" not in given:
            message = f"{system} finds a machine by its label only, and cannot ask for {name}"
            yield Unsupported(("runner", name), message, f"write runner.label: {label}")
