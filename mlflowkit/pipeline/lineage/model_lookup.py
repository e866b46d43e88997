"""Finds the origin of a model from whatever names it: a bundle, a version, a run, a recipe, a registry.

::

    path/to/bundle                      a bundle's folder
    lending                             the champion of the recipe of that name; without one, what was blessed last
    8a9cbf0716e3                        a version: an identity digest, or the first 8 letters of one or more
    20261123-183912-2fb3                a run
    models:/lending/3  models:/lending@champion  runs:/RUN_ID     MLflow
    ghcr.io/acme/lending-bundle@sha256:DIGEST                     a registry of artifacts
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.bundle import MANIFEST, open_bundle
from mlflowkit.errors import StoreError, UsageError
from mlflowkit.pipeline.lineage.model_origin import (
    ModelOrigin,
    combine,
    origin_of_bundle,
    origin_of_run,
    origin_of_tags,
)
from mlflowkit.values import RunRecord

if TYPE_CHECKING:
    from mlflowkit.ports import Journal, ObjectStore, StatePorts, Tracker

MLFLOW = re.compile(r"(models|runs):/\S+")
REGISTRY = re.compile(r"(?:oci://)?[\w.:-]+/\S+@sha256:[0-9a-f]{64}")
IDENTITY = re.compile(r"[0-9a-f]{8,64}")
KINDS = "a bundle's folder, a version, a run, a recipe's name, models:/NAME/VERSION or REPOSITORY@sha256:DIGEST"


class ModelLookup:
    """Looks models up in one state folder and in registries."""

    def __init__(self, state: StatePorts, tracker: Tracker) -> None:
        self.state, self.tracker = state, tracker

    def origin(self, reference: str) -> ModelOrigin:
        """The origin of a model; the bundle is verified before anything in it is read.

        Raises UsageError for what names no model, BundleError for a bundle that does not verify or that sources state
        different identities of, EngineError and ServiceError when a registry fails.
        """
        if MLFLOW.fullmatch(reference):
            return self._registered(reference)
        if REGISTRY.fullmatch(reference):
            with _pulled(reference.removeprefix("oci://")) as folder:
                origin = replace(self._with_run(origin_of_bundle(reference, open_bundle(folder))), bundle="")
                return replace(origin, sources=(f"the bundle {reference}", *origin.sources[1:]))
        folder = Path(reference).expanduser()
        if folder.is_dir():
            return self._with_run(origin_of_bundle(reference, open_bundle(_bundle_folder(folder))))
        return self._in_state(reference)

    def _in_state(self, reference: str) -> ModelOrigin:
        with self.state.open_journal(create=False) as journal:
            record = _run_named(journal, reference)
            return self._of_run(reference, record, self.state.objects)

    def _of_run(self, reference: str, record: RunRecord, store: ObjectStore) -> ModelOrigin:
        stated = origin_of_run(reference, record)
        package = next((step for step in record.steps if step.stage == "package" and step.digest), None)
        folder = None if package is None else store.path(package.digest) / "bundle"
        if folder is None or not (folder / MANIFEST).is_file():
            return replace(stated, sources=(*stated.sources, "its bundle is not in the state folder any more"))
        return combine((origin_of_bundle(reference, open_bundle(folder)), stated))

    def _with_run(self, origin: ModelOrigin) -> ModelOrigin:
        """An origin with what the journal, if it has the run, states besides."""
        with self.state.open_journal(create=False) as journal:
            record = _maker(journal.runs(), origin.identity)
        return origin if record is None else combine((origin, origin_of_run(origin.reference, record)))

    def _registered(self, reference: str) -> ModelOrigin:
        tags = self.tracker.describe_version(reference)
        stated = origin_of_tags(reference, tags, "MLflow")
        if not stated.identity:
            raise UsageError(
                f"{reference} is no model of mlflowkit: it has no tag identity",
                hint="mlkit lineage NAME shows what the champion of a recipe was made from",
            )
        with self.state.open_journal(create=False) as journal:
            record = _maker(journal.runs(), stated.identity)
        if record is not None:
            return combine((self._of_run(reference, record, self.state.objects), stated))
        with tempfile.TemporaryDirectory(prefix="mlkit-lineage-") as temporary:
            folder = self.tracker.download_bundle(reference, Path(temporary))
            if folder is None:
                return replace(
                    stated, sources=(*stated.sources, "its bundle is neither here nor in MLflow's artifacts")
                )
            origin = replace(origin_of_bundle(reference, open_bundle(folder)), bundle="")
            sources = ("the bundle in MLflow's artifacts",)
        return combine((replace(origin, sources=sources), stated))


def _run_named(journal: Journal, reference: str) -> RunRecord:
    """The run that made a model: by version, by the champion of a recipe's name, or by its own id."""
    records = journal.runs()
    if IDENTITY.fullmatch(reference):
        identities = {record.bundle for record in records if record.bundle.startswith(reference)}
        if len(identities) > 1:
            listed = ", ".join(sorted(identity[:16] for identity in identities))
            raise UsageError(f"{reference} may be {listed}", hint="write more of its letters")
        if identities and (named := _maker(records, identities.pop())):
            return named
    if alias := journal.alias(reference, "champion") or journal.alias(reference, "challenger"):
        maker = _maker(records, alias.identity)
        if maker is None:
            raise StoreError(
                f"the journal has no run of {reference}'s {alias.alias} {alias.identity[:12]}",
                hint="mlkit runs lists the runs that it has",
            )
        return maker
    try:
        record = journal.run(reference)
    except UsageError as error:
        message = f"{reference!r} names no model here: it may be {KINDS}"
        raise UsageError(message, hint="mlkit runs lists the runs and versions of a state folder") from error
    if not record.bundle:
        message = f"run {record.run} made no bundle: it is {record.status}"
        raise UsageError(message, hint=f"mlkit show {record.run}")
    return record


def _maker(records: Sequence[RunRecord], identity: str) -> RunRecord | None:
    """The run that packaged a model, of runs from the newest to the oldest; the oldest that names it if none did."""
    named = [record for record in records if record.bundle == identity]
    packaged = [
        record for record in named if any(step.stage == "package" and step.action == "run" for step in record.steps)
    ]
    return packaged[0] if packaged else named[-1] if named else None


def _bundle_folder(folder: Path) -> Path:
    """The bundle in a folder: the folder itself, or its ``bundle`` as the package step publishes it."""
    inner = folder / "bundle"
    return inner if not (folder / MANIFEST).is_file() and (inner / MANIFEST).is_file() else folder


@contextmanager
def _pulled(reference: str) -> Iterator[Path]:
    from mlflowkit.delivery.image.bundle_artifact import pull_bundle

    with tempfile.TemporaryDirectory(prefix="mlkit-lineage-") as temporary:
        yield pull_bundle(reference, Path(temporary) / "bundle")
