"""The gateway as a Ray Serve deployment. Imported only in the reconciler and in Serve's replicas."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from ray import serve

from mlflowkit.adapters.ray_serve.isolated import bind_replica_to_loopback
from mlflowkit.system.files import use_private_umask

PROFILER = "mlflowkit.adapters.whylogs:WhylogsProfiler"
"""Profiler of live traffic, loaded in the observer's process."""


class GatewayReplica:
    """The Serve replica: wraps a `mlflowkit.serving.replica.Replica`, which owns its listener.

    Its arguments never change, so Serve has no reason to replace it: versions, limits and even the port come through
    the service's files.
    """

    def __init__(self, folder: str, runtime: str) -> None:
        from mlflowkit.adapters.ray_serve.remote import RayRemoteModels
        from mlflowkit.serving.replica import Replica

        use_private_umask()  # a Ray of someone else's did not inherit ours
        bind_replica_to_loopback()
        name = serve.get_replica_context().replica_id.unique_id
        remotes, service = RayRemoteModels(Path(folder)), Path(folder)
        self._replica = Replica(
            service, resolve_name(runtime)(), name, remotes, PROFILER, retired=lambda: os._exit(0)
        )  # its Ray is gone, which an orderly end of the process would wait for

    def check_health(self) -> None:
        """Called by Serve; raises when the replica must be replaced."""
        self._replica.check()

    async def __call__(self, request: Any) -> Any:
        """Called by Serve's own proxy, if one runs: the same ASGI application on the proxy's connection."""
        from starlette.responses import Response

        gateway, proxied = self._replica.gateway, request

        class GatewayResponse(Response):
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                await gateway(proxied.scope, proxied.receive, send)

        return GatewayResponse()

    def __del__(self) -> None:
        if hasattr(self, "_replica"):
            self._replica.stop()


GATEWAY_RESOURCE = "mlkit_gateway"
"""A Ray resource of nodes that are to run gateways: where a cluster has it, each gateway takes one, so that a node with
one runs exactly one."""


def application(folder: Path, runtime: str, *, resources: Mapping[str, float] | None = None) -> Any:
    """A Serve application of one gateway replica for the service in ``folder``; ``resources`` as Ray names them."""
    deployment = serve.deployment(
        name="gateway", num_replicas=1, health_check_period_s=2, health_check_timeout_s=5,
        ray_actor_options={"num_cpus": 0.1, "resources": dict(resources or {})},
        graceful_shutdown_wait_loop_s=0.1, graceful_shutdown_timeout_s=10,
        max_ongoing_requests=256,
    )(GatewayReplica)  # fmt: skip
    return deployment.bind(str(folder), runtime)
