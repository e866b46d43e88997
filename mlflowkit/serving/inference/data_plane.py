"""The data plane: what HTTP and gRPC share of serving a request. Identify, authorize, admit, look up, run.

Both front ends parse and render their own wire format and call this in between; neither imports the other.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from mlflowkit.errors import MlkitError
from mlflowkit.service_state.records import GatewaySettings
from mlflowkit.serving.auth import Keyring, Scope, bearer_token
from mlflowkit.serving.inference import metadata
from mlflowkit.serving.inference.answer_records import RecordSink, RequestMirror
from mlflowkit.serving.inference.dispatcher import Dispatcher, InferenceCall
from mlflowkit.serving.inference.gateway_metrics import Telemetry
from mlflowkit.serving.inference.router import affinity_key
from mlflowkit.serving.inference.variants import LoadedModel, Versions
from mlflowkit.serving.protocol.binary_tensors import JSON_LENGTH_HEADER, parse_json_length
from mlflowkit.serving.protocol.http_error import CLOSE, RETRY, RequestError
from mlflowkit.serving.protocol.input_schema import ColumnPolicy, Query, Schema
from mlflowkit.values import Json

PUBLIC_ENDPOINTS = frozenset({"live", "ready", "healthz", "model-ready"})
"""Endpoints that need no API key: supervisors and load balancers call them."""
REQUIRED_SCOPE: Mapping[str, Scope] = {
    "infer": "infer", "predict": "infer", "invocations": "infer", "feedback": "feedback", "metrics": "metrics",
    "delivery": "admin",
}  # fmt: skip
"""The scope an endpoint requires; see `Keyring.check` for the others."""
_IDS_AT_ONCE = 256


@dataclass(slots=True)
class RequestHead:
    """A request's parsed headers. ``json_length`` is that of the JSON part before binary tensors; -1 for none."""

    call: InferenceCall
    body_length: int = -1
    json_length: int = -1
    token: bytes = b""
    content_encoding: bytes = b""
    accept_encoding: bytes = b""


class DataPlane:
    """Serves requests with the routing table that ``versions`` points at. Lives on one event loop.

    ``settings`` and ``keys`` may be replaced at any time and hold from the next request on; ``keys`` None asks for no
    API key. ``in_flight`` counts the requests of both front ends that are being answered.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        versions: Versions,
        telemetry: Telemetry,
        sink: RecordSink | None = None,
        mirror: RequestMirror | None = None,
    ) -> None:
        self.keys: Keyring | None = None
        self.versions = versions
        self.telemetry = telemetry
        self.dispatcher = Dispatcher(settings, versions, telemetry, sink, mirror)
        self.columns = ColumnPolicy(settings.unknown_columns, settings.missing_columns)
        self.in_flight = 0
        self.draining = False
        """Whether this process is about to stop; it still answers."""
        self._ids = request_ids()

    @property
    def settings(self) -> GatewaySettings:
        return self.dispatcher.settings

    @settings.setter
    def settings(self, settings: GatewaySettings) -> None:
        self.dispatcher.settings = settings
        self.columns = ColumnPolicy(settings.unknown_columns, settings.missing_columns)

    def read_headers(self, headers: Iterable[tuple[bytes, bytes]], begin: float) -> RequestHead:
        """Parse headers (HTTP) or metadata (gRPC): a call with its id, affinity key and override, and the body's form.

        Without the affinity's header or cookie, a call is routed by its id.
        """
        head = RequestHead(self.new_call(begin))
        call = head.call
        active = self.versions.active
        affinity = b"" if active is None else active.affinity_header
        override = b"" if active is None else active.override_header
        for name, value in headers:
            if name == b"content-length":
                head.body_length = int(value)
            elif name == JSON_LENGTH_HEADER:
                head.json_length = parse_json_length(value)
            elif name == b"content-encoding":
                head.content_encoding = value
            elif name == b"accept-encoding":
                head.accept_encoding = value
            elif name == b"x-request-id":
                if 0 < len(value) <= 128 and value.isascii() and (text := value.decode()).isprintable():
                    call.id = text
            elif name in (b"authorization", b"x-api-key"):
                head.token = bearer_token(name, value) or head.token
            if name == affinity and active is not None:
                call.key = affinity_key(active.table.affinity, value)
            elif name == override:
                call.override = value.decode("latin-1")
        return head

    def new_call(self, begin: float) -> InferenceCall:
        """A call with a generated id, which nobody else can guess: feedback names the request by it."""
        return InferenceCall(next(self._ids), _no_body, begin)

    def authorize(self, endpoint: str, token: bytes) -> None:
        """Raise RequestError (401, 403) unless the token's key may use the endpoint; see `auth.Keyring.check`."""
        if self.keys is None or endpoint in PUBLIC_ENDPOINTS:
            return
        try:
            self.keys.check(token, REQUIRED_SCOPE.get(endpoint))
        except RequestError as error:
            self.telemetry.record_unauthorized(error.status)
            raise

    def check_load(self) -> None:
        """Raise RequestError(503) when the queue is full. Called before a body is read, to bound memory.

        Requests whose bodies are still arriving do not count: slow senders must not keep others out.
        """
        if self.dispatcher.waiting >= self.settings.max_queue:
            raise RequestError(503, f"{self.settings.max_queue} requests are waiting already", (*RETRY, *CLOSE))

    def check_draining(self) -> None:
        """Raise RequestError(503) once this process is to end: it answers, and load balancers are to send no more."""
        if self.draining:
            raise RequestError(503, f"{self.settings.service} is about to stop", CLOSE)

    def check_model_name(self, name: str) -> None:
        """Raise RequestError(404) for another model than this service's."""
        if name != self.settings.service:
            raise RequestError(404, f"no model {name[:80]!r} here; this service has {self.settings.service}")

    def find_model(self, name: str, version: str) -> LoadedModel:
        """The model of a name and a version, the champion for "". Raises RequestError: 404, or 503 with none yet."""
        self.check_model_name(name)
        active = self.dispatcher.active()
        if not version:
            return active.champion
        return self.dispatcher.route(InferenceCall("", _no_body, 0.0, version=version), active)[0]

    def statistics(self, name: str, version: str) -> Json:
        """Statistics of one version, or of all loaded versions for "". Raises RequestError(404)."""
        active = self.versions.active
        if name:
            self.check_model_name(name)
        versions = [] if active is None else [*active.by_version]
        if version:
            versions = [self.find_model(name, version).variant.version]
        return metadata.statistics(self.settings.service, self.telemetry, versions)

    def close(self) -> None:
        """Shut the worker pools down after in-flight requests finish."""
        self.dispatcher.close()


def internal_error_message(error: Exception) -> str:
    """The client's message for a failure of the server's own."""
    return error.message if isinstance(error, MlkitError) else "the server failed; its log says why"


def request_ids() -> Iterator[str]:
    """Request ids: 96 random bits each, in hexadecimal; the kernel is asked once for many, which costs less.

    >>> len(next(request_ids()))
    24
    """
    while True:
        digits = os.urandom(12 * _IDS_AT_ONCE).hex()
        for begin in range(0, len(digits), 24):
            yield digits[begin : begin + 24]


def _no_body(schema: Schema) -> Query:
    raise RequestError(500, "a call without a body was asked for its query")
