"""The parts of a bundle that the observer needs, cached per variant."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mlflowkit.bundle import Signature
from mlflowkit.errors import ServiceError
from mlflowkit.service_state.records import read_json
from mlflowkit.values import Json, RoutingTable, Variant


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """Signature and reference profile of a bundle."""

    signature: Signature
    reference: Json
    digest: str


@lru_cache(maxsize=64)
def bundle_info(variant: Variant) -> BundleInfo:
    """Read a variant's bundle, which the gateway has verified. Raises ServiceError when it cannot be read."""
    folder = Path(variant.bundle)
    try:
        signature = Signature.model_validate_json((folder / "signature.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ServiceError(f"{folder}: signature.json cannot be read: {error}", hint="mlkit status") from error
    return BundleInfo(signature, read_json(folder / "evidence" / "reference.json"), variant.digest)


def find_variant(table: RoutingTable, name: str) -> Variant:
    """Return the variant called ``name``. Raises ServiceError when the table has none."""
    for variant in table.variants:
        if variant.name == name:
            return variant
    raise ServiceError(f"routing table {table.epoch} has no variant {name}", hint="mlkit status")
