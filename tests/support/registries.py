"""Registries for tests: Debian's docker-registry as a process, and a strict fake that can be told to lie."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from tests.support.tools import require_tool
from tests.support.waiting import wait_for

_PATH = re.compile(r"/v2/(?P<name>[a-z0-9/_-]+)/(?P<kind>blobs|manifests)/(?P<rest>.*)")


class FakeRegistry:
    """The calls of the distribution API that a push and a pull need; anything else is answered with 405 or 400.

    ``token`` is asked for when it is set, through a challenge. ``lies`` replaces content by digest, on its way out.
    While it is ``down``, everything is answered with 401.
    """

    def __init__(self, *, token: str = "", password: str = "") -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.lies: dict[str, bytes] = {}
        self.token, self.password = token, password
        self.down = False
        self.calls: list[tuple[str, str]] = []
        self.sent = 0

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.answer)

    def answer(self, request: httpx.Request) -> httpx.Response:
        """The reply to a request."""
        self.calls.append((request.method, request.url.path))
        if self.down:
            return httpx.Response(401)
        if request.url.path == "/token":
            right = request.headers.get("authorization") == httpx.BasicAuth("ci", self.password)._auth_header
            return httpx.Response(200, json={"token": self.token}) if right else httpx.Response(401)
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            realm = f"{request.url.scheme}://{request.url.netloc.decode()}/token"
            return httpx.Response(401, headers={"www-authenticate": f'Bearer realm="{realm}",service="fake"'})
        parts = _PATH.fullmatch(request.url.path)
        if parts is None:
            return httpx.Response(405)
        return (
            self._blob(request, parts["rest"]) if parts["kind"] == "blobs" else self._manifest(request, parts["rest"])
        )

    def _blob(self, request: httpx.Request, rest: str) -> httpx.Response:
        if rest == "uploads/" and request.method == "POST":
            name = f"u{len(self.uploads)}"
            self.uploads[name] = b""
            return httpx.Response(202, headers={"location": f"{request.url.path}{name}?_state=s%2B1"})
        if rest.startswith("uploads/"):
            return self._upload(request, rest.removeprefix("uploads/"))
        return self._content(request, self.blobs, rest)

    def _upload(self, request: httpx.Request, name: str) -> httpx.Response:
        if request.url.params.get("_state") != "s+1" or name not in self.uploads:
            return httpx.Response(404)
        if request.method == "PATCH":
            start = int(request.headers["content-range"].split("-")[0])
            if start != len(self.uploads[name]):
                return httpx.Response(416)
        self.uploads[name] += request.content
        self.sent += len(request.content)
        if request.method == "PATCH":
            return httpx.Response(202, headers={"location": str(request.url)})
        digest, content = request.url.params["digest"], self.uploads.pop(name)
        if _digest(content) != digest:
            return httpx.Response(400, json={"errors": [{"code": "DIGEST_INVALID"}]})
        self.blobs[digest] = content
        return httpx.Response(201)

    def _manifest(self, request: httpx.Request, rest: str) -> httpx.Response:
        if request.method != "PUT":
            return self._content(request, self.manifests, rest)
        if not request.headers["content-type"].startswith("application/vnd.oci.image."):
            return httpx.Response(400)
        digest = _digest(request.content)
        if rest.startswith("sha256:") and rest != digest:
            return httpx.Response(400)
        self.manifests[digest] = self.manifests[rest] = request.content
        return httpx.Response(201, headers={"docker-content-digest": digest})

    def _content(self, request: httpx.Request, store: dict[str, bytes], name: str) -> httpx.Response:
        if name not in store:
            return httpx.Response(404)
        return httpx.Response(200, content=b"" if request.method == "HEAD" else self.lies.get(name, store[name]))


@contextlib.contextmanager
def served_registry(registry: FakeRegistry) -> Iterator[str]:
    """The fake behind a listener on loopback, for processes other than the test's; yields its host."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("content-length", "0"))
            url = f"http://{self.headers['host']}{self.path}"
            request = httpx.Request(self.command, url, headers=dict(self.headers), content=self.rfile.read(length))
            reply = registry.answer(request)
            self.send_response(reply.status_code)
            for name, value in reply.headers.items():
                if name != "content-length":
                    self.send_header(name, value)
            self.send_header("content-length", str(len(reply.content)))
            self.end_headers()
            self.wfile.write(reply.content)

        do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = answer

        def log_message(self, format: str, *values: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@contextlib.contextmanager
def real_registry(folder: Path, *, users: str = "") -> Iterator[str]:
    """Debian's docker-registry with its storage in ``folder``; yields its host. Skips the test where it is absent.

    ``users`` are lines of an htpasswd file (bcrypt), without which it asks for nothing.
    """
    program = require_tool("docker-registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = folder / "registry.yaml"
    settings.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder / 'storage'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    if users:
        (folder / "htpasswd").write_text(users)
        with settings.open("a") as stream:
            stream.write(f"auth: {{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}\n")
    with open(folder / "registry.log", "wb") as log:
        process = subprocess.Popen([program, "serve", str(settings)], stdout=log, stderr=log)
    try:
        wait_for(lambda: _answers(port) or process.poll() is not None, what="docker-registry")
        assert process.poll() is None, (folder / "registry.log").read_text()
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


class CountingProxy:
    """Forwards connections to a registry and counts the bytes that clients send. A context manager."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock, self._sent = threading.Lock(), 0
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> CountingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    @property
    def sent(self) -> int:
        """Bytes from clients so far, headers included."""
        with self._lock:
            return self._sent

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._upstream)
                for source, target, counted in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._forward, args=(source, target, counted), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(1 << 16):
                if counted:
                    with self._lock:
                        self._sent += len(part)
                target.sendall(part)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/", timeout=2).status_code in (200, 401)
    except httpx.HTTPError:
        return False
