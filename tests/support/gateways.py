"""A gateway in this process, over HTTP and gRPC, without Ray."""

from __future__ import annotations

from typing import Any

import grpc
import httpx
import pytest

from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.service_state.records import GatewaySettings
from mlflowkit.serving.grpc.grpc_server import GrpcServer
from mlflowkit.serving.grpc.message_codec import SERVICE, messages
from mlflowkit.serving.http.gateway import Gateway
from mlflowkit.serving.http.http_server import HttpServer
from mlflowkit.serving.inference.data_plane import DataPlane
from mlflowkit.serving.inference.gateway_metrics import Telemetry
from mlflowkit.serving.inference.variants import Versions, load_table
from mlflowkit.values import RoutingTable


class InProcess:
    """A gateway with its listener in this process, without Ray."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.versions = Versions()
        self.plane = DataPlane(settings, self.versions, Telemetry(settings.service, "test"))
        self.listener = HttpServer(Gateway(self.plane), "127.0.0.1", 0, header_seconds=1.0)
        self.url = f"http://127.0.0.1:{self.listener.port}"
        self.client = httpx.Client(base_url=self.url, timeout=20)

    def swap(self, new: RoutingTable) -> None:
        self.versions.activate(load_table(new, OnnxRuntime(), 1))

    def close(self) -> None:
        self.client.close()
        self.listener.stop()
        self.plane.close()


class Grpc:
    """The gRPC door of a gateway in this process, and a client for it that is made of nothing but messages."""

    def __init__(self, running: InProcess) -> None:
        self.listener = GrpcServer(running.plane, "127.0.0.1", 0, running.listener.loop)
        self.address = f"127.0.0.1:{self.listener.port}"
        self.channel = grpc.insecure_channel(self.address)

    def ask(self, method: str, request: Any = None, *, metadata: Any = (), seconds: float = 20.0) -> Any:
        """The reply. Raises grpc.RpcError. ``request`` may be bytes, sent as they are."""
        kind = {"ModelStreamInfer": "ModelInfer"}.get(method, method)
        request = getattr(messages(), f"{kind}Request")() if request is None else request
        call = self.channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda value: value if isinstance(value, bytes) else value.SerializeToString(),
            response_deserializer=getattr(messages(), f"{method}Response").FromString,
        )
        reply, found = call.with_call(request, metadata=metadata, timeout=seconds)
        self.trailer = dict(found.trailing_metadata())
        return reply

    def refused(self, method: str, request: Any = None, **more: Any) -> tuple[str, str]:
        """The status and the sentence of a call that is refused."""
        with pytest.raises(grpc.RpcError) as caught:
            self.ask(method, request, **more)
        return caught.value.code().name, caught.value.details()

    def close(self) -> None:
        self.channel.close()
        self.listener.stop(1.0)

    def __enter__(self) -> Grpc:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
