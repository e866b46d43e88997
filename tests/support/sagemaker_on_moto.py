"""Run by a Python that has boto3 and moto: delivers with the `deliver.py` of a folder, and checks what is there then.

moto 5.2 has no UpdateEndpoint, and starts every execution: the first is answered here after boto3 has validated it,
of the second the token is compared.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
REGION = "eu-central-1"


def load(folder: Path) -> Any:
    specification = importlib.util.spec_from_file_location("sagemaker_deliver", folder / "deliver.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def main(folder: Path) -> None:
    import boto3
    from moto import mock_aws

    deliver = load(folder)
    sent: Counter[str] = Counter()
    tokens = []
    updates = []

    def client(service: str, region: str) -> Any:
        assert region == REGION
        made = boto3.client(service, region_name=region)
        made.meta.events.register("before-call.*.*", lambda model, **_: sent.update([model.name]))
        made.meta.events.register("before-call.sagemaker.UpdateEndpoint", answer_update)
        made.meta.events.register(
            "provide-client-params.sagemaker.StartPipelineExecution",
            lambda params, **_: tokens.append(params["ClientRequestToken"]),
        )
        return made

    def answer_update(params: dict[str, Any], **_: Any) -> Any:
        updates.append(json.loads(params["body"]))
        return SimpleNamespace(status_code=200), {"EndpointArn": "arn"}

    def report(identity: str) -> str:
        bundle = folder / "out" / "bundle"
        bundle.mkdir(parents=True, exist_ok=True)
        (bundle / "manifest.json").write_text(json.dumps({"identity": identity}))
        (bundle / "blessing.json").write_text("{}")
        (folder / "out" / "report.json").write_text(json.dumps({"identity": identity, "exit_code": 0}))
        return str(folder / "out" / "report.json")

    def run(*words: str) -> None:
        code = deliver.main(list(words), client)
        assert code == 0, words

    image = json.loads((folder / "staging.json").read_bytes())["repository"] + "@sha256:" + "7" * 64
    with mock_aws():
        boto3.client("s3", region_name=REGION).create_bucket(
            Bucket="acme-models", CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        for environment in ("staging", "production"):
            for _ in range(2):
                run("deploy", environment, "--image", image, "--from", report("a" * 64))
        assert sent["CreateModel"] == 1, "both environments have the same model"
        sagemaker = boto3.client("sagemaker", region_name=REGION)
        assert len(sagemaker.list_models()["Models"]) == 1
        assert len(sagemaker.list_endpoint_configs()["EndpointConfigs"]) == 1
        assert len(sagemaker.list_endpoints()["Endpoints"]) == 2
        run("deploy", "staging", "--image", image, "--from", report("b" * 64))
        assert len(sagemaker.list_models()["Models"]) == 2
        assert [update["EndpointName"] for update in updates] == ["lending-staging"]
        rejected = ["deploy", "staging", "--image", image, "--from", report("b" * 64)]
        assert deliver.main([*rejected, "--wait", "0.01"], client) == 1, "the update was not applied: taken back"
        assert deliver.main(rejected, client) == 1
        assert len(updates) == 2
        assert deliver.main([*rejected, "--again"], client) == 0
        assert len(updates) == 3
        assert len(boto3.client("cloudwatch", region_name=REGION).describe_alarms()["MetricAlarms"]) == 4
        run("define")
        run("define")
        assert sent["CreatePipeline"] == 1
        assert sent["UpdatePipeline"] == 0
        commit(folder)
        run("start", "--environment", "production")
        run("start", "--environment", "production")
        assert len(set(tokens)) == 1
        assert len(tokens[0]) == 64
    validate_jobs(folder)


def commit(folder: Path) -> None:
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "first")):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run(["git", "-C", str(folder), *identity, *words], check=True)


def validate_jobs(folder: Path) -> None:
    """The steps' arguments are those of a processing job: botocore's model of it is asked, and its limits."""
    import botocore.session
    from botocore.validate import ParamValidator

    shape = botocore.session.get_session().get_service_model("sagemaker").operation_model("CreateProcessingJob")
    for step in json.loads((folder / "pipeline.json").read_bytes())["Steps"]:
        arguments = {"ProcessingJobName": step["Name"], **resolved(step["Arguments"])}
        problems = ParamValidator().validate(arguments, shape.input_shape).generate_report()
        assert not problems, problems
        words = arguments["AppSpecification"]
        assert all(len(word) <= 256 for word in (*words["ContainerEntrypoint"], *words["ContainerArguments"]))


def resolved(value: Any) -> Any:
    """A value with texts in place of functions of the definition's language."""
    if isinstance(value, list):
        return [resolved(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"Get"}:
        return f"resolved-{value['Get']}"
    if set(value) == {"Std:Join"}:
        return value["Std:Join"]["On"].join(resolved(value["Std:Join"]["Values"]))
    return {key: resolved(item) for key, item in value.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
