"""mlkit deploy: serve a bundle that was made elsewhere, without its recipe or its data."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, note, print_result, state_folder
from mlflowkit.errors import BundleError, UsageError
from mlflowkit.system.text import shell_word

if TYPE_CHECKING:
    from mlflowkit.bundle import Bundle
    from mlflowkit.stages.deploy import ServeSection, Spec
    from mlflowkit.wiring import Wiring

BundleArgument = Annotated[
    str,
    typer.Argument(
        metavar="BUNDLE",
        help="A blessed bundle: its folder, REPOSITORY@sha256:DIGEST of a registry, hf://ORG/NAME@REVISION of the Hub, "
        "or models:/NAME/VERSION of MLflow.",
        show_default=False,
    ),
]
ServeOption = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="RECIPE", help="Take the serve section of this recipe [default: the defaults]."),
]
ServiceOption = Annotated[
    str | None, typer.Option("--service", metavar="NAME", help="Name of the service [default: the bundle's].")
]
PortOption = Annotated[int | None, typer.Option("--port", metavar="PORT", help="Its port; 0 takes a free one.")]


@app.command()
def deploy(
    bundle: BundleArgument,
    recipe: ServeOption = None,
    service: ServiceOption = None,
    port: PortOption = None,
    allow_breaking: Annotated[
        bool, typer.Option("--allow-breaking", help="Swap the version in though it breaks clients of the one before.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Verify the bundle and say what would be served.")] = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Serve a blessed bundle, such as one that was copied from another machine; nothing is trained.

    The bundle is verified and copied into the state folder. A service that exists gets it as `mlkit run` would give it:
    at once, or by the recipe's rollout.
    """
    from mlflowkit.pipeline.lineage.model_reference import is_remote, opened_bundle
    from mlflowkit.wiring import Wiring

    if not is_remote(bundle) and not Path(bundle).expanduser().is_dir():
        names = (
            "the folder with manifest.json, REPOSITORY@sha256:DIGEST, hf://ORG/NAME@REVISION or models:/NAME/VERSION"
        )
        hint = f"mlkit deploy BUNDLE: {names}"
        raise UsageError(f"there is no folder {bundle}", hint=hint)
    folder = state_folder(state, recipe)
    wiring = Wiring(folder)
    with closing(wiring.tracker) as tracker, opened_bundle(bundle, wiring, tracker, blessed=True) as opened:
        section = serve_section(opened.path, opened.manifest.name, recipe, service, port, allow_breaking)
        summary = {"service": section.service, "version": opened.manifest.version, "identity": opened.manifest.identity}
        if dry_run:
            text = f"would serve version {opened.manifest.version} of {opened.manifest.name} as {section.service}"
            print_result({**summary, "state": str(folder), "port": section.port}, text, json)
            return
        deployed = deploy_bundle(opened, section, folder, recipe)
    print_deployed({**summary, **deployed}, json)


def print_deployed(value: Mapping[str, Any], as_json: bool) -> None:
    """Print what was deployed: where it answers, its rollout and a request."""
    if as_json:
        emit_json(value)
        return
    rollout = f"\n{value['rollout']}\nnext: {value['next']}" if "rollout" in value else ""
    echo(f"{value['service']} answers at {value['endpoint']} with version {value['version']}{rollout}\n{value['curl']}")


def serve_section(
    source: Path,
    name: str,
    recipe: Path | None,
    service: str | None,
    port: int | None,
    allow_breaking: bool = False,
) -> ServeSection:
    """The recipe's serve section, or the defaults with a bundle's ``name``. Raises UsageError, RecipeError."""
    from pydantic import ValidationError

    from mlflowkit.recipe.check import load
    from mlflowkit.stages.deploy import ServeSection

    values: dict[str, Any] = {"service": re.sub(r"[^a-z0-9-]+", "-", name).strip("-")}
    if recipe is not None:
        loaded = load(recipe)
        if loaded.recipe.serve is None:
            raise UsageError(f"{recipe} has no serve section", hint=f"mlkit deploy {shell_word(source)}")
        values = loaded.recipe.serve.beside(loaded.folder).model_dump()
    values |= {"service": service} if service is not None else {}
    values |= {"port": port} if port is not None else {}
    if allow_breaking:
        values["rollout"] = {**values.get("rollout", {}), "allow_breaking": True}
    try:
        return ServeSection.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(map(str, fault["loc"]))
        raise UsageError(f"--{name} {fault['input']!r}: {fault['msg']}", hint="mlkit deploy --help") from error


def deploy_bundle(bundle: Bundle, section: ServeSection, state: Path, recipe: Path | None) -> Mapping[str, Any]:
    """Copy the bundle into the store and run the deploy stage on it; returns its summary."""
    from mlflowkit.cli.progress import run_progress, stdout_to_stderr
    from mlflowkit.pipeline.storage.permissions import close_state
    from mlflowkit.ports import StageContext
    from mlflowkit.stages import deploy as stage
    from mlflowkit.values import Event, Lineage
    from mlflowkit.wiring import Wiring

    if warning := close_state(state):
        note(f"warning: {warning}")
    wiring = Wiring(state)
    manifest = bundle.manifest
    lineage = Lineage(
        manifest.git_commit,
        manifest.git_dirty,
        manifest.data_version,
        manifest.recipe_digest,
        manifest.git_tree,
        data_source=manifest.data_source,
        data_commit=manifest.data_commit,
    )
    package = _into_store(wiring, bundle)
    out = wiring.objects.scratch(f"deploy-{manifest.identity}")
    with stdout_to_stderr(), run_progress() as progress:
        progress(Event("deploy", "planned"))
        progress(Event("deploy", "started", f"bundle {manifest.version} of {manifest.name}"))
        begin = time.monotonic()
        context = StageContext(
            inputs={"package": package},
            out=out,
            scratch=out,
            folder=state.parent if recipe is None else recipe.resolve().parent,
            seed=0,
            lineage=lineage,
            run=bundle.blessing.run if bundle.blessing is not None else "",
            ports=wiring,
            progress=progress,
            recipe=None if recipe is None else recipe.resolve(),
        )
        try:
            result = stage.run(_stage_spec(manifest.name, section, recipe), context)
        finally:
            wiring.objects.discard_scratch(f"deploy-{manifest.identity}")
        progress(Event("deploy", "done", seconds=time.monotonic() - begin))
    return result.summary


def _stage_spec(name: str, section: ServeSection, recipe: Path | None) -> Spec:
    """The Spec of the deploy stage, with the recipe's monitor and retrain sections."""
    from mlflowkit.recipe.check import load
    from mlflowkit.stages.deploy import Spec

    if recipe is None:
        return Spec(name=name, serve=section)
    loaded = load(recipe).recipe
    return Spec(name=name, serve=section, monitor=loaded.monitor, retrain=loaded.retrain)


def _into_store(wiring: Wiring, bundle: Bundle) -> Path:
    """Copy a bundle into the store and verify the copy; returns the folder that holds ``bundle``."""
    from mlflowkit.bundle import open_bundle

    workspace = wiring.objects.workspace(f"deploy-{bundle.manifest.identity}", fence=1)
    try:
        shutil.copytree(bundle.path, workspace / "bundle", symlinks=True)
    except OSError as error:
        wiring.objects.discard(workspace)
        hint = f"ls -l {shell_word(bundle.path)}"
        raise BundleError(f"{bundle.path} cannot be copied: {error}", hint=hint) from error
    copy = open_bundle(workspace / "bundle", blessed=True)
    if copy.manifest.identity != bundle.manifest.identity:
        raise BundleError(f"{bundle.path} changed while it was copied", hint="run the same command again")
    return wiring.objects.path(wiring.objects.publish(workspace).digest)
