"""A Ray Serve application that runs a service: what ``import_path: mlflowkit.processes.serve_application:build`` names.

KubeRay's ``serveConfigV2``, ``serve deploy`` and ``serve run`` build it in a Ray that exists. Its one replica runs
``mlkit serve`` attached to that Ray, which deploys the gateways as it does anywhere: they listen on their own port,
each on the pod that runs it, and answer ``/-/healthz`` there. The application is RUNNING once the service has a model
that answers, and not before, so that KubeRay moves no traffic to a cluster that could not answer (kuberay#1559).

How many gateways there are is the deployment's ``user_config``, which Serve changes in place: changed arguments would
replace the replica, and with it the service.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, model_validator

from mlflowkit.errors import ServiceError, UsageError
from mlflowkit.sections import Section
from mlflowkit.system.child_process import die_with_parent_command
from mlflowkit.system.text import printable

if TYPE_CHECKING:
    from mlflowkit.service_state.records import ServiceFiles

STATE = "/var/lib/mlkit"
CLUSTER_NAME = "RAY_CLUSTER_NAME"
"""KubeRay's variable with the name of a pod's Ray cluster."""
POLL_SECONDS = 0.2
STOP_SECONDS = 60.0
LOG_LINES = 5
_log = logging.getLogger("mlflowkit.serve")


class ServeApplicationSize(Section):
    """The ``user_config`` of the deployment ``service``."""

    replicas: int = Field(default=1, ge=1, le=64)
    """Gateway replicas in the whole cluster."""


class ServeApplicationArguments(Section):
    """The arguments of the builder, ``args`` in a Serve configuration."""

    service: str = Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    """Name of the service."""
    delivery: str | None = None
    """Serve the champion that this delivery.yaml names, by digest."""
    bundle: str | None = None
    """Serve the blessed bundle in this folder."""
    state: str | None = None
    """The state folder; MLKIT_STATE when it is not given. Where KubeRay names the cluster, its folder in that one:
    during an upgrade two clusters run, and each decides for itself."""
    give_up: float = Field(default=300.0, ge=1)
    """Seconds without a ready service after which the application fails."""

    @model_validator(mode="after")
    def _names_one_model(self) -> ServeApplicationArguments:
        if (self.delivery is None) == (self.bundle is None):
            raise ValueError("name one of delivery, bundle")
        return self

    def state_folder(self) -> Path:
        """The state folder in this pod."""
        folder = Path(self.state or os.environ.get("MLKIT_STATE") or STATE)
        cluster = os.environ.get(CLUSTER_NAME, "")
        return folder / "clusters" / cluster if re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", cluster) else folder

    def command(self, replicas: int) -> list[str]:
        """The arguments of ``mlkit serve``."""
        source = ["--delivery", self.delivery] if self.delivery is not None else ["--bundle", str(self.bundle)]
        return [
            "serve", *source, "--service", self.service, "--replicas", str(replicas),
            "--give-up", f"{self.give_up:g}", "--state", str(self.state_folder()),
        ]  # fmt: skip


def build(args: dict[str, Any]) -> Any:
    """The Serve application of `ServeApplicationArguments`. Raises UsageError for other arguments.

    Nothing is read or fetched here: the replica does that, on a worker.
    """
    from ray import serve

    arguments = serve_arguments(args)
    deployment = serve.deployment(
        name="service", num_replicas=1, ray_actor_options={"num_cpus": 0.1}, user_config={}, health_check_period_s=5,
        health_check_timeout_s=60, graceful_shutdown_wait_loop_s=0.1, graceful_shutdown_timeout_s=STOP_SECONDS + 10,
    )(ServiceReplica)  # fmt: skip
    return deployment.bind(arguments.model_dump())


def serve_arguments(args: dict[str, Any]) -> ServeApplicationArguments:
    """The checked arguments. Raises UsageError.

    >>> serve_arguments({"service": "lending", "bundle": "/bundle"}).command(2)[:3]
    ['serve', '--bundle', '/bundle']
    """
    try:
        return ServeApplicationArguments.model_validate(args)
    except ValidationError as error:
        raise _refused("args", error, "args: {service: lending, delivery: /etc/mlkit/delivery.yaml}") from error


def serve_size(user_config: dict[str, Any]) -> ServeApplicationSize:
    """The checked ``user_config``. Raises UsageError."""
    try:
        return ServeApplicationSize.model_validate(user_config)
    except ValidationError as error:
        raise _refused("user_config", error, "user_config: {replicas: 2}") from error


def _refused(where: str, error: ValidationError, hint: str) -> UsageError:
    fault = error.errors()[0]
    return UsageError(f"{'.'.join([where, *map(str, fault['loc'])])}: {fault['msg']}", hint=hint)


class ServiceReplica:
    """The Serve replica: ``mlkit serve`` as its child, which ends with it.

    Its start raises ServiceError when the service ends or does not become ready; Serve then says why.
    """

    def __init__(self, args: dict[str, Any]) -> None:
        self._arguments = serve_arguments(args)
        self._process: subprocess.Popen[str] | None = None
        self._last: collections.deque[str] = collections.deque(maxlen=LOG_LINES)
        self._thread = threading.Thread()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve before the replica counts as started, and when the ``user_config`` changes."""
        replicas = serve_size(user_config).replicas
        if self._process is None:
            self._start(replicas)
        else:
            self._scale(replicas)

    def _start(self, replicas: int) -> None:
        # The kernel ends the child with the thread that starts it, so this one lives as long as the child does.
        started = threading.Event()
        arguments = (self._arguments.command(replicas), _ray_address(), started)
        self._thread = threading.Thread(target=self._run, args=arguments, name="mlkit-serve", daemon=True)
        self._thread.start()
        started.wait()
        try:
            self._await_ready()
        except ServiceError:
            self.stop()
            raise

    def _scale(self, replicas: int) -> None:
        """Have the reconciler run another number of gateways; those that run are left alone."""
        files = self._files()
        with files.lock("ensure"):
            desired = files.desired()
            if desired is not None and desired.settings.replicas != replicas:
                settings = dataclasses.replace(desired.settings, replicas=replicas)
                files.write_desired(dataclasses.replace(desired, generation=desired.generation + 1, settings=settings))

    def check_health(self) -> None:
        """Called by Serve; raises when the service has ended, so that the replica is replaced."""
        if self._process is None or self._process.poll() is not None:
            raise self._ended()

    async def __call__(self, request: Any) -> Any:
        """Answers at Serve's own proxy, if one runs, where the service is."""
        from starlette.responses import JSONResponse

        message = f"the service {self._arguments.service} answers on its own port: {self._endpoint()}"
        return JSONResponse({"error": message}, status_code=404)

    def stop(self) -> None:
        """End the service in order: not ready, then drained, then stopped."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _log.error("%s did not stop within %g s; it is killed", self._arguments.service, STOP_SECONDS)
            process.kill()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.stop()

    def _run(self, arguments: list[str], address: str, started: threading.Event) -> None:
        """Start the child, and copy its log to this replica's until it ends."""
        command = die_with_parent_command("mlflowkit.cli", *arguments)
        environment = {**os.environ, "RAY_ADDRESS": address}
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                errors="replace", env=environment,
            )  # fmt: skip
        except OSError as error:
            self._last.append(str(error))
            return
        finally:
            started.set()
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._last.append(printable(line.rstrip("\n")))
            sys.stderr.write(printable(line))
        self._process.wait()

    def _await_ready(self) -> None:
        from mlflowkit.service_state import http_client

        deadline = time.monotonic() + self._arguments.give_up
        while not ((endpoint := self._endpoint()) and http_client.ready(endpoint)):
            self.check_health()
            if time.monotonic() > deadline:
                message = f"{self._arguments.service} was not ready within {self._arguments.give_up:g} s"
                raise ServiceError(f"{message}: {'; '.join(self._last)}", hint="kubectl logs shows the replica's log")
            time.sleep(POLL_SECONDS)

    def _files(self) -> ServiceFiles:
        from mlflowkit.service_state.records import ServiceFiles

        return ServiceFiles(self._arguments.state_folder() / "services" / self._arguments.service)

    def _endpoint(self) -> str:
        files = self._files()
        desired = files.desired() if files.folder.is_dir() else None
        return "" if desired is None or not desired.up else desired.settings.endpoint

    def _ended(self) -> ServiceError:
        self._thread.join(2.0)  # its last lines
        message = f"mlkit serve has ended: {'; '.join(self._last) or 'it said nothing'}"
        return ServiceError(message, hint=f"try it by hand: mlkit {' '.join(self._arguments.command(1)[:3])}")


def _ray_address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)
