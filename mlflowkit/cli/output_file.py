"""Files that commands write for people: whole or not at all."""

from __future__ import annotations

from pathlib import Path

from mlflowkit.errors import StoreError, UsageError
from mlflowkit.system.files import replace_file


def write_text(path: Path, text: str) -> None:
    """Replace a file that a person named. Raises UsageError when that cannot be done."""
    try:
        replace_file(path, text.encode())
    except StoreError as error:
        raise UsageError(error.message, hint=f"ls -ld {path.parent}") from error
