"""The parts of a bundle that the observer needs, cached per variant."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mlflowkit.bundle import Signature
from mlflowkit.errors import ServiceError
from mlflowkit.features.outlier_forest import EVIDENCE_FILE, OutlierForest
from mlflowkit.judging.shift.reference import EVIDENCE, Reference
from mlflowkit.service_state.records import read_json
from mlflowkit.values import Json, RoutingTable, Variant

_log = logging.getLogger("mlflowkit.observer")


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """Signature and reference profile of a bundle; ``monitoring`` is None for a bundle that has no cells, ``outliers``
    for one without a model of outliers."""

    signature: Signature
    reference: Json
    digest: str
    monitoring: Reference | None = None
    outliers: OutlierForest | None = None


@lru_cache(maxsize=64)
def bundle_info(variant: Variant) -> BundleInfo:
    """Read a variant's bundle, which the gateway has verified. Raises ServiceError when it cannot be read."""
    folder = Path(variant.bundle)
    try:
        signature = Signature.model_validate_json((folder / "signature.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ServiceError(f"{folder}: signature.json cannot be read: {error}", hint="mlkit status") from error
    reference = read_json(folder / "evidence" / "reference.json")
    return BundleInfo(signature, reference, variant.digest, _monitoring(folder), _outliers(folder))


def _monitoring(folder: Path) -> Reference | None:
    """The cells that live rows are counted in; None for a bundle of an earlier release, or a damaged file."""
    try:
        document = read_json(folder / EVIDENCE)
        return None if document is None else Reference.from_json(document)
    except (ServiceError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        _log.error("%s is damaged, live rows are not counted by column: %r", folder / EVIDENCE, error)
        return None


def _outliers(folder: Path) -> OutlierForest | None:
    """The model that says which rows are outliers; None for a bundle without one, or a damaged file."""
    try:
        document = read_json(folder / EVIDENCE_FILE)
        return None if document is None else OutlierForest.from_json(document)
    except (ServiceError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        _log.error("%s is damaged, outliers are not counted: %r", folder / EVIDENCE_FILE, error)
        return None


def find_variant(table: RoutingTable, name: str) -> Variant:
    """Return the variant called ``name``. Raises ServiceError when the table has none."""
    for variant in table.variants:
        if variant.name == name:
            return variant
    raise ServiceError(f"routing table {table.epoch} has no variant {name}", hint="mlkit status")
