"""A git repository with a recipe's folder, for tests."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


class GitProject:
    """A repository in ``root`` on the branch main, without a commit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str, folder: Path | None = None) -> str:
        """The output of a git command."""
        command = ["git", "-C", str(folder or self.root), *arguments]
        process = subprocess.run(command, capture_output=True, text=True, timeout=60, env=_environment(), check=False)
        assert process.returncode == 0, process.stderr
        return process.stdout.strip()

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def commit(self, message: str = "a change") -> str:
        """Commit everything; returns the commit."""
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def squash(self, branch: str) -> str:
        """Merge a branch into the current one as a forge does with "squash and merge"; returns the commit."""
        self.git("merge", "-q", "--squash", branch)
        return self.commit(f"Squashed {branch}")


def _environment() -> dict[str, str]:
    person = {"NAME": "A Person", "EMAIL": "a@example.com"}
    names = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in person.items()}
    return {**os.environ, **names, "GIT_CONFIG_NOSYSTEM": "1"}
