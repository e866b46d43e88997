"""The version of a recipe's remote data: resolved when a run is planned, fetched when its data stage runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflowkit.data_access.head_probe import current_version
from mlflowkit.data_access.remote_source import RemoteAccess, RemoteSource, fetch_remote, resolve_remote
from mlflowkit.errors import UsageError
from mlflowkit.ports import Journal, RunProgress
from mlflowkit.recipe.schema import LoadedRecipe
from mlflowkit.system.text import format_count
from mlflowkit.values import DataSnapshot, Event, Json, StepResult

PROGRESS_SECONDS = 1.0
"""How often a fetch reports its progress."""
SHOWN = 8
"""Characters of a commit in messages."""


def data_snapshot(loaded: LoadedRecipe, state: Path) -> DataSnapshot | None:
    """What the remote source of a recipe stands for now; None for a local one. Raises DataError."""
    source = loaded.recipe.data.source
    return resolve_remote(source, _access(loaded, state)) if isinstance(source, RemoteSource) else None


def planned_probe(loaded: LoadedRecipe, state: Path, commit: str) -> dict[str, Json] | None:
    """What a later run must ask to know that remote data is as it was: `HeadProbe`, {} for a pinned version, None where
    only the planner can tell, and for local data."""
    source = loaded.recipe.data.source
    if not isinstance(source, RemoteSource):
        return None
    if source.is_pinned():
        return {}
    access = _access(loaded, state)
    known = access.memory.latest(source.memory_key(access), getattr(source, "ref", ""))
    read = access.memory.version(source.memory_key(access), commit)
    if known is None or read is None or known.tree != read.tree:
        return None
    probe = source.head_probe(access, known)
    return None if probe is None else probe.to_json()


def commit_note(snapshot: DataSnapshot, last: StepResult, journal: Journal, *, reused: bool) -> str:
    """What a plan adds to its reason where the last table was read from another commit."""
    try:
        before = journal.run(last.run).lineage.data_commit
    except UsageError:  # the run was collected
        return ""
    if not before or not snapshot.version or before == snapshot.version:
        return ""
    old, new = short_version(before), short_version(snapshot.version)
    if reused:
        return f": commit {new} has the same data as {old}"
    return f": {snapshot.asked} moved from {old} to {new}" if snapshot.asked != snapshot.version else ""


def fetcher(
    loaded: LoadedRecipe, state: Path, snapshot: DataSnapshot | None, progress: RunProgress
) -> Callable[[], Mapping[str, Path]] | None:
    """What fetches the planned version of a recipe's remote source, and tells when a newer one is there by then."""
    source = loaded.recipe.data.source
    if snapshot is None or not isinstance(source, RemoteSource):
        return None
    access = _access(loaded, state)
    access.progress = _Throttled(progress)

    def fetch() -> Mapping[str, Path]:
        progress(Event("data", "progress", f"reading {describe_snapshot(snapshot)}"))
        files = fetch_remote(source, access, snapshot)
        probe = source.head_probe(access, snapshot)
        newer = current_version(probe, loaded.folder) if probe is not None else ""
        if newer and newer != snapshot.version:
            used, now = short_version(snapshot.version), short_version(newer)
            message = f"{snapshot.asked} is now at {now}; this run uses {used}, as planned: run again for the new one"
            progress(Event("data", "warning", message))
        return files

    return fetch


def describe_snapshot(snapshot: DataSnapshot, now: float | None = None) -> str:
    """A snapshot in words.

    >>> details = {"author": "etl", "time": "1000", "shown": "lakefs://lending/main"}
    >>> describe_snapshot(DataSnapshot("lakefs", "lakefs://lending/", "main", "3f2a9c41" * 8, (), details), 8200)
    'lakefs://lending/main -> 3f2a9c41 (0 objects, 0 B, 2 h ago by etl)'
    """
    facts = [format_count(len(snapshot.objects), "object")]
    if snapshot.size or not snapshot.objects:  # that of a query's rows is not known before they are read
        facts.append(format_bytes(snapshot.size))
    when, author = snapshot.details.get("time", ""), snapshot.details.get("author", "")
    if when or author:
        facts.append(" ".join(filter(None, (_age(when, now), f"by {author}" if author else ""))))
    if credentials := snapshot.details.get("credentials"):
        facts.append(credentials)
    version = short_version(snapshot.version)
    place = snapshot.details.get("shown", "") or f"{snapshot.uri} {snapshot.asked}".strip()
    resolved = f"{place} -> {version}" if version and snapshot.asked != version else place
    return f"{resolved} ({', '.join(facts)})"


def short_version(version: str) -> str:
    """A version as people see it: a digest or an id by its beginning, the number behind it whole.

    >>> short_version("3f2a9c41" * 8), short_version("35dc331f-d725-4500-ba73-cc8a741ad72e@12"), short_version("v2")
    ('3f2a9c41', '35dc331f@12', 'v2')
    """
    name, separator, number = version.partition("@")
    return f"{name[:SHOWN]}{separator}{number}" if len(name) > 2 * SHOWN else version


def snapshot_summary(snapshot: DataSnapshot) -> dict[str, Json]:
    """A snapshot for ``--json``, without its objects."""
    return {
        "source": snapshot.uri,
        "asked": snapshot.asked,
        "commit": snapshot.version,
        "objects": len(snapshot.objects),
        "bytes": snapshot.size,
        "tree": snapshot.tree,
        "details": dict(snapshot.details),
    }


def format_bytes(size: int) -> str:
    """A size in the largest unit in which it is at least 1.

    >>> format_bytes(999), format_bytes(1_234_567_890)
    ('999 B', '1.2 GB')
    """
    amount = float(size)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _age(when: str, now: float | None) -> str:
    try:
        seconds = max((time.time() if now is None else now) - float(when), 0)
    except ValueError:
        return ""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _access(loaded: LoadedRecipe, state: Path) -> RemoteAccess:
    return RemoteAccess(loaded.folder, state, loaded.recipe.connections)


@dataclass
class _Throttled:
    """Reports the progress of a fetch, not more often than every PROGRESS_SECONDS."""

    progress: RunProgress
    last: float = 0.0

    def __call__(self, message: str, fraction: float) -> None:
        now = time.monotonic()
        if now - self.last >= PROGRESS_SECONDS:
            self.last = now
            self.progress(Event("data", "progress", message, 0.3 * fraction))
