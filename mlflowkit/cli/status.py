"""mlkit status: the services of a state folder. Imports neither Ray nor the model's libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, state_folder

if TYPE_CHECKING:
    from mlflowkit.values import ServiceStatus


@app.command()
def status(state: StateOption = None, json: JsonOption = False) -> int:
    """Show the services, their endpoints and the versions that answer."""
    from mlflowkit.wiring import Wiring

    folder = state_folder(state)
    services = Wiring(folder).platform.status()
    if json:
        emit_json({"services": [_json(service) for service in services]})
        return 0
    if not services:
        echo(f"no services in {folder}; `mlkit run RECIPE` makes one")
    for service in services:
        echo(f"{service.service}  {service.state}  {service.endpoint}  epoch {service.epoch}")
        for variant in service.variants:
            echo(f"  {variant.role}  {variant.name}  version {variant.version}  {variant.weight:.0%} of the traffic")
    return 0


def _json(service: ServiceStatus) -> dict[str, Any]:
    return {
        "service": service.service,
        "endpoint": service.endpoint,
        "grpc_endpoint": service.grpc_endpoint,
        "epoch": service.epoch,
        "rollout": service.rollout,
        "ready": service.ready,
        "state": service.state,
        "replicas": service.replicas,
        "variants": [
            {
                "name": variant.name,
                "version": variant.version,
                "role": variant.role,
                "weight": variant.weight,
                "state": service.state,
            }
            for variant in service.variants
        ],
    }
