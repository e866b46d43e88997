"""Amazon SageMaker: a pipeline that checks and judges, and an endpoint for each environment.

The files are bodies of requests as JSON; `deliver.py` beside them sends what is not there yet. Models and endpoint
configurations are named by their content, so that delivering the same version again sends nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import resources
from typing import Any, ClassVar

from mlflowkit.delivery.delivery_plan import OUTPUT, DeliveryPlan, DeliveryStep, Environment
from mlflowkit.delivery.delivery_target import DeliveryTarget, Unsupported
from mlflowkit.delivery.manifests.pod_template import image_of
from mlflowkit.delivery.targets.dockerfile import dockerfile_texts
from mlflowkit.delivery.targets.sagemaker_rollout import alarms, deployment_config, rollout_faults

EVENT_TARGETS = frozenset(("github", "gitlab", "jenkins", "airflow"))
"""Targets that are told of changes or keep a schedule, and call `deliver.py`."""
INPUT, OUT = "/opt/ml/processing/input", "/opt/ml/processing/output"
NEUTRAL = 4
"""The exit code of INCONCLUSIVE."""
MAX_ANSWER_SECONDS = 60
"""SageMaker ends a request after this time."""
NAME_LENGTH = 63
_ECR = re.compile(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?")


class SagemakerDelivery(DeliveryTarget):
    """SageMaker's pipelines and endpoints."""

    name = "sagemaker"
    version = 2
    steps: ClassVar[frozenset[str]] = frozenset(("check", "judge"))

    def unsupported(self, plan: DeliveryPlan) -> Iterator[Unsupported]:
        yield from _place_faults(plan)
        yield from _secret_faults(plan)
        yield from _event_faults(plan)
        if plan.environments:
            yield from _service_faults(plan)
            yield from rollout_faults(plan)

    def render(self, plan: DeliveryPlan) -> Mapping[str, str]:
        folder = f"deploy/sagemaker/{plan.name}"
        files = {
            f"{folder}/deliver.py": _script(),
            f"{folder}/pipeline.json": _json_text(_pipeline(plan)),
        }
        for environment in plan.environments:
            files[f"{folder}/{environment.name}.json"] = _json_text(_endpoint(plan, environment))
        if plan.environments:  # SageMaker asks for root: its files belong to it, whatever user the image names
            dockerfile, ignored = dockerfile_texts(plan, replace(image_of(plan, "serve"), user="0:0"))
            files[f"{folder}/serve.Dockerfile"] = dockerfile
            files[f"{folder}/serve.Dockerfile.dockerignore"] = ignored
        return files

    def checks(self) -> Mapping[str, str]:
        return {"requests": "python deploy/sagemaker/NAME/deliver.py deploy ENVIRONMENT --dry-run ..."}


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _script() -> str:
    """The program that sends the requests: the same for every recipe."""
    templates = resources.files("mlflowkit.delivery") / "templates"
    return (templates / "sagemaker_deliver.py.txt").read_text(encoding="utf-8")


def _fit(name: str) -> str:
    """A name within SageMaker's length."""
    return name[:NAME_LENGTH].rstrip("-")


# What SageMaker cannot express


def _place_faults(plan: DeliveryPlan) -> Iterator[Unsupported]:
    options = plan.section.sagemaker
    for key, value, example in (
        ("role", options.role, "arn:aws:iam::123456789012:role/NAME"),
        ("bucket", options.bucket, "NAME"),
        ("image", options.image, "REPOSITORY@sha256:DIGEST of an image in ECR, with git and your lock"),
    ):
        if not value:
            yield Unsupported(("sagemaker", key), f"SageMaker needs sagemaker.{key}", f"write {key}: {example}")
    for where, name in ((("registry", "image"), plan.registry), (("sagemaker", "image"), options.image or "")):
        host = name.partition("/")[0]
        match = _ECR.fullmatch(host)
        if name and (match is None or match[2] != options.region):
            message = f"SageMaker pulls images from Amazon ECR in {options.region} only, not from {host}"
            yield Unsupported(where, message, f"write ACCOUNT.dkr.ecr.{options.region}.amazonaws.com/NAME")
    if plan.section.runner.gpus and not options.instance.startswith(("ml.g", "ml.p")):
        message = f"{options.instance} has no GPU, and runner.gpus asks for {plan.section.runner.gpus}"
        yield Unsupported(("sagemaker", "instance"), message, "write instance: ml.g5.xlarge")


def _secret_faults(plan: DeliveryPlan) -> Iterator[Unsupported]:
    references = {("secrets", name): reference for name, reference in plan.secrets.items()}
    if "credentials" in plan.section.registry.model_fields_set:
        references["registry", "credentials"] = plan.credentials
    for key, reference in references.items():
        kind, value = next((name, value) for name, value in reference if value is not None)
        if value != "aws":
            message = "a job of SageMaker is given no secret by reference: it has its execution role"
            yield Unsupported((*key, kind), message, "write oidc: aws, and allow the role to read it")
    if plan.section.policy.signed:
        message = "SageMaker builds no image that could be signed"
        yield Unsupported(("policy", "signed"), message, "write signed: false")


def _event_faults(plan: DeliveryPlan) -> Iterator[Unsupported]:
    if "triggers" in plan.section.model_fields_set and not EVENT_TARGETS & set(plan.section.targets):
        for index, trigger in enumerate(plan.triggers):
            message = f"a file starts no pipeline of SageMaker on {trigger.on.replace('_', ' ')}"
            hint = f"add one of {', '.join(sorted(EVENT_TARGETS))} to targets, and let it call deliver.py start"
            yield Unsupported(("triggers", index, "on"), message, hint)
    for environment in plan.environments:
        if environment.settings.baking:
            message = "an endpoint keeps no history of how long it has served a version"
            yield Unsupported(("environments", environment.name, "baking"), message, "remove baking")
        if "replicas" in environment.settings.model_fields_set and "kubernetes" not in plan.section.targets:
            message = "an endpoint has the instances of sagemaker.count in every environment"
            yield Unsupported(("environments", environment.name, "replicas"), message, "write sagemaker.count: N")


def _service_faults(plan: DeliveryPlan) -> Iterator[Unsupported]:
    if plan.recipe.grpc_port:
        message = "an endpoint of SageMaker answers HTTP only"
        yield Unsupported(("/serve", "grpc_port"), message, "write grpc_port: null")
    if plan.recipe.timeout_seconds > MAX_ANSWER_SECONDS:
        message = f"SageMaker ends a request after {MAX_ANSWER_SECONDS} s"
        yield Unsupported(("/serve", "timeout_seconds"), message, f"write timeout_seconds: {MAX_ANSWER_SECONDS}")


# The pipeline


def _pipeline(plan: DeliveryPlan) -> dict[str, Any]:
    """The definition, in SageMaker's schema of 2020-12-01."""
    none = "--first-version"
    return {
        "Version": "2020-12-01",
        "Metadata": {},
        "Parameters": [
            {"Name": "Code", "Type": "String"},
            {"Name": "Champion", "Type": "String"},
            {"Name": "ChampionOption", "Type": "String", "DefaultValue": none},
        ],
        "Steps": [_step(plan, plan.step(name)) for name in ("check", "judge")],
    }


def _step(plan: DeliveryPlan, step: DeliveryStep) -> dict[str, Any]:
    options = plan.section.sagemaker
    judges = step.id == "judge"
    command = [OUT if word == OUTPUT else word for word in step.command]
    code = f"git clone --quiet {INPUT}/code/code.bundle /tmp/code; cd /tmp/code"
    run = f'"$@" || [ "$?" -eq {NEUTRAL} ]' if NEUTRAL in step.exit_codes else '"$@"'
    inputs = {"code": "Code", **({"champion": "Champion"} if judges else {})}
    run_folder = ["s3:/", options.bucket, plan.name, "runs", {"Get": "Execution.PipelineExecutionId"}, step.id]
    needs = [need for need in step.needs if need == "check"]
    return {
        "Name": step.id,
        "Type": "Processing",
        **({"DependsOn": needs} if needs else {}),
        "CacheConfig": {"Enabled": False},
        **({"RetryPolicies": [_retry(step)]} if step.retries else {}),
        "Arguments": {
            "RoleArn": options.role,
            "AppSpecification": {
                "ImageUri": options.image,
                "ContainerEntrypoint": ["sh", "-euc", f"{code}; {run}", "mlkit"],
                "ContainerArguments": [*command, *([{"Get": "Parameters.ChampionOption"}] if judges else [])],
            },
            "Environment": {"PYTHONUNBUFFERED": "1", "MLKIT_STATE": "/tmp/mlkit-state"},
            "ProcessingInputs": [_input(name, parameter) for name, parameter in inputs.items()],
            "ProcessingOutputConfig": {
                "Outputs": [
                    {
                        "OutputName": "out",
                        "S3Output": {
                            "S3Uri": {"Std:Join": {"On": "/", "Values": run_folder}},
                            "LocalPath": OUT,
                            "S3UploadMode": "EndOfJob",
                        },
                    }
                ]
            },
            "ProcessingResources": {
                "ClusterConfig": {"InstanceType": options.instance, "InstanceCount": 1, "VolumeSizeInGB": 30}
            },
            "StoppingCondition": {"MaxRuntimeInSeconds": step.timeout_minutes * 60},
        },
    }


def _retry(step: DeliveryStep) -> dict[str, Any]:
    """Again after SageMaker's own failures only: a failed gate stays one."""
    kinds = ["Step.SERVICE_FAULT", "Step.THROTTLING"]
    return {"ExceptionType": kinds, "IntervalSeconds": 10, "BackoffRate": 3.0, "MaxAttempts": step.retries + 1}


def _input(name: str, parameter: str) -> dict[str, Any]:
    return {
        "InputName": name,
        "S3Input": {
            "S3Uri": {"Get": f"Parameters.{parameter}"},
            "LocalPath": f"{INPUT}/{name}",
            "S3DataType": "S3Prefix",
            "S3InputMode": "File",
            "S3DataDistributionType": "FullyReplicated",
        },
    }


# The endpoints


def _endpoint(plan: DeliveryPlan, environment: Environment) -> dict[str, Any]:
    """What `deliver.py deploy` sends. ``${…}`` is filled in by it; names of models and configurations too."""
    options = plan.section.sagemaker
    name = _fit(f"{(plan.recipe.service or plan.name).replace('_', '-')}-{environment.name}")
    after = environment.settings.after
    return {
        "region": options.region,
        "bucket": options.bucket,
        "prefix": plan.name,
        "repository": image_of(plan, "serve").reference,
        "after": after or "",
        "alarms": alarms(plan, name),
        "model": {
            "ExecutionRoleArn": options.role,
            "EnableNetworkIsolation": True,
            "PrimaryContainer": {
                "Image": "${image}",
                "ModelDataSource": {
                    "S3DataSource": {"S3Uri": "${data}", "S3DataType": "S3Prefix", "CompressionType": "None"}
                },
                "Environment": {"MLKIT_HOST": "0.0.0.0", "MLKIT_PORT": "8080", "MLKIT_UNAUTHENTICATED": "1"},
            },
        },
        "config": {
            "ProductionVariants": [
                {
                    "VariantName": "AllTraffic",
                    "ModelName": "${model}",
                    "InstanceType": options.instance,
                    "InitialInstanceCount": options.count,
                    "InitialVariantWeight": 1.0,
                }
            ]
        },
        "create": {"EndpointName": name, "EndpointConfigName": "${config}"},
        "update": {
            "EndpointName": name,
            "EndpointConfigName": "${config}",
            "RetainAllVariantProperties": False,
            "DeploymentConfig": deployment_config(plan, name),
        },
    }
