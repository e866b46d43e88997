"""A lakeFS server in this process, as strict as the real one: what it was never seen to be asked is an error.

Every request and every answer is held against the published OpenAPI document (``lakefs_openapi.json``, the part of it
that is used); `FakeLakefs.close` raises AssertionError for any that does not fit. ``switches`` make it fail: a function
of the number of a request (from 0) and the request, which returns a `Switch` or None.
"""

from __future__ import annotations

import base64
import email
import email.policy
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import jsonschema

from tests.support.lakefs_state import COMMIT, Entry, FakeRepository, Refusal, changes_between

KEY, SECRET = "AKIAFAKE-canary-key", "canary/secret+of=lake"
PREFIX = "/api/v1"
SDK_QUERY = {"force", "hidden", "allow_empty", "presign"}
"""Query names that the `lakefs` SDK sends beyond the document."""
MOST_RESULTS, DEFAULT_RESULTS = 1000, 100


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    route: str
    """The path's template, such as /repositories/{repository}/commits/{commitId}."""
    parts: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def reads_a_moving_reference(self) -> bool:
        return "/objects" in self.route and "ref" in self.parts and not COMMIT.fullmatch(self.parts["ref"])


@dataclass(frozen=True)
class Switch:
    """How a request fails: with a status; a body cut after ``cut`` bytes; other bytes; or no answer."""

    status: int = 0
    message: str = "try again"
    retry_after: str = ""
    cut: int | None = None
    lies_about_length: bool = False
    """A cut body without Content-Length, so that the client cannot tell."""
    ignores_range: bool = False
    content: bytes | None = None
    page: bytes | None = None
    """Answered with 200 in place of anything else: the page of a proxy."""
    hang: bool = False
    act: Callable[[], object] | None = None
    """Done before the answer, which is then the usual one."""


@dataclass
class FakeLakefs:
    """The server. ``requests`` are those so far; `moving_reads` those of objects by a reference that is no commit."""

    repositories: dict[str, FakeRepository] = field(default_factory=dict)
    switch: Callable[[int, Asked], Switch | None] | None = None
    disposition: str | None = "attachment"
    page_limit: int = MOST_RESULTS
    requests: list[Asked] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes of objects that were sent, by path."""
    released: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def repository(self, name: str = "lending") -> FakeRepository:
        return self.repositories.setdefault(name, FakeRepository(name))

    def moving_reads(self) -> list[Asked]:
        return [asked for asked in self.requests if asked.reads_a_moving_reference]

    def asked(self, route_end: str) -> list[Asked]:
        """The requests to routes with this end."""
        return [asked for asked in self.requests if asked.route.endswith(route_end)]

    def stop(self) -> None:
        """Stop answering: connections are refused."""
        self.released.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(10)

    def close(self) -> None:
        """Stop. Raises AssertionError for requests or answers that do not fit the document."""
        self.stop()
        assert not self.violations, "\n".join(self.violations)

    def number(self, asked: Asked) -> int:
        with self._lock:
            self.requests.append(asked)
            return len(self.requests) - 1


@cache
def _document() -> dict[str, Any]:
    value: dict[str, Any] = json.loads((Path(__file__).parent / "lakefs_openapi.json").read_text())
    return value


def _resolved(value: Any) -> Any:
    """A value with the references of the document replaced by what they name."""
    if isinstance(value, dict):
        if "$ref" in value:
            target: Any = _document()
            for part in value["$ref"].removeprefix("#/").split("/"):
                target = target[part]
            return _resolved(target)
        return {name: _resolved(item) for name, item in value.items()}
    return [_resolved(item) for item in value] if isinstance(value, list) else value


@cache
def _operation(route: str, method: str) -> Any:
    path = _document()["paths"][route]
    operation = path.get(method.lower())
    if operation is None:
        return None
    return _resolved({**operation, "parameters": [*path["parameters"], *operation.get("parameters", [])]})


@cache
def _routes() -> tuple[tuple[str, re.Pattern[str]], ...]:
    def pattern(route: str) -> re.Pattern[str]:
        return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(route)))

    return tuple((route, pattern(route)) for route in _document()["paths"])


def _handler(fake: FakeLakefs) -> type[BaseHTTPRequestHandler]:
    class Handler(_LakefsHandler):
        server_state = fake

    return Handler


class _LakefsHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: FakeLakefs

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_DELETE = do_PUT = do_HEAD = do_GET

    # --------------------------------------------------------------------------------------------------------- serve

    def _serve(self) -> None:
        fake = self.server_state
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            asked = self._parse(body)
        except Refusal as refusal:
            self._violation(f"{self.command} {self.path}: {refusal}")
            self._answer_json(None, refusal.status, refusal.body)
            return
        switch = fake.switch(fake.number(asked), asked) if fake.switch is not None else (fake.number(asked), None)[1]
        if switch is not None and switch.act is not None:
            switch.act()
        if switch is not None and switch.hang:
            fake.released.wait(60)
            self.close_connection = True
            return
        if switch is not None and switch.page is not None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(switch.page)))
            self.end_headers()
            self.wfile.write(switch.page)
            return
        if switch is not None and switch.status:
            headers = {"Retry-After": switch.retry_after} if switch.retry_after else {}
            self._answer_json(asked, switch.status, {"message": switch.message}, headers)
            return
        try:
            self._authorise()
            self._dispatch(asked, switch or Switch())
        except Refusal as refusal:
            self._answer_json(asked, refusal.status, refusal.body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _parse(self, body: bytes) -> Asked:
        parts = urlsplit(self.path)
        if not parts.path.startswith(PREFIX):
            raise Refusal(404, "no such route")
        path = parts.path.removeprefix(PREFIX)
        for route, pattern in _routes():
            match = pattern.fullmatch(path)
            operation = _operation(route, self.command) if match else None
            if match is None or operation is None:
                continue
            query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
            values = {name: unquote(value) for name, value in match.groupdict().items()}
            asked = Asked(self.command, route, values, query, dict(self.headers.items()), body)
            self._check_request(asked, operation)
            return asked
        raise Refusal(405, "a request that was never seen")

    def _check_request(self, asked: Asked, operation: Any) -> None:
        known = {item["name"]: item for item in operation["parameters"] if item["in"] == "query"}
        for name, value in asked.query.items():
            if name not in known and name not in SDK_QUERY:
                raise Refusal(400, f"unknown query {name}")
            schema = known.get(name, {}).get("schema", {})
            converted: Any = int(value) if schema.get("type") == "integer" else value
            if schema.get("type") == "boolean":
                converted = {"true": True, "false": False}.get(value.lower(), value)
            jsonschema.validate(converted, schema)
        for name, item in known.items():
            if item.get("required") and name not in asked.query:
                raise Refusal(400, f"query {name} is missing")
        schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        if schema is not None and asked.body:
            try:
                jsonschema.validate(json.loads(asked.body), {**schema, "additionalProperties": False})
            except (ValueError, jsonschema.ValidationError) as error:
                raise Refusal(400, f"body: {str(error).splitlines()[0]}") from None

    def _authorise(self) -> None:
        expected = base64.b64encode(f"{KEY}:{SECRET}".encode()).decode()
        if self.headers.get("Authorization") != f"Basic {expected}":
            raise Refusal(401, "error authenticating request")

    def _dispatch(self, asked: Asked, switch: Switch) -> None:
        if asked.route == "/config":
            self._answer_json(asked, 200, {"version_config": {"version": "1.84.0"}})
            return
        name = asked.parts["repository"]
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{2,62}", name):
            raise Refusal(400, f"repository {name}: invalid")
        if name not in self.server_state.repositories:
            raise Refusal(404, f"repository {name}: not found")
        repository = self.server_state.repositories[name]
        handler = getattr(self, f"_{asked.method.lower()}_{_ACTIONS[asked.route]}")
        with repository.lock:
            send: Callable[[], None] = handler(asked, repository, switch)
        send()

    # --------------------------------------------------------------------------------------------------------- reads

    def _json(self, asked: Asked, value: Any, status: int = 200) -> Callable[[], None]:
        return lambda: self._answer_json(asked, status, value)

    def _get_repository(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        value = {"id": repository.name, "creation_date": 1, "default_branch": "main", "storage_namespace": "s3://b/r"}
        return self._json(asked, {**value, "read_only": False})

    def _get_branches(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        refs = [{"id": name, "commit_id": branch.head} for name, branch in sorted(repository.branches.items())]
        return self._json(asked, self._page(asked, refs, "id"))

    def _get_branch(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        name = asked.parts["branch"]
        return self._json(asked, {"id": name, "commit_id": repository.branch(name).head})

    def _get_tags(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        refs = [{"id": name, "commit_id": commit} for name, commit in sorted(repository.tags.items())]
        return self._json(asked, self._page(asked, refs, "id"))

    def _get_tag(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        name = asked.parts["tag"]
        if name not in repository.tags:
            raise Refusal(404, f"tag {name}: not found")
        return self._json(asked, {"id": name, "commit_id": repository.tags[name]})

    def _get_commit(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        return self._json(asked, repository.resolve(asked.parts["commitId"])[0].to_json())

    def _get_log(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        commits = [commit.to_json() for commit in repository.history(repository.resolve(asked.parts["ref"])[0])]
        after = asked.query.get("after", "")
        start = next((index + 1 for index, commit in enumerate(commits) if commit["id"] == after), 0)
        amount = self._amount(asked)
        page, more = commits[start : start + amount], len(commits) > start + amount
        pagination = {"has_more": more, "next_offset": page[-1]["id"] if more else "", "results": len(page)}
        return self._json(asked, {"pagination": {**pagination, "max_per_page": MOST_RESULTS}, "results": page})

    def _get_list(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        tree, prefix = repository.tree(asked.parts["ref"]), asked.query.get("prefix", "")
        stats = [_stats(path, entry) for path, entry in sorted(tree.items()) if path.startswith(prefix)]
        return self._json(asked, self._page(asked, stats, "path"))

    def _get_stat(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        path, entry = self._entry(asked, repository)
        return self._json(asked, _stats(path, entry))

    def _get_object(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        path, entry = self._entry(asked, repository)
        content = repository.blobs[entry.address] if switch.content is None else switch.content
        return lambda: self._answer_object(asked, path, entry, content, switch)

    def _entry(self, asked: Asked, repository: FakeRepository) -> tuple[str, Entry]:
        path = asked.query["path"]
        entry = repository.tree(asked.parts["ref"]).get(path)
        if entry is None:
            raise Refusal(404, f"{path}: not found")
        if entry.address not in repository.blobs:
            raise Refusal(410, "resource expired")
        return path, entry

    def _amount(self, asked: Asked) -> int:
        amount = int(asked.query.get("amount", DEFAULT_RESULTS))
        if amount > MOST_RESULTS:
            raise Refusal(400, f"amount {amount} is more than {MOST_RESULTS}")
        return min(DEFAULT_RESULTS if amount <= 0 else amount, self.server_state.page_limit)

    def _page(self, asked: Asked, items: list[dict[str, Any]], key: str) -> dict[str, Any]:
        left = [item for item in items if item[key] > asked.query.get("after", "")]
        amount = self._amount(asked)
        page = left[:amount]
        more = len(left) > amount
        offset = page[-1][key] if more else ""
        pagination = {"has_more": more, "next_offset": offset, "results": len(page), "max_per_page": MOST_RESULTS}
        return {"pagination": pagination, "results": page}

    # -------------------------------------------------------------------------------------------------------- writes

    def _post_branches(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        body = json.loads(asked.body)
        commit = repository.create_branch(body["name"], body["source"])
        return lambda: self._answer(201, commit.encode(), {"Content-Type": "text/html"})

    def _delete_branch(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        repository.branch(asked.parts["branch"], writes=True)
        if asked.parts["branch"] == "main":
            raise Refusal(403, "cannot delete the default branch")
        del repository.branches[asked.parts["branch"]]
        return lambda: self._answer(204, b"", {})

    def _post_tags(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        body = json.loads(asked.body)
        return self._json(asked, {"id": body["id"], "commit_id": repository.create_tag(body["id"], body["ref"])}, 201)

    def _post_upload(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        branch = asked.parts["branch"]
        repository.branch(branch, writes=True)
        entry = repository.put(branch, asked.query["path"], _uploaded(asked))
        return self._json(asked, _stats(asked.query["path"], entry), 201)

    def _post_commits(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        branch = asked.parts["branch"]
        repository.branch(branch, writes=True)
        body = json.loads(asked.body)
        commit = repository.commit(branch, body["message"], **body.get("metadata", {}))
        return self._json(asked, repository.commits[commit].to_json(), 201)

    def _get_merge(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        left = repository.resolve(asked.parts["sourceRef"])[0]
        right = repository.resolve(asked.parts["destinationBranch"])[0]
        base = repository.merge_base(left, right)
        identities = {"source_commit_id": left.id, "destination_commit_id": right.id, "base_commit_id": base.id}
        return self._json(asked, identities)

    def _post_merge(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        source, target = asked.parts["sourceRef"], asked.parts["destinationBranch"]
        body = json.loads(asked.body) if asked.body else {}
        metadata = body.get("metadata", {})
        merged = repository.merge(source, target, body.get("message", ""), metadata, body.get("squash_merge", False))
        return self._json(asked, {"reference": merged})

    def _get_changes(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        branch = repository.branch(asked.parts["branch"])
        before = repository.commits[branch.head].tree
        return self._diff(asked, changes_between(before, repository.tree(asked.parts["branch"])))

    def _get_diff(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        left, right = (repository.resolve(asked.parts[name])[0].tree for name in ("leftRef", "rightRef"))
        return self._diff(asked, changes_between(left, right))

    def _diff(self, asked: Asked, changes: list[tuple[str, str]]) -> Callable[[], None]:
        rows = [{"type": kind, "path": path, "path_type": "object"} for path, kind in changes]
        return self._json(asked, self._page(asked, rows, "path"))

    def _get_runs(self, asked: Asked, repository: FakeRepository, switch: Switch) -> Callable[[], None]:
        return self._json(asked, self._page(asked, [], "run_id"))

    # ------------------------------------------------------------------------------------------------------- answers

    def _answer_object(self, asked: Asked, path: str, entry: Entry, content: bytes, switch: Switch) -> None:
        headers = {"ETag": f'"{entry.checksum}"', "Content-Type": entry.content_type, "Accept-Ranges": "bytes"}
        if self.server_state.disposition is not None:
            headers["Content-Disposition"] = self.server_state.disposition
        status, wanted = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("Range", ""))
        if wanted is not None and not switch.ignores_range:
            start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
            if start >= len(content):
                raise Refusal(416, "requested range not satisfiable")
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            status, content = 206, content[start : end + 1]
        length = None if switch.lies_about_length else len(content)
        sent = content if switch.cut is None else content[: switch.cut]
        self.server_state.sent[path] += len(sent)
        self._answer(status, sent, headers, length=length)

    def _answer_json(
        self, asked: Asked | None, status: int, value: Any, headers: Mapping[str, str] | None = None
    ) -> None:
        if asked is not None:
            self._check_answer(asked, status, value)
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _check_answer(self, asked: Asked, status: int, value: Any) -> None:
        responses = _operation(asked.route, asked.method)["responses"]
        response = responses.get(str(status)) or responses["default"]
        schema = response.get("content", {}).get("application/json", {}).get("schema", {})
        try:
            jsonschema.validate(value, schema)
        except jsonschema.ValidationError as error:
            self._violation(f"answer of {asked.method} {asked.route} {status}: {error.message}")

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str], *, length: int | None = -1) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        told = len(body) if length == -1 else length
        if told is None or told != len(body):
            self.close_connection = True
            self.send_header("Connection", "close")
        if told is not None:
            self.send_header("Content-Length", str(told))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _violation(self, text: str) -> None:
        self.server_state.violations.append(text)


_ACTIONS = {
    "/repositories/{repository}": "repository",
    "/repositories/{repository}/branches": "branches",
    "/repositories/{repository}/branches/{branch}": "branch",
    "/repositories/{repository}/tags": "tags",
    "/repositories/{repository}/tags/{tag}": "tag",
    "/repositories/{repository}/commits/{commitId}": "commit",
    "/repositories/{repository}/refs/{ref}/commits": "log",
    "/repositories/{repository}/refs/{ref}/objects/ls": "list",
    "/repositories/{repository}/refs/{ref}/objects/stat": "stat",
    "/repositories/{repository}/refs/{ref}/objects": "object",
    "/repositories/{repository}/branches/{branch}/objects": "upload",
    "/repositories/{repository}/branches/{branch}/commits": "commits",
    "/repositories/{repository}/branches/{branch}/diff": "changes",
    "/repositories/{repository}/refs/{leftRef}/diff/{rightRef}": "diff",
    "/repositories/{repository}/refs/{sourceRef}/merge/{destinationBranch}": "merge",
    "/repositories/{repository}/actions/runs": "runs",
}


def _stats(path: str, entry: Entry) -> dict[str, Any]:
    return {
        "path": path,
        "path_type": "object",
        "physical_address": f"s3://bucket/{entry.address}",
        "checksum": entry.checksum,
        "size_bytes": entry.size,
        "mtime": entry.mtime,
        "content_type": entry.content_type,
        "metadata": {},
    }


def _uploaded(asked: Asked) -> bytes:
    """The bytes of an upload: the part "content" of a form, or the raw body."""
    kind = asked.headers.get("Content-Type", "")
    if not kind.startswith("multipart/form-data"):
        return asked.body
    message = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + asked.body, policy=email.policy.HTTP)
    for part in message.iter_parts():
        if part.get_param("name", header="content-disposition") == "content":
            return bytes(part.get_content())
    raise Refusal(400, "the form has no part content")
