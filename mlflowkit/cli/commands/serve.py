"""mlkit serve: a service in the foreground, as the one process of a container."""

from __future__ import annotations

import os
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import StateOption, app, note, state_folder
from mlflowkit.errors import UsageError
from mlflowkit.system.text import shell_word

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflowkit.bundle import Bundle
    from mlflowkit.rollout.settings import Rollout
    from mlflowkit.stages.deploy import ServeSection
    from mlflowkit.wiring import Wiring

SAGEMAKER_MODEL = Path("/opt/ml/model")
"""Where SageMaker puts the model's files."""


@app.command()
def serve(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe, for its serve section.", show_default=False)
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(envvar="MLKIT_BUNDLE", metavar="FOLDER", help="Serve this blessed bundle.")
    ] = None,
    delivery: Annotated[
        Path | None,
        typer.Option(envvar="MLKIT_DELIVERY", metavar="FILE", help="Serve and follow what this delivery.yaml names."),
    ] = None,
    service: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the service [default: the recipe's or the bundle's].")
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, max=64, metavar="N", help="Gateway replicas [default: the recipe's, or 1].")
    ] = None,
    host: Annotated[str | None, typer.Option(envvar="MLKIT_HOST", help="Address to listen on.")] = None,
    port: Annotated[
        int | None, typer.Option(envvar=["MLKIT_PORT", "SAGEMAKER_BIND_TO_PORT"], help="Port to listen on.")
    ] = None,
    keys: Annotated[Path | None, typer.Option(envvar="MLKIT_KEYS", metavar="FILE", help="File of API keys.")] = None,
    drain: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Between the end of readiness and of the listener.")
    ] = 5.0,
    give_up: Annotated[
        float, typer.Option("--give-up", min=1, metavar="SECONDS", help="Fail when not ready for so long.")
    ] = 120.0,
    state: StateOption = None,
) -> None:
    """Serve until SIGTERM, in the foreground: for containers, as PID 1.

    Give a recipe, --bundle or --delivery; a service of that name in the state folder goes on with the routing table
    that it has. Without any, the bundle in /opt/ml/model is served. A delivery.yaml is followed: a change of its
    champion is swapped in, a candidate is rolled out, and one that is taken out is aborted; `mlkit status` says what
    was done about it. Logs go to standard error.
    """
    from mlflowkit.processes.foreground import ForegroundLimits, StopRequested, serve_in_foreground, split_off_init
    from mlflowkit.system.files import use_private_umask
    from mlflowkit.system.logs import configure_logging
    from mlflowkit.wiring import Wiring

    folder = state_folder(state, recipe)
    given = [name for name, value in (("--bundle", bundle), ("--delivery", delivery)) if value is not None]
    if len(given) > 1:
        raise UsageError("--bundle and --delivery name two models", hint=f"mlkit serve --bundle {shell_word(bundle)}")
    use_private_umask()
    configure_logging()
    split_off_init(lambda: _stop(folder))
    try:
        wiring = Wiring(folder)
        source = _Source(wiring, recipe, bundle, delivery, service)
        section = source.section(host, port, keys, replicas)
        limits = ForegroundLimits(drain, give_up)
        code = serve_in_foreground(
            wiring.platform,
            folder,
            section.service,
            lambda: source.start(section),
            limits,
            source.delivery_follower(section),
        )
    except StopRequested:
        code = 0  # before anything was started
    raise typer.Exit(code)


def _stop(state: Path) -> None:
    from mlflowkit.wiring import Wiring

    Wiring(state).platform.down()


class _Source:
    """Where the served version comes from."""

    def __init__(
        self, wiring: Wiring, recipe: Path | None, bundle: Path | None, delivery: Path | None, service: str | None
    ) -> None:
        self._wiring, self._recipe, self._service = wiring, recipe, service
        self._delivery = delivery
        if bundle is None and delivery is None and recipe is None and service is None:
            bundle = _sagemaker_bundle()
        self._bundle = bundle
        self._opened: Bundle | None = None

    def section(self, host: str | None, port: int | None, keys: Path | None, replicas: int | None) -> ServeSection:
        """The serve section: the recipe's or the defaults, with the options of the command line."""
        from mlflowkit.cli.commands.deploy import serve_section
        from mlflowkit.stages.deploy import ServeSection

        if self._delivery is not None:
            self._service = self._service or self._delivered_service(self._delivery)
        if self._bundle is not None:
            from mlflowkit.bundle import open_bundle

            self._opened = open_bundle(self._bundle.resolve(), blessed=True)
            section = serve_section(self._opened.path, self._opened.manifest.name, self._recipe, self._service, port)
        elif self._recipe is not None:
            section = serve_section(self._recipe, "", self._recipe, self._service, port)
        else:
            section = ServeSection(service=self._service or "", **({} if port is None else {"port": port}))
        changes: dict[str, object] = {} if host is None else {"host": host}
        changes |= {} if replicas is None else {"replicas": replicas}
        if "SAGEMAKER_BIND_TO_PORT" in os.environ and host is None:
            changes["host"] = "0.0.0.0"
        if keys is not None:
            changes["auth"] = section.auth.model_copy(update={"keys": str(keys.resolve()), "keys_env": None})
        return section.model_copy(update=changes)

    def start(self, section: ServeSection) -> str:
        """Start the service, with the table that it has or the version that is to be served; returns the endpoint."""
        from mlflowkit.cli.commands.deploy import deploy_bundle
        from mlflowkit.cli.commands.up import start_service
        from mlflowkit.service_state.records import DELIVERY, ServiceFiles

        platform = self._wiring.platform
        files = ServiceFiles(platform.folder(section.service))
        if self._delivery is None:
            files.delete(DELIVERY)  # nothing follows a file any more
        table = files.table()
        identities = () if table is None else tuple(variant.digest for variant in table.variants)
        if self._delivery is not None and table is None:
            return self._start_delivered(self._delivery, section)
        if self._opened is not None and self._opened.manifest.identity not in identities:
            return str(deploy_bundle(self._opened, section, self._wiring.state, self._recipe)["endpoint"])
        if self._recipe is not None:
            from mlflowkit.recipe.check import load

            return start_service(self._wiring, load(self._recipe), section, note)
        if table is None:
            message = f"service {section.service} of {self._wiring.state} has no version"
            raise UsageError(message, hint="mlkit serve --bundle FOLDER")
        return platform.ensure(section, note)

    def delivery_follower(self, section: ServeSection) -> Callable[[threading.Event], None] | None:
        """What follows the delivery file while the service runs; None without one."""
        if self._delivery is None:
            return None
        from mlflowkit.delivery.gitops.delivery_follower import DeliveryFollower
        from mlflowkit.delivery.image.bundle_artifact import pull_bundle
        from mlflowkit.service_state.records import ServiceFiles

        files = ServiceFiles(self._wiring.platform.folder(section.service))
        return DeliveryFollower(self._delivery, files, pull_bundle, partial(self._deploy, section)).run

    def _deploy(self, section: ServeSection, folder: Path, rollout: Rollout | None, back: bool) -> None:
        from mlflowkit.bundle import open_bundle
        from mlflowkit.cli.commands.deploy import deploy_bundle

        if rollout is None:
            own = section.rollout
            rollout = type(own)(strategy="direct", allow_breaking=back or own.allow_breaking)
        section = section.model_copy(update={"rollout": rollout})
        deploy_bundle(open_bundle(folder, blessed=True), section, self._wiring.state, self._recipe)

    def _start_delivered(self, file: Path, section: ServeSection) -> str:
        """Deploy the first version that a delivery file names: its champion, or else its candidate."""
        import shutil

        from mlflowkit.bundle import open_bundle
        from mlflowkit.cli.commands.deploy import deploy_bundle
        from mlflowkit.delivery.gitops.delivery_follower import fetch_version, read_delivery
        from mlflowkit.delivery.gitops.follow_decision import ServedVersions, decide_follow
        from mlflowkit.delivery.image.bundle_artifact import pull_bundle

        desired = read_delivery(file)[0]
        if desired.service != section.service:
            message = f"{file} is of the service {desired.service}, not {section.service}"
            raise UsageError(message, hint=f"mlkit serve --delivery FILE --service {shell_word(desired.service)}")
        version = decide_follow(desired, ServedVersions()).version
        if version is None:
            hint = "mlkit gitops promote RECIPE --environment ENV --from REPORT makes a version the first one"
            raise UsageError(f"{file} names no version, and {section.service} serves none yet", hint=hint)
        note(f"fetching {version.bundle}")
        folder = fetch_version(version, self._wiring.state / "bundles", pull_bundle)
        try:
            bundle = open_bundle(folder, blessed=True)
            return str(deploy_bundle(bundle, section, self._wiring.state, self._recipe)["endpoint"])
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # it was copied into the store

    def _delivered_service(self, file: Path) -> str:
        """The only service of the state folder, or where there is none the one that a delivery file names."""
        from mlflowkit.delivery.gitops.delivery_follower import read_delivery
        from mlflowkit.service_state.records import ServiceFiles

        services = [files.service for files in ServiceFiles.all(self._wiring.state) if files.table() is not None]
        try:
            named = read_delivery(file)[0].service
        except UsageError as error:
            if len(services) != 1:
                raise
            note(f"warning: {error.message}; {services[0]} goes on with what it serves")
            return services[0]
        if len(services) == 1 and services[0] != named:
            note(f"warning: {file} is of the service {named}; {services[0]} goes on with what it serves")
            return services[0]
        return named


def _sagemaker_bundle() -> Path:
    """The bundle that SageMaker unpacked. Raises UsageError when there is none."""
    for folder in (SAGEMAKER_MODEL, SAGEMAKER_MODEL / "bundle"):
        if (folder / "manifest.json").is_file():
            return folder
    raise UsageError("nothing to serve is named", hint="mlkit serve --bundle FOLDER, or mlkit serve RECIPE")
