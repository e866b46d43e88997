"""What a model was made from: code, data, recipe, run and verdicts, as its bundle and its run state them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mlflowkit.bundle import Bundle, Manifest
from mlflowkit.errors import BundleError
from mlflowkit.values import Json, Lineage, RunRecord, Verdict

VERDICTS = "evidence/verdicts.json"


@dataclass(frozen=True, slots=True)
class ModelOrigin:
    """The origin of one model version."""

    reference: str
    """What was asked for."""
    name: str
    identity: str
    lineage: Lineage
    sources: tuple[str, ...]
    """Where this is written, the most trustworthy first: a verified bundle, the journal, a registry."""
    run: str = ""
    recipe: str = ""
    overrides: tuple[str, ...] = ()
    bundle: str = ""
    """Folder of the verified bundle; "" where there is none at hand."""
    blessing: Mapping[str, Json] | None = None
    verdicts: tuple[Verdict, ...] | None = None
    """None where neither bundle nor run is at hand."""
    registered: str = ""
    """Its version in the registry that was asked."""
    differences: tuple[str, ...] = field(default=())
    """What the sources state differently."""

    @property
    def version(self) -> str:
        return self.identity[:12]

    def to_json(self) -> dict[str, Json]:
        """As plain JSON; ``verdicts`` is null where they are not known."""
        verdicts = None if self.verdicts is None else [
            {**asdict(verdict), "outcome": str(verdict.outcome)} for verdict in self.verdicts
        ]  # fmt: skip
        return {**asdict(self), "version": self.version, "verdicts": verdicts}


def origin_of_bundle(reference: str, bundle: Bundle) -> ModelOrigin:
    """The origin that a verified bundle states. Raises BundleError for verdicts that cannot be read."""
    manifest, blessing = bundle.manifest, bundle.blessing
    return ModelOrigin(
        reference,
        manifest.name,
        manifest.identity,
        _lineage_of(manifest),
        (f"the bundle {bundle.path}",),
        run="" if blessing is None else blessing.run,
        bundle=str(bundle.path),
        blessing=None if blessing is None else blessing.model_dump(mode="json"),
        verdicts=_verdicts_of(bundle),
    )


def origin_of_run(reference: str, record: RunRecord) -> ModelOrigin:
    """The origin that the journal states of a run that made a bundle."""
    evaluation = next((step.result for step in record.steps if step.stage == "evaluate"), None)
    return ModelOrigin(
        reference,
        record.name,
        record.bundle,
        record.lineage,
        (f"run {record.run} in the journal",),
        run=record.run,
        recipe=record.recipe_path,
        overrides=record.overrides,
        verdicts=None if evaluation is None else evaluation.verdicts,
    )


def origin_of_tags(reference: str, tags: Mapping[str, str], registry: str) -> ModelOrigin:
    """The origin that the tags of a registry state; nothing of it is verified."""
    named = {item.name: tags.get(item.name, "") for item in fields(Lineage)}
    lineage = Lineage(**{**named, "git_dirty": named["git_dirty"] == "true"})  # type: ignore[arg-type]
    return ModelOrigin(
        reference,
        tags.get("name", ""),
        tags.get("identity", ""),
        lineage,
        (f"tags of {registry}",),
        run=tags.get("run", ""),
        registered=tags.get("registered", ""),
    )


def combine(origins: tuple[ModelOrigin, ...]) -> ModelOrigin:
    """One origin of what several sources state of the same model, the most trustworthy first.

    What the first lacks is taken from the next that has it; what they state differently is listed. Raises BundleError
    when they are of different models.
    """
    first, *others = origins
    for other in others:
        if other.identity != first.identity:
            raise BundleError(
                f"{other.sources[0]} is of model {other.identity[:12]}, {first.sources[0]} of {first.version}",
                hint="mlkit lineage FOLDER shows what the bundle in a folder was made from",
            )
    merged: dict[str, Any] = {}
    for item in fields(ModelOrigin):
        values = [getattr(origin, item.name) for origin in origins]
        merged[item.name] = next((value for value in values if value not in ("", (), None)), values[0])
    merged["sources"] = tuple(source for origin in origins for source in origin.sources)
    merged["lineage"] = _filled(first.lineage, [other.lineage for other in others])
    merged["differences"] = tuple(text for other in others for text in _differences(first, other))
    return ModelOrigin(**merged)


def _filled(lineage: Lineage, others: list[Lineage]) -> Lineage:
    """A lineage whose empty texts are taken from others of the same commit."""
    values = asdict(lineage)
    for other in others:
        if other.git_commit == lineage.git_commit:
            values = {name: value or getattr(other, name) for name, value in values.items()}
    return Lineage(**values)


def _differences(first: ModelOrigin, other: ModelOrigin) -> list[str]:
    texts = []
    for item in fields(Lineage):
        ours, theirs = getattr(first.lineage, item.name), getattr(other.lineage, item.name)
        if isinstance(ours, str) and ours and theirs and ours != theirs:
            texts.append(f"{item.name}: {ours} in {first.sources[0]}, {theirs} in {other.sources[0]}")
    return texts


def _lineage_of(manifest: Manifest) -> Lineage:
    values = manifest.model_dump()
    return Lineage(**{item.name: values[item.name] for item in fields(Lineage) if item.name in values})


def _verdicts_of(bundle: Bundle) -> tuple[Verdict, ...] | None:
    if VERDICTS not in bundle.manifest.files:
        return None
    try:
        return tuple(Verdict.from_json(item) for item in json.loads(bundle.read(VERDICTS)))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        message = f"{bundle.path}/{VERDICTS} cannot be read: {error}"
        raise BundleError(message, hint="mlkit run RECIPE --force evaluate") from error
