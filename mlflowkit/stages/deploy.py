"""Put a blessed bundle behind a service."""

from __future__ import annotations

import json
import secrets
import shlex
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mlflowkit.bundle import Bundle, open_bundle
from mlflowkit.errors import MlkitError, ServiceError
from mlflowkit.rollout.settings import Rollout
from mlflowkit.sections import Section
from mlflowkit.stages.base import write_json
from mlflowkit.values import Affinity, Event, RoutingTable, ServiceStatus, StageResult, Variant

if TYPE_CHECKING:
    from pathlib import Path

    from mlflowkit.ports import Platform, StageContext
    from mlflowkit.rollout.state import Request, RolloutState
    from mlflowkit.service_state.records import ServiceFiles


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
    cpus: float = Field(default=0.5, ge=0)
    """CPU cores that Ray sets aside for each."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray sets aside for each."""
    memory_mb: float | None = Field(default=None, gt=0)
    """Memory that a process may take beyond that of its warm model, in MiB; half of the machine's by default."""
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

    A service that has a champion gets a new version as its recipe's rollout says: at once, or by a rollout, which this
    begins and leaves running once its first step is live. Idempotent: a service that answers with this version, or is
    being given it, keeps its routing table. Raises BundleError when the bundle is corrupted or not blessed,
    ServiceError when the port is taken, when the gateway refuses the version, when the sample rows are not answered as
    they were when they were packaged (the version before it then answers again), or when the version may not be rolled
    out now: it was turned down before, another rollout runs, or the service cools down.
    """
    from mlflowkit.service_state import version_history
    from mlflowkit.service_state.records import ServiceFiles

    bundle = open_bundle(context.inputs["package"] / "bundle", blessed=True)
    platform, service = context.ports.platform, spec.serve.service
    context.progress(Event("deploy", "progress", f"starting service {service}", fraction=0.1))
    endpoint = platform.ensure(spec.serve.beside(context.folder))
    _status(platform, service)
    files = ServiceFiles(platform.folder(service))
    table = files.table()
    candidate = _candidate(bundle)
    champion = None if table is None else table.champion
    new = champion is not None and champion.digest != candidate.digest
    if new and spec.serve.rollout.strategy != "direct":
        told = _roll_out(spec, context, files, candidate)
    else:
        told = _swap(spec, context, files, candidate)
    context.progress(Event("deploy", "progress", "asking the sample rows", fraction=0.9))
    rows = _ask(spec, context, files, endpoint, bundle, table)
    if "rollout" not in told:
        origin = {"name": spec.name, "run": context.run}
        version_history.crown(files, candidate, origin, time.time(), before=None if table is None else table.champion)
    served = {"service": service, "endpoint": endpoint, "version": bundle.manifest.version, **told}
    write_json(context.out / "service.json", served)
    keyed = bool(spec.serve.auth.keys or spec.serve.auth.keys_env)
    return StageResult(summary={**served, "curl": curl(endpoint, rows[:1], keyed=keyed)})


def curl(endpoint: str, rows: list[Any], *, keyed: bool = False) -> str:
    """A line for the shell that asks ``rows``, with the API key that is in MLKIT_API_KEY where one is asked for.

    >>> print(curl("http://127.0.0.1:8080", [{"age": 41}]))
    curl -s http://127.0.0.1:8080/predict -H 'content-type: application/json' -d '{"rows": [{"age": 41}]}'
    """
    body = json.dumps({"rows": rows}, ensure_ascii=False, allow_nan=False)
    key = ' -H "authorization: Bearer $MLKIT_API_KEY"' if keyed else ""
    return f"curl -s {endpoint}/predict{key} -H 'content-type: application/json' -d {shlex.quote(body)}"


def _candidate(bundle: Bundle) -> Variant:
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


def _swap(spec: Spec, context: StageContext, files: ServiceFiles, candidate: Variant) -> dict[str, Any]:
    """Have the version answer everything, at once. Shadows of earlier rollouts stay."""
    from mlflowkit.rollout import commands, requests

    platform, before = context.ports.platform, files.table()
    shadows = () if before is None else tuple(one for one in before.variants if one.role == "shadow")
    shadows = tuple(one for one in shadows if one.digest != candidate.digest)
    epoch = 0 if before is None else before.epoch
    running = commands.running(files)
    if before is not None and before.champion.digest == candidate.digest:
        if running is not None or _status(platform, files.service).state == "serving":
            return {"epoch": epoch}
    else:
        requests.check(files, _request(spec, context, candidate))
    context.progress(Event("deploy", "progress", f"loading version {candidate.version}", fraction=0.6))
    affinity = _affinity(spec.serve.routing)
    table = RoutingTable(
        files.service, epoch + 1, (candidate, *shadows), affinity=affinity,
        override_header=spec.serve.routing.override_header,
    )  # fmt: skip
    platform.publish(table)
    return {"epoch": table.epoch}


def _roll_out(spec: Spec, context: StageContext, files: ServiceFiles, candidate: Variant) -> dict[str, Any]:
    """Ask for a rollout, unless this version is in one, and wait until its first step is live."""
    from mlflowkit.rollout import commands, policy, requests

    running, joined = commands.running(files), ""
    if running is None or running.candidate.digest != candidate.digest:
        experiment = requests.begin(files, _request(spec, context, candidate))
    else:
        experiment, joined = running.experiment, joining(running, spec.serve.rollout)
    if joined:
        context.progress(Event("deploy", "warning", f"{joined}: {_otherwise(files.service, candidate)}"))
    context.progress(Event("deploy", "progress", f"loading version {candidate.version}", fraction=0.6))
    state = requests.await_live(files, experiment)
    if state.phase in ("rolled_back", "aborted", "rolling_back"):
        raise ServiceError(
            f"the rollout of version {candidate.version} to {files.service} ended at once: {state.reason}",
            hint=f"mlkit rollout status {files.service}",
        )
    return {
        "epoch": state.epoch,
        "rollout": f"{policy.where(state)}; {joined}" if joined else policy.where(state),
        "experiment": experiment,
        "next": f"mlkit status, or mlkit rollout status {files.service}",
    }


def joining(running: RolloutState, wanted: Rollout) -> str:
    """What of a recipe's rollout does not come about because its version is in one already; "" for nothing."""
    if running.plan == wanted:
        return ""
    version, begun = running.candidate.version, running.strategy
    if begun == wanted.strategy:
        what = f"the {begun} of this recipe has other steps, metrics or limits, and"
    else:
        what = f"the {wanted.strategy} of this recipe"
    return f"version {version} is in a {begun} rollout that was asked for before; {what} was not begun"


def _otherwise(service: str, candidate: Variant) -> str:
    """How to have this recipe's rollout after all."""
    return f"mlkit rollout abort {service}, mlkit rollout forget {candidate.version}, then run again"


def _request(spec: Spec, context: StageContext, candidate: Variant) -> Request:
    from mlflowkit.rollout.state import Request

    plan = spec.serve.rollout
    return Request(
        id=f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}",
        service=spec.serve.service,
        candidate=replace(candidate, name="challenger", role="challenger", weight=0.0, placement=plan.placement),
        plan=plan,
        time=time.time(),
        affinity=_affinity(spec.serve.routing),
        override_header=spec.serve.routing.override_header,
        origin={"name": spec.name, "run": context.run},
    )


def _affinity(routing: Routing) -> Affinity:
    return Affinity(routing.affinity, routing.name)


def _ask(
    spec: Spec, context: StageContext, files: ServiceFiles, endpoint: str, bundle: Bundle, before: RoutingTable | None
) -> list[dict[str, Any]]:
    """Ask the sample rows over the wire; on a wrong answer have the version before answer again and raise ServiceError.

    A version under rollout is asked as testers do, by its name, which is no evidence. Where API keys are asked for, or
    testers are not listened to, the gateways' own comparison of the sample rows has to do.
    """
    from mlflowkit.rollout import commands
    from mlflowkit.service_state import http_client

    version, digest = bundle.manifest.version, bundle.manifest.identity
    sample = json.loads((bundle.path / "evidence" / "sample.json").read_bytes())
    rows: list[dict[str, Any]] = list(sample["rows"])
    table = files.table()
    variant = None if table is None else next((one for one in table.variants if one.digest == digest), None)
    header = spec.serve.routing.override_header
    if (
        variant is None
        or spec.serve.auth.keys
        or spec.serve.auth.keys_env
        or (variant.name != "champion" and not header)
    ):
        return rows
    headers = {header: variant.name} if header else {}
    status, reply = http_client.request(endpoint, "POST", "/predict", {"rows": rows}, headers=headers)
    problem = _problem(status, reply, sample["outputs"], bundle)
    if not problem or table is None:
        return rows
    running = commands.running(files)
    ours = running is not None and running.candidate.digest == digest
    swapped = running is None and before is not None and before.epoch != table.epoch
    if ours:
        try:
            commands.say(files, "abort", f"the sample rows are not answered as they were packaged: {problem}")
        except (
            MlkitError
        ) as error:  # the rollout has just ended, or the disk is full: what is wrong is said all the same
            ours, problem = False, f"{problem} (the rollout was not aborted: {error.message})"
    elif swapped and before is not None:
        context.ports.platform.publish(replace(before, epoch=table.epoch + 1, fence=0))
    raise ServiceError(
        f"{files.service} does not answer version {version} as it was packaged: {problem}",
        hint="mlkit status; the version before it answers again" if ours or swapped else "mlkit status",
    )


def _problem(status: int, reply: Any, outputs: dict[str, Any], bundle: Bundle) -> str:
    """What is wrong with the reply to the sample rows; "" when nothing is."""
    from mlflowkit.serving.inference.variants import agree

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
