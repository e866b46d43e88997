"""Compare the signatures of the bundles of two versions, and refuse a swap that breaks clients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mlflowkit.bundle import Signature
from mlflowkit.errors import UsageError
from mlflowkit.judging.compatibility import (
    Categories,
    Leniency,
    SignatureChange,
    breaking_changes,
    compare_signatures,
    summarize_changes,
)

if TYPE_CHECKING:
    from mlflowkit.values import Variant


LENIENT_KEYS = {"column-removed": "serve.unknown_columns=ignore", "column-added": "serve.missing_columns=null"}
"""Settings of a service under which a change of columns breaks nobody."""


def leniency_of(serve: Any) -> Leniency:
    """How the service of a recipe's ``serve`` section (a `ServeSection`) treats unknown and missing columns."""
    return Leniency(serve.unknown_columns == "ignore", serve.missing_columns == "null")


def read_signature(bundle: Path) -> Signature | None:
    """The signature in the folder of a bundle; None when it cannot be read."""
    try:
        return Signature.model_validate_json((bundle / "signature.json").read_bytes())
    except (OSError, ValidationError):
        return None


def compare_bundles(champion: Variant, candidate: Path, leniency: Leniency) -> tuple[SignatureChange, ...] | None:
    """What changes for the champion's clients; None when its bundle cannot be read, so that nothing is known."""
    before, now = read_signature(Path(champion.bundle)), read_signature(candidate)
    if before is None or now is None:
        return None
    return compare_signatures(before, now, leniency, (_categories(Path(champion.bundle)), _categories(candidate)))


def _categories(bundle: Path) -> Categories:
    from mlflowkit.serving.inference.variants import complete_categories

    return complete_categories(bundle)


def require_compatible(service: str, version: str, changes: Sequence[SignatureChange]) -> None:
    """Raise UsageError where a swap at once would break clients; ``version`` names the candidate."""
    breaking = breaking_changes(changes)
    if not breaking:
        return
    lenient = " ".join(key for kind, key in LENIENT_KEYS.items() if any(change.kind == kind for change in breaking))
    columns = f", or a service that takes other columns: mlkit run RECIPE {lenient}" if lenient else ""
    raise UsageError(
        f"{version} breaks the clients of {service} and was not swapped in: {summarize_changes(breaking)}",
        hint=f"mlkit run RECIPE --allow-breaking, or a canary first: mlkit run RECIPE +rollout=canary{columns}",
    )
