"""What the observer needs of the bundles that a routing table names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mlflowkit.bundle import Signature
from mlflowkit.errors import ServiceError
from mlflowkit.service_state.records import read_json
from mlflowkit.values import Json, RoutingTable, Variant


@dataclass(frozen=True, slots=True)
class Known:
    """What the observer needs of a bundle."""

    signature: Signature
    reference: Json
    digest: str


@lru_cache(maxsize=64)
def known(variant: Variant) -> Known:
    """Signature and reference profile of a variant's bundle, which the gateway has verified.

    Raises ServiceError when it cannot be read.
    """
    folder = Path(variant.bundle)
    try:
        signature = Signature.model_validate_json((folder / "signature.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ServiceError(f"{folder}: signature.json cannot be read: {error}", hint="mlkit status") from error
    return Known(signature, read_json(folder / "evidence" / "reference.json"), variant.digest)


def variant_of(table: RoutingTable, name: str) -> Variant:
    """The variant of that name. Raises ServiceError where the table has none."""
    found = next((variant for variant in table.variants if variant.name == name), None)
    if found is None:
        raise ServiceError(f"routing table {table.epoch} has no variant {name}", hint="mlkit status")
    return found
