"""Strict fakes of four forges' APIs: a pull request with comments; faults on demand; every token is checked."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "canary-t0ken-of-the-forge"
BOT = "github-actions[bot]"
GITHUB_LIMIT = 65_536
Answer = tuple[int, Any]


@dataclass
class FakeForge:
    """The state of a pull request. ``faults`` are answered first, one a matching request: (method, status, headers)."""

    head: str = "a" * 40
    comments: dict[int, dict[str, Any]] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[str, int, dict[str, str]]] = field(default_factory=list)
    lose_answers: int = 0
    """Creations that are carried out and answered with 502."""
    before_creation: Callable[[], None] = lambda: None
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    _next: int = 100

    def add(self, body: str, author: Any) -> int:
        with self.lock:
            self._next += 1
            self.comments[self._next] = {"body": body, "author": author}
            return self._next

    def texts(self) -> list[str]:
        return [item["body"] for _, item in sorted(self.comments.items())]


@contextmanager
def fake_forge() -> Iterator[FakeForge]:
    """A forge on a port of this machine: GitHub, GitLab, Bitbucket and Azure DevOps, by path."""
    forge = FakeForge()
    handler = type("Handler", (_Handler,), {"forge": forge})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    forge.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield forge
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    forge: FakeForge
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.forge.requests[self.command] += 1
        for fault in self.forge.faults:
            if fault[0] == self.command:
                self.forge.faults.remove(fault)
                self._answer(fault[1], {"message": "a fault"}, fault[2])
                return
        if TOKEN not in (self.headers.get("authorization", ""), self.headers.get("private-token")) and (
            self.headers.get("authorization") != f"Bearer {TOKEN}"
        ):
            self._answer(401, {"message": "Bad credentials"})
            return
        status, value = self._route(body)
        self._answer(status, value)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _serve

    def _route(self, body: Any) -> Answer:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        for pattern, answer in (
            (r"/repos/acme/lending(/.*)", self._github),
            (r"(/user)", self._github),
            (r"/api/v4(/.*)", self._gitlab),
            (r"/2\.0(/.*)", self._bitbucket),
            (r"(?:/lending)?(/_apis/.*)", self._azure),
        ):
            if match := re.fullmatch(pattern, parts.path):
                return answer(match.group(1), query, body)
        return 404, {"message": "Not Found"}

    def _create(self, text: str, author: Any) -> Answer:
        forge = self.forge
        forge.before_creation()
        number = forge.add(text, author)
        if forge.lose_answers:
            forge.lose_answers -= 1
            return 502, {"message": "Bad Gateway"}
        return 201, {"id": number}

    def _page(self, query: dict[str, str], size: str = "per_page") -> list[tuple[int, dict[str, Any]]]:
        page, count = int(query.get("page", 1)), int(query.get(size, 30))
        return sorted(self.forge.comments.items())[(page - 1) * count : page * count]

    def _change(self, number: int, text: str | None) -> Answer:
        if number not in self.forge.comments:
            return 404, {"message": "Not Found"}
        if text is None:
            del self.forge.comments[number]
            return 204, None
        self.forge.comments[number]["body"] = text
        return 200, {"id": number}

    def _github(self, path: str, query: dict[str, str], body: Any) -> Answer:
        forge, own = self.forge, {"login": BOT}
        if body and len(body.get("body", "")) > GITHUB_LIMIT:
            return 422, {"message": "Validation Failed"}
        if path == "/user":
            return 200, own
        if path == "/pulls/7":
            return 200, {"number": 7, "head": {"sha": forge.head}}
        if path == "/pulls":
            branch = query["head"] == "someone:topic" and query["state"] == "open"
            return 200, [{"number": 7, "head": {"sha": forge.head}}] if branch else []
        if path == "/issues/7/comments" and self.command == "GET":
            return 200, [{"id": n, "body": c["body"], "user": {"login": c["author"]}} for n, c in self._page(query)]
        if path == "/issues/7/comments" and self.command == "POST":
            return self._create(body["body"], own["login"])
        if match := re.fullmatch(r"/issues/comments/(\d+)", path):
            return self._change(int(match[1]), body["body"] if self.command == "PATCH" else None)
        return 404, {"message": "Not Found"}

    def _gitlab(self, path: str, query: dict[str, str], body: Any) -> Answer:
        root, path = "/projects/3/merge_requests/7", path.replace("/acme%2Flending/", "/3/")
        if path == "/user":
            return 200, {"id": 1}
        if path == root:
            return 200, {"sha": self.forge.head}
        if path == f"{root}/notes" and self.command == "GET":
            return 200, [{"id": n, "body": c["body"], "author": {"id": c["author"]}} for n, c in self._page(query)]
        if path == f"{root}/notes":
            return self._create(body["body"], 1)
        if match := re.fullmatch(rf"{root}/notes/(\d+)", path):
            return self._change(int(match[1]), body["body"] if self.command == "PUT" else None)
        return 404, {"message": "404 Not found"}

    def _bitbucket(self, path: str, query: dict[str, str], body: Any) -> Answer:
        root = "/repositories/acme/lending/pullrequests/7/comments"
        if path == "/user":
            return 200, {"uuid": "{1}"}
        if path == root and self.command == "GET":
            items = self._page(query, "pagelen")
            values = [{"id": n, "content": {"raw": c["body"]}, "user": {"uuid": c["author"]}} for n, c in items]
            return 200, {"values": values, **({"next": "more"} if len(items) == int(query["pagelen"]) else {})}
        if path == root:
            return self._create(body["content"]["raw"], "{1}")
        if match := re.fullmatch(rf"{root}/(\d+)", path):
            return self._change(int(match[1]), body["content"]["raw"] if self.command == "PUT" else None)
        return 404, {"type": "error"}

    def _azure(self, path: str, query: dict[str, str], body: Any) -> Answer:
        root = "/_apis/git/repositories/r1/pullRequests/7"
        if path == "/_apis/connectionData":
            return 200, {"authenticatedUser": {"id": "me"}}
        if query.get("api-version") != "7.1":
            return 400, {"message": "no api-version"}
        if path == root:
            return 200, {"lastMergeSourceCommit": {"commitId": self.forge.head}}
        if path == f"{root}/threads" and self.command == "GET":
            return 200, {"value": [_thread(n, c) for n, c in sorted(self.forge.comments.items())]}
        if path == f"{root}/threads":
            return self._create(body["comments"][0]["content"], "me")
        if match := re.fullmatch(rf"{root}/threads/(\d+)/comments/1", path):
            return self._change(int(match[1]), body["content"] if self.command == "PATCH" else None)
        return 404, {"message": "Not Found"}

    def _answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        content = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


def _thread(number: int, comment: dict[str, Any]) -> dict[str, Any]:
    first = {"id": 1, "content": comment["body"], "author": {"id": comment["author"]}}
    return {"id": number, "isDeleted": False, "comments": [first]}
