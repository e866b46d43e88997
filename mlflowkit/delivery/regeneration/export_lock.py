"""``.mlkit-export.lock``: what `mlkit export` wrote last, committed beside the files.

The generated text is kept in it, compressed, as the base of the next merge. It could be generated anew from an older
commit only by the very version of mlflowkit and of every plugin that wrote it, which is what an upgrade takes away.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlflowkit.delivery.regeneration.generated_header import digest_of
from mlflowkit.errors import UsageError
from mlflowkit.system.text import shell_word

LOCK = ".mlkit-export.lock"
SCHEMA = 1
_MAX_LOCK, _MAX_TEXT = 64 * 2**20, 16 * 2**20
_LINE = 100
"""Characters of a line of compressed text: a change of one file is a change of its lines only."""


@dataclass(frozen=True, slots=True)
class LockEntry:
    """One generated file: which recipe and target it is of, and its text as it was generated, without the header.

    ``owned`` files belong to their user and are not written again; they have no text.
    """

    recipe: str
    target: str
    version: int = 0
    plan: str = ""
    header: str = ""
    body: str = ""
    """SHA-256 of the text."""
    text: tuple[str, ...] = field(default=(), repr=False)
    """The text, deflated, in base64."""
    owned: bool = False

    def base(self) -> bytes:
        """The text. Raises ValueError when it is not what its digest says."""
        unpacker = zlib.decompressobj()
        try:
            content = unpacker.decompress(base64.b64decode("".join(self.text), validate=True), _MAX_TEXT)
        except zlib.error as error:
            raise ValueError(f"the recorded text is damaged: {error}") from error
        if digest_of(content) != self.body:
            raise ValueError("the recorded text is not what its digest says")
        return content


def packed(body: bytes) -> tuple[str, ...]:
    """The text of a `LockEntry`."""
    text = base64.b64encode(zlib.compress(body, 9)).decode()
    return tuple(text[start : start + _LINE] for start in range(0, len(text), _LINE))


def read_lock(folder: Path) -> dict[str, LockEntry]:
    """The entries by path; none where there is no lock. Raises UsageError for one that cannot be read."""
    file = folder / LOCK
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_LOCK + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", hint=f"ls -l {shell_word(file)}") from error
    if b"\n<<<<<<< " in content or content.startswith(b"<<<<<<< "):
        raise UsageError(
            f"{file} has the conflict markers of a merge", hint=f"git checkout HEAD -- {LOCK}, then mlkit export RECIPE"
        )
    try:
        if len(content) > _MAX_LOCK:
            raise ValueError(f"it is larger than {_MAX_LOCK >> 20} MiB")
        return _entries(json.loads(content))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{file} is not a lock of generated files: {error}",
            hint=f"git checkout {LOCK}, or remove it: edited files then ask for --theirs or --mine",
        ) from error


def _entries(value: Any) -> dict[str, LockEntry]:
    if value["schema"] > SCHEMA:
        raise ValueError(f"it has schema {value['schema']}, written by a newer mlflowkit")
    entries: dict[str, LockEntry] = {}
    for path, given in value["files"].items():
        known = {key: given[key] for key in LockEntry.__slots__ if key in given}
        entry = LockEntry(**{**known, "text": tuple(known.get("text", ()))})
        texts = (entry.recipe, entry.target, entry.plan, entry.header, entry.body, *entry.text)
        if not all(isinstance(item, str) for item in texts):
            raise ValueError(f"the entry of {path} is malformed")
        entries[path] = entry
    return entries


def lock_text(entries: Mapping[str, LockEntry]) -> str:
    """The lock as text: sorted by path, one key a line."""
    files = {path: {key: value for key, value in asdict(entries[path]).items() if value} for path in sorted(entries)}
    return json.dumps({"schema": SCHEMA, "files": files}, indent=1, ensure_ascii=False) + "\n"
