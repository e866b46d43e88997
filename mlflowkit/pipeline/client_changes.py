"""What a run would change for the clients of a running service, as far as it is known before the deployment.

The candidate's signature is that of its optimized graph, or, before there is one, the signature that the table of the
data stage leads to; the champion's is in its bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlflowkit.bundle import Signature
from mlflowkit.errors import StoreError
from mlflowkit.judging.compatibility import SignatureChange, compare_signatures
from mlflowkit.pipeline.plan import ServiceQuery
from mlflowkit.ports import ObjectStore
from mlflowkit.recipe.schema import LoadedRecipe
from mlflowkit.rollout.signature_check import leniency_of, read_signature, require_compatible
from mlflowkit.stages.base import expected_signature, read_table_info
from mlflowkit.values import StepResult


def find_changes(
    loaded: LoadedRecipe, results: Mapping[str, StepResult], store: ObjectStore, services: ServiceQuery
) -> tuple[SignatureChange, ...] | None:
    """Changes for the champion's clients, given the results that a run would reuse; breaking changes first.

    None where they are not known yet: the candidate's columns are not, or no version is served.
    """
    serve = loaded.recipe.serve
    candidate = _candidate_signature(loaded, results, store)
    if serve is None or candidate is None:
        return None
    status = next((status for status in services() if status.service == serve.service), None)
    champion = next((variant for variant in status.variants if variant.role == "champion"), None) if status else None
    served = read_signature(Path(champion.bundle)) if champion is not None else None
    return None if served is None else compare_signatures(served, candidate, leniency_of(serve))


def require_unbroken_clients(
    loaded: LoadedRecipe, results: Mapping[str, StepResult], store: ObjectStore, services: ServiceQuery
) -> None:
    """Raise UsageError as the deploy stage would, before anything is trained."""
    serve = loaded.recipe.serve
    if serve is None or serve.rollout.strategy != "direct" or serve.rollout.allow_breaking:
        return
    changes = find_changes(loaded, results, store, services)
    require_compatible(serve.service, "the version that this recipe makes", changes or ())


def _candidate_signature(
    loaded: LoadedRecipe, results: Mapping[str, StepResult], store: ObjectStore
) -> Signature | None:
    if "optimize" in results:
        return read_signature(store.path(results["optimize"].published.digest))
    if "data" not in results or loaded.recipe.model.kind in ("onnx", "bundle"):
        return None  # an imported graph has a signature of its own
    try:
        return expected_signature(read_table_info(store.path(results["data"].published.digest)))
    except StoreError:
        return None
