"""What a lakeFS server holds: commits, branches with staged changes, tags, and the bytes behind them."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

COMMIT = re.compile(r"[0-9a-f]{64}")
BRANCH = re.compile(r"\w[-\w]*")
BAD_TAG = re.compile(r"[/~^:?*\[\\\s]|\.\.|@\{|\.lock$|^\.|\.$")


class Refusal(Exception):
    """What the server answers instead: a status and a message."""

    def __init__(self, status: int, message: str, **body: Any) -> None:
        super().__init__(message)
        self.status, self.body = status, {"message": message, **body}


@dataclass(frozen=True)
class Entry:
    """An object of a commit or of a staging area."""

    address: str
    checksum: str
    size: int
    mtime: int
    content_type: str = "application/octet-stream"


@dataclass(frozen=True)
class FakeCommit:
    id: str
    parents: tuple[str, ...]
    committer: str
    message: str
    creation_date: int
    metadata: Mapping[str, str]
    tree: Mapping[str, Entry]
    generation: int

    def to_json(self) -> dict[str, Any]:
        shown = {name: value for name, value in asdict(self).items() if name != "tree"}
        return {**shown, "parents": list(self.parents), "meta_range_id": self.id[::-1], "version": 1}


@dataclass
class FakeBranch:
    head: str
    staged: dict[str, Entry | None] = field(default_factory=dict)
    protected: bool = False


@dataclass
class FakeRepository:
    """One repository. ``blobs`` are the bytes by physical address; a collected one is missing there."""

    name: str
    clock: int = 1_700_000_000
    commits: dict[str, FakeCommit] = field(default_factory=dict)
    branches: dict[str, FakeBranch] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    hooks_refuse: str = ""
    """What a pre-merge hook says, where it refuses."""
    lock: Any = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        first = self._add_commit((), {}, "Repository created", {})
        self.branches["main"] = FakeBranch(first.id)

    # ------------------------------------------------------------------------------------------------ for the tests

    def put(self, branch: str, path: str, content: bytes, *, multipart: bool = False) -> Entry:
        """Stage an object, under a new address. A ``multipart`` upload has a checksum that is no MD5."""
        with self.lock:
            self.clock += 1
            address = f"data/{hashlib.sha256(f'{self.clock}{path}'.encode()).hexdigest()[:20]}"
            self.blobs[address] = content
            checksum = hashlib.md5(content).hexdigest()
            if multipart:
                checksum = f"{hashlib.md5(checksum.encode()).hexdigest()}-{1 + self.clock % 9}"
            entry = Entry(address, checksum, len(content), self.clock)
            self.branches[branch].staged[path] = entry
            return entry

    def commit(self, branch: str, message: str = "data", **metadata: str) -> str:
        """Commit what is staged; the id."""
        with self.lock:
            target = self.branches[branch]
            if not self.changes(target):
                raise Refusal(400, "commit: no changes")
            tree = dict(self.commits[target.head].tree)
            for path, entry in target.staged.items():
                if entry is None:
                    tree.pop(path, None)
                else:
                    tree[path] = entry
            made = self._add_commit((target.head,), tree, message, metadata)
            target.head, target.staged = made.id, {}
            return made.id

    def replace_all(self, branch: str, files: Mapping[str, bytes], prefix: str = "") -> str:
        """A commit in which exactly these files are below ``prefix``."""
        with self.lock:
            for path in self.commits[self.branches[branch].head].tree:
                if path.startswith(prefix):
                    self.branches[branch].staged[path] = None
            for path, content in files.items():
                self.put(branch, prefix + path, content)
            return self.commit(branch)

    def collect(self, path: str, commit: str) -> None:
        """Garbage-collect an object: it is listed, and its bytes are gone."""
        del self.blobs[self.commits[commit].tree[path].address]

    # ------------------------------------------------------------------------------------------------ for the server

    def resolve(self, reference: str) -> tuple[FakeCommit, FakeBranch | None]:
        """The commit of a reference, and the branch whose staged changes are read with it. As resolve_ref.go: a full
        commit, then branch, tag, prefix; then ``~N`` and ``^N``."""
        base, modifiers = re.match(r"([^~^@$]*)(.*)", reference).groups()  # type: ignore[union-attr]
        branch: FakeBranch | None = None
        if COMMIT.fullmatch(base) and base in self.commits:
            commit = self.commits[base]
        elif base in self.branches:
            branch = self.branches[base]
            commit = self.commits[branch.head]
        elif base in self.tags:
            commit = self.commits[self.tags[base]]
        else:
            near = [identity for identity in self.commits if len(base) >= 6 and identity.startswith(base)]
            if len(near) != 1 or not re.fullmatch(r"[0-9a-f]+", base):
                raise Refusal(404, f"reference {reference}: not found")
            commit = self.commits[near[0]]
        for mark, count in re.findall(r"([~^@$])(\d*)", modifiers):
            branch = None
            for _ in range(int(count or 1) if mark == "~" else 1 if mark == "^" else 0):
                if not commit.parents:
                    raise Refusal(404, f"reference {reference}: not found")
                commit = self.commits[commit.parents[0]]
        return commit, branch

    def tree(self, reference: str) -> dict[str, Entry]:
        """The objects that a reference shows: by a branch, staged ones first."""
        commit, branch = self.resolve(reference)
        tree = dict(commit.tree)
        for path, entry in (branch.staged if branch is not None else {}).items():
            if entry is None:
                tree.pop(path, None)
            else:
                tree[path] = entry
        return tree

    def changes(self, branch: FakeBranch) -> dict[str, Entry | None]:
        tree = self.commits[branch.head].tree
        return {path: entry for path, entry in branch.staged.items() if _content(tree.get(path)) != _content(entry)}

    def create_branch(self, name: str, source: str) -> str:
        if not BRANCH.fullmatch(name):
            raise Refusal(400, f"branch id must begin with a letter, a digit or _: {name}")
        if name in self.branches or name in self.tags:
            raise Refusal(409, f"branch {name}: already exists")
        commit, _ = self.resolve(source)
        self.branches[name] = FakeBranch(commit.id)
        return commit.id

    def create_tag(self, name: str, reference: str) -> str:
        if not name or BAD_TAG.search(name):
            raise Refusal(400, f"tag {name}: invalid")
        if name in self.tags or name in self.branches:
            raise Refusal(409, f"tag {name}: already exists")
        self.tags[name] = self.resolve(reference)[0].id
        return self.tags[name]

    def branch(self, name: str, *, writes: bool = False) -> FakeBranch:
        if name not in self.branches:
            raise Refusal(404, f"branch {name}: not found")
        if writes and self.branches[name].protected:
            raise Refusal(403, f"cannot write to protected branch {name}")
        return self.branches[name]

    def history(self, commit: FakeCommit) -> list[FakeCommit]:
        """A commit and all before it, newest first."""
        seen, waiting = {commit.id: commit}, [commit]
        while waiting:
            for parent in waiting.pop().parents:
                if parent not in seen:
                    seen[parent] = self.commits[parent]
                    waiting.append(self.commits[parent])
        return sorted(seen.values(), key=lambda item: (-item.generation, -item.creation_date))

    def merge_base(self, left: FakeCommit, right: FakeCommit) -> FakeCommit:
        known = {item.id for item in self.history(right)}
        return next(item for item in self.history(left) if item.id in known)

    def merge(self, source: str, target: str, message: str, metadata: Mapping[str, str], squash: bool) -> str:
        """Merge a reference into a branch without strategy; the new commit."""
        commit, _ = self.resolve(source)
        branch = self.branch(target)
        head = self.commits[branch.head]
        if branch.staged:
            raise Refusal(400, f"branch {target}: uncommitted changes (dirty branch)")
        base = self.merge_base(commit, head)
        ours, theirs = _changed(base.tree, head.tree), _changed(base.tree, commit.tree)
        if not theirs or all(head.tree.get(path) == commit.tree.get(path) for path in theirs):
            raise Refusal(400, "merge: no changes")
        if any(path in ours and _content(ours[path]) != _content(theirs[path]) for path in theirs):
            raise Refusal(409, "merge: conflict found", reference=head.id)
        if self.hooks_refuse:
            raise Refusal(412, f"pre-merge hook aborted, run id '2026': {self.hooks_refuse}")
        tree = {**head.tree, **{path: entry for path, entry in theirs.items() if entry is not None}}
        tree = {path: entry for path, entry in tree.items() if theirs.get(path, entry) is not None}
        parents = (head.id,) if squash else (head.id, commit.id)
        merged = self._add_commit(parents, tree, message or f"Merge '{source}' into '{target}'", metadata)
        branch.head = merged.id
        return merged.id

    def _add_commit(
        self, parents: tuple[str, ...], tree: Mapping[str, Entry], message: str, metadata: Mapping[str, str]
    ) -> FakeCommit:
        self.clock += 1
        content = json.dumps([self.name, parents, self.clock, message, sorted(tree)])
        identity = hashlib.sha256(content.encode()).hexdigest()
        generation = 1 + max((self.commits[parent].generation for parent in parents), default=0)
        made = FakeCommit(identity, parents, "etl", message, self.clock, dict(metadata), dict(tree), generation)
        self.commits[identity] = made
        return made


def _content(entry: Entry | None) -> tuple[str, int] | None:
    return None if entry is None else (entry.checksum, entry.size)


def _changed(before: Mapping[str, Entry], now: Mapping[str, Entry]) -> dict[str, Entry | None]:
    return {path: now.get(path) for path in {*before, *now} if before.get(path) != now.get(path)}


def changes_between(before: Mapping[str, Entry], now: Mapping[str, Entry]) -> list[tuple[str, str]]:
    """(path, added | removed | changed), sorted."""
    changed = _changed(before, now)
    kinds = {
        path: "removed" if entry is None else "added" if path not in before else "changed"
        for path, entry in changed.items()
    }
    return sorted(kinds.items())
