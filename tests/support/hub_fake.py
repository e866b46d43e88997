"""A Hugging Face Hub in this process, its datasets and models: what it was never seen to be asked is an error.

Its files are served as the real one serves them: those of LFS by a redirect to another server (a content network, which
must never be sent a token), the others directly. ``switch`` makes a request fail, by its number from 0 and its path.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.support.hub_models import LFS_ENDS, FakeModels

TOKEN = "hf_canary0123456789abcdefTOKEN"
DATASET = "org/loans"
SIGNATURE = "canary-signature"
AGENT = "mlflowkit"


@dataclass(frozen=True)
class HubFault:
    """How a request fails: a status with headers; a body cut after ``cut`` bytes; other bytes."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    content: bytes | None = None
    act: Callable[[], object] | None = None


@dataclass
class FakeHub:
    """The server. Files of ``lfs_from`` bytes and more are LFS ones. ``access`` is public, private or gated."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    access: str = "public"
    accepted: bool = False
    lfs_from: int = 10
    page: int = 1000
    switch: Callable[[int, str], HubFault | None] | None = None
    requests: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    models: FakeModels = field(default_factory=FakeModels)

    def __post_init__(self) -> None:
        self.servers = [_server(self, handler) for handler in (_HubHandler, _NetworkHandler)]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.servers[0].server_port}"

    @property
    def network(self) -> str:
        return f"http://localhost:{self.servers[1].server_port}"

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        commit = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.references[branch] = commit
        return commit

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()
        assert not self.violations, self.violations


def _server(hub: FakeHub, handler: type[_FakeHandler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type(handler.__name__, (handler,), {"hub": hub}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


class _FakeHandler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def answer(self, value: Any, **headers: str) -> None:
        self.send(200, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def refuse(self, status: int, code: str, words: str) -> None:
        headers = {"X_Error_Code": code} if code else {}
        self.send(status, json.dumps({"error": words}).encode(), X_Error_Message=words, **headers)

    def violate(self, reason: str) -> None:
        self.hub.violations.append(f"{self.path}: {reason}")
        self.refuse(400, "", reason)

    def send_range(self, content: bytes, fault: HubFault | None, **headers: str) -> None:
        """Content from the offset that is asked for."""
        asked, start = self.headers.get("Range"), 0
        if asked:
            parsed = re.fullmatch(r"bytes=(\d+)-", asked)
            if parsed is None:
                return self.violate(f"Range {asked}")
            start = int(parsed[1])
            if start >= len(content):
                return self.refuse(416, "", "Range Not Satisfiable")
        whole = fault.content if fault is not None and fault.content is not None else content
        body = whole[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body if fault is None or fault.cut is None else body[: fault.cut])
        if fault is not None and fault.cut is not None:
            self.close_connection = True
        return None

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def parse(self) -> tuple[list[str], dict[str, str]]:
        """The parts of the path, and the query."""
        parts = urlsplit(self.path)
        segments = [unquote(part) for part in parts.path.split("/")[1:]]
        return segments, dict(parse_qsl(parts.query, keep_blank_values=True))

    def fail(self) -> HubFault | None:
        """Do what a fault does, and answer with its status if it has one."""
        fault = self.fault()
        if fault is not None and fault.act is not None:
            fault.act()
        if fault is not None and fault.status:
            self.send(fault.status, b"{}", **{key.replace("-", "_"): v for key, v in fault.headers.items()})
        return fault

    def fault(self) -> HubFault | None:
        number = len(self.hub.requests)
        self.hub.requests.append(self.path)
        return self.hub.switch(number, self.path) if self.hub.switch is not None else None


class _NetworkHandler(_FakeHandler):
    """The content network: only signed URLs, and never a token."""

    def do_GET(self) -> None:
        fault = self.fault()
        if "Authorization" in self.headers:
            return self.violate("the token was sent to another server")
        parts = urlsplit(self.path)
        if parts.query != f"signature={SIGNATURE}":
            return self.violate("not signed")
        if fault is not None and fault.status:
            return self.send(fault.status, b"", **{key.replace("-", "_"): v for key, v in fault.headers.items()})
        models = self.hub.models.contents()
        for files in [*self.hub.commits.values(), *models]:
            for content in files.values():
                if hashlib.sha256(content).hexdigest() == parts.path[1:]:
                    return self.send_range(content, fault)
        return self.send(404, b"")

    def do_PUT(self) -> None:
        content = self.body()
        fault = self.fault()
        if "Authorization" in self.headers:
            return self.violate("the token was sent to another server")
        if fault is not None and fault.status:
            return self.send(fault.status, b"")
        parts = urlsplit(self.path)
        if parts.query != f"signature={SIGNATURE}":
            return self.violate("not signed")
        if hashlib.sha256(content).hexdigest() != parts.path.removeprefix("/upload/"):
            return self.violate("the content has another digest than the place")
        self.hub.models.uploaded[parts.path.removeprefix("/upload/")] = content
        return self.send(200, b"")


class _HubHandler(_FakeHandler):
    def do_POST(self) -> None:
        content = self.body()
        segments, query = self.parse()
        fault = self.fail()
        if fault is None or not fault.status:
            self.hub.models.post(self, segments, query, content)

    def do_GET(self) -> None:
        fault = self.fail()
        if fault is not None and fault.status:
            return None
        segments, query = self.parse()
        if segments[:2] == ["api", "models"] or segments[2:3] == ["resolve"]:
            return self.hub.models.get(self, segments, query, fault)
        if segments[:1] == ["api"]:
            dataset, rest = "/".join(segments[2:4]), segments[4:]
            verb, asked = rest[0] if rest else "", rest[1:]
        else:
            dataset, rest = "/".join(segments[1:3]), segments[3:]
            verb, asked = rest[0] if rest else "", rest[1:]
            if segments[0] != "datasets" or verb != "resolve":
                return self.violate("unknown route")
        if not self._may_read(dataset):
            return None
        if verb == "refs" and not asked:
            return self.answer(
                {"branches": [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
                              for name, commit in self.hub.references.items()], "tags": [], "converts": []}
            )  # fmt: skip
        commit = self.hub.references.get(asked[0], asked[0]) if asked else ""
        if commit not in self.hub.commits:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {commit}")
        if verb == "revision" and len(asked) == 1 and not query:
            siblings = [{"rfilename": path} for path in self.hub.commits[commit]]
            return self.answer({"id": dataset, "sha": commit, "siblings": siblings})
        if not re.fullmatch(r"[0-9a-f]{40}", asked[0]):
            return self.violate("read by a name that moves")
        if verb == "tree":
            return self.tree(self.hub.commits[commit], commit, "/".join(asked[1:]), query)
        if verb == "resolve" and not query:
            return self.resolve(self.hub.commits[commit], commit, "/".join(asked[1:]), fault)
        return self.violate("unknown route")

    def _may_read(self, dataset: str) -> bool:
        token = self.headers.get("Authorization")
        if token is not None and token != f"Bearer {TOKEN}":
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif dataset != DATASET or (self.hub.access == "private" and token is None):
            self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif self.hub.access == "gated" and (token is None or not self.hub.accepted):
            words = f"Access to dataset {dataset} is restricted"
            self.refuse(403 if token else 401, "GatedRepo", words)
        else:
            return True
        return False

    def is_lfs(self, path: str, content: bytes) -> bool:
        """Whether a file is kept apart from git: a large one of a dataset, a model's by the end of its name."""
        is_model = self.path.startswith("/api/models/") or not self.path.startswith(("/api/", "/datasets/"))
        return path.endswith(LFS_ENDS) if is_model else len(content) >= self.hub.lfs_from

    def tree(self, contents: Mapping[str, bytes], commit: str, folder: str, query: dict[str, str]) -> None:
        if set(query) - {"recursive", "expand", "cursor"} or query.get("recursive", "").lower() != "true":
            return self.violate(f"query {query}")
        below = f"{folder}/" if folder else ""
        files = {path: content for path, content in contents.items() if path.startswith(below)}
        if not files and folder:
            return self.refuse(404, "EntryNotFound", f"{folder} does not exist on {commit}")
        folders = sorted({path.rpartition("/")[0] for path in files if "/" in path})
        entries: list[dict[str, Any]] = [
            {"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders
        ]
        for path, content in sorted(files.items()):
            pointer = f"version https://git-lfs\n{hashlib.sha256(content).hexdigest()}".encode()
            is_lfs = self.is_lfs(path, content)
            stored = pointer if is_lfs else content
            entry = {"type": "file", "path": path, "size": len(content)}
            entry["oid"] = hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()
            if is_lfs:
                oid = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": len(pointer)}
            entries.append(entry)
        start = int(query.get("cursor", "0"))
        more = start + self.hub.page < len(entries)
        path = urlsplit(self.path).path
        following = f"{self.hub.url}{path}?recursive=true&expand=false&cursor={start + self.hub.page}"
        headers = {"Link": f'<{following}>; rel="next"'} if more else {}
        return self.answer(entries[start : start + self.hub.page], **headers)

    def resolve(self, contents: Mapping[str, bytes], commit: str, path: str, fault: HubFault | None) -> None:
        content = contents.get(path)
        if content is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        digest = hashlib.sha256(content).hexdigest()
        if self.is_lfs(path, content):
            place = f"{self.hub.network}/{digest}?signature={SIGNATURE}"
            headers = {"X_Repo_Commit": commit, "X_Linked_Etag": f'"{digest}"', "X_Linked_Size": str(len(content))}
            return self.send(302, b"", Location=place, **headers)
        return self.send_range(content, fault, X_Repo_Commit=commit, ETag=f'"{digest[:40]}"')
