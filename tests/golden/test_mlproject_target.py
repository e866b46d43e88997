"""The generated MLflow project: its text, and what of a recipe it cannot express."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mlflowkit.ci.recipe_export import export_recipe
from mlflowkit.delivery.targets import target
from mlflowkit.errors import RecipeError
from mlflowkit.testing import delivery_plans
from tests.support.export_project import make_project
from tests.support.golden import Golden


def test_the_text(golden: Golden) -> None:
    files = target("mlproject").render(delivery_plans()["pipeline"])
    golden("mlproject.yaml", files["MLproject"])
    assert files["python_env.yaml"].endswith("\npython: '3.11'\ndependencies:\n  - -r requirements.txt\n")


@pytest.mark.parametrize(
    ("line", "place", "message"),
    [
        ("triggers: [{on: merge}, {on: pull_request}]", "9:19: delivery.triggers.0.on", "nothing starts it on merge"),
        ('triggers: [{on: schedule, cron: "5 4 * * 1"}]', "9:19: delivery.triggers.0.on", "starts it on schedule"),
        ("environments: {prod: {}}", "9:24: delivery.environments.prod", "promotes to no environment"),
        ("runner: {gpus: 1}", "9:18: delivery.runner.gpus", "cannot ask for gpus"),
        ("runner: {timeout: 3h}", "9:21: delivery.runner.timeout", "cannot ask for timeout"),
        ("policy: {signed: true}", "9:20: delivery.policy.signed", "none is signed"),
        ('secrets: {A: {vault: "a/b#c"}}', "9:24: delivery.secrets.A.vault", "not from vault"),
    ],
)
def test_what_mlflow_cannot_express_is_a_fault_at_its_place(
    tmp_path: Path, line: str, place: str, message: str
) -> None:
    recipe = make_project(tmp_path, f"targets: [mlproject]\n{line}")
    with pytest.raises(RecipeError) as caught:
        export_recipe(recipe)
    fault = caught.value.faults[0]
    assert f"{fault.line}:{fault.column}: {fault.key}" == place
    assert message in fault.message
    assert not (tmp_path / "MLproject").exists()


def test_beside_a_pipeline_its_triggers_and_environments_are_no_faults(tmp_path: Path) -> None:
    delivery = "targets: [github, mlproject]\nenvironments: {prod: {}}\nrunner: {gpus: 1, label: gpu}"
    recipe = make_project(tmp_path, delivery)
    export_recipe(recipe)
    assert "ci judge recipe.yaml --environment prod" in (tmp_path / "MLproject").read_text()


def test_braces_in_a_path_stay_what_they_are() -> None:
    plan = delivery_plans()["smallest"]
    steps = [
        replace(step, command=tuple(word.replace("plain", "{out}") for word in step.command)) for step in plan.steps
    ]
    text = target("mlproject").render(replace(plan, steps=tuple(steps)))["MLproject"]
    assert "ci check '{{out}}.yaml'" in text
