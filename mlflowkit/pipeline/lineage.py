"""The git commit of a folder and whether its tree is dirty, in one call."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Checkout:
    """``commit`` is "" outside a git checkout and before its first commit; ``problem`` says why git did not answer."""

    commit: str = ""
    dirty: bool = False
    problem: str = ""


def checkout(folder: Path) -> Checkout:
    """What git says of ``folder``.

    >>> import tempfile
    >>> checkout(Path(tempfile.mkdtemp())).commit
    ''
    """
    command = ["git", "-C", str(folder), "--no-optional-locks", "status", "--porcelain=v2", "--branch"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        return Checkout(problem="git is not installed: the run carries no commit")
    except subprocess.TimeoutExpired:
        return Checkout(problem="git did not answer within 60 s: the run carries no commit")
    if done.returncode != 0:
        outside = "not a git repository" in done.stderr
        return Checkout(problem="" if outside else done.stderr.strip().splitlines()[0])
    return parse(done.stdout)


def parse(text: str) -> Checkout:
    """Read ``git status --porcelain=v2 --branch``.

    >>> parse("# branch.oid 1f0a\\n# branch.head main\\n1 .M N... 100644 100644 100644 1 2 a.py\\n")
    Checkout(commit='1f0a', dirty=True, problem='')
    """
    lines = text.splitlines()
    commit = next((line.split()[2] for line in lines if line.startswith("# branch.oid ")), "")
    return Checkout("" if commit == "(initial)" else commit, any(not line.startswith("#") for line in lines))
