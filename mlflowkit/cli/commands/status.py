"""mlkit status: the services of a state folder and their rollouts. Imports neither Ray nor the model's libraries."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlflowkit.cli import findings_table
from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, state_folder
from mlflowkit.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from mlflowkit.cli.status_live import ServiceSnapshot
    from mlflowkit.rollout.admin.view_models import RolloutView, ServiceView
    from mlflowkit.values import ServiceStatus

WATCH_SECONDS = 1.0
WatchOption = Annotated[
    bool, typer.Option("--watch", "-w", help="Stay, and show what changes; Ctrl-C ends it and nothing else.")
]


@app.command()
def status(state: StateOption = None, watch: WatchOption = False, json: JsonOption = False) -> int:
    """Show the services, their endpoints, the versions that answer, and how a rollout stands."""
    if watch and json:
        raise UsageError("--watch and --json do not go together", hint="mlkit status --json prints once")
    folder = state_folder(state)
    look = _looker(folder)
    if json:
        emit_json({"services": [_json(*seen) for seen in look()]})
        return 0
    if watch:
        _watch(folder, look)
        return 0
    echo("\n".join(lines(folder, look())))
    return 0


def _looker(folder: Path) -> Callable[[], Sequence[ServiceSnapshot]]:
    """Reads every service of a state folder, again at every call."""
    from mlflowkit.rollout.admin.snapshot import Watch
    from mlflowkit.wiring import Wiring

    platform, files = Wiring(folder).platform, Watch(folder)

    def look() -> Sequence[ServiceSnapshot]:
        views = {view.service: view for view in files.views()}
        return [(found, views[found.service]) for found in platform.status() if found.service in views]

    return look


def _watch(folder: Path, look: Callable[[], Sequence[ServiceSnapshot]]) -> None:
    """Show what changes until Ctrl-C: drawn in place on a terminal, printed anew elsewhere."""
    try:
        if sys.stdout.isatty():
            from mlflowkit.cli.status_live import show

            show(folder, look, WATCH_SECONDS)
            return
        before: list[str] = []
        while True:
            found = lines(folder, look())
            if found != before:
                echo("\n".join([*([""] if before else []), *found]))
                before = found
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return


def lines(folder: Path, seen: Sequence[ServiceSnapshot]) -> list[str]:
    """The services for a log or a pipe."""
    if not seen:
        return [f"no services in {folder}; `mlkit run RECIPE` makes one"]
    found = []
    for service, view in seen:
        found.append(f"{service.service}  {service.state}  {service.endpoint}  epoch {service.epoch}")
        for variant in service.variants:
            share = (
                f"{variant.sampling:.0%} mirrored"
                if variant.role == "shadow"
                else f"{variant.weight:.0%} of the traffic"
            )
            found.append(f"  {variant.role}  {variant.name}  version {variant.version}  {share}")
        if view.rollout is not None:
            found += [f"  {line}" for line in _rollout_lines(view.rollout)]
        if view.admin:
            found.append(f"  page  {view.admin}")
        found += [f"  problem  {problem}" for problem in view.problems]
        if service.state == "down":
            found.append("  next  mlkit up RECIPE starts it with the version that it served last")
    return found


def _rollout_lines(rollout: RolloutView) -> list[str]:
    reason = f": {rollout.reason}" if rollout.ended and rollout.reason else ""
    found = [f"rollout  {rollout.summary}, version {rollout.candidate_version}{reason}"]
    if rollout.waiting:
        found.append(f"  waiting for {', '.join(rollout.waiting)}")
    if rollout.ended:
        return found
    return found + [f"  {line}" for line in findings_table.lines(rollout.findings)]


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
                **_counted(variant.name, view),
            }
            for variant in service.variants
        ],
        "progress": None if view.rollout is None else _progress(view.rollout),
        "incidents": view.incident_count,
        "problems": list(view.problems),
    }


def _counted(name: str, view: ServiceView) -> dict[str, Any]:
    """What was counted of a variant in its experiment."""
    found = next((asdict(one) for one in view.variants if one.name == name), {})
    keys = ("requests", "errors", "error_rate", "p50_ms", "p99_ms", "mirrored", "dropped")
    return {key: found[key] for key in keys if key in found}


def _progress(rollout: RolloutView) -> dict[str, Any]:
    """A rollout without its drawings."""
    left_out = ("history", "latency", "predictions", "weights", "summary")
    return {name: value for name, value in asdict(rollout).items() if name not in left_out}
