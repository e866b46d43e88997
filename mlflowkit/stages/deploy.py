"""Put a blessed bundle behind a service."""

from __future__ import annotations

import json
import secrets
import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from pydantic import BeforeValidator, Field

from mlflowkit.bundle import Bundle, open_bundle
from mlflowkit.errors import MlkitError, ServiceError
from mlflowkit.monitoring import monitor_settings
from mlflowkit.monitoring.monitor_settings import MonitorSection, RetrainSection
from mlflowkit.ports import Platform, StageContext
from mlflowkit.rollout.settings import Rollout
from mlflowkit.sections import Section
from mlflowkit.stages.base import write_json
from mlflowkit.system.text import join_words, parse_json
from mlflowkit.values import Affinity, Event, RoutingTable, ServiceStatus, StageResult, Variant

if TYPE_CHECKING:
    from mlflowkit.judging.compatibility import SignatureChange
    from mlflowkit.rollout.state import Request, RolloutState
    from mlflowkit.service_state.records import ServiceFiles

PORTS: tuple[str, ...] = ()
"""Ports that the result depends on: none, it is compared with the running service."""


class Routing(Section):
    """How clients are assigned to variants."""

    affinity: Literal["request_id", "header", "cookie", "parameter"] = "request_id"
    """What keeps a client on one variant; request_id assigns each request independently."""
    name: str = Field(default="", max_length=128)
    """Name of the header, cookie or request parameter."""
    override_header: str = Field(default="x-mlkit-variant", max_length=128)
    """Header by which a tester selects the variant; empty disables it."""


class Auth(Section):
    """Who may send requests. Required when the service listens beyond loopback."""

    keys: str | None = None
    """File of hashed API keys, beside the recipe; `mlkit key create` creates one."""
    keys_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds such a file's content."""


class IsolatedSettings(Section):
    """The processes of isolated variants: a Ray Serve deployment each."""

    replicas: int = Field(default=1, ge=1, le=64)
    """Minimum number of processes."""
    max_replicas: int = Field(default=1, ge=1, le=64)
    """Maximum number of processes; Ray Serve scales between the two by load."""
    cpus: float = Field(default=0.5, ge=0)
    """CPU cores that Ray reserves for each."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray reserves for each."""
    memory_mb: float | None = Field(default=None, gt=0)
    """Memory of a process beyond that of its warm model, in MiB; half of the machine's by default."""
    max_batch: int = Field(default=64, ge=1)
    """Rows gathered for one call while another is in flight."""


class PredictionLogSettings(Section):
    """The prediction log: requests and responses, in Parquet."""

    enabled: bool = True
    """Whether it is written."""
    sampling: float = Field(default=1.0, gt=0, le=1)
    """Share of the requests that is logged."""
    days: float = Field(default=7.0, gt=0)
    """Retention in days."""
    max_mb: float = Field(default=1024.0, gt=0)
    """Largest size, in MiB; the oldest files are deleted first."""
    profile: bool = True
    """Whether live traffic is counted by columns for monitoring, and profiled with whylogs."""


HostName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$")]
"""A DNS name or an IPv4 address, without a port."""


class FeedbackSettings(Section):
    """Ground truth that clients send for earlier requests; kept for ``log.days``."""

    max_mb: float = Field(default=1024.0, ge=32)
    """Largest size as received, and largest size of its index, in MiB; the oldest is deleted first."""
    max_share: float = Field(default=0.5, gt=0, le=1)
    """Largest share of a variant's labels that may come from one API key which may also send requests. Beyond it, the
    key's labels are not used; keys with the scope feedback alone have no limit."""


MissingColumns = Annotated[
    Literal["error", "null"],
    BeforeValidator(
        lambda value: "null" if value is None else value, json_schema_input_type=Literal["error", "null"] | None
    ),
]
"""YAML's null is meant like the word."""


class ServeSection(Section):
    """The service that answers requests."""

    service: str = Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    """Its name; the model's name in the Open Inference Protocol."""
    host: str = "127.0.0.1"
    """Address to listen on; loopback by default."""
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
    allowed_hosts: list[HostName] = Field(default_factory=list)
    """Names that clients use for the service besides localhost and ``host``, such as that of a proxy in front; another
    Host is refused (421) as long as no API keys are asked for."""
    unknown_columns: Literal["error", "ignore"] = "error"
    """Columns of a request that the model does not know: error refuses the request; ignore leaves them out and tells
    the client."""
    missing_columns: MissingColumns = "error"
    """Columns that a request does not have: error refuses the request; null takes their values as missing and tells the
    client."""
    routing: Routing = Field(default_factory=Routing)
    """How clients are assigned to variants."""
    auth: Auth = Field(default_factory=Auth)
    """Who may send requests."""
    isolated: IsolatedSettings = Field(default_factory=IsolatedSettings)
    """The processes of isolated variants."""
    log: PredictionLogSettings = Field(default_factory=PredictionLogSettings)
    """The prediction log."""
    feedback: FeedbackSettings = Field(default_factory=FeedbackSettings)
    """Ground truth from clients."""
    rollout: Rollout = Field(default_factory=Rollout)
    """How a new version is rolled out."""

    def beside(self, folder: Path) -> ServeSection:
        """The section of a recipe in ``folder``, with an absolute path of the API key file."""
        if self.auth.keys is None:
            return self
        auth = self.auth.model_copy(update={"keys": str((folder / self.auth.keys).resolve())})
        return self.model_copy(update={"auth": auth})


class Spec(Section):
    """Input of the deploy stage; whether it runs depends on the running service, not on the fingerprint alone."""

    name: str
    serve: ServeSection
    monitor: MonitorSection | None = None
    retrain: RetrainSection | None = None


@dataclass(frozen=True, slots=True)
class SampleCheck:
    """The decision after the sample rows were sent to the service.

    accept    the responses are as packaged
    abort     a rollout gave the version traffic: abort it
    restore   the version replaced another at once: publish the earlier routing table again
    report    the version answered before: only report the problem
    """

    action: Literal["accept", "abort", "restore", "report"]
    problem: str = ""


def run(spec: Spec, context: StageContext) -> StageResult:
    """Put the blessed bundle of the package stage behind its service and send it the sample rows.

    A service with a champion gets a new version by the recipe's rollout strategy: at once, or by a rollout, which this
    starts and leaves running once its first step is live. Idempotent: a service that serves this version, or is rolling
    it out, keeps its routing table.

    Raises:
        BundleError: The bundle is corrupted or not blessed.
        UsageError: A swap at once would break clients (see `mlflowkit.judging.compatibility`).
        ServiceError: The port is taken; the gateway rejects the version; the sample rows are not answered as they were
            when packaged (the version before it then serves again); or the version may not be rolled out now, since it
            was rejected before, another rollout is running, or the service is in its cooldown.
    """
    from mlflowkit.service_state import version_history
    from mlflowkit.service_state.records import ServiceFiles

    bundle = open_bundle(context.inputs["package"] / "bundle", blessed=True)
    platform, service = context.ports.platform, spec.serve.service
    files, manifest = ServiceFiles(platform.folder(service)), bundle.manifest
    candidate = Variant("champion", manifest.version, manifest.identity, str(bundle.path.resolve()))
    changes = _signature_changes(spec, context, files.table(), candidate)
    context.progress(Event("deploy", "progress", f"starting service {service}", fraction=0.1))
    endpoint = platform.ensure(
        spec.serve.beside(context.folder),
        lambda message: context.progress(Event("deploy", "warning", message)),
        monitor=spec.monitor,
    )
    _service_status(platform, service)
    table = files.table()
    champion = None if table is None else table.champion
    is_new = champion is not None and champion.digest != candidate.digest
    if is_new and spec.serve.rollout.strategy != "direct":
        deployed = _roll_out(spec, context, files, candidate, changes)
    else:
        deployed = _replace_champion(spec, context, files, candidate)
    context.progress(Event("deploy", "progress", "sending the sample rows", fraction=0.9))
    rows = _check_sample_rows(spec, context, files, endpoint, bundle, table)
    if "rollout" not in deployed:
        origin = {"name": spec.name, "run": context.run}
        version_history.record_champion(files, candidate, origin, time.time(), before=champion)
    _write_monitor_settings(spec, context, files)
    notes = {"signature_changes": [change.to_json() for change in changes]} if changes else {}
    result = {"service": service, "endpoint": endpoint, "version": manifest.version, **deployed, **notes}
    write_json(context.out / "service.json", result)
    has_keys = bool(spec.serve.auth.keys or spec.serve.auth.keys_env)
    if "rollout" in deployed and champion is not None:
        rows = _sample_rows(Path(champion.bundle)) or rows  # what clients send until the version is promoted
    return StageResult(summary={**result, "curl": curl(endpoint, rows[:1], keyed=has_keys)})


def _write_monitor_settings(spec: Spec, context: StageContext, files: ServiceFiles) -> None:
    """Have the service monitored by the recipe's sections."""
    settings = monitor_settings.deployed_settings(
        spec.name, spec.monitor, spec.retrain, context.recipe, context.overrides
    )
    if settings is None and files.exists(monitor_settings.SETTINGS):
        message = f"{files.service} is no longer monitored: there is no monitor section"
        context.progress(Event("deploy", "warning", message))
    monitor_settings.write_settings(files, settings)


def curl(endpoint: str, rows: list[Any], *, keyed: bool = False) -> str:
    """A shell command that sends ``rows``, with the API key in MLKIT_API_KEY where ``keyed``.

    >>> print(curl("http://127.0.0.1:8080", [{"age": 41}]))
    curl -s http://127.0.0.1:8080/predict -H 'content-type: application/json' -d '{"rows": [{"age": 41}]}'
    """
    body = json.dumps({"rows": rows}, ensure_ascii=False, allow_nan=False)
    key = ' -H "authorization: Bearer $MLKIT_API_KEY"' if keyed else ""
    return f"curl -s {endpoint}/predict{key} -H 'content-type: application/json' -d {shlex.quote(body)}"


def _sample_rows(bundle: Path) -> list[dict[str, Any]]:
    """The sample rows of a bundle's evidence; [] where they cannot be read, for they are an example only."""
    try:
        rows = parse_json((bundle / "evidence" / "sample.json").read_bytes())["rows"]
    except (OSError, ValueError, KeyError, TypeError, MlkitError):
        return []
    return list(rows)


def _service_status(platform: Platform, service: str) -> ServiceStatus:
    status = next((status for status in platform.status() if status.service == service), None)
    if status is None:
        raise ServiceError(f"service {service} is gone right after it was started", hint="run the same command again")
    return status


def _signature_changes(
    spec: Spec, context: StageContext, table: RoutingTable | None, candidate: Variant
) -> tuple[SignatureChange, ...]:
    """What changes for the champion's clients, also reported as warnings.

    Raises UsageError when a swap at once would break clients, unless the recipe allows it.
    """
    from mlflowkit.rollout import signature_check

    if table is None or table.champion.digest == candidate.digest:
        return ()
    rollout, leniency = spec.serve.rollout, signature_check.leniency_of(spec.serve)
    changes = signature_check.compare_bundles(table.champion, Path(candidate.bundle), leniency)
    if changes is None:
        message = f"the signature of version {table.champion.version} cannot be read: whether clients break is unknown"
        context.progress(Event("deploy", "warning", message))
        return ()
    if rollout.strategy == "direct" and not rollout.allow_breaking:
        signature_check.require_compatible(spec.serve.service, f"version {candidate.version}", changes)
    for change in changes:
        prefix = "breaks clients: " if change.breaking else ""
        context.progress(Event("deploy", "warning", f"{prefix}{change.message}"))
    return changes


def _replace_champion(spec: Spec, context: StageContext, files: ServiceFiles, candidate: Variant) -> dict[str, Any]:
    """Route all traffic to the version at once. Shadows of earlier rollouts stay."""
    from mlflowkit.rollout import commands, requests

    platform, before = context.ports.platform, files.table()
    variants = () if before is None else before.variants
    shadows = tuple(variant for variant in variants if variant.role == "shadow" and variant.digest != candidate.digest)
    epoch = 0 if before is None else before.epoch
    running = commands.running_rollout(files)
    if before is not None and before.champion.digest == candidate.digest:
        if running is not None or _service_status(platform, files.service).state == "serving":
            return {"epoch": epoch}
    else:
        requests.check(files, _rollout_request(spec, context, candidate))
    context.progress(Event("deploy", "progress", f"loading version {candidate.version}", fraction=0.6))
    routing = spec.serve.routing
    affinity = Affinity(routing.affinity, routing.name)
    table = RoutingTable(
        files.service, epoch + 1, (candidate, *shadows), affinity=affinity, override_header=routing.override_header
    )
    platform.publish(table)
    return {"epoch": table.epoch}


def _roll_out(
    spec: Spec,
    context: StageContext,
    files: ServiceFiles,
    candidate: Variant,
    changes: tuple[SignatureChange, ...] = (),
) -> dict[str, Any]:
    """Request a rollout, unless this version is in one, and wait until its first step is live."""
    from mlflowkit.rollout import commands, policy, requests

    running, difference = commands.running_rollout(files), ""
    if running is None or running.candidate.digest != candidate.digest:
        request = replace(_rollout_request(spec, context, candidate), signature_changes=changes)
        experiment = requests.begin(files, request)
    else:
        experiment, difference = running.experiment, unapplied_changes(running, spec.serve.rollout)
    if difference:
        service, version = files.service, candidate.version
        remedy = f"mlkit rollout abort {service}, mlkit rollout forget {service} {version}, then run again"
        context.progress(Event("deploy", "warning", f"{difference}: {remedy}"))
    context.progress(Event("deploy", "progress", f"loading version {candidate.version}", fraction=0.6))
    state = requests.await_live(files, experiment)
    if state.phase in ("rolled_back", "aborted", "rolling_back"):
        message = f"the rollout of version {candidate.version} to {files.service} ended at once: {state.reason}"
        raise ServiceError(message, hint=f"mlkit rollout status {files.service}")
    return {
        "epoch": state.epoch,
        "rollout": f"{policy.describe(state)}; {difference}" if difference else policy.describe(state),
        "experiment": experiment,
        "next": f"mlkit status, or mlkit rollout status {files.service}",
    }


def unapplied_changes(running: RolloutState, plan: Rollout) -> str:
    """How a recipe's rollout differs from the one that its version is already in, which goes on; "" if not at all."""
    if running.plan == plan:
        return ""
    version, strategy = running.candidate.version, running.strategy
    if strategy == plan.strategy:
        ignored = f"the {strategy} of this recipe has other steps, metrics or limits, and"
    else:
        ignored = f"the {plan.strategy} of this recipe"
    return f"version {version} is in a {strategy} rollout that was requested before; {ignored} was not started"


def _rollout_request(spec: Spec, context: StageContext, candidate: Variant) -> Request:
    from mlflowkit.rollout.state import Request

    plan, routing = spec.serve.rollout, spec.serve.routing
    return Request(
        id=f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}",
        service=spec.serve.service,
        candidate=replace(candidate, name="challenger", role="challenger", weight=0.0, placement=plan.placement),
        plan=plan,
        time=time.time(),
        affinity=Affinity(routing.affinity, routing.name),
        override_header=routing.override_header,
        origin={"name": spec.name, "run": context.run, **_gates_of(Path(candidate.bundle))},
    )


def _gates_of(bundle: Path) -> dict[str, str]:
    """``{"gates": "none"}`` for a bundle that no gate judged."""
    try:
        judged = json.loads((bundle / "evidence" / "verdicts.json").read_bytes()) != []
    except (OSError, ValueError):
        judged = True  # not known
    return {} if judged else {"gates": "none"}


def decide_sample_check(
    problem: str, digest: str, running: RolloutState | None, before: RoutingTable | None, current: RoutingTable | None
) -> SampleCheck:
    """What follows from the responses to the sample rows of version ``digest``. Pure.

    Args:
        problem: What is wrong with the responses; "" if nothing.
        running: The rollout that is running now.
        before: The routing table before the deployment.
        current: The routing table now.
    """
    if not problem or current is None:
        return SampleCheck("accept")
    if running is not None:
        return SampleCheck("abort" if running.candidate.digest == digest else "report", problem)
    replaced = before is not None and before.epoch != current.epoch
    return SampleCheck("restore" if replaced else "report", problem)


def _check_sample_rows(
    spec: Spec, context: StageContext, files: ServiceFiles, endpoint: str, bundle: Bundle, before: RoutingTable | None
) -> list[dict[str, Any]]:
    """Send the sample rows to the service; on a wrong response undo the deployment and raise ServiceError.

    A version in a rollout is selected by name, as testers do, which produces no evidence. With API keys, or without an
    override header, the gateways' own check of the sample rows has to suffice.
    """
    from mlflowkit.rollout import commands
    from mlflowkit.service_state import http_client

    digest = bundle.manifest.identity
    if bundle.withheld:
        message = (
            f"this copy of the bundle was published without {join_words(bundle.withheld)}: its sample rows are not "
            "checked, and what needs the others is not monitored"
        )
        context.progress(Event("deploy", "warning", message))
        columns = [column for tensor in bundle.signature.inputs for column in tensor.columns]
        return [dict.fromkeys(columns)]  # missing values, for the example of a request
    sample = parse_json((bundle.path / "evidence" / "sample.json").read_bytes())
    rows = list(sample["rows"])
    table, header, auth = files.table(), spec.serve.routing.override_header, spec.serve.auth
    variants = () if table is None else table.variants
    name = next((variant.name for variant in variants if variant.digest == digest), None)
    if name is None or auth.keys or auth.keys_env or (name != "champion" and not header):
        return rows
    headers = {header: name} if header else {}
    status, reply = http_client.request(endpoint, "POST", "/predict", {"rows": rows}, headers=headers)
    problem = _response_problem(status, reply, sample["outputs"], bundle)
    running = commands.running_rollout(files) if problem else None
    check = decide_sample_check(problem, digest, running, before, table)
    if check.action != "accept":
        _undo(check, context, files, bundle, before, table)
    return rows


def _undo(
    check: SampleCheck,
    context: StageContext,
    files: ServiceFiles,
    bundle: Bundle,
    before: RoutingTable | None,
    table: RoutingTable | None,
) -> NoReturn:
    """Carry out a negative check, and raise ServiceError."""
    from mlflowkit.rollout import commands

    problem, restored = check.problem, check.action != "report"
    if check.action == "abort":
        try:
            commands.submit(files, "abort", f"the sample rows are not answered as they were packaged: {problem}")
        except MlkitError as error:  # the rollout has just ended, or the disk is full: still report the problem
            restored, problem = False, f"{problem} (the rollout was not aborted: {error.message})"
    elif check.action == "restore" and before is not None and table is not None:
        context.ports.platform.publish(replace(before, epoch=table.epoch + 1, fence=0))
    message = f"{files.service} does not answer version {bundle.manifest.version} as it was packaged: {problem}"
    hint = "mlkit status; the version before it answers again" if restored else "mlkit status"
    raise ServiceError(message, hint=hint)


def _response_problem(status: int, reply: Any, outputs: dict[str, Any], bundle: Bundle) -> str:
    """What is wrong with the response to the sample rows; "" if nothing."""
    from mlflowkit.serving.inference.variants import outputs_agree

    if status != 200:
        return f"HTTP {status}: {reply.get('error', reply) if isinstance(reply, dict) else reply}"
    if reply["model_version"] != bundle.manifest.version:
        return f"version {reply['model_version']} answered"
    rows = reply["predictions"]
    served = {
        "prediction": [row.get("prediction") for row in rows],
        "label": [row.get("label") for row in rows],
        "probabilities": [list(row.get("probabilities", {}).values()) for row in rows],
    }
    wrong = next((name for name, expected in outputs.items() if not outputs_agree(expected, served[name])), None)
    return f"{wrong} is {served[wrong]}, not {outputs[wrong]}" if wrong else ""
