"""Commits and the files in them, from git's own objects: nothing is checked out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflowkit.errors import DataError, closest_match
from mlflowkit.system.git.git_command import GitAnswer, ask_git
from mlflowkit.system.text import shell_word

REGULAR = ("100644", "100755")
"""Modes of files; links and submodules have others."""


@dataclass(frozen=True, slots=True)
class GitWorkTree:
    """The root of a checkout, and the path of a folder from there: "" or one that ends with a slash."""

    root: Path
    prefix: str


@dataclass(frozen=True, slots=True)
class GitCommit:
    """A commit. ``time`` is seconds since the epoch."""

    id: str
    author: str
    time: str
    message: str


@dataclass(frozen=True, slots=True)
class GitBlob:
    """A file of a commit, by its path from the root; ``size`` in bytes."""

    path: str
    size: int
    id: str


def find_work_tree(folder: Path) -> GitWorkTree:
    """The checkout that a folder is in. Raises DataError."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}", hint=f"ls {shell_word(folder.parent)}")
    answer = ask_git(folder, "rev-parse", "--show-toplevel", "--show-prefix")
    if not answer.ok:
        raise _refused(folder, answer)
    root, _, prefix = answer.text.partition("\n")
    return GitWorkTree(Path(root), prefix.rstrip("\n"))


def find_commit(folder: Path, revision: str) -> GitCommit:
    """The commit that a revision stands for. Raises DataError for an unknown one, with the nearest name, and for a name
    that is a branch and a tag."""
    names = _references(folder)
    branch, tag = names.get(f"refs/heads/{revision}"), names.get(f"refs/tags/{revision}")
    if branch and tag and branch != tag:
        message = f"{revision} is a branch ({branch[:8]}) and a tag ({tag[:8]}) of {folder}"
        raise DataError(message, hint=f"name heads/{revision} or tags/{revision}")
    shape = "--format=%H%x00%an%x00%ct%x00%s"
    answer = ask_git(folder, "log", "-1", "--no-show-signature", shape, "--end-of-options", revision, "--")
    parts = answer.text.rstrip("\n").split("\0")
    if answer.ok and len(parts) == 4:
        return GitCommit(*parts)
    if answer.outside or "bad revision" not in answer.problem:
        raise _refused(folder, answer)
    raise _unknown(folder, revision, names)


def commit_files(root: Path, commit: str) -> Mapping[str, GitBlob]:
    """The regular files of a commit by path. Raises DataError."""
    answer = ask_git(root, "ls-tree", "-r", "-z", "-l", "--full-tree", commit)
    if not answer.ok:
        raise _refused(root, answer)
    files: dict[str, GitBlob] = {}
    for line in filter(None, answer.text.split("\0")):
        head, _, path = line.partition("\t")
        mode, _, identity, size = head.split()
        if mode in REGULAR:
            files[path] = GitBlob(path, int(size), identity)
    return files


def read_blobs(root: Path, blobs: Sequence[GitBlob]) -> list[bytes]:
    """The contents of files of a commit, by one process. Raises DataError."""
    if not blobs:
        return []
    names = "".join(f"{blob.id}\n" for blob in blobs)
    answer = ask_git(root, "cat-file", "--batch", content=names.encode())
    if not answer.ok:
        raise _refused(root, answer)
    output, contents, start = os.fsencode(answer.text), [], 0
    for blob in blobs:
        start = output.find(b"\n", start) + 1
        contents.append(output[start : start + blob.size])
        start += blob.size + 1
    if start != len(output):  # a partial clone whose server is away answers "missing"
        raise DataError(f"git cannot read objects of {root}", hint=f"git -C {shell_word(root)} fsck")
    return contents


def _references(folder: Path) -> dict[str, str]:
    """The commits of branches and tags by full name."""
    shape = "--format=%(refname) %(objectname) %(*objectname)"
    answer = ask_git(folder, "for-each-ref", shape, "refs/heads", "refs/tags", "refs/remotes")
    rows = [line.split() for line in answer.text.splitlines()] if answer.ok else []
    return {row[0]: row[-1] for row in rows if len(row) >= 2}


def _unknown(folder: Path, revision: str, references: Mapping[str, str]) -> DataError:
    names = [name.split("/", 2)[2] for name in references]
    message = f"{folder} has no branch, tag or commit {revision!r}"
    shallow = ask_git(folder, "rev-parse", "--is-shallow-repository").text.strip() == "true"
    if shallow:
        command = f"git -C {shell_word(folder)} fetch --unshallow --tags"
        return DataError(f"{message}: it is a shallow clone, which lacks most of them", hint=command)
    near = closest_match(revision, names) or next((name for name in names if name.endswith(f"/{revision}")), "")
    fetch = f"git -C {shell_word(folder)} fetch --tags"
    return DataError(message, hint=f"did you mean {near}? else {fetch}" if near else fetch)


def _refused(folder: Path, answer: GitAnswer) -> DataError:
    if answer.outside:
        return DataError(f"{folder} is in no git repository", hint=f"git -C {shell_word(folder)} status")
    return DataError(f"git cannot read {folder}: {answer.problem}", hint=answer.hint)
