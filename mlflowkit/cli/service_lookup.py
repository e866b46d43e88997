"""Endpoint of a service, and the reason in its error reply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflowkit.errors import UsageError, closest_match


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
