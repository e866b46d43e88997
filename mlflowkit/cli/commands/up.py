"""mlkit up: serve again what was served before, without running anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflowkit.cli.app import (
    JsonOption,
    OverridesArgument,
    RecipeArgument,
    StateOption,
    app,
    echo,
    emit_json,
    state_folder,
)
from mlflowkit.errors import ServiceError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from mlflowkit.values import ServiceStatus


@app.command()
def up(
    recipe: RecipeArgument, overrides: OverridesArgument = None, state: StateOption = None, json: JsonOption = False
) -> int:
    """Start the recipe's service with the version that it served last; nothing is trained."""
    from mlflowkit.recipe.check import load
    from mlflowkit.wiring import Wiring

    loaded = load(recipe, overrides or ())
    section = loaded.recipe.serve
    if section is None:
        raise UsageError(f"{recipe} has no serve section", hint="add serve: {service: " + loaded.recipe.name + "}")
    folder = state_folder(state, recipe)
    platform = Wiring(folder).platform
    before = next((found for found in platform.status() if found.service == section.service), None)
    champion = None if before is not None and before.variants else _champion(folder, loaded.recipe.name)
    endpoint = platform.ensure(section.beside(loaded.folder))
    if champion is not None:
        from mlflowkit.bundle import open_bundle
        from mlflowkit.values import RoutingTable, Variant

        manifest = open_bundle(champion, blessed=True).manifest
        variant = Variant("champion", manifest.version, manifest.identity, str(champion))
        platform.publish(RoutingTable(section.service, 1, (variant,)))
    now = next(found for found in platform.status() if found.service == section.service)
    if not now.ready:
        raise ServiceError(f"{now.service} is up but has no model: {now.state}", hint=f"mlkit run {recipe}")
    _tell(now, endpoint, json)
    return 0


def _champion(state: Path, name: str) -> Path:
    """The bundle that the journal calls champion. Raises UsageError when there is none."""
    from mlflowkit.pipeline import JOURNAL
    from mlflowkit.pipeline.journal import Journal
    from mlflowkit.pipeline.store import Store

    nothing = UsageError(f"nothing was deployed for {name} in {state}", hint="mlkit run RECIPE trains and deploys")
    if not (state / JOURNAL).exists():
        raise nothing
    with Journal(state) as journal:
        alias = journal.alias(name, "champion")
    if alias is None:
        raise nothing
    return Store(state).path(alias.digest) / "bundle"


def _tell(now: ServiceStatus, endpoint: str, json: bool) -> None:
    version = now.variants[0].version
    if json:
        emit_json({"service": now.service, "endpoint": endpoint, "version": version, "epoch": now.epoch})
    else:
        echo(f"{now.service} answers at {endpoint} with version {version}")
