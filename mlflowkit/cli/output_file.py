"""Atomic writes of files that the user names."""

from __future__ import annotations

from pathlib import Path

from mlflowkit.errors import StoreError, UsageError
from mlflowkit.system.files import replace_file
from mlflowkit.system.text import shell_word


def write_text(path: Path, text: str) -> None:
    """Write a file atomically. Raises UsageError if that fails."""
    try:
        replace_file(path, text.encode(), shared=True)
    except StoreError as error:
        raise UsageError(error.message, hint=f"ls -ld {shell_word(path.parent)}") from error
