"""The requests to SageMaker: their text, the service's own model of them, and rollouts that it cannot do."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.delivery.delivery_plan import DeliveryPlan, delivery_plan
from mlflowkit.delivery.delivery_settings import DeliverySection
from mlflowkit.delivery.targets import target
from mlflowkit.testing import delivery_plans
from tests.support.golden import Golden
from tests.support.tools import require_tool

FOLDER = "deploy/sagemaker/my-model"
GUARDRAIL = {"metric": "error_rate", "max": 0.01, "role": "guardrail"}
CANARY: dict[str, Any] = {"strategy": "canary", "steps": [10], "bake_seconds": 600, "metrics": [GUARDRAIL]}


def files() -> dict[str, str]:
    return dict(target("sagemaker").render(delivery_plans()["aws"]))


def with_rollout(rollout: dict[str, Any], **facts: Any) -> DeliveryPlan:
    plan = delivery_plans()["aws"]
    return dataclasses.replace(plan, recipe=dataclasses.replace(plan.recipe, rollout=rollout, **facts))


def faults(plan: DeliveryPlan) -> dict[str, str]:
    """Messages by key."""
    return {".".join(map(str, item.key)): item.message for item in target("sagemaker").unsupported(plan)}


def routing(rollout: dict[str, Any]) -> dict[str, Any]:
    plan = with_rollout(rollout)
    assert faults(plan) == {}
    endpoint = json.loads(target("sagemaker").render(plan)[f"{FOLDER}/production.json"])
    policy: dict[str, Any] = endpoint["update"]["DeploymentConfig"]["BlueGreenUpdatePolicy"]
    return policy


@pytest.mark.parametrize("name", ["pipeline", "production"])
def test_the_text(golden: Golden, name: str) -> None:
    golden(f"sagemaker_{name}.json", files()[f"{FOLDER}/{name}.json"])


def test_the_image_belongs_to_root_and_is_otherwise_the_serve_image() -> None:
    plan = delivery_plans()["aws"]
    text, serve = files()[f"{FOLDER}/serve.Dockerfile"], target("docker").render(plan)["deploy/docker/serve.Dockerfile"]
    assert [pair for pair in zip(text.splitlines(), serve.splitlines(), strict=True) if pair[0] != pair[1]] == [
        ("USER 0:0", "USER 65532:0")
    ]


def test_rollouts_become_traffic_routing() -> None:
    one = routing(CANARY)["TrafficRoutingConfiguration"]
    assert one == {
        "Type": "CANARY",
        "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 10},
        "WaitIntervalInSeconds": 600,
    }
    linear = routing({**CANARY, "steps": [20, 40, 60, 80]})["TrafficRoutingConfiguration"]
    assert (linear["Type"], linear["LinearStepSize"]["Value"]) == ("LINEAR", 20)
    assert routing({})["TrafficRoutingConfiguration"] == {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 30}
    blue_green = routing({"strategy": "blue_green", "bake_seconds": 900, "metrics": [GUARDRAIL]})
    assert blue_green["TerminationWaitInSeconds"] == 900


@pytest.mark.parametrize(
    ("rollout", "key", "message"),
    [
        ({"strategy": "shadow"}, "strategy", "no rollout of the kind shadow"),
        ({"strategy": "ab"}, "strategy", "no rollout of the kind ab"),
        ({"steps": [5, 25, 50]}, "steps", "not 5, 25, 50"),
        ({"steps": [20, 40]}, "steps", "up to all traffic"),
        ({"steps": [60]}, "steps", "at most 50 %"),
        ({"steps": [5]}, "steps", "5 % of 10 is no whole number"),
        ({"steps": [{"weight": 10, "approval": True}]}, "steps.0.approval", "waits for no person"),
        ({"steps": [{"weight": 10, "min_samples": 9}]}, "steps.0.min_samples", "not for requests"),
        ({"bake_seconds": 7200}, "bake_seconds", "at most 3600 s"),
        ({"bake_seconds": 60}, "bake_seconds", "needs 180 s to ring"),
        ({"metrics": [{**GUARDRAIL, "metric": "agreement"}]}, "metrics.0.metric", "do not have agreement"),
        ({"metrics": [{**GUARDRAIL, "metric": "accuracy"}]}, "metrics.0.metric", "do not have accuracy"),
        ({"metrics": [{**GUARDRAIL, "margin": 0.1}]}, "metrics.0.margin", "compares with no other version"),
        ({"metrics": [{**GUARDRAIL, "role": "objective"}]}, "metrics.0.role", "never that it holds"),
        ({"metrics": [{**GUARDRAIL, "max": None}]}, "metrics.0.metric", "an absolute limit"),
        ({"min_samples": 100}, "min_samples", "not for requests"),
        ({"level": 0.01}, "level", "no error level"),
        ({"promote": "manual"}, "promote", "waits for no person"),
        ({"webhooks": [{"url": "https://example.com"}]}, "webhooks", "EventBridge"),
    ],
)
def test_a_rollout_that_sagemaker_cannot_do_is_a_fault(rollout: dict[str, Any], key: str, message: str) -> None:
    plan = with_rollout({**CANARY, **rollout})
    assert message in faults(plan)[f"/serve.rollout.{key}"]


@pytest.mark.parametrize(
    ("fact", "value", "key"),
    [
        ("affinity", "header", "/serve.routing.affinity"),
        ("grpc_port", 8081, "/serve.grpc_port"),
        ("timeout_seconds", 61.0, "/serve.timeout_seconds"),
    ],
)
def test_a_service_that_sagemaker_cannot_run_is_a_fault(fact: str, value: object, key: str) -> None:
    assert list(faults(with_rollout(CANARY, **{fact: value}))) == [key]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"registry": {"image": "ghcr.io/acme/lending"}}, "registry.image"),
        ({"registry": {"image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/lending"}}, "registry.image"),
        ({"secrets": {"DB_URL": {"env": "DB_URL"}}}, "secrets.DB_URL.env"),
        ({"runner": {"gpus": 1}}, "sagemaker.instance"),
        ({"policy": {"signed": True}}, "policy.signed"),
        ({"triggers": [{"on": "merge"}], "targets": ["sagemaker"]}, "triggers.0.on"),
        ({"environments": {"a": {}, "b": {"after": "a", "baking": "1h"}}}, "environments.b.baking"),
        ({"environments": {"a": {"replicas": 3}}}, "environments.a.replicas"),
    ],
)
def test_a_delivery_that_sagemaker_cannot_do_is_a_fault(change: dict[str, Any], key: str) -> None:
    plan = delivery_plans()["aws"]
    section = {**plan.section.model_dump(mode="json", exclude_unset=True), **change}
    changed = delivery_plan(DeliverySection.model_validate(section), plan.recipe, default_base=plan.images[0].base)
    assert list(faults(changed)) == [key]


def test_what_another_target_starts_is_no_fault() -> None:
    plan = delivery_plans()["aws"]
    section = plan.section.model_dump(mode="json", exclude_unset=True)
    section |= {"triggers": [{"on": "merge"}, {"on": "data"}], "targets": ["github", "sagemaker"]}
    assert faults(delivery_plan(DeliverySection.model_validate(section), plan.recipe)) == {}


MOTO = Path(__file__).parents[1] / "support" / "sagemaker_on_moto.py"


@pytest.mark.delivery
@pytest.mark.parametrize(
    ("text", "mutant", "problem"),
    [
        ("", "", ""),
        ("LinearStepSize", "LinearStepsSize", "LinearStepsSize"),
        ("InitialInstanceCount", "InitialInstancesCount", "InitialInstancesCount"),
        ('"InitialInstanceCount": 10', '"InitialInstanceCount": "ten"', "InitialInstanceCount"),
        ("S3InputMode", "S3InputsMode", "S3InputsMode"),
        ("ExtendedStatistic", "ExtendedStatistics", "ExtendedStatistics"),
    ],
)
def test_the_service_models_take_the_requests_and_moto_has_one_of_each(
    tmp_path: Path, text: str, mutant: str, problem: str
) -> None:
    """Deploys twice, and a second version; with boto3's own validation of parameters."""
    python = Path(require_tool("moto_server")).with_name("python")
    plan = with_rollout(
        {
            **CANARY,
            "steps": [20, 40, 60, 80],
            "metrics": [GUARDRAIL, {"metric": "latency_p99_ms", "max": 80, "role": "guardrail"}],
        }
    )
    rendered = target("sagemaker").render(plan)
    assert text in "".join(rendered.values())
    for name in ("deliver.py", "pipeline.json", "staging.json", "production.json"):
        content = rendered[f"{FOLDER}/{name}"]
        (tmp_path / name).write_text(content.replace(text, mutant) if text and name.endswith("json") else content)
    done = subprocess.run([python, str(MOTO), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert (done.returncode == 0) == (problem == ""), done.stderr
    assert problem in done.stderr


def test_a_machine_without_boto3_is_told_what_to_install(tmp_path: Path) -> None:
    files = target("sagemaker").render(delivery_plans()["aws"])
    for path, text in files.items():
        file = tmp_path / Path(path).name
        file.write_text(text)
    (tmp_path / "boto3.py").write_text("raise ImportError('none')\n")
    command = [sys.executable, str(tmp_path / "deliver.py"), "define"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: boto3 is not installed: python -m pip install boto3\n"
