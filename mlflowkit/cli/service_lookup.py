"""Services of a state folder by name, their endpoints, and the reason in an error reply."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflowkit.errors import UsageError, closest_match

if TYPE_CHECKING:
    from mlflowkit.service_state.records import ServiceFiles

WORDS = (
    "words: https://github.com/mlflowkit/mlflowkit/blob/main/docs/glossary.md (evidence, epoch, baking, policy, ...)"
)
"""Where the words of a status are explained."""


def services_of(folder: Path) -> list[ServiceFiles]:
    """The services of a state folder."""
    from mlflowkit.service_state.records import ServiceFiles

    return list(ServiceFiles.all(folder))


def find_service(folder: Path, name: str | None) -> ServiceFiles:
    """Return a service, or the only one for None. Raises UsageError if it is unknown or ambiguous."""
    services = {files.service: files for files in services_of(folder)}
    if name is None and len(services) == 1:
        return next(iter(services.values()))
    if name in services:
        return services[name]
    names = ", ".join(services) or "none"
    if name is None:
        hint = f"mlkit rollout status {next(iter(services))}" if services else "mlkit run RECIPE makes one"
        raise UsageError(f"which service? there is {names} in {folder}", hint=hint)
    close = closest_match(name, services)
    raise UsageError(
        f"no service {name!r} in {folder}; there is {names}", hint=f"did you mean {close}?" if close else "mlkit status"
    )


def endpoint_of(state: Path, service: str | None, command: str) -> str:
    """Return the endpoint of a service of a state folder; None means its only service.

    ``command`` precedes a service's name in the hint. Raises UsageError if the service is unknown or ambiguous.
    """
    from mlflowkit.wiring import Wiring

    services = {status.service: status for status in Wiring(state).platform.status()}
    if service is None and len(services) == 1:
        service = next(iter(services))
    if service is None or service not in services:
        problem = "which service?" if service is None else f"no service {service!r} in {state};"
        close = closest_match(service or "", services)
        raise UsageError(
            f"{problem} there is {', '.join(services) or 'none'}",
            hint=f"{command} {close}" if close else "mlkit run RECIPE deploys one; --endpoint URL asks any",
        )
    return services[service].endpoint


def reason(status: int, reply: Any) -> str:
    """Return the reason in an error reply.

    >>> reason(422, {"error": "no column age"}), reason(502, "<html>")
    ('no column age', 'HTTP 502: <html>')
    """
    return str(reply["error"]) if isinstance(reply, dict) and "error" in reply else f"HTTP {status}: {str(reply)[:200]}"
