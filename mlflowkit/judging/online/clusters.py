"""How many independent observations there are: rows of one request share their fate and count as one."""

from __future__ import annotations

from mlflowkit.judging.online.evidence import Moments, VariantCounts


def clusters(counts: VariantCounts) -> float:
    """Answered requests a row: rows of one request are not independent observations."""
    requests = counts.requests - counts.errors
    return requests / counts.rows if counts.rows > requests > 0 else 1.0


def mirrored_clusters(counts: VariantCounts) -> float:
    """Mirrored requests that the shadow answered, a compared row."""
    requests = counts.mirrored - counts.dropped - counts.errors
    rows = counts.agreement.get("", Moments()).count
    return requests / rows if rows > requests > 0 else 1.0
