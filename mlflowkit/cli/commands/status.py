"""mlkit status: the services of a state folder and their rollouts. Imports neither Ray nor model libraries."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlflowkit.cli import findings_table
from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, note, state_folder
from mlflowkit.cli.service_lookup import WORDS, find_service
from mlflowkit.errors import ServiceError, StoreError, UsageError
from mlflowkit.system.text import printable_line

if TYPE_CHECKING:
    from pathlib import Path

    from mlflowkit.cli.status_live import ServiceStatusView
    from mlflowkit.rollout.admin.view_models import RolloutView, ServiceView
    from mlflowkit.values import ServiceStatus

WATCH_SECONDS = 1.0
ServiceArgument = Annotated[str | None, typer.Argument(metavar="[SERVICE]", help="One service [default: all].")]
WatchOption = Annotated[
    bool, typer.Option("--watch", "-w", help="Keep showing changes until Ctrl-C, which stops no service.")
]


@app.command()
def status(
    service: ServiceArgument = None, state: StateOption = None, watch: WatchOption = False, json: JsonOption = False
) -> None:
    """Show the services, or one of them: endpoints, served versions, rollouts; and what runs could not deliver."""
    if watch and json:
        raise UsageError("--watch and --json do not go together", hint="mlkit status --json prints once")
    folder = state_folder(state)
    read = _snapshot_reader(folder, None if service is None else find_service(folder, service).service)
    if json:
        services = [
            {
                **_json(service, view),
                "monitor": monitor_word(folder, service.service),
                "delivery": delivery_word(folder, service.service),
            }
            for service, view in read()
        ]
        emit_json({"services": services, "deliveries": undelivered(folder)})
    elif watch:
        _watch(folder, read)
    else:
        echo("\n".join(lines(folder, read())))
        for item in undelivered(folder) or ():
            counts = ", ".join(f"{item[status]} {status}" for status in ("pending", "failed") if item[status])
            echo(f"undelivered  {item['target']}: {counts}; mlkit deliveries")


def _snapshot_reader(folder: Path, only: str | None = None) -> Callable[[], Sequence[ServiceStatusView]]:
    """Return a function that reads every service of a state folder, or one."""
    from mlflowkit.rollout.admin.snapshot import ServiceMonitor
    from mlflowkit.wiring import Wiring

    platform, files = Wiring(folder).platform, ServiceMonitor(folder)

    def read() -> Sequence[ServiceStatusView]:
        views = {view.service: view for view in files.views()}
        return [
            (status, views[status.service])
            for status in platform.status()
            if status.service in views and only in (None, status.service)
        ]

    return read


def _watch(folder: Path, read: Callable[[], Sequence[ServiceStatusView]]) -> None:
    """Show changes until Ctrl-C: redrawn in place on a terminal, else printed again."""
    try:
        if sys.stdout.isatty():
            from mlflowkit.cli.status_live import show

            show(folder, read, WATCH_SECONDS)
            return
        before: list[str] = []
        while True:
            current = lines(folder, read())
            if current != before:
                echo("\n".join([*([""] if before else []), *current]))
                before = current
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return


def lines(folder: Path, services: Sequence[ServiceStatusView]) -> list[str]:
    """Format the services for a log or a pipe."""
    if not services:
        return [f"no services in {folder}; `mlkit run RECIPE` makes one"]
    output = []
    for service, view in services:
        output.append(f"{service.service}  {service.state}  {service.endpoint}  epoch {service.epoch}")
        for variant in service.variants:
            mirrored, share = f"{variant.sampling:.0%} mirrored", f"{variant.weight:.0%} of the traffic"
            share = mirrored if variant.role == "shadow" else share
            output.append(f"  {variant.role}  {variant.name}  version {variant.version}  {share}")
        if view.rollout is not None:
            output += [f"  {line}" for line in _rollout_lines(view.rollout)]
        if word := monitor_word(folder, service.service):
            output.append(f"  monitor  {word}")
        if word := delivery_word(folder, service.service):
            output.append(f"  delivery  {word}")
        if view.admin:
            output.append(f"  page  {view.admin}")
        output += [f"  problem  {problem}" for problem in view.problems]
        if service.supervision:
            output.append(f"  supervision  {service.supervision}")
        if service.state == "down":
            output.append("  next  mlkit up RECIPE starts it with the version it served last")
    output.append(WORDS)
    return output


def undelivered(folder: Path) -> list[dict[str, Any]] | None:
    """What runs could not deliver to other systems so far: a count by target, and what its first one met last.

    None where the journal cannot be read, which is told on stderr: services do without it, on a full disk, too.
    """
    from mlflowkit.pipeline.outbox.delivery_schedule import troubled
    from mlflowkit.pipeline.storage.journal import SqliteJournal

    targets: dict[str, dict[str, Any]] = {}
    try:
        with SqliteJournal(folder, create=False) as journal:
            owed = troubled(journal.deliveries("pending", "failed"))
    except StoreError as error:
        note(f"what is undelivered is unknown: {error.message} ({error.hint})")
        return None
    for item in owed:
        first = {"target": item.target, "pending": 0, "failed": 0, "error": item.error}
        targets.setdefault(item.target, first)[item.status] += 1
    return list(targets.values())


def monitor_word(folder: Path, service: str) -> str:
    """The state of a service's monitor in one word; "" where it is not monitored."""
    from mlflowkit.monitoring.monitor_view import read_word

    return read_word(folder / "services" / service)


def delivery_word(folder: Path, service: str) -> str:
    """What follows the service's delivery.yaml says; "" where nothing does."""
    from mlflowkit.service_state.records import DELIVERY, ServiceFiles

    try:
        files = ServiceFiles(folder / "services" / service)
        record = files.read_json(DELIVERY)
        if record is None:
            return ""
        return printable_line(f"problem: {record['fault']}" if record["fault"] else record["reason"])
    except (ServiceError, KeyError, TypeError):
        return f"{DELIVERY} is damaged"


def _rollout_lines(rollout: RolloutView) -> list[str]:
    reason = f": {rollout.reason}" if rollout.ended and rollout.reason else ""
    output = [f"rollout  {rollout.summary}, version {rollout.candidate_version}{reason}"]
    if rollout.waiting:
        output.append(f"  waiting for {', '.join(rollout.waiting)}")
    if rollout.ended:
        return output
    output += [f"  warning  {warning}" for warning in rollout.warnings]
    return output + [f"  {line}" for line in findings_table.lines(rollout.findings)]


def _json(service: ServiceStatus, view: ServiceView) -> dict[str, Any]:
    return {
        "service": service.service,
        "endpoint": service.endpoint,
        "grpc_endpoint": service.grpc_endpoint or view.grpc_endpoint,
        "epoch": service.epoch,
        "rollout": "" if view.rollout is None else view.rollout.summary,
        "ready": service.ready,
        "state": service.state,
        "replicas": service.replicas,
        "admin": view.admin,
        "variants": [
            {
                "name": variant.name,
                "version": variant.version,
                "role": variant.role,
                "weight": 0.0 if variant.role == "shadow" else variant.weight,
                "state": service.state,
                "placement": variant.placement,
                "sampling": variant.sampling,
                **_variant_counts(variant.name, view),
            }
            for variant in service.variants
        ],
        "progress": None if view.rollout is None else _progress(view.rollout),
        "incidents": view.incident_count,
        "problems": list(view.problems),
        "supervision": service.supervision,
    }


def _variant_counts(name: str, view: ServiceView) -> dict[str, Any]:
    """Return the counts of a variant in its experiment."""
    counts = next((asdict(variant) for variant in view.variants if variant.name == name), {})
    keys = ("requests", "errors", "error_rate", "p50_ms", "p99_ms", "mirrored", "dropped")
    return {key: counts[key] for key in keys if key in counts}


def _progress(rollout: RolloutView) -> dict[str, Any]:
    """Return a rollout without its chart data."""
    excluded = ("history", "latency", "predictions", "weights", "summary")
    return {name: value for name, value in asdict(rollout).items() if name not in excluded}
