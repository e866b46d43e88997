"""mlkit image: build images, push and pull bundles, sign and verify them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlflowkit.cli.app import JsonOption, RecipeArgument, app, echo, emit_json, note, print_result
from mlflowkit.errors import UsageError

group = typer.Typer(
    help="Images, and bundles in a registry: by digest, signed.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(group, name="image")

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of a bundle.", show_default=False)]
SignatureOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The signature [default: BUNDLE.sig, beside the bundle].")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the command lines; build and push nothing.")]


@group.command()
def build(
    recipe: RecipeArgument,
    push: Annotated[bool, typer.Option("--push", help="Push the images, and the bundle of --from.")] = False,
    report: Annotated[
        Path | None, typer.Option("--from", metavar="REPORT", help="report.json, with bundle/ beside it.")
    ] = None,
    role: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE", help="train, serve or monitor; repeat for several [default: serve]."),
    ] = None,
    builder: Annotated[
        str | None, typer.Option(metavar="NAME", help="buildah or docker [default: what is there].")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where image.json goes, once pushed [default: beside REPORT]."),
    ] = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Build a recipe's images, and push them and the judged bundle with --push; equal inputs give equal digests.

    What was pushed is written to image.json, which the steps after this one read.
    """
    from mlflowkit.ci.image_delivery import build_recipe_images, planned_commands, planned_images
    from mlflowkit.delivery.image.image_builder import builder_name, find_builder

    if out is not None and not push:
        raise UsageError("--out says where image.json goes, which there is for pushed images", hint="add --push")
    wanted = None if builder is None else builder_name(builder)
    planned = planned_images(recipe, role or ["serve"], report)
    if dry_run:
        lines, reference = planned_commands(planned, wanted or builder_name("buildah"), push=push)
        text = "\n".join([*lines, *([f"bundle: {reference}"] if reference else [])])
        print_result({"commands": lines, "bundle": reference}, text, json)
        return
    folder = out or (None if report is None else report.parent)
    value = build_recipe_images(planned, find_builder(wanted), push=push, folder=folder, progress=note)
    print_result(value, "\n".join([*value["images"].values(), *filter(None, [value["bundle"]])]), json)


@group.command("push")
def push_(
    bundle: BundleArgument,
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="Such as ghcr.io/acme/lending-bundle.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say the reference; push nothing.")] = False,
    json: JsonOption = False,
) -> None:
    """Push a bundle as an artifact of its own; prints its reference by digest."""
    from mlflowkit.delivery.image.bundle_artifact import bundle_reference, push_bundle

    reference = bundle_reference(bundle, repository) if dry_run else push_bundle(bundle, repository)
    print_result({"bundle": reference}, reference, json)


@group.command()
def pull(
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="repository@sha256:digest.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder for the bundle.")],
    json: JsonOption = False,
) -> None:
    """Fetch a bundle by digest, verified before it appears."""
    from mlflowkit.delivery.image.bundle_artifact import pull_bundle

    pulled = pull_bundle(reference, folder)
    print_result({"bundle": reference, "folder": str(pulled)}, str(pulled), json)


@group.command()
def sign(
    bundle: BundleArgument,
    key: Annotated[Path, typer.Option(envvar="MLKIT_SIGNING_KEY", metavar="FILE", help="The private key (EC, PEM).")],
    signature: SignatureOption = None,
    json: JsonOption = False,
) -> None:
    """Sign a bundle's files with a key."""
    from mlflowkit.delivery.image.bundle_signature import sign_bundle

    file = signature or bundle.with_name(f"{bundle.name}.sig")
    sign_bundle(bundle, file, key)
    print_result({"signature": str(file)}, str(file), json)


@group.command()
def verify(
    bundle: BundleArgument,
    key: Annotated[Path, typer.Option(metavar="FILE", help="The public key that must have signed (PEM).")],
    signature: SignatureOption = None,
    json: JsonOption = False,
) -> None:
    """Verify that the owner of this very key signed exactly the files of a bundle."""
    from mlflowkit.delivery.image.bundle_signature import verify_bundle

    verify_bundle(bundle, signature or bundle.with_name(f"{bundle.name}.sig"), key)
    if json:
        emit_json({"verified": True, "bundle": str(bundle)})
    else:
        echo(f"{bundle} is what the owner of {key} signed")
