"""The calls of SageMaker, S3 and CloudWatch that a delivery makes, on dictionaries; anything else is an error.

An update is decided by the test (`FakeAws.settle`), as AWS decides it later too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


class AwsError(Exception):
    """An error as botocore raises it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.response = {"Error": {"Code": code, "Message": message}}


class FakeAws:
    """One region. ``calls`` are those that change something."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.kinds: dict[str, dict[str, dict[str, Any]]] = {"model": {}, "config": {}, "endpoint": {}, "pipeline": {}}
        self.executions: dict[str, dict[str, Any]] = {}
        self.alarms: dict[str, dict[str, Any]] = {}
        self.tags: dict[str, list[dict[str, str]]] = {}

    def client(self, service: str, region: str) -> FakeAws:
        assert (service in ("sagemaker", "s3", "cloudwatch"), region) == (True, "eu-central-1")
        return self

    def _describe(self, kind: str, name: str) -> dict[str, Any]:
        if name not in self.kinds[kind]:
            raise AwsError("ValidationException", f'Could not find {kind} "{name}".')
        return self.kinds[kind][name]

    def _create(self, kind: str, name: str, body: dict[str, Any]) -> None:
        self.calls.append(f"Create {kind}")
        if name in self.kinds[kind]:
            raise AwsError("ValidationException", f"Cannot create already existing {kind} {name}")
        self.kinds[kind][name] = body

    def describe_model(self, ModelName: str) -> dict[str, Any]:
        return self._describe("model", ModelName)

    def create_model(self, **body: Any) -> None:
        self._create("model", body["ModelName"], body)

    def describe_endpoint_config(self, EndpointConfigName: str) -> dict[str, Any]:
        return self._describe("config", EndpointConfigName)

    def create_endpoint_config(self, **body: Any) -> None:
        assert body["ProductionVariants"][0]["ModelName"] in self.kinds["model"]
        arn = f"arn:config:{body['EndpointConfigName']}"
        self._create("config", body["EndpointConfigName"], {**body, "EndpointConfigArn": arn})

    def add_tags(self, ResourceArn: str, Tags: list[dict[str, str]]) -> None:
        self.tags.setdefault(ResourceArn, []).extend(Tags)

    def list_tags(self, ResourceArn: str) -> dict[str, Any]:
        return {"Tags": self.tags.get(ResourceArn, [])}

    def describe_endpoint(self, EndpointName: str) -> dict[str, Any]:
        return self._describe("endpoint", EndpointName)

    def create_endpoint(self, **body: Any) -> None:
        self._create("endpoint", body["EndpointName"], {**body, "EndpointStatus": "InService"})

    def update_endpoint(self, **body: Any) -> None:
        self.calls.append("Update endpoint")
        endpoint = self._describe("endpoint", body["EndpointName"])
        assert endpoint["EndpointStatus"] == "InService"
        rollback = body["DeploymentConfig"].get("AutoRollbackConfiguration", {"Alarms": []})
        assert {alarm["AlarmName"] for alarm in rollback["Alarms"]} <= set(self.alarms)
        pending = {"EndpointConfigName": body["EndpointConfigName"]}
        endpoint |= {"EndpointStatus": "Updating", "PendingDeploymentSummary": pending}

    def settle(self, name: str, *, taken: bool) -> None:
        """End an update: the new configuration is taken, or an alarm took it back."""
        endpoint = self._describe("endpoint", name)
        pending = endpoint.pop("PendingDeploymentSummary")
        endpoint["EndpointStatus"] = "InService"
        if taken:
            endpoint["EndpointConfigName"] = pending["EndpointConfigName"]

    def put_metric_alarm(self, **body: Any) -> None:
        self.calls.append("Put alarm")
        self.alarms[body["AlarmName"]] = body

    def describe_pipeline(self, PipelineName: str) -> dict[str, Any]:
        return self._describe("pipeline", PipelineName)

    def create_pipeline(self, **body: Any) -> None:
        assert 32 <= len(body["ClientRequestToken"]) <= 128
        self._create("pipeline", body["PipelineName"], body)

    def update_pipeline(self, **body: Any) -> None:
        self.calls.append("Update pipeline")
        self.kinds["pipeline"][body["PipelineName"]] |= body

    def start_pipeline_execution(self, **body: Any) -> dict[str, str]:
        token = body["ClientRequestToken"]
        assert 32 <= len(token) <= 128
        self.calls.append("Start")
        self.executions.setdefault(token, body)
        return {"PipelineExecutionArn": f"arn:{list(self.executions).index(token)}"}

    def head_object(self, Bucket: str, Key: str) -> dict[str, int]:
        if f"s3://{Bucket}/{Key}" not in self.objects:
            raise AwsError("404", "Not Found")
        return {"ContentLength": len(self.objects[f"s3://{Bucket}/{Key}"])}

    def put_object(self, Bucket: str, Key: str, Body: bytes) -> None:
        self.calls.append("Put object")
        self.objects[f"s3://{Bucket}/{Key}"] = Body

    def upload_file(self, file: str, bucket: str, key: str) -> None:
        self.put_object(bucket, key, Path(file).read_bytes())

    def download(self, prefix: str, folder: Path) -> None:
        """What SageMaker does with an input: the objects below a prefix, as files."""
        names = [name for name in self.objects if name.startswith(prefix)]
        assert names, f"{prefix}: SageMaker fails a job whose input is empty"
        for name in names:
            path = folder / name.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.objects[name])
