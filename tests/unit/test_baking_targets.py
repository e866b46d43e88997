"""A version that has to bake is asked for again by every pipeline that takes ``baking``, or refused by its target."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from mlflowkit.delivery.delivery_plan import BAKING_MARGIN, DeliveryPlan, RecipeFacts, delivery_plan
from mlflowkit.delivery.delivery_settings import DeliverySection
from mlflowkit.delivery.targets import target

DAY = 24 * 3600


def plan(**production: Any) -> DeliveryPlan:
    environments = {
        "staging": {"promote": "automatic"},
        "production": {"after": "staging", "baking": "24h", **production},
        "edge": {"after": "production", "promote": "automatic"},
    }
    registry = {"image": "ghcr.io/acme/lending", "credentials": {"env": "TOKEN"}}
    section = DeliverySection.model_validate({"registry": registry, "environments": environments})
    return delivery_plan(section, RecipeFacts("lending", "recipe.yaml"))


def test_what_bakes_and_all_after_it_come_from_the_environment_before() -> None:
    assert plan().held == {"production", "edge"}
    assert plan().step("promote-staging").command[-2] == "--from"
    for name, before in (("production", "staging"), ("edge", "production")):
        step = plan().step(f"promote-{name}")
        assert (step.command[-1], step.needs) == ("--baked", (f"settle-{before}",))
    assert plan(baking=None).held == frozenset()


def test_github_looks_each_hour_and_asks_a_person_only_for_what_has_baked() -> None:
    files = target("github").render(plan())
    jobs = yaml.safe_load(files[".github/workflows/mlkit-lending.yml"])["jobs"]
    assert not [name for name in jobs if "production" in name or "edge" in name]
    baked = yaml.safe_load(files[".github/workflows/mlkit-lending-baked.yml"])
    assert baked[True]["schedule"][0]["cron"].split()[1:] == ["*"] * 4
    asks, promotes = baked["jobs"]["baked-production"], baked["jobs"]["promote-production"]
    assert "--baked --dry-run --json" in asks["steps"][-1]["run"]
    assert "environment" not in asks
    assert "default_branch" in asks["if"], "a person's own branch delivers nothing"
    assert promotes["if"] == "needs.baked-production.outputs.action == 'promoted'"
    assert promotes["environment"] == "production"
    assert baked["jobs"]["promote-edge"]["needs"] == ["baked-edge"]


def test_github_asks_a_person_once_for_a_promotion_and_its_settlement() -> None:
    jobs = yaml.safe_load(target("github").render(plan(baking=None))[".github/workflows/mlkit-lending.yml"])["jobs"]
    places = {name: job.get("environment") for name, job in jobs.items()}
    assert places["promote-production"] == "production"
    assert places["settle-production"] == "production-settle"
    assert places["promote-staging"] == places["settle-staging"] == "staging"


def test_gitlab_delays_a_job_before_the_promotion() -> None:
    jobs = yaml.safe_load(target("gitlab").render(plan())[".gitlab/mlkit-lending.yml"])
    bake, promote = jobs["mlkit-lending-bake-production"], jobs["mlkit-lending-promote-production"]
    assert {rule["when"] for rule in bake["rules"]} == {"delayed"}
    assert {rule["start_in"] for rule in bake["rules"]} == {f"{DAY + BAKING_MARGIN} seconds"}
    assert [need["job"] for need in bake["needs"]] == ["mlkit-lending-settle-staging"]
    assert "mlkit-lending-bake-production" in [need["job"] for need in promote["needs"]]
    assert {rule.get("when") for rule in promote["rules"]} == {"manual"}


def test_jenkins_sleeps_without_an_agent_and_airflow_without_a_worker() -> None:
    text = next(iter(target("jenkins").render(plan()).values()))
    stage = text[text.index("stage('bake-production')") : text.index("stage('production')")]
    assert f"sleep time: {DAY + BAKING_MARGIN}, unit: 'SECONDS'" in stage
    assert "agent" not in stage
    dag = next(iter(target("airflow").render(plan()).values()))
    assert f"time_to_wait=timedelta(seconds={DAY + BAKING_MARGIN})" in dag
    assert "settle_staging >> bake_production >> approve_production >> promote_production" in dag


@pytest.mark.parametrize(("system", "production"), [("gitlab", {"baking": "8d"}), ("kubeflow", {}), ("sagemaker", {})])
def test_what_a_system_cannot_wait_for_is_a_fault(system: str, production: dict[str, Any]) -> None:
    found = [item for item in target(system).unsupported(plan(**production)) if item.key[-1] == "baking"]
    assert [item.key for item in found] == [("environments", "production", "baking")]
    assert found[0].hint
