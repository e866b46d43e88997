"""Questions to git about the repository around a folder, and why it does not answer."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflowkit.system.text import printable_line, shell_word, truncate

TIMEOUT_SECONDS = 60
_HOOK_VARIABLES = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE", "GIT_SHALLOW_FILE", "GIT_GRAFT_FILE",
)  # fmt: skip
"""What git sets for its hooks: another repository than the folder's, or none that a relative path leads to."""


@dataclass(frozen=True, slots=True)
class GitAnswer:
    """What a git command printed; or, with ``problem``, why it failed and in ``hint`` the command that mends it.

    ``outside`` says that there is no repository around the folder, which need not be one.
    """

    text: str = ""
    problem: str = ""
    hint: str = ""
    outside: bool = False

    @property
    def ok(self) -> bool:
        return not self.problem and not self.outside


def ask_git(folder: Path, *arguments: str, timeout: float = TIMEOUT_SECONDS, content: bytes | None = None) -> GitAnswer:
    """Run a git command in ``folder``; ``content`` is what it reads, if anything.

    >>> import tempfile
    >>> ask_git(Path(tempfile.mkdtemp()), "rev-parse", "HEAD").outside
    True
    """
    command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
    try:
        process = subprocess.run(
            command, capture_output=True, timeout=timeout, check=False, input=content or b"",
            env=git_environment(os.environ),
        )  # fmt: skip
    except FileNotFoundError:
        present = _marker(folder) is not None
        return GitAnswer(problem="git is not installed" * present, hint="apt-get install git", outside=not present)
    except subprocess.TimeoutExpired:
        return GitAnswer(
            problem=f"git did not answer within {timeout:.0f} s", hint=f"git -C {shell_word(folder)} status"
        )
    if process.returncode == 0:
        return GitAnswer(os.fsdecode(process.stdout))
    return explain(folder, process.stderr.decode(errors="replace"))


def git_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables for git: its messages in English, and the repository that the folder is in.

    >>> git_environment({"LC_ALL": "de_DE.UTF-8", "GIT_DIR": ".git", "HOME": "/root"})
    {'LC_ALL': 'C', 'HOME': '/root', 'GIT_TERMINAL_PROMPT': '0'}
    """
    kept = {name: value for name, value in environment.items() if name not in _HOOK_VARIABLES}
    return {**kept, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}


def explain(folder: Path, stderr: str) -> GitAnswer:
    """Why git failed, from what it printed.

    >>> explain(Path("/tmp"), "fatal: detected dubious ownership in repository at '/src/a b'").hint
    "git config --global --add safe.directory '/src/a b'"
    """
    first = truncate(printable_line((stderr.strip().splitlines() or ["git failed"])[0]), 300)
    if "dubious ownership" in stderr:
        owned = re.search(r"dubious ownership in repository at '(.+)'", stderr)
        root = owned.group(1) if owned else str(folder)
        message = f"git refuses to read {printable_line(root)}, which belongs to another user"
        return GitAnswer(problem=message, hint=f"git config --global --add safe.directory {shell_word(root)}")
    if "not a git repository" not in stderr:
        return GitAnswer(problem=first, hint=f"git -C {shell_word(folder)} status")
    marker = _marker(folder)
    if marker is None:
        return GitAnswer(outside=True)
    if "GIT_DISCOVERY_ACROSS_FILESYSTEM" in stderr:
        message = f"{marker} is on another file system than {folder}, where git does not look for it"
        return GitAnswer(problem=message, hint="export GIT_DISCOVERY_ACROSS_FILESYSTEM=1")
    if marker.is_file():
        message = (
            f"{marker} names a repository that is not there: "
            "a submodule or worktree that was copied or mounted without it"
        )
        return GitAnswer(problem=message, hint=f"cat {shell_word(marker)} names the folder to mount as well")
    return GitAnswer(
        problem=f"{marker} is no usable repository: {first}", hint=f"git -C {shell_word(marker.parent)} status"
    )


def _marker(folder: Path) -> Path | None:
    """The ``.git`` of the nearest folder that has one."""
    start = Path(os.path.realpath(folder))
    return next((path / ".git" for path in (start, *start.parents) if os.path.lexists(path / ".git")), None)
