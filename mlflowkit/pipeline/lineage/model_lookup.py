"""Finds the origin of a model from whatever names it: a bundle, a version, a run, a recipe, a registry.

::

    path/to/bundle                      a bundle's folder
    lending                             the champion of the recipe of that name; without one, what was blessed last
    8a9cbf0716e3                        a version: an identity digest, or the first 8 letters of one or more
    20261123-183912-2fb3                a run
    models:/lending/3  models:/lending@champion  runs:/RUN_ID     MLflow
    ghcr.io/acme/lending-bundle@sha256:DIGEST                     a registry of artifacts
    hf://org/lending@v-3f9a2c41d0e5b7                             the Hugging Face Hub
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.bundle import open_bundle
from mlflowkit.errors import StoreError, UsageError
from mlflowkit.pipeline.lineage.model_origin import (
    ModelOrigin,
    combine,
    origin_of_bundle,
    origin_of_run,
    origin_of_tags,
)
from mlflowkit.pipeline.lineage.model_reference import (
    MLFLOW,
    is_remote,
    maker_of,
    opened_bundle,
    registered_identity,
    stored_bundle,
)
from mlflowkit.values import RunRecord

if TYPE_CHECKING:
    from mlflowkit.ports import Journal, LookupPorts, Tracker

IDENTITY = re.compile(r"[0-9a-f]{8,64}")
KINDS = (
    "a bundle's folder, a version, a run, a recipe's name, models:/NAME/VERSION, REPOSITORY@sha256:DIGEST or "
    "hf://ORG/NAME@REVISION"
)


class ModelLookup:
    """Looks models up in one state folder and in registries."""

    def __init__(self, state: LookupPorts, tracker: Tracker) -> None:
        self.state, self.tracker = state, tracker

    def origin(self, reference: str) -> ModelOrigin:
        """The origin of a model; the bundle is verified before anything in it is read.

        Raises UsageError for what names no model, BundleError for a bundle that does not verify or that sources state
        different identities of, EngineError and ServiceError when a registry fails.
        """
        if MLFLOW.fullmatch(reference):
            return self._registered(reference)
        if is_remote(reference):
            return self._of_bundle(reference, f"the bundle {reference}")
        return self._of_bundle(reference) if Path(reference).expanduser().is_dir() else self._in_state(reference)

    def _of_bundle(self, reference: str, source: str = "") -> ModelOrigin:
        """The origin that a bundle states, and the journal besides; ``source`` names one that is fetched."""
        with opened_bundle(reference, self.state, self.tracker) as bundle:
            origin = origin_of_bundle(reference, bundle)
        origin = replace(origin, bundle="", sources=(source,)) if source else origin
        return self._with_run(origin)

    def _in_state(self, reference: str) -> ModelOrigin:
        with self.state.open_journal(create=False) as journal:
            record = _run_named(journal, reference)
            return self._of_run(reference, record)

    def _of_run(self, reference: str, record: RunRecord) -> ModelOrigin:
        stated, folder = origin_of_run(reference, record), stored_bundle(record, self.state)
        if folder is None:
            return replace(stated, sources=(*stated.sources, "its bundle is not in the state folder any more"))
        return combine((origin_of_bundle(reference, open_bundle(folder)), stated))

    def _with_run(self, origin: ModelOrigin) -> ModelOrigin:
        """An origin with what the journal, if it has the run, states besides."""
        with self.state.open_journal(create=False) as journal:
            record = maker_of(journal.runs(), origin.identity)
        return origin if record is None else combine((origin, origin_of_run(origin.reference, record)))

    def _registered(self, reference: str) -> ModelOrigin:
        tags = self.tracker.describe_version(reference)
        stated = origin_of_tags(reference, tags, "MLflow")
        registered_identity(reference, tags)
        with self.state.open_journal(create=False) as journal:
            record = maker_of(journal.runs(), stated.identity)
        if record is not None:
            return combine((self._of_run(reference, record), stated))
        with tempfile.TemporaryDirectory(prefix="mlkit-lineage-") as temporary:
            folder = self.tracker.download_bundle(reference, Path(temporary))
            if folder is None:
                return replace(
                    stated, sources=(*stated.sources, "its bundle is neither here nor in MLflow's artifacts")
                )
            origin = replace(origin_of_bundle(reference, open_bundle(folder)), bundle="")
        return combine((replace(origin, sources=("the bundle in MLflow's artifacts",)), stated))


def _run_named(journal: Journal, reference: str) -> RunRecord:
    """The run that made a model: by version, by the champion of a recipe's name, or by its own id."""
    records = journal.runs()
    if IDENTITY.fullmatch(reference):
        identities = {record.bundle for record in records if record.bundle.startswith(reference)}
        if len(identities) > 1:
            listed = ", ".join(sorted(identity[:16] for identity in identities))
            raise UsageError(f"{reference} may be {listed}", hint="write more of its letters")
        if identities and (named := maker_of(records, identities.pop())):
            return named
    if alias := journal.alias(reference, "champion") or journal.alias(reference, "challenger"):
        maker = maker_of(records, alias.identity)
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
