"""Removes what `garbage.plan_collection` decides, beside running runs, and may be killed anywhere.

Runs hold the state's storage lock, shared, while they plan (until their record protects what they reuse) and while they
publish a result; collecting holds it alone while it decides, forgets rows in one transaction, and renames folders into
``tmp/``. Removing them takes no lock. Killed before the renames, it leaves folders that no row names, which the next
collection finds; killed after, folders in ``tmp/``, which the next run or collection removes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflowkit.data_access.cached_files import cached_files, remove_cached
from mlflowkit.pipeline import OBJECTS
from mlflowkit.pipeline.storage.garbage import Collection, Folder, Inventory, Keeping, plan_collection
from mlflowkit.pipeline.storage.journal import SqliteJournal
from mlflowkit.pipeline.storage.store import require_own, storage_lock
from mlflowkit.system import failpoint
from mlflowkit.system.files import disk_errors, make_folder

TRASH = "gc"
"""Prefix of folders under ``tmp/`` on their way out."""
_DIGEST = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True, slots=True)
class Collector:
    """Collects the garbage of a state folder."""

    state: Path

    def plan(self, keeping: Keeping) -> Collection:
        """What would go now, and what stays and why. Changes nothing. Raises StoreError for a damaged journal."""
        with SqliteJournal(self.state, create=False) as journal:
            return plan_collection(self._inventory(journal), keeping)

    def collect(self, keeping: Keeping) -> Collection:
        """Remove what nothing needs. Raises StoreError, also for a state folder that leads out of itself."""
        for name in ("tmp", "receipts"):
            require_own(self.state / name)
        with SqliteJournal(self.state, create=False) as journal, disk_errors(self.state):
            with storage_lock(self.state, alone=True):
                collection = plan_collection(self._inventory(journal), keeping)
                failpoint.hit("gc.decided")
                journal.forget(collection.names("run"), collection.results, collection.aliases)
                failpoint.hit("gc.forgotten")
                self._set_aside(collection)
            failpoint.hit("gc.renamed")
            for folder in (self.state / "tmp").glob(f"{TRASH}.*"):
                shutil.rmtree(folder, ignore_errors=True)
        return collection

    def _inventory(self, journal: SqliteJournal) -> Inventory:
        runs, results, aliases = journal.stored()
        return Inventory(
            runs=runs,
            results=results,
            aliases=aliases,
            mentioned=frozenset(self._mentioned()),
            live=frozenset(journal.live_fingerprints()),
            objects=self._folders(OBJECTS),
            pages=self._folders("runs"),
            scratches=self._folders("scratch"),
            trials=self._folders("trials"),
            sources=cached_files(self.state),
        )

    def _folders(self, name: str) -> dict[str, Folder]:
        """The folders below one of the state's; a link is none."""
        parent = self.state / name
        if parent.is_symlink() or not parent.is_dir():
            return {}
        return {
            path.name: _measure(path) for path in sorted(parent.iterdir()) if path.is_dir() and not path.is_symlink()
        }

    def _mentioned(self) -> Iterator[str]:
        """Digests that the control records of services name, in whichever field."""
        for path in sorted((self.state / "services").rglob("*.json")):
            with contextlib.suppress(FileNotFoundError):  # replaced or removed meanwhile: by a run, which protects it
                for digest in _DIGEST.findall(path.read_bytes()):
                    yield digest.decode()

    def _set_aside(self, collection: Collection) -> None:
        """Move folders that go out of sight, and remove files of remote data."""
        places = {"run": "runs", "object": OBJECTS, "checkpoint": "scratch", "trial": "trials"}
        make_folder(self.state / "tmp")
        remove_cached(self.state, collection.names("source"))
        for item in collection.removed:
            if item.kind not in places:
                continue
            path = self.state / places[item.kind] / item.name
            with contextlib.suppress(FileNotFoundError):  # a run without a page, or removed by a run meanwhile
                path.rename(self.state / "tmp" / f"{TRASH}.{item.kind}.{item.name}.{os.urandom(4).hex()}")
            failpoint.hit("gc.renaming")
        gone = set(collection.names("run"))
        for receipt in (self.state / "receipts").glob("*.json"):
            if _run_of(receipt) in gone:
                receipt.unlink(missing_ok=True)


def _run_of(receipt: Path) -> str:
    try:
        return str(json.loads(receipt.read_bytes())["answer"]["run"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _measure(folder: Path) -> Folder:
    """Size and last use of a folder."""
    total, used = 0, folder.stat().st_mtime
    for parent, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(parent, name))
                total, used = total + status.st_size, max(used, status.st_mtime)
    return Folder(folder.name, total, used)
