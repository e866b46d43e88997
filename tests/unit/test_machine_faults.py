"""What a runner asks for, on systems that find a machine by its label."""

from __future__ import annotations

from typing import Any

import pytest

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
