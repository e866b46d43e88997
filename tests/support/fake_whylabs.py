"""A strict stand-in for WhyLabs' API: it refuses what the real one refuses, and remembers what it was given."""

from __future__ import annotations

import json
import re
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

KEY = "abcdefghij.geheim0123456789:org-1"
DATASET = "model-3"


class FakeWhylabs:
    """POST for an address, then PUT of a whylogs profile to that address, within its life.

    uploads   by id: (timestamp in ms, the profile or None, how often it was put)
    statuses  of the next requests, before what would be answered; "slow" answers after `slow_seconds`
    """

    def __init__(self, *, slow_seconds: float = 1.0) -> None:
        self.uploads: dict[str, list[Any]] = {}
        self.statuses: list[int | str] = []
        self.requests: list[str] = []
        self.slow_seconds = slow_seconds
        self.expired: set[str] = set()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                fake._handle(self, fake._post)

            def do_PUT(self) -> None:
                fake._handle(self, fake._put)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeWhylabs:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def profiles(self) -> list[tuple[int, bytes]]:
        """(timestamp, profile) of what was uploaded."""
        return [(stamp, profile) for stamp, profile, _ in self.uploads.values() if profile is not None]

    def _handle(self, request: BaseHTTPRequestHandler, answer: Any) -> None:
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        self.requests.append(request.command)
        status: int | str = self.statuses.pop(0) if self.statuses else 0
        if status == "slow":
            time.sleep(self.slow_seconds)
            status = 0
        code, reply = (
            (status, {"message": f"no {request.headers.get('x-api-key')} for {request.path}"})
            if status
            else answer(request, body)
        )
        content = json.dumps(reply).encode()
        request.send_response(int(code))
        request.send_header("content-type", "application/json")
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # the client did not wait
            request.wfile.write(content)

    def _post(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, Any]:
        if request.headers.get("x-api-key") != KEY:
            return 401, {"message": "unauthorized"}
        match = re.fullmatch(r"/v0/organizations/([^/]+)/log/async/([^/]+)", request.path)
        if match is None:
            return 404, {"message": "no such path"}
        if match.groups() != ("org-1", DATASET):
            return 403, {"message": "forbidden"}
        if request.headers.get("x-whylabs-file-extension") != "BIN":
            return 400, {"message": "the extension is BIN or ZIP"}
        if not request.headers.get("content-type", "").startswith("application/json"):
            return 415, {"message": "application/json is expected"}
        value = json.loads(body)
        stamp = value.get("datasetTimestamp")
        if type(stamp) is not int or not 1e12 < stamp < 1e13 or not isinstance(value.get("segmentTags"), list):
            return 400, {"message": "datasetTimestamp in milliseconds and segmentTags are required"}
        if value.keys() - {"datasetTimestamp", "segmentTags", "region"}:
            return 400, {"message": "unknown keys"}
        id = f"log-{len(self.uploads)}"
        self.uploads[id] = [stamp, None, 0]
        url = f"{self.url}/bucket/{id}.bin?X-Amz-Signature=signed-{id}"
        return 200, {"id": id, "modelId": DATASET, "uploadTimestamp": stamp, "uploadUrl": url, "tags": []}

    def _put(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, Any]:
        parts = urlsplit(request.path)
        id = parts.path.removeprefix("/bucket/").removesuffix(".bin")
        if id not in self.uploads or parts.query != f"X-Amz-Signature=signed-{id}" or id in self.expired:
            return 403, {"message": "Request has expired"}
        if request.headers.get("content-type") != "application/octet-stream" or request.headers.get("x-api-key"):
            return 403, {"message": "SignatureDoesNotMatch"}
        if not body.startswith(b"WHY1"):
            return 400, {"message": "no whylogs profile"}
        self.uploads[id][1] = body
        self.uploads[id][2] += 1
        return 200, {}
