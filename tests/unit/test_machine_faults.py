"""What a runner asks for, on systems that find a machine by its label."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from mlflowkit.delivery.delivery_plan import RecipeFacts, delivery_plan
from mlflowkit.delivery.delivery_settings import DeliverySection
from mlflowkit.delivery.targets import target


@pytest.mark.parametrize("system", ["github", "gitlab", "jenkins"])
@pytest.mark.parametrize(
    ("runner", "faults"),
    [
        ({}, []),
        ({"cpus": 4, "memory_mb": 8192}, ["cpus", "memory_mb"]),
        ({"gpus": 1}, ["gpus"]),
        ({"gpus": 1, "label": "gpu"}, []),
        ({"timeout": "3h"}, []),
    ],
)
def test_a_machine_that_cannot_be_asked_for_needs_a_label(
    system: str, runner: dict[str, Any], faults: list[str]
) -> None:
    registry = {"image": "ghcr.io/acme/lending", "credentials": {"env": "TOKEN"}}
    section = DeliverySection.model_validate({"registry": registry, "runner": runner})
    found = list(target(system).unsupported(delivery_plan(section, RecipeFacts("lending", "recipe.yaml"))))
    assert [item.key for item in found] == [("runner", name) for name in faults]
    assert all("runner.label" in item.hint for item in found)


@pytest.mark.parametrize(("label", "guarded"), [("ubuntu-24.04", False), ("self-hosted", True), ("gpu", True)])
def test_no_code_of_a_fork_runs_on_a_machine_of_ones_own(label: str, guarded: bool) -> None:
    section = DeliverySection.model_validate(
        {"registry": {"image": "ghcr.io/acme/lending"}, "runner": {"label": label}}
    )
    files = target("github").render(delivery_plan(section, RecipeFacts("lending", "recipe.yaml")))
    jobs = yaml.safe_load(files[".github/workflows/mlkit-lending.yml"])["jobs"]
    assert ("head.repo.full_name == github.repository" in str(jobs["check"].get("if"))) == guarded
    assert "check" in jobs["judge"]["needs"]
