"""The state of the git checkout around a recipe: its commit, the tree of the recipe's folder, and what differs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlflowkit.pipeline.lineage.git_command import GitAnswer, ask_git
from mlflowkit.system.text import shell_word


@dataclass(frozen=True, slots=True)
class Checkout:
    """``commit`` is "" outside a git checkout and before its first commit.

    ``tree`` is the digest of git's tree of the folder at that commit: the same in every commit with the same files
    there. ``problem`` says why git knows no commit, ``hint`` the command that mends it.
    """

    commit: str = ""
    tree: str = ""
    dirty: bool = False
    problem: str = ""
    hint: str = ""


def read_checkout(folder: Path) -> Checkout:
    """The git state of ``folder``.

    >>> import tempfile
    >>> read_checkout(Path(tempfile.mkdtemp())).commit
    ''
    """
    status = ask_git(folder, "status", "--porcelain=v2", "--branch", "-z", "--no-renames", "--ignore-submodules=none")
    if not status.ok:
        return Checkout(problem=status.problem, hint=status.hint)
    commit, dirty = parse(status.text)
    if not commit:
        place = shell_word(folder)
        problem, hint = f"the repository of {folder} has no commit yet", f"git -C {place} add -A && git commit -m first"
        return Checkout(dirty=dirty, problem=problem, hint=hint)
    tree = tree_of(folder, "HEAD")
    return Checkout(commit, tree.text, dirty, tree.problem, tree.hint)


def tree_of(folder: Path, commit: str) -> GitAnswer:
    """The digest of the folder's tree in a commit; "" where the commit has no such folder."""
    prefix = ask_git(folder, "rev-parse", "--show-prefix")
    if not prefix.ok:
        return prefix
    path = prefix.text.rstrip("\n").rstrip("/")
    if not path:
        answer = ask_git(folder, "rev-parse", "--verify", f"{commit}^{{tree}}")
        return GitAnswer(answer.text.strip()) if answer.ok else answer
    listed = ask_git(folder, "ls-tree", "-z", "--full-tree", commit, "--", path)
    if not listed.ok:
        return listed
    mode, _, rest = listed.text.partition(" ")
    kind, _, rest = rest.partition(" ")
    return GitAnswer(rest.partition("\t")[0] if (mode, kind) == ("040000", "tree") else "")


def parse(text: str) -> tuple[str, bool]:
    """The commit, and whether anything differs from it, from ``git status --porcelain=v2 --branch -z``.

    >>> parse("# branch.oid 1f0a\\0# branch.head main\\0" "1 .M N... 100644 100644 100644 1 2 a.py\\0")
    ('1f0a', True)
    """
    lines = [line for line in text.split("\0") if line]
    commit = next((line.split()[2] for line in lines if line.startswith("# branch.oid ")), "")
    return "" if commit == "(initial)" else commit, any(not line.startswith("#") for line in lines)
