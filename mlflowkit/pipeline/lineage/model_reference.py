"""Opens the bundle that a reference names: in a folder, in a registry of artifacts, in MLflow."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.bundle import MANIFEST, Bundle, open_bundle
from mlflowkit.data_access.registry_sections import HUB_SCHEME, HuggingfaceRegistry, parse_hub_reference
from mlflowkit.errors import BundleError, UsageError
from mlflowkit.stages.train import ImportedBundle
from mlflowkit.system.files import disk_errors
from mlflowkit.values import RunRecord

if TYPE_CHECKING:
    from mlflowkit.ports import LookupPorts, ModelRegistry, RunPorts, StatePorts, Tracker
    from mlflowkit.recipe.schema import LoadedRecipe

MLFLOW = re.compile(r"(models|runs):/\S+")
REGISTRY = re.compile(r"(?:oci://)?[\w.:-]+/\S+@sha256:[0-9a-f]{64}")


def is_remote(reference: str) -> bool:
    """Whether a reference names something outside of the file system.

    >>> is_remote("models:/lending@champion"), is_remote("bundles/lending"), is_remote("hf://org/lending@main")
    (True, False, True)
    """
    is_named = MLFLOW.fullmatch(reference) or REGISTRY.fullmatch(reference)
    return bool(is_named or reference.startswith(("oci://", HUB_SCHEME)))


@contextmanager
def opened_bundle(
    reference: str, state: LookupPorts, tracker: Tracker, *, blessed: bool = False, loaded: LoadedRecipe | None = None
) -> Iterator[Bundle]:
    """The verified bundle of a reference; one that was fetched is removed afterwards.

    ``loaded`` is a recipe, whose registries say with which token a repository of the Hub is read.

    Raises UsageError for a reference without a digest and one that names nothing, BundleError for a bundle that does
    not verify, is not blessed where it must be, or is not the model that the registry's tags name, EngineError and
    ServiceError when a registry fails.
    """
    with tempfile.TemporaryDirectory(prefix="mlkit-bundle-") as temporary:
        if MLFLOW.fullmatch(reference):
            identity = registered_identity(reference, tracker.describe_version(reference))
            bundle = open_bundle(
                _registered_folder(reference, identity, state, tracker, Path(temporary)), blessed=blessed
            )
            _check_identity(bundle, identity, reference)
        elif reference.startswith(HUB_SCHEME):
            registry = hub_registry(reference, state, loaded)
            bundle = open_bundle(registry.pull(reference, Path(temporary) / "bundle"), blessed=blessed)
        elif is_remote(reference):
            from mlflowkit.delivery.image.bundle_artifact import pull_bundle

            folder = pull_bundle(reference.removeprefix("oci://"), Path(temporary) / "bundle")
            bundle = open_bundle(folder, blessed=blessed)
        else:
            bundle = open_bundle(_inner_folder(Path(reference).expanduser().resolve()), blessed=blessed)
        yield bundle


def hub_registry(reference: str, ports: LookupPorts, loaded: LoadedRecipe | None = None) -> ModelRegistry:
    """The registry of a reference to the Hub: as a recipe's registries have it, else with the token of Hugging Face's
    own tools. Raises UsageError."""
    repository = parse_hub_reference(reference).repository
    section = HuggingfaceRegistry(kind="huggingface", repository=repository)
    if loaded is None:
        return ports.model_registry(section, Path.cwd(), {})
    sections = [item for item in loaded.recipe.registries if isinstance(item, HuggingfaceRegistry)]
    named = next((item for item in sections if item.repository == repository), section)
    return ports.model_registry(named, loaded.folder, loaded.recipe.connections)


def model_fetcher(loaded: LoadedRecipe, ports: RunPorts, scratch: Path) -> Callable[[], Path] | None:
    """What fetches the bundle that is a recipe's model into ``scratch``, verified; None for another kind of model."""
    model = loaded.recipe.model
    if not isinstance(model, ImportedBundle):
        return None
    reference = str(loaded.folder / model.path) if model.path else model.reference

    def fetch() -> Path:
        folder = scratch / "model"
        shutil.rmtree(folder, ignore_errors=True)
        with opened_bundle(reference, ports, ports.tracker, blessed=True, loaded=loaded) as bundle, disk_errors(folder):
            shutil.copytree(bundle.path, folder)
        return folder

    return fetch


def registered_identity(reference: str, tags: Mapping[str, str]) -> str:
    """The identity that the tags of a registry name. Raises UsageError for a model of something else."""
    if identity := tags.get("identity", ""):
        return identity
    message = f"{reference} is no model of mlflowkit: it has no tag identity"
    raise UsageError(message, hint="mlkit lineage NAME shows what the champion of a recipe was made from")


def maker_of(records: Sequence[RunRecord], identity: str) -> RunRecord | None:
    """The run that packaged a model, of runs from the newest to the oldest; the oldest that names it if none did."""
    named = [record for record in records if record.bundle == identity]
    packaged = [
        record for record in named if any(step.stage == "package" and step.action == "run" for step in record.steps)
    ]
    return packaged[0] if packaged else named[-1] if named else None


def stored_bundle(record: RunRecord, state: StatePorts) -> Path | None:
    """The folder of the bundle that a run made; None where the state folder has it no more."""
    package = next((step for step in record.steps if step.stage == "package" and step.digest), None)
    folder = None if package is None else state.objects.path(package.digest) / "bundle"
    return folder if folder is not None and (folder / MANIFEST).is_file() else None


def _registered_folder(reference: str, identity: str, state: StatePorts, tracker: Tracker, out: Path) -> Path:
    """The folder of a registered bundle: in the state folder, or else downloaded."""
    with state.open_journal(create=False) as journal:
        record = maker_of(journal.runs(), identity)
    folder = stored_bundle(record, state) if record is not None else None
    folder = folder or tracker.download_bundle(reference, out)
    if folder is None:
        message = f"the bundle {identity[:12]} of {reference} is neither in the state folder nor in MLflow's artifacts"
        raise UsageError(message, hint="mlkit runs lists what the state folder has; --state DIR names another")
    return folder


def _check_identity(bundle: Bundle, identity: str, reference: str) -> None:
    if bundle.manifest.identity != identity:
        message = f"{reference} is model {identity[:12]} by its tags, and its bundle is {bundle.manifest.identity[:12]}"
        raise BundleError(message, hint="register it again: mlkit run RECIPE")


def _inner_folder(folder: Path) -> Path:
    """The bundle in a folder: the folder itself, or its ``bundle`` as the package step publishes it."""
    inner = folder / "bundle"
    return inner if not (folder / MANIFEST).is_file() and (inner / MANIFEST).is_file() else folder
