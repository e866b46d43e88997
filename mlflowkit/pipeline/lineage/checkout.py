"""The state of the git checkout around a recipe: its commit, the tree of the recipe's folder, and what differs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlflowkit.system.git.git_command import GitAnswer, ask_git
from mlflowkit.system.text import shell_word

State = Literal["modified", "added", "deleted", "in conflict", "untracked"]


@dataclass(frozen=True, slots=True)
class StatusEntry:
    """A path, from the repository's root, that differs from the commit; an untracked folder ends with a slash."""

    path: str
    state: State

    @property
    def tracked(self) -> bool:
        return self.state != "untracked"


@dataclass(frozen=True, slots=True)
class Checkout:
    """``commit`` is "" outside a git checkout and before its first commit.

    ``tree`` is the digest of git's tree of the folder at that commit: the same in every commit with the same files
    there. ``root`` is the repository's folder, ``prefix`` the path of the recipe's from there; ``entries`` is what
    differs anywhere in it. ``problem`` says why git knows no commit, ``hint`` has the command that mends it.
    """

    commit: str = ""
    tree: str = ""
    root: str = ""
    prefix: str = ""
    entries: tuple[StatusEntry, ...] = ()
    problem: str = ""
    hint: str = ""


def read_checkout(folder: Path) -> Checkout:
    """The git state of ``folder``.

    >>> import tempfile
    >>> read_checkout(Path(tempfile.mkdtemp())).commit
    ''
    """
    place = ask_git(folder, "rev-parse", "--show-toplevel")
    # each option, so that no setting of the user hides a file
    options = ("--porcelain=v2", "--branch", "-z", "--no-renames", "--untracked-files=normal")
    status = ask_git(folder, "status", *options, "--ignore-submodules=none") if place.ok else place
    if not status.ok:
        return Checkout(problem=status.problem, hint=status.hint if status.problem else "")
    commit, entries = parse(status.text)
    root = os.path.realpath(place.text.rstrip("\n"))
    prefix = Path(os.path.relpath(os.path.realpath(folder), root)).as_posix()
    known = Checkout(commit, "", root, "" if prefix == "." else prefix, entries)
    if not commit:
        problem = f"the repository of {folder} has no commit yet"
        hint = f"git -C {shell_word(root)} add -A && git -C {shell_word(root)} commit -m first"
        return Checkout("", "", known.root, known.prefix, entries, problem, hint)
    tree = tree_of(known, commit)
    return Checkout(commit, tree.text, known.root, known.prefix, entries, tree.problem, tree.hint)


def tree_of(checkout: Checkout, commit: str) -> GitAnswer:
    """The digest of the folder's tree in a commit; "" where the commit has no such folder."""
    root = Path(checkout.root)
    if not checkout.prefix:
        answer = ask_git(root, "rev-parse", "--verify", f"{commit}^{{tree}}")
        return GitAnswer(answer.text.strip()) if answer.ok else answer
    listed = ask_git(root, "--literal-pathspecs", "ls-tree", "-z", "--full-tree", commit, "--", checkout.prefix)
    if not listed.ok:
        return listed
    mode, _, rest = listed.text.partition(" ")
    kind, _, rest = rest.partition(" ")
    return GitAnswer(rest.partition("\t")[0] if (mode, kind) == ("040000", "tree") else "")


def parse(text: str) -> tuple[str, tuple[StatusEntry, ...]]:
    """The commit, and what differs from it, from ``git status --porcelain=v2 --branch -z --no-renames``.

    >>> parse("# branch.oid 1f0a\\0# branch.head main\\0" "1 .M N... 100644 100644 100644 1 2 a b.py\\0? new/\\0")
    ('1f0a', (StatusEntry(path='a b.py', state='modified'), StatusEntry(path='new/', state='untracked')))
    """
    lines = [line for line in text.split("\0") if line]
    commit = next((line.split()[2] for line in lines if line.startswith("# branch.oid ")), "")
    return "" if commit == "(initial)" else commit, tuple(_entries(lines))


def _entries(lines: list[str]) -> Iterator[StatusEntry]:
    for line in lines:
        kind = line[0]
        if kind == "?":
            yield StatusEntry(line[2:], "untracked")
        elif kind == "u":
            yield StatusEntry(line.split(" ", 10)[10], "in conflict")
        elif kind == "1":
            codes = line.split(" ", 2)[1]
            state: State = "deleted" if "D" in codes else "added" if "A" in codes else "modified"
            yield StatusEntry(line.split(" ", 8)[8], state)
