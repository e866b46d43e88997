"""The short way to "nothing to do": a receipt of all that a finished run looked at, checked by stat.

A receipt holds what a run said of itself and the stat of every file that could make a plan say something else: the
recipe and its groups, data, code beside the recipe and where it would be shadowed, mlflowkit's own modules, the folders
that libraries are installed in, the published results. When none of them moved, the champion is the one it was and the
service answers with it, the run need not be planned: its plan would be the same. Anything else is left to the planner,
which reads contents and knows better. Only the standard library is imported here, so that this takes milliseconds.
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
from mlflowkit.values import Json, ServiceStatus

if TYPE_CHECKING:
    from mlflowkit.recipe.schema import LoadedRecipe

FORMAT = 1
PACKAGE = Path(__file__).parent.parent
SETTLED_NS = 50_000_000
"""A file that changed less than this before a run began may have been read while it changed: no receipt then."""
SECRET = re.compile(r"oc\.env:\s*([A-Za-z_][A-Za-z0-9_]*)")
CODE = (".py", ".yaml", ".yml")
UNREADABLE = ["?"]


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked for: the recipe, its overrides, the last stage and the state folder."""

    recipe: Path
    overrides: tuple[str, ...]
    until: str
    state: Path

    @property
    def path(self) -> Path:
        """Where its receipt is kept; another interpreter or environment has another."""
        asked = [FORMAT, str(self.recipe), self.overrides, self.until, sys.version, sys.prefix, sys.path[1:]]
        return self.state / "receipts" / f"{hashlib.sha256(repr(asked).encode()).hexdigest()[:32]}.json"


@dataclass(frozen=True, slots=True)
class Beginning:
    """Taken before a recipe is read: the time, and what lies beside it."""

    time_ns: int
    beside: Mapping[str, str]


def begin(recipe: Path) -> Beginning:
    """Look around before a recipe is read; see `write`."""
    folder = recipe.parent
    return Beginning(time.time_ns(), {str(place): _listing(place) for place in (folder, folder / "conf")})


def look_up(question: Question, services: Callable[[], Sequence[ServiceStatus]]) -> dict[str, Json] | None:
    """What the finished run said of itself, when a run now would have nothing to do; else None.

    ``services`` is asked only when the run deployed. Never raises for a receipt that is missing or unreadable.
    """
    try:
        receipt = json.loads(question.path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(receipt, dict) or receipt.get("format") != FORMAT:
        return None
    if any(_stat(path) != stat for path, stat in receipt["stats"].items()):
        return None
    if any(_listing(Path(path)) != listing for path, listing in receipt["listings"].items()):
        return None
    if any(_matches(pattern) != found for pattern, found in receipt["globs"].items()):
        return None
    if any(_secret(name) != digest for name, digest in receipt["environment"].items()):
        return None
    if _champion(question.state, receipt["name"]) != receipt["champion"]:
        return None
    if receipt["service"] and not _serves(services(), receipt["service"], receipt["identity"]):
        return None
    answer: dict[str, Json] = receipt["answer"]
    return answer


def write(question: Question, beginning: Beginning, loaded: LoadedRecipe, answer: Mapping[str, Json]) -> bool:
    """Keep a receipt of a finished run; False when a file moved while it was looked at, or since shortly before."""
    from mlflowkit.pipeline.fingerprint import files_read
    from mlflowkit.stages.data import declared_pattern
    from mlflowkit.system import failpoint
    from mlflowkit.system.files import replace_file

    inputs = {str(path): _stat(str(path)) for path in [*_watched(loaded), *files_read(loaded)]}
    settled = beginning.time_ns - SETTLED_NS
    moved = any(stat is not None and _changed_ns(stat) > settled for stat in inputs.values())
    listings = {place: _listing(Path(place)) for place in beginning.beside}
    champion = _champion(question.state, loaded.recipe.name)
    if moved or listings != dict(beginning.beside) or champion == UNREADABLE:
        return False
    source = loaded.recipe.data.source
    patterns = [str(loaded.folder / source.path)] if source.kind != "python" else []
    patterns += [declared_pattern(path, loaded.folder) for path in source.files] if source.kind == "python" else []
    deployed = any(step["stage"] == "deploy" for step in answer["steps"])
    receipt = {
        "format": FORMAT,
        "name": loaded.recipe.name,
        "stats": {**inputs, **{str(path): _stat(str(path)) for path in _published(question.state, answer)}},
        "listings": listings,
        "globs": {pattern: _matches(pattern) for pattern in patterns},
        "environment": {name: _secret(name) for name in _secrets(question, loaded)},
        "champion": champion,
        "service": answer["service"] if deployed else "",
        "identity": answer["identity"] if deployed else "",
        "answer": _as_reused(answer),
    }
    replace_file(question.path, json.dumps(receipt, separators=(",", ":")).encode())
    failpoint.reach("receipt.written")
    return True


# ------------------------------------------------------------------------------------------------------------- inside


def _watched(loaded: LoadedRecipe) -> list[Path]:
    """Files of the recipe, places where a nearer group would shadow one of them, mlflowkit's modules, libraries."""
    from mlflowkit.recipe.compose import search_path

    places = search_path(loaded.folder)
    files = [loaded.path, *loaded.files]
    for file in loaded.files[1:]:
        home = next((place for place in reversed(places) if file.is_relative_to(place)), None)
        if home is not None:
            files += [place / file.relative_to(home) for place in places]
    own = sorted(PACKAGE.rglob("*.py"))
    libraries = [Path(place) for place in sys.path if place.endswith(("site-packages", "dist-packages"))]
    return [*files, *own, *libraries]


def _published(state: Path, answer: Mapping[str, Json]) -> list[Path]:
    folders = [state / OBJECTS / step["digest"] for step in answer["steps"] if step["digest"]]
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]


def _as_reused(answer: Mapping[str, Json]) -> dict[str, Json]:
    reason = f"unchanged since run {answer['run']}"
    steps = [{**step, "action": "reuse", "reason": reason, "seconds": 0.0} for step in answer["steps"]]
    return {**answer, "steps": steps}


def _stat(path: str) -> str | None:
    """Size, times of change and inode; None for what is not there."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_ino}"


def _changed_ns(stat: str) -> int:
    _, modified, changed, _ = stat.split(":")
    return max(int(modified), int(changed))


def _listing(folder: Path) -> str:
    """Names in a folder that could shadow a module or a group."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if entry.name.endswith(CODE)
                or (not entry.name.startswith(".") and entry.name != "__pycache__" and entry.is_dir())
            )
    except OSError:
        return ""
    return "/".join(names)


def _matches(pattern: str) -> list[str]:
    """Files that a data source's path names now."""
    if os.path.isdir(pattern):
        pattern = os.path.join(glob.escape(pattern), "*")
    return sorted(glob.glob(pattern, recursive=True))


def _secrets(question: Question, loaded: LoadedRecipe) -> list[str]:
    texts = [path.read_text(encoding="utf-8") for path in loaded.files or (loaded.path,)]
    return sorted({name for text in [*texts, *question.overrides] for name in SECRET.findall(text)})


def _secret(name: str) -> str:
    """Digest of an environment variable: its value is nobody's business."""
    value = os.environ.get(name)
    return "" if value is None else hashlib.sha256(value.encode()).hexdigest()


def _champion(state: Path, name: str) -> list[str] | None:
    """What the journal says of a recipe's champion; None when there is none, UNREADABLE when it cannot be asked."""
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
        and any(variant.role == "champion" and variant.digest == identity for variant in status.variants)
        for status in statuses
    )
