"""mlkit image: build images, push and pull bundles, sign and verify them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlflowkit.cli.app import JsonOption, RecipeArgument, app, echo, emit_json, note, print_result
from mlflowkit.errors import UsageError
from mlflowkit.system.text import shell_word

if TYPE_CHECKING:
    from mlflowkit.delivery.image.image_builder import ImageBuild

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
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Build a recipe's images, and push them and the judged bundle with --push; equal inputs give equal digests."""
    from mlflowkit.delivery.image.bundle_artifact import bundle_reference, push_bundle
    from mlflowkit.delivery.image.image_builder import build_commands, build_image, builder_name, find_builder

    wanted = None if builder is None else builder_name(builder)
    builds, repository = _builds(recipe, role or ["serve"])
    bundle = None if report is None else report.parent / "bundle"
    if dry_run:
        named = wanted or builder_name("buildah")
        lines = [
            " ".join(map(shell_word, command))
            for each in builds.values()
            for command in build_commands(each, named, Path("BUILD"), push=push)
        ]
        reference = "" if bundle is None else bundle_reference(bundle, repository)
        text = "\n".join([*lines, *([f"bundle: {reference}"] if reference else [])])
        print_result({"commands": lines, "bundle": reference}, text, json)
        return
    value: dict[str, Any] = {"images": {}, "bundle": ""}
    if bundle is not None and push:
        value["bundle"] = push_bundle(bundle, repository)
        note(f"pushed {value['bundle']}")
    which = find_builder(wanted)
    for name, each in builds.items():
        value["images"][name] = build_image(each, which, push=push)
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


def _builds(recipe: Path, roles: list[str]) -> tuple[dict[str, ImageBuild], str]:
    """What to build, by role, and the repository of bundles. Raises UsageError, RecipeError."""
    from mlflowkit.ci.recipe_export import load_delivery
    from mlflowkit.ci.recipe_facts import repository_root
    from mlflowkit.delivery.image.image_builder import ImageBuild
    from mlflowkit.delivery.targets.dockerfile import DockerTarget, dockerfile_path

    loaded, plan = load_delivery(recipe)
    images = {image.role: image for image in plan.images}
    unknown = [role for role in roles if role not in images]
    if unknown:
        raise UsageError(f"there is no image {unknown[0]!r}", hint=f"--role is one of {', '.join(images)}")
    files, root = DockerTarget().render(plan), repository_root(loaded.folder)
    builds: dict[str, ImageBuild] = {}
    for role in roles:
        image = next(image for name, image in images.items() if name == role)
        path = dockerfile_path(image)
        builds[role] = ImageBuild(image.reference, files[path], files[f"{path}.dockerignore"], root)
    return builds, f"{plan.registry}-bundle"
