"""Files that commands write for people: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from mlflowkit.errors import UsageError


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it. Raises UsageError when that cannot be done."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}", hint=f"ls -ld {path.parent}"
        ) from error
