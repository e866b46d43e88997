"""Where a service is asked, and what it says when it does not do what it was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflowkit.errors import UsageError, nearest


def endpoint_of(state: Path, service: str | None, command: str) -> str:
    """The endpoint of a service of a state folder, of the only one for None.

    ``command`` is what to type before a service's name. Raises UsageError where it cannot be told which is meant.
    """
    from mlflowkit.wiring import Wiring

    found = {status.service: status for status in Wiring(state).platform.status()}
    if service is None and len(found) == 1:
        service = next(iter(found))
    if service is None or service not in found:
        what = "which service?" if service is None else f"no service {service!r} in {state};"
        close = nearest(service or "", found)
        raise UsageError(
            f"{what} there is {', '.join(found) or 'none'}",
            hint=f"{command} {close}" if close else "mlkit run RECIPE deploys one; --endpoint URL asks any",
        )
    return found[service].endpoint


def reason(status: int, reply: Any) -> str:
    """What a reply says is wrong.

    >>> reason(422, {"error": "no column age"}), reason(502, "<html>")
    ('no column age', 'HTTP 502: <html>')
    """
    return str(reply["error"]) if isinstance(reply, dict) and "error" in reply else f"HTTP {status}: {str(reply)[:200]}"
