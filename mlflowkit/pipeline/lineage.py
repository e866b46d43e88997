"""Git commit and dirtiness of a folder, by one git command."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Checkout:
    """``commit`` is "" outside a git checkout and before its first commit; ``problem`` says why git failed."""

    commit: str = ""
    dirty: bool = False
    problem: str = ""


def checkout(folder: Path) -> Checkout:
    """The git state of ``folder``.

    >>> import tempfile
    >>> checkout(Path(tempfile.mkdtemp())).commit
    ''
    """
    command = ["git", "-C", str(folder), "--no-optional-locks", "status", "--porcelain=v2", "--branch"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        return Checkout(problem="git is not installed: no commit is recorded")
    except subprocess.TimeoutExpired:
        return Checkout(problem="git did not answer within 60 s: no commit is recorded")
    if process.returncode != 0:
        outside = "not a git repository" in process.stderr
        return Checkout(problem="" if outside else process.stderr.strip().splitlines()[0])
    return parse(process.stdout)


def parse(text: str) -> Checkout:
    """Parse ``git status --porcelain=v2 --branch``.

    >>> parse("# branch.oid 1f0a\\n# branch.head main\\n1 .M N... 100644 100644 100644 1 2 a.py\\n")
    Checkout(commit='1f0a', dirty=True, problem='')
    """
    lines = text.splitlines()
    commit = next((line.split()[2] for line in lines if line.startswith("# branch.oid ")), "")
    return Checkout("" if commit == "(initial)" else commit, any(not line.startswith("#") for line in lines))
