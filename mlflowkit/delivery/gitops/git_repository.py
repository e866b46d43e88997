"""One file on a branch of a remote git repository: read it, and replace it by compare-and-swap.

Nothing is checked out: commits are made from git's objects, so that links and hooks of a repository have no effect. No
token stands in an argument, a URL or a message.
"""

from __future__ import annotations

import base64
import os
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mlflowkit.errors import ConflictError, ServiceError, UsageError
from mlflowkit.system.text import printable_line, shell_word, truncate

TOKEN = "MLKIT_GIT_TOKEN"
"""Environment variable with a token for HTTPS remotes."""
TIMEOUT_SECONDS = 120.0
MAX_FILE_BYTES = 262_144
_URL = re.compile(r"(?P<scheme>https?|ssh|git|file)://|(?P<scp>[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:)|(?P<path>[/.~])")
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
_REJECTED = ("[rejected]", "fetch first", "non-fast-forward", "stale info", "cannot lock ref", "failed to update ref",
             "incorrect old value", "reference already exists")  # fmt: skip
"""What git says of a push that lost a race. "[remote rejected]" alone is none: a rule or a hook refused it."""


@dataclass(frozen=True, slots=True)
class FileVersion:
    """The file at one commit; ``commit`` is "" on a branch that does not exist, ``content`` None without the file."""

    commit: str
    content: bytes | None


@dataclass(frozen=True, slots=True)
class FileCommit:
    """A commit that changed the file, and the file after it."""

    commit: str
    time: float
    content: bytes | None


@dataclass(frozen=True, slots=True)
class FileReplacement:
    """The new content of the file (None leaves it as it is) and the commit's message, and files that change with it."""

    content: bytes | None
    message: str
    more: Mapping[str, bytes] = field(default_factory=dict)
    """New contents by path."""


@contextmanager
def open_repository(url: str, branch: str, *, environment: Mapping[str, str] | None = None) -> Iterator[GitRepository]:
    """A repository in a temporary folder that is removed. Raises UsageError for a URL of no known form."""
    with tempfile.TemporaryDirectory(prefix="mlkit-git-") as folder:
        repository = GitRepository(Path(folder), url, branch, environment)
        repository.git("init", "--quiet", "--bare", ".")
        yield repository


class GitRepository:
    """A branch of a remote, mirrored into a bare repository."""

    def __init__(self, folder: Path, url: str, branch: str, environment: Mapping[str, str] | None = None) -> None:
        given = dict(os.environ if environment is None else environment)
        if not _URL.match(url) or any(character.isspace() for character in url):
            raise UsageError(
                f"{truncate(_shown(url))!r} is no git remote: https, ssh, file or a path",
                hint="set environments.ENVIRONMENT.repo in the recipe's delivery section",
            )
        self.url, self.branch, self._folder = url, branch, folder
        self._token = given.get(TOKEN, "")
        self._environment = _git_environment(given, url)
        self._seen: str = ""

    @property
    def shown(self) -> str:
        """The remote without credentials."""
        return _shown(self.url)

    def git(self, *arguments: str, content: bytes | None = None, more: Mapping[str, str] | None = None) -> bytes:
        """The output of a git command. Raises ServiceError when it fails, ConflictError for a push that lost a race."""
        command = ["git", "-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0", *arguments]
        try:
            process = subprocess.run(
                command, cwd=self._folder, input=b"" if content is None else content, capture_output=True,
                timeout=TIMEOUT_SECONDS, check=False, env={**self._environment, **(more or {})},
            )  # fmt: skip
        except FileNotFoundError as error:
            raise UsageError("git is not installed", hint="apt-get install git") from error
        except subprocess.TimeoutExpired as error:
            message = f"{self.shown} did not answer within {TIMEOUT_SECONDS:.0f} s"
            raise ServiceError(message, hint=self._inspect()) from error
        if process.returncode == 0:
            return process.stdout
        reason = self._reason(process.stdout + b"\n" + process.stderr)
        lost = arguments[0] == "push" and any(word in reason for word in _REJECTED) and "hook declined" not in reason
        failure = ConflictError if lost else ServiceError
        raise failure(f"{self.shown}: git {arguments[0]} failed: {reason}", hint=self._inspect())

    def fetch(self) -> FileVersion | None:
        """The newest commit of the branch, as a version without content; None where the branch does not exist.

        Raises ConflictError where the branch was rewritten since it was fetched before.
        """
        reference = f"refs/heads/{self.branch}"
        if not self.git("ls-remote", "--", self.url, reference).strip():
            self._seen = ""
            return None
        self.git("fetch", "--quiet", "--no-tags", "--", self.url, f"+{reference}:{reference}")
        commit = self.git("rev-parse", reference).decode().strip()
        if self._seen and not self._contains(commit, self._seen):
            seen, self._seen = self._seen, commit
            raise ConflictError(
                f"{self.shown}: {self.branch} was rewritten (force-pushed): {seen[:12]} is no longer in it",
                hint="run the same command again when the branch holds what it should",
            )
        self._seen = commit
        return FileVersion(commit, None)

    def read(self, path: str) -> FileVersion:
        """The file on the newest commit of the branch."""
        version = self.fetch()
        return FileVersion("", None) if version is None else self.at(version.commit, path)

    def at(self, commit: str, path: str) -> FileVersion:
        """The file at a commit. Raises UsageError for a link, a folder or a file that is too large."""
        listed = self.git("ls-tree", "-z", "-l", commit, "--", path).decode(errors="replace").rstrip("\0")
        if not listed:
            return FileVersion(commit, None)
        mode, kind, _, size = listed.partition("\t")[0].split()
        if kind != "blob" or mode == "120000" or int(size) > MAX_FILE_BYTES:
            problem = "a link" if mode == "120000" else f"a {kind} of {size} bytes"
            raise UsageError(
                f"{self.shown}: {path} is {problem}; files of up to {MAX_FILE_BYTES:,} bytes are read",
                hint=f"git log -p {commit[:12]}",
            )
        return FileVersion(commit, self.git("cat-file", "blob", f"{commit}:{path}"))

    def history(self, path: str, limit: int = 200) -> tuple[FileCommit, ...]:
        """The commits that changed the file on the branch, newest first."""
        if not self._seen:
            return ()
        lines = self.git("log", "--first-parent", f"--max-count={limit}", "--format=%H %ct", self._seen, "--", path)
        commits = [line.split() for line in lines.decode().splitlines()]
        return tuple(FileCommit(commit, float(at), self.at(commit, path).content) for commit, at in commits)

    def replace(
        self,
        path: str,
        change: Callable[[FileVersion], FileReplacement | None],
        *,
        attempts: int = 60,
        sleep: Callable[[float], None] = time.sleep,
    ) -> str:
        """Commit what ``change`` makes of the newest version and push it; returns the commit, "" where it is None.

        A push that lost a race is repeated on what is then the newest version, which ``change`` judges anew. Raises
        ConflictError after too many of them.
        """
        for attempt in range(attempts):
            version = self.read(path)
            wanted = change(version)
            if wanted is None or (wanted.content in (None, version.content) and not wanted.more):
                return ""
            commit = self._commit(version.commit, path, wanted)
            try:
                self.git("push", "--quiet", "--porcelain", "--", self.url, f"{commit}:refs/heads/{self.branch}")
            except ConflictError:
                sleep(random.uniform(0, min(4.0, 0.1 * 2 ** min(attempt, 6))))
                continue
            self._seen = commit
            return commit
        raise ConflictError(
            f"{self.shown}: {self.branch} changed during each of {attempts} pushes", hint="run the same command again"
        )

    def _commit(self, parent: str, path: str, change: FileReplacement) -> str:
        """A commit with these files changed."""
        index = {"GIT_INDEX_FILE": str(self._folder / f"index-{os.getpid()}-{time.monotonic_ns()}")}
        self.git("read-tree", *([parent] if parent else ["--empty"]), more=index)
        contents = {**({} if change.content is None else {path: change.content}), **change.more}
        for name, content in contents.items():
            blob = self.git("hash-object", "-w", "--stdin", content=content).decode().strip()
            self.git("update-index", "--add", "--cacheinfo", f"100644,{blob},{name}", more=index)
        tree = self.git("write-tree", more=index).decode().strip()
        parents: Sequence[str] = ["-p", parent] if parent else []
        message = change.message.encode()
        return self.git("commit-tree", tree, *parents, "-F", "-", content=message).decode().strip()

    def _contains(self, commit: str, ancestor: str) -> bool:
        """Whether ``ancestor`` is in the history of ``commit``."""
        base = self.git("rev-list", "--count", f"{commit}..{ancestor}")
        return base.strip() == b"0"

    def _reason(self, output: bytes) -> str:
        """What git said, without secrets, on one line."""
        text = _USERINFO.sub("", output.decode(errors="replace"))
        for secret in filter(None, (self._token, _basic(self._token) if self._token else "")):
            text = text.replace(secret, "***")
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("hint:")]
        return truncate(printable_line("; ".join(lines) or "no reason given"), 600)

    def _inspect(self) -> str:
        credentials = f"; {TOKEN} holds the token of an https remote" if self.url.startswith("http") else ""
        return f"git ls-remote {shell_word(self.shown)}{credentials}"


def _shown(url: str) -> str:
    return _USERINFO.sub("", url)


def _basic(token: str) -> str:
    return base64.b64encode(f"x-access-token:{token}".encode()).decode()


def _git_environment(given: Mapping[str, str], url: str) -> dict[str, str]:
    """git without prompts, with the token as a header for this https remote only."""
    environment = {key: value for key, value in given.items() if not key.startswith("GIT_CONFIG_") and key != TOKEN}
    for key in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_TRACE", "GIT_TRACE_CURL"):
        environment.pop(key, None)
    environment |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh"}
    environment.setdefault("GIT_SSH_COMMAND", "ssh -o BatchMode=yes -o ConnectTimeout=20")
    for role in ("AUTHOR", "COMMITTER"):
        environment.setdefault(f"GIT_{role}_NAME", "mlkit")
        environment.setdefault(f"GIT_{role}_EMAIL", "mlkit@localhost")
    token = given.get(TOKEN, "")
    host = re.match(r"https://[^/]+/", url) or re.match(r"http://(127\.0\.0\.1|localhost)(:\d+)?/", url)
    if token and host:
        environment |= {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"http.{_USERINFO.sub('', host[0])}.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {_basic(token)}",
        }
    return environment
