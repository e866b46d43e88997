"""mlkit up: start a service with its last version, without running stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import (
    JsonOption,
    OverridesArgument,
    RecipeArgument,
    StateOption,
    app,
    note,
    print_result,
    state_folder,
)
from mlflowkit.errors import ServiceError, UsageError
from mlflowkit.system.text import shell_word

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflowkit.recipe.schema import LoadedRecipe
    from mlflowkit.stages.deploy import ServeSection
    from mlflowkit.wiring import Wiring

SourceOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="BUNDLE",
        help="Serve this blessed bundle: REPOSITORY@sha256:DIGEST of a registry, hf://ORG/NAME@REVISION, "
        "models:/NAME/VERSION, or a folder.",
    ),
]


@app.command()
def up(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    source: SourceOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Start the recipe's service with the version it served last, or one from a registry; nothing is trained."""
    from mlflowkit.pipeline.requirements import require_installed
    from mlflowkit.pipeline.storage.permissions import close_state
    from mlflowkit.recipe.check import load
    from mlflowkit.wiring import Wiring

    loaded = load(recipe, overrides or ())
    require_installed(loaded.recipe, ["deploy"])
    section = loaded.recipe.serve
    if section is None:
        raise UsageError(f"{recipe} has no serve section", hint="add serve: {service: " + loaded.recipe.name + "}")
    folder = state_folder(state, recipe)
    if warning := close_state(folder):
        note(f"warning: {warning}")
    wiring = Wiring(folder)
    if source is not None:
        _deploy_from(source, wiring, loaded, section.beside(loaded.folder), json)
        return
    platform = wiring.platform
    endpoint = start_service(wiring, loaded, section.beside(loaded.folder), note)
    now = next(status for status in platform.status() if status.service == section.service)
    if not now.ready:
        raise ServiceError(f"{now.service} is up but has no model: {now.state}", hint=f"mlkit run {shell_word(recipe)}")
    value = {"service": now.service, "endpoint": endpoint, "version": now.variants[0].version, "epoch": now.epoch}
    print_result(value, f"{now.service} answers at {endpoint} with version {value['version']}", json)


def _deploy_from(source: str, wiring: Wiring, loaded: LoadedRecipe, section: ServeSection, as_json: bool) -> None:
    """Serve a blessed bundle that a reference names, as `mlkit run` would: at once, or by the recipe's rollout.

    Raises UsageError for a model of another recipe.
    """
    from contextlib import closing

    from mlflowkit.cli.commands.deploy import deploy_bundle, print_deployed
    from mlflowkit.pipeline.lineage.model_reference import opened_bundle

    with (
        closing(wiring.tracker) as tracker,
        opened_bundle(source, wiring, tracker, blessed=True, loaded=loaded) as bundle,
    ):
        manifest = bundle.manifest
        if manifest.name != loaded.recipe.name:
            message = f"{source} is a model of {manifest.name}, and {loaded.path} is the recipe of {loaded.recipe.name}"
            raise UsageError(message, hint=f"mlkit deploy {shell_word(source)} --service NAME serves it by itself")
        deployed = deploy_bundle(bundle, section, wiring.state, loaded.path)
    value = {"service": section.service, "version": manifest.version, "identity": manifest.identity}
    print_deployed({**value, **deployed}, as_json)


def start_service(wiring: Wiring, loaded: LoadedRecipe, section: ServeSection, progress: Callable[[str], None]) -> str:
    """Start a recipe's service with the table that it has, or the journal's champion; returns the endpoint."""
    platform = wiring.platform
    before = next((status for status in platform.status() if status.service == section.service), None)
    champion = None if before is not None and before.variants else _champion(wiring.state, loaded.recipe.name)
    endpoint = platform.ensure(section, progress, monitor=loaded.recipe.monitor)
    _write_monitor_settings(loaded, platform.folder(section.service))
    if champion is not None:
        from mlflowkit.bundle import open_bundle
        from mlflowkit.values import RoutingTable, Variant

        manifest = open_bundle(champion, blessed=True).manifest
        variant = Variant("champion", manifest.version, manifest.identity, str(champion))
        platform.publish(RoutingTable(section.service, 1, (variant,)))
    return endpoint


def _write_monitor_settings(loaded: LoadedRecipe, folder: Path) -> None:
    """Have the service monitored by the recipe's sections, with the overrides of the run that deployed it."""
    from mlflowkit.monitoring import monitor_settings
    from mlflowkit.service_state.records import ServiceFiles

    files, recipe = ServiceFiles(folder), loaded.recipe
    before = monitor_settings.read_settings(files)
    overrides = loaded.overrides if before is None else before.overrides
    settings = monitor_settings.deployed_settings(recipe.name, recipe.monitor, recipe.retrain, loaded.path, overrides)
    monitor_settings.write_settings(files, settings)


def _champion(state: Path, name: str) -> Path:
    """Return the bundle of the journal's champion. Raises UsageError if there is none."""
    from mlflowkit.pipeline import JOURNAL
    from mlflowkit.wiring import Wiring

    missing = UsageError(f"nothing was deployed for {name} in {state}", hint="mlkit run RECIPE trains and deploys")
    if not (state / JOURNAL).exists():
        raise missing
    with Wiring(state).open_journal() as journal:
        alias = journal.alias(name, "champion")
    if alias is None:
        raise missing
    return Wiring(state).objects.path(alias.digest) / "bundle"
