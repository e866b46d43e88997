"""Put a blessed bundle behind a service."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mlflowkit.bundle import Bundle, open_bundle
from mlflowkit.errors import ServiceError
from mlflowkit.rollout.plan import Rollout
from mlflowkit.sections import Section
from mlflowkit.stages.base import write_json
from mlflowkit.values import Event, RoutingTable, ServiceStatus, StageResult, Variant

if TYPE_CHECKING:
    from pathlib import Path

    from mlflowkit.ports import Platform, StageContext


class Routing(Section):
    """How clients are dealt out among variants."""

    affinity: Literal["request_id", "header", "cookie", "parameter"] = "request_id"
    """What keeps a client with one variant; request_id deals each request anew."""
    name: str = Field(default="", max_length=128)
    """Name of the header, cookie or request parameter."""
    override_header: str = Field(default="x-mlkit-variant", max_length=128)
    """Header in which a tester names the variant to be answered by; empty honours none."""


class Auth(Section):
    """Who may ask. Needed as soon as the service listens beyond loopback."""

    keys: str | None = None
    """File of hashed API keys, beside the recipe; `mlkit key create` makes one."""
    keys_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds such a file's content."""


class Isolated(Section):
    """The processes of isolated variants: a Ray Serve deployment each."""

    replicas: int = Field(default=1, ge=1, le=64)
    """Processes at least."""
    max_replicas: int = Field(default=1, ge=1, le=64)
    """Processes at most; Ray Serve scales between the two by the load."""
    cpus: float = Field(default=1.0, ge=0)
    """CPU cores that Ray sets aside for each."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray sets aside for each."""
    max_batch: int = Field(default=64, ge=1)
    """Rows gathered for one call while another is in flight."""


class Log(Section):
    """The prediction log: what was asked and answered, in Parquet."""

    enabled: bool = True
    """Whether it is kept."""
    sampling: float = Field(default=1.0, gt=0, le=1)
    """Share of the requests that is logged."""
    days: float = Field(default=7.0, gt=0)
    """How long it is kept."""
    max_mb: float = Field(default=1024.0, gt=0)
    """Largest size, in MiB; the oldest goes first."""
    profile: bool = True
    """Whether live traffic is profiled with whylogs."""


class ServeSection(Section):
    """The service that answers requests."""

    service: str = Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    """Its name; the model's name in the Open Inference Protocol."""
    host: str = "127.0.0.1"
    """Address to listen on; loopback unless said otherwise."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    replicas: int = Field(default=1, ge=1, le=64)
    """Gateway replicas that share the port."""
    threads: int = Field(default=1, ge=1)
    """ONNX Runtime threads a replica."""
    max_body_mb: float = Field(default=8.0, gt=0)
    """Largest request body, in MiB (413 beyond)."""
    timeout_seconds: float = Field(default=10.0, gt=0)
    """Deadline of a request (504 beyond)."""
    max_queue: int = Field(default=256, ge=1)
    """Requests waiting before new ones are refused with 503."""
    grpc_port: int | None = Field(default=0, ge=0, le=65535)
    """Port of the Open Inference Protocol in gRPC; 0 takes a free one, null serves none."""
    admin_port: int = Field(default=0, ge=0, le=65535)
    """Port of the admin page, on loopback; 0 takes a free one."""
    routing: Routing = Field(default_factory=Routing)
    """How clients are dealt out among variants."""
    auth: Auth = Field(default_factory=Auth)
    """Who may ask."""
    isolated: Isolated = Field(default_factory=Isolated)
    """The processes of isolated variants."""
    log: Log = Field(default_factory=Log)
    """The prediction log."""
    rollout: Rollout = Field(default_factory=Rollout)
    """How a new version takes over."""

    def beside(self, folder: Path) -> ServeSection:
        """The section of a recipe in ``folder``, its file of API keys named absolutely."""
        if self.auth.keys is None:
            return self
        auth = self.auth.model_copy(update={"keys": str((folder / self.auth.keys).resolve())})
        return self.model_copy(update={"auth": auth})


class Spec(Section):
    """What the deploy stage does; it is judged by what runs, not by a fingerprint alone."""

    name: str
    serve: ServeSection


def run(spec: Spec, context: StageContext) -> StageResult:
    """Put the blessed bundle of the package stage behind its service and ask it a real question.

    Idempotent: a service that answers with this version already keeps its routing table. Raises BundleError when the
    bundle is corrupted or not blessed, ServiceError when the port is taken, when the gateway refuses the version,
    or when the sample rows are not answered as they were when they were packaged; the version before it then
    answers again.
    """
    bundle = open_bundle(context.inputs["package"] / "bundle", blessed=True)
    platform = context.ports.platform
    context.progress(Event("deploy", "progress", f"starting service {spec.serve.service}", fraction=0.1))
    endpoint = platform.ensure(spec.serve.beside(context.folder))
    before = _status(platform, spec.serve.service)
    table = RoutingTable(spec.serve.service, before.epoch, (_champion(bundle),))
    if before.state != "serving" or before.variants != table.variants:
        context.progress(Event("deploy", "progress", f"loading version {bundle.manifest.version}", fraction=0.6))
        table = RoutingTable(spec.serve.service, before.epoch + 1, table.variants)
        platform.publish(table)
    context.progress(Event("deploy", "progress", "asking the sample rows", fraction=0.9))
    rows = _smoke(platform, before, table, endpoint, bundle)
    served = {
        "service": spec.serve.service,
        "endpoint": endpoint,
        "version": bundle.manifest.version,
        "epoch": table.epoch,
    }
    write_json(context.out / "service.json", served)
    return StageResult(summary={**served, "curl": curl(endpoint, rows[:1])})


def curl(endpoint: str, rows: list[Any]) -> str:
    """A line for the shell that asks ``rows``.

    >>> print(curl("http://127.0.0.1:8080", [{"age": 41}]))
    curl -s http://127.0.0.1:8080/predict -H 'content-type: application/json' -d '{"rows": [{"age": 41}]}'
    """
    body = json.dumps({"rows": rows}, ensure_ascii=False, allow_nan=False)
    return f"curl -s {endpoint}/predict -H 'content-type: application/json' -d {shlex.quote(body)}"


def _champion(bundle: Bundle) -> Variant:
    return Variant(
        name="champion",
        version=bundle.manifest.version,
        digest=bundle.manifest.identity,
        bundle=str(bundle.path.resolve()),
    )


def _status(platform: Platform, service: str) -> ServiceStatus:
    found = next((status for status in platform.status() if status.service == service), None)
    if found is None:
        raise ServiceError(f"service {service} is gone right after it was started", hint="run the same command again")
    return found


def _smoke(
    platform: Platform, before: ServiceStatus, table: RoutingTable, endpoint: str, bundle: Bundle
) -> list[dict[str, Any]]:
    """Ask the sample rows over the wire; on a wrong answer restore the table before and raise ServiceError."""
    from mlflowkit.serving import client

    sample = json.loads((bundle.path / "evidence" / "sample.json").read_bytes())
    status, reply = client.request(endpoint, "POST", "/predict", {"rows": sample["rows"]})
    problem = _problem(status, reply, sample["outputs"], bundle)
    if problem:
        if before.variants and table.epoch != before.epoch:
            platform.publish(RoutingTable(table.service, table.epoch + 1, before.variants))
        raise ServiceError(
            f"{table.service} does not answer version {bundle.manifest.version} as it was packaged: {problem}",
            hint="mlkit status; the version before it answers again" if before.variants else "mlkit status",
        )
    return list(sample["rows"])


def _problem(status: int, reply: Any, outputs: dict[str, Any], bundle: Bundle) -> str:
    """What is wrong with the reply to the sample rows; "" when nothing is."""
    from mlflowkit.serving.variants import agree

    if status != 200:
        return f"HTTP {status}: {reply.get('error', reply) if isinstance(reply, dict) else reply}"
    if reply["model_version"] != bundle.manifest.version:
        return f"version {reply['model_version']} answered"
    found = reply["predictions"]
    answers = {
        "prediction": [row.get("prediction") for row in found],
        "label": [row.get("label") for row in found],
        "probabilities": [list(row.get("probabilities", {}).values()) for row in found],
    }
    wrong = [name for name, expected in outputs.items() if not agree(expected, answers[name])]
    return f"{wrong[0]} is {answers[wrong[0]]}, not {outputs[wrong[0]]}" if wrong else ""
