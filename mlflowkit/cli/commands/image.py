"""mlkit image: build images, push and pull bundles, sign and verify them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from mlflowkit.cli.app import JsonOption, RecipeArgument, app, echo, emit_json, note, print_result
from mlflowkit.errors import UsageError
from mlflowkit.system.text import shell_word

group = typer.Typer(
    help="Images, and bundles in a registry: by digest, signed.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(group, name="image")

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of a bundle.", show_default=False)]
TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="TARGET", help="The folder of a bundle, or repository@sha256:digest of an image.", show_default=False
    ),
]
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
    attest: Annotated[
        bool, typer.Option("--attest/--no-attest", help="Attach the list of packages and the provenance to the images.")
    ] = True,
    key: Annotated[
        Path | None,
        typer.Option(envvar="MLKIT_SIGNING_KEY", metavar="FILE", help="Sign what is pushed with this private key."),
    ] = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Build a recipe's images, and push them and the judged bundle with --push; equal inputs give equal digests.

    What was pushed is written to image.json, which the steps after this one read.
    """
    from mlflowkit.ci.image_delivery import build_recipe_images, planned_commands, planned_images
    from mlflowkit.delivery.image.image_builder import builder_name, find_builder
    from mlflowkit.delivery.image.image_signature import signing_key

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
    with signing_key(key, os.environ) as private:
        value = build_recipe_images(
            planned, find_builder(wanted), push=push, folder=folder, progress=note, attest=attest, key=private
        )
    print_result(value, "\n".join([*value["images"].values(), *filter(None, [value["bundle"]])]), json)


@group.command("push")
def push_(
    bundle: BundleArgument,
    repository: Annotated[
        str, typer.Argument(metavar="REPOSITORY", help="Such as ghcr.io/acme/lending-bundle, or hf://acme/lending.")
    ],
    public: Annotated[bool, typer.Option("--public", help="Of hf://: a repository that everybody may read.")] = False,
    license: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of hf://: the licence on the card, such as apache-2.0.")
    ] = None,
    send_values: Annotated[
        bool,
        typer.Option("--send-values", help="Of hf://: also the evidence with values of rows (profiles, sample rows)."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say the reference; push nothing.")] = False,
    json: JsonOption = False,
) -> None:
    """Push a bundle as an artifact of its own; prints its reference: by digest, or by its tag on the Hub.

    On the Hub it is one commit with a card, private unless --public; the token is HF_TOKEN or that of hf auth login.
    """
    from mlflowkit.data_access.registry_sections import HUB_SCHEME

    if repository.startswith(HUB_SCHEME):
        reference = _push_to_hub(bundle, repository, public, license, send_values, dry_run)
        print_result({"bundle": reference}, reference, json)
        return
    if public or license is not None or send_values:
        message = "--public, --license and --send-values are of the Hugging Face Hub"
        raise UsageError(message, hint="name a repository there, hf://ORG/NAME, or leave them out")
    from mlflowkit.delivery.image.bundle_artifact import bundle_reference, push_bundle

    reference = bundle_reference(bundle, repository) if dry_run else push_bundle(bundle, repository)
    print_result({"bundle": reference}, reference, json)


def _push_to_hub(
    bundle: Path, repository: str, public: bool, license: str | None, send_values: bool, dry_run: bool
) -> str:
    """Push a bundle to the Hub, or say how it would be named there. Raises UsageError for a wrong name."""
    from pydantic import ValidationError

    from mlflowkit.bundle import open_bundle
    from mlflowkit.data_access.registry_sections import HuggingfaceRegistry, hub_reference
    from mlflowkit.wiring import Wiring

    try:
        section = HuggingfaceRegistry(
            kind="huggingface",
            repository=repository.removeprefix("hf://"),
            private=not public,
            license=license,
            send_values=send_values,
        )
    except ValidationError as error:
        fault = error.errors()[0]
        message = f"{fault['loc'][0]} {fault['input']!r}: {fault['msg']}"
        raise UsageError(message, hint="name a repository as hf://ORG/NAME, and a licence as apache-2.0") from None
    if dry_run:
        return str(hub_reference(section, open_bundle(bundle, blessed=True).manifest.identity))
    with tempfile.TemporaryDirectory(prefix="mlkit-push-") as state:
        return Wiring(Path(state)).model_registry(section, Path.cwd(), {}).push(bundle)


@group.command()
def pull(
    reference: Annotated[
        str, typer.Argument(metavar="REFERENCE", help="repository@sha256:digest, or hf://org/name@revision.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder for the bundle.")],
    json: JsonOption = False,
) -> None:
    """Fetch a bundle by digest, or from the Hub, verified before it appears."""
    from mlflowkit.data_access.registry_sections import HUB_SCHEME

    if reference.startswith(HUB_SCHEME):
        from mlflowkit.pipeline.lineage.model_reference import hub_registry
        from mlflowkit.wiring import Wiring

        with tempfile.TemporaryDirectory(prefix="mlkit-pull-") as state:
            pulled = hub_registry(reference, Wiring(Path(state))).pull(reference, folder)
    else:
        from mlflowkit.delivery.image.bundle_artifact import pull_bundle

        pulled = pull_bundle(reference, folder)
    print_result({"bundle": reference, "folder": str(pulled)}, str(pulled), json)


@group.command()
def sign(
    target: TargetArgument,
    key: Annotated[Path, typer.Option(envvar="MLKIT_SIGNING_KEY", metavar="FILE", help="The private key (EC, PEM).")],
    signature: SignatureOption = None,
    json: JsonOption = False,
) -> None:
    """Sign a bundle's files with a key, or what a registry has: the signature is attached to it there."""
    from mlflowkit.delivery.image.bundle_signature import sign_bundle
    from mlflowkit.delivery.image.image_attachments import sign_image

    if _is_reference(target, signature):
        attached = sign_image(target, key)
        value = {"reference": target, "signature": attached.signature, "provenance": attached.provenance}
        print_result(value, f"signed {target}: {attached.signature}", json)
        return
    bundle = Path(target)
    file = signature or bundle.with_name(f"{bundle.name}.sig")
    sign_bundle(bundle, file, key)
    print_result({"signature": str(file)}, str(file), json)


@group.command()
def verify(
    target: TargetArgument,
    key: Annotated[Path, typer.Option(metavar="FILE", help="The public key that must have signed (PEM).")],
    identity: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The builder that the signed provenance must name, whole and exact."),
    ] = None,
    signature: SignatureOption = None,
    json: JsonOption = False,
) -> None:
    """Verify that the owner of this very key signed exactly the files of a bundle, or an image in a registry."""
    from mlflowkit.delivery.image.bundle_signature import verify_bundle
    from mlflowkit.delivery.image.image_attachments import verify_image

    if _is_reference(target, signature):
        verified = verify_image(target, key, identity)
        built = (
            f"\n  built by {verified.identity}, commit {verified.revision[:12] or 'unknown'}"
            if verified.identity
            else ""
        )
        contents = f"\n  {verified.packages} packages on {verified.base}" if verified.sbom else ""
        text = f"{target} is signed by {verified.key}{built}{contents}"
        print_result({"verified": True, **verified.to_json()}, text, json)
        return
    if identity is not None:
        hint = f"mlkit image verify {shell_word(target)} --key {shell_word(key)}"
        raise UsageError("--identity names who built an image in a registry; a folder has no provenance", hint=hint)
    bundle = Path(target)
    verify_bundle(bundle, signature or bundle.with_name(f"{bundle.name}.sig"), key)
    if json:
        emit_json({"verified": True, "bundle": str(bundle)})
    else:
        echo(f"{bundle} is what the owner of {key} signed")


def _is_reference(target: str, signature: Path | None) -> bool:
    """Whether a registry is meant, and not a folder. Raises UsageError for a reference with a file of a signature."""
    if "@" not in target or Path(target).is_dir():
        return False
    if signature is not None:
        raise UsageError("a registry keeps the signature of what it has", hint="leave --signature out")
    return True
