"""Content-verified engine cache on disk; each engine lies under the digest of its `EngineKey`.

::

    store/
      <digest of the key>/engine.plan    the serialised engine
                          key.json       the key, and the plan's size and digest
      <name>.lock                        held while a builder works on a key or a timing cache
      <name>.timing                      kernel timings for the next build on the same GPU

An engine is published by renaming its folder: an interrupted build leaves nothing readable.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflowkit.errors import EngineError, StoreError
from mlflowkit.graphs.engine_key import EngineKey
from mlflowkit.system.files import FOLDER_MODE, disk_errors, make_folder, private_opener, replace_file
from mlflowkit.system.text import parse_json, shell_word

PLAN, KEY = "engine.plan", "key.json"
ENVIRONMENT = "MLKIT_ENGINES"


def default_store() -> Path:
    """``$MLKIT_ENGINES``, else ``mlflowkit/engines`` in the user's cache (``$XDG_CACHE_HOME`` or ``~/.cache``)."""
    if configured := os.environ.get(ENVIRONMENT):
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mlflowkit" / "engines"


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """An engine of a store; ``fault`` is the reason why it is unusable, or ""."""

    path: Path
    key: EngineKey | None
    size: int
    fault: str = ""


class EngineStore:
    """A folder of engines, safe for concurrent use by several processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: EngineKey) -> Path:
        """The path of a key's engine, existing or not."""
        return self.folder / key.digest / PLAN

    def get(self, key: EngineKey) -> bytes | None:
        """The engine of a key, verified, or None when there is none.

        Raises EngineError for a truncated or altered engine, or one built for another key.
        """
        folder = self.folder / key.digest
        return _read_verified(folder, key) if folder.is_dir() else None

    def get_or_build(self, key: EngineKey, build: Callable[[], bytes]) -> tuple[bytes, bool]:
        """The engine of a key, and whether this call built it; only one of several concurrent callers builds.

        Raises EngineError as `get` and ``build`` do, and StoreError when it cannot be written (disk full included).
        """
        if (cached := self.get(key)) is not None:
            return cached, False
        with self.lock(key.digest):
            if (cached := self.get(key)) is not None:
                return cached, False
            plan = build()
            self._publish(key, plan)
            return plan, True

    def entries(self) -> Iterator[EngineEntry]:
        """Every engine of the store by digest; faults are reported in the entry, not raised."""
        for folder in sorted(self.folder.glob("*/")) if self.folder.is_dir() else ():
            if len(folder.name) == 64:
                yield _inspect(folder)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the store's lock of a name; the lock is released when the process dies."""
        path = self.folder / f"{name}.lock"
        with disk_errors(path):
            make_folder(path.parent)
            stream = open(path, "ab", opener=private_opener)  # noqa: SIM115  (closed below)
        with stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _publish(self, key: EngineKey, plan: bytes) -> None:
        manifest = {"key": asdict(key), "sha256": hashlib.sha256(plan).hexdigest(), "bytes": len(plan)}
        target = self.folder / key.digest
        with disk_errors(target):
            staging = Path(tempfile.mkdtemp(prefix=f".{key.digest[:12]}.", dir=self.folder))
        try:
            replace_file(staging / PLAN, plan)
            replace_file(staging / KEY, json.dumps(manifest, indent=1, sort_keys=True).encode())
            with disk_errors(target):
                staging.chmod(FOLDER_MODE)
                staging.rename(target)
        except StoreError as error:
            raise StoreError(error.message, hint="free some space, or choose another folder with --store") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _read_verified(folder: Path, key: EngineKey) -> bytes:
    """Read an engine and check its size, digest and key."""
    hint = f"remove it (rm -r {shell_word(folder)}) and build the engine again"
    manifest, built_for = _read_manifest(folder)
    if different := key.differences(built_for):
        raise EngineError(f"{folder / PLAN} was built for something else: its {different}", hint=hint)
    try:
        plan = (folder / PLAN).read_bytes()
    except OSError as error:
        raise EngineError(f"{folder / PLAN} cannot be read: {error.strerror or error}", hint=hint) from error
    if len(plan) != manifest["bytes"]:
        fault = "was cut short" if len(plan) < manifest["bytes"] else "has grown"
        raise EngineError(f"{folder / PLAN} {fault}: {len(plan)} of {manifest['bytes']} bytes", hint=hint)
    if hashlib.sha256(plan).hexdigest() != manifest["sha256"]:
        raise EngineError(f"{folder / PLAN} was altered: its digest is not the one in {KEY}", hint=hint)
    return plan


def _read_manifest(folder: Path) -> tuple[dict[str, Any], EngineKey]:
    try:
        content = parse_json((folder / KEY).read_bytes())
        manifest = {"sha256": str(content["sha256"]), "bytes": int(content["bytes"])}
        return manifest, EngineKey.from_json(content["key"])
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        message = f"{folder / KEY} is not the key of an engine: {error}"
        raise EngineError(message, hint=f"remove it (rm -r {shell_word(folder)}) and build the engine again") from error


def _inspect(folder: Path) -> EngineEntry:
    key, size = None, 0
    with contextlib.suppress(OSError):
        size = (folder / PLAN).stat().st_size
    try:
        _, key = _read_manifest(folder)
        if key.digest != folder.name:
            raise EngineError(f"{folder / KEY} is another engine's: its digest is {key.digest[:12]}")
        _read_verified(folder, key)
    except EngineError as error:
        return EngineEntry(folder / PLAN, key, size, error.message)
    return EngineEntry(folder / PLAN, key, size)
