"""Engines on disk, each under the digest of everything that it depends on; nothing is taken that was not verified.

::

    store/
      <digest of the key>/engine.plan    what the builder made
                          key.json       the key, and the plan's size and digest
      <name>.lock                        held while one builder works on a key, or on a timing cache
      <name>.timing                      what a builder measured of kernels, for the next build on the same GPU

An engine is published by a rename of its folder: a build that was cut leaves nothing that could be read.
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
from mlflowkit.system.files import disk_errors, replace_file

PLAN, KEY = "engine.plan", "key.json"
ENVIRONMENT = "MLKIT_ENGINES"


def default_store() -> Path:
    """``$MLKIT_ENGINES``, else ``mlflowkit/engines`` in the user's cache (``$XDG_CACHE_HOME`` or ``~/.cache``)."""
    if told := os.environ.get(ENVIRONMENT):
        return Path(told).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mlflowkit" / "engines"


@dataclass(frozen=True, slots=True)
class Entry:
    """An engine of a store; ``fault`` says why it cannot be used, or is ""."""

    path: Path
    key: EngineKey | None
    size: int
    fault: str = ""


class EngineStore:
    """A folder of engines. Several processes may use one at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: EngineKey) -> Path:
        """The file of a key's engine, whether or not it is there."""
        return self.folder / key.digest / PLAN

    def get(self, key: EngineKey) -> bytes | None:
        """The engine of a key, verified, or None when there is none.

        Raises EngineError when what is there was cut short or altered, or was built for something else.
        """
        folder = self.folder / key.digest
        return _verified(folder, key) if folder.is_dir() else None

    def get_or_build(self, key: EngineKey, build: Callable[[], bytes]) -> tuple[bytes, bool]:
        """The engine of a key, and whether ``build`` made it now. Of several at the same time, one builds.

        Raises EngineError as `get` and ``build`` do, and StoreError when the disk refuses it (a full one included).
        """
        if (found := self.get(key)) is not None:
            return found, False
        with self.lock(key.digest):
            if (found := self.get(key)) is not None:
                return found, False
            plan = build()
            self._publish(key, plan)
            return plan, True

    def entries(self) -> Iterator[Entry]:
        """Every engine of the store, in the order of their digests; faults are told, not raised."""
        for folder in sorted(self.folder.glob("*/")) if self.folder.is_dir() else ():
            if len(folder.name) == 64:
                yield _entry(folder)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the store's lock of a name; it is let go when the process dies."""
        path = self.folder / f"{name}.lock"
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("ab")
        with stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _publish(self, key: EngineKey, plan: bytes) -> None:
        about = {"key": asdict(key), "sha256": hashlib.sha256(plan).hexdigest(), "bytes": len(plan)}
        target = self.folder / key.digest
        with disk_errors(target):
            made = Path(tempfile.mkdtemp(prefix=f".{key.digest[:12]}.", dir=self.folder))
        try:
            replace_file(made / PLAN, plan)
            replace_file(made / KEY, json.dumps(about, indent=1, sort_keys=True).encode())
            with disk_errors(target):
                made.chmod(0o755)
                made.rename(target)
        except StoreError as error:
            raise StoreError(error.message, hint="free some space, or choose another folder with --store") from error
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _verified(folder: Path, key: EngineKey) -> bytes:
    """An engine whose size, digest and key are what they should be."""
    again = f"remove it (rm -r {folder}) and build the engine again"
    about, built_for = _about(folder)
    if different := key.differences(built_for):
        raise EngineError(f"{folder / PLAN} was built for something else: its {different}", hint=again)
    try:
        plan = (folder / PLAN).read_bytes()
    except OSError as error:
        raise EngineError(f"{folder / PLAN} cannot be read: {error.strerror or error}", hint=again) from error
    if len(plan) != about["bytes"]:
        what = "was cut short" if len(plan) < about["bytes"] else "has grown"
        raise EngineError(f"{folder / PLAN} {what}: {len(plan)} of {about['bytes']} bytes", hint=again)
    if hashlib.sha256(plan).hexdigest() != about["sha256"]:
        raise EngineError(f"{folder / PLAN} was altered: its digest is not the one in {KEY}", hint=again)
    return plan


def _about(folder: Path) -> tuple[dict[str, Any], EngineKey]:
    try:
        about = json.loads((folder / KEY).read_bytes())
        found = {"sha256": str(about["sha256"]), "bytes": int(about["bytes"])}
        return found, EngineKey.from_json(about["key"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise EngineError(
            f"{folder / KEY} is not the key of an engine: {error}",
            hint=f"remove it (rm -r {folder}) and build the engine again",
        ) from error


def _entry(folder: Path) -> Entry:
    key, size = None, 0
    with contextlib.suppress(OSError):
        size = (folder / PLAN).stat().st_size
    try:
        _, key = _about(folder)
        if key.digest != folder.name:
            raise EngineError(f"{folder / KEY} is another engine's: its digest is {key.digest[:12]}")
        _verified(folder, key)
    except EngineError as error:
        return Entry(folder / PLAN, key, size, error.message)
    return Entry(folder / PLAN, key, size)
