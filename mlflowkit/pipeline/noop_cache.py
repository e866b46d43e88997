"""The no-op cache: detects by stat alone, in milliseconds, that a run would have nothing to do.

A receipt holds a finished run's summary and the stat of every file that its plan depends on: the recipe and its
groups, data, code beside the recipe (and where it could be shadowed), mlflowkit's modules, the folders of installed
libraries, the published results. When none changed and the champion and its service are the same, the plan would be
the same; in any other case the planner decides by content. Imports only the standard library.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.pipeline import JOURNAL, OBJECTS
from mlflowkit.values import Json, RunDelivery, ServiceStatus

if TYPE_CHECKING:
    from mlflowkit.recipe.schema import LoadedRecipe

FORMAT = 1
PACKAGE = Path(__file__).parent.parent
SETTLED_NS = 50_000_000
"""No receipt when a file changed less than this before the run: it may have changed while it was read."""
ENVIRONMENT_VARIABLE = re.compile(r"oc\.env:\s*([A-Za-z_][A-Za-z0-9_]*)")
CODE_SUFFIXES = (".py", ".yaml", ".yml")
UNREADABLE = ["?"]


@dataclass(frozen=True, slots=True)
class NoopKey:
    """The key of a receipt: recipe, overrides, last stage and state folder."""

    recipe: Path
    overrides: tuple[str, ...]
    until: str
    state: Path

    @property
    def path(self) -> Path:
        """The receipt's file; it also depends on the interpreter and the environment.

        A copied state folder has receipts that none of its own keys names: their paths are the original's.
        """
        parts = [
            FORMAT,
            str(self.recipe),
            str(self.state.resolve()),
            self.overrides,
            self.until,
            sys.version,
            sys.prefix,
            sys.path[1:],
        ]
        return self.state / "receipts" / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.json"


@dataclass(frozen=True, slots=True)
class InputsSnapshot:
    """Taken before a recipe is read: the time, and the folder listings beside the recipe."""

    time_ns: int
    listings: Mapping[str, str]


def snapshot_inputs(recipe: Path) -> InputsSnapshot:
    """Take a snapshot before a recipe is read; `write` compares with it."""
    folder = recipe.parent
    return InputsSnapshot(time.time_ns(), {str(path): _listing(path) for path in (folder, folder / "conf")})


def look_up(key: NoopKey, services: Callable[[], Sequence[ServiceStatus]] | None) -> dict[str, Json] | None:
    """The summary of the finished run if a run now would have nothing to do, else None.

    Calls ``services`` only when the run deployed; without it, what is served does not matter. A missing or unreadable
    receipt gives None.
    """
    try:
        receipt = json.loads(key.path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(receipt, dict) or receipt.get("format") != FORMAT:
        return None
    try:
        if not _unchanged(key, receipt, services):
            return None
        answer = dict(receipt["answer"])
        deliveries = _deliveries(key.state, str(answer["run"]))
        return None if deliveries is None else {**answer, "deliveries": deliveries}
    except (LookupError, TypeError, ValueError, AttributeError):  # damaged: the planner decides
        return None


def _unchanged(
    key: NoopKey, receipt: Mapping[str, Json], services: Callable[[], Sequence[ServiceStatus]] | None
) -> bool:
    """Whether everything that a receipt depends on is as it was."""
    return (
        all(_stat(path) == stat for path, stat in receipt["stats"].items())
        and all(_listing(Path(path)) == listing for path, listing in receipt["listings"].items())
        and all(_matches(pattern) == files for pattern, files in receipt["globs"].items())
        and all(_environment_digest(name) == digest for name, digest in receipt["environment"].items())
        and _champion(key.state, receipt["name"]) == receipt["champion"]
        and _is_at_head(receipt.get("remote"), key.recipe.parent)
        and (not receipt["service"] or services is None or _serves(services(), receipt["service"], receipt["identity"]))
    )


def write(key: NoopKey, snapshot: InputsSnapshot, loaded: LoadedRecipe, summary: Mapping[str, Json]) -> bool:
    """Write a receipt of a finished run; returns False when a file changed during or shortly before the run,
    for a data source whose content only the planner can identify, and for times that did not decide a gate."""
    from mlflowkit.pipeline.fingerprint import input_files
    from mlflowkit.pipeline.lineage.data_snapshot import planned_probe
    from mlflowkit.system import failpoint
    from mlflowkit.system.files import replace_file

    remote = planned_probe(loaded, key.state, str(summary["lineage"].get("data_commit", "")))
    patterns = () if remote is not None else loaded.recipe.data.source.watched_patterns(loaded.folder)
    if patterns is None or any(step["remeasure"] for step in summary["steps"]):
        return False
    inputs = {str(path): _stat(str(path)) for path in [*_watched_files(loaded), *input_files(loaded)]}
    settled = snapshot.time_ns - SETTLED_NS
    changed = any(int(ns) > settled for stat in inputs.values() if stat for ns in stat.split(":")[1:3])
    listings = {path: _listing(Path(path)) for path in snapshot.listings}
    champion = _champion(key.state, loaded.recipe.name)
    if changed or listings != dict(snapshot.listings) or champion == UNREADABLE:
        return False
    deployed = any(step["stage"] == "deploy" for step in summary["steps"])
    folders = [key.state / OBJECTS / step["digest"] for step in summary["steps"] if step["digest"]]
    published = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    if deployed:  # what its monitor goes by
        published.append(key.state / "services" / summary["service"] / "monitor" / "settings.json")
    reused = {"action": "reuse", "reason": f"unchanged since run {summary['run']}", "seconds": 0.0}
    receipt = {
        "format": FORMAT,
        "name": loaded.recipe.name,
        "stats": {**inputs, **{str(path): _stat(str(path)) for path in published}},
        "listings": listings,
        "globs": {pattern: _matches(pattern) for pattern in patterns},
        "environment": {name: _environment_digest(name) for name in _environment_names(key, loaded)},
        "champion": champion,
        "remote": remote,
        "service": summary["service"] if deployed else "",
        "identity": summary["identity"] if deployed else "",
        "answer": {**summary, "steps": [{**step, **reused} for step in summary["steps"]]},
    }
    replace_file(key.path, json.dumps(receipt, separators=(",", ":")).encode())
    failpoint.hit("receipt.written")
    return True


def _watched_files(loaded: LoadedRecipe) -> list[Path]:
    """The recipe's files, paths where a nearer group would shadow them, mlflowkit's modules, library folders."""
    from mlflowkit.recipe.config_files import search_path

    folders = search_path(loaded.folder)
    files = [loaded.path, *loaded.files]
    for file in loaded.files[1:]:
        home = next((folder for folder in reversed(folders) if file.is_relative_to(folder)), None)
        if home is not None:
            files += [folder / file.relative_to(home) for folder in folders]
    own = sorted(PACKAGE.rglob("*.py"))
    libraries = [Path(path) for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    return [*files, *own, *libraries]


def _stat(path: str) -> str | None:
    """Size, times of change and inode; None for a missing file."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_ino}"


def _listing(folder: Path) -> str:
    """Names in a folder that could shadow a module or a group."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if entry.name.endswith(CODE_SUFFIXES)
                or (not entry.name.startswith(".") and entry.name != "__pycache__" and entry.is_dir())
            )
    except OSError:
        return ""
    return "/".join(names)


def _matches(pattern: str) -> list[str]:
    """Files that the path of a data source matches now."""
    if os.path.isdir(pattern):
        pattern = os.path.join(glob.escape(pattern), "*")
    return sorted(glob.glob(pattern, recursive=True))


def _environment_names(key: NoopKey, loaded: LoadedRecipe) -> list[str]:
    texts = [path.read_text(encoding="utf-8") for path in loaded.files or (loaded.path,)]
    return sorted({name for text in [*texts, *key.overrides] for name in ENVIRONMENT_VARIABLE.findall(text)})


def _environment_digest(name: str) -> str:
    """Digest of an environment variable (its value may be secret)."""
    value = os.environ.get(name)
    return "" if value is None else hashlib.sha256(value.encode()).hexdigest()


def _is_at_head(remote: Mapping[str, Json] | None, folder: Path) -> bool:
    """Whether a moving reference of remote data still stands for the version that was read: one request.

    {} stands for a pinned version, which costs none.
    """
    if not remote:
        return True
    from mlflowkit.data_access.head_probe import HeadProbe, current_version

    probe = HeadProbe.from_json(remote)
    return current_version(probe, folder) == probe.value


def _deliveries(state: Path, run: str) -> list[dict[str, Json]] | None:
    """The deliveries of a run as they are now; None where one of any run failed and is to be tried again."""
    from mlflowkit.pipeline.run_summary import delivery_json

    connection = sqlite3.connect(state / JOURNAL, timeout=5)
    connection.row_factory = sqlite3.Row
    try:
        retried = "SELECT 1 FROM deliveries WHERE status = 'pending' AND attempts > 0 LIMIT 1"
        if connection.execute(retried).fetchone() is not None:
            return None
        rows = connection.execute("SELECT * FROM deliveries WHERE run = ? ORDER BY created, target, key", (run,))
        return [delivery_json(RunDelivery(**dict(row))) for row in rows]
    except sqlite3.Error:
        return None
    finally:
        connection.close()


def _champion(state: Path, name: str) -> list[str] | None:
    """A recipe's champion in the journal; None when there is none, UNREADABLE when the journal is."""
    path = state / JOURNAL
    if not path.is_file():
        return UNREADABLE
    connection = sqlite3.connect(path, timeout=5)
    try:
        query = "SELECT identity, optimize, judged_identity FROM aliases WHERE name = ? AND alias = 'champion'"
        row = connection.execute(query, (name,)).fetchone()
    except sqlite3.Error:
        return UNREADABLE
    finally:
        connection.close()
    return None if row is None else [str(value) for value in row]


def _serves(statuses: Sequence[ServiceStatus], service: str, identity: str) -> bool:
    return any(
        status.service == service
        and status.ready
        and not status.supervision
        and any(variant.role == "champion" and variant.digest == identity for variant in status.variants)
        for status in statuses
    )
