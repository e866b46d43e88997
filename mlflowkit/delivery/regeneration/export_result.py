"""One export: the files of some targets of one recipe, compared with those that are there, and written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflowkit.delivery.delivery_plan import DeliveryPlan
from mlflowkit.delivery.delivery_target import DeliveryTarget
from mlflowkit.delivery.regeneration import file_changes
from mlflowkit.delivery.regeneration.export_lock import LockEntry, read_lock
from mlflowkit.delivery.regeneration.file_changes import Choice, FileChange, RenderedFile
from mlflowkit.delivery.regeneration.file_writer import exclusive, place, read_file, recover, was_cut, write_changes
from mlflowkit.delivery.regeneration.generated_header import header_line
from mlflowkit.errors import UsageError
from mlflowkit.system.text import shell_word


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export changed, or would change."""

    root: Path
    changes: tuple[FileChange, ...]
    """By path."""
    stale: bool
    """Whether the files or the lock are not as they are generated now."""
    recovered: tuple[str, ...] = ()
    """Paths that an earlier export, which was cut off, had still to write."""

    @property
    def conflicts(self) -> tuple[FileChange, ...]:
        return tuple(change for change in self.changes if change.action == "conflict")

    def to_json(self) -> dict[str, Any]:
        files = [
            {
                "path": change.path,
                "target": change.target,
                "action": change.action,
                "digest": change.entry.body if change.entry is not None else "",
                "kept_lines": change.kept,
                "reason": change.reason,
            }
            for change in self.changes
        ]
        return {"root": str(self.root), "stale": self.stale, "files": files, "recovered": list(self.recovered)}


def render_files(plan: DeliveryPlan, targets: Iterable[DeliveryTarget], version: str) -> tuple[RenderedFile, ...]:
    """The files of some targets, by path, with their headers. Raises UsageError for two of one path, and for CR."""
    files: dict[str, RenderedFile] = {}
    digest = plan.digest
    for target in targets:
        for path, text in target.render(plan).items():
            if path in files:
                owners = f"{files[path].entry.target} and {target.name}"
                raise UsageError(f"the targets {owners} both write {path}", hint="export one of them with --out DIR")
            if "\r" in text:
                raise UsageError(
                    f"the target {target.name} renders {path} with carriage returns", hint="it ends lines in LF"
                )
            body = text.encode()
            header = header_line(path, version, f"{target.name}@{target.version}", digest, body)
            entry = LockEntry(plan.recipe.path, target.name, target.version, digest)
            files[path] = RenderedFile(path, body, header, entry)
    return tuple(files[path] for path in sorted(files))


def export_files(
    root: Path,
    recipe: str,
    rendered: Iterable[RenderedFile],
    targets: Collection[str] | None,
    choices: Mapping[str, Choice],
    *,
    write: bool,
) -> ExportResult:
    """Compare rendered files with those below ``root``; with ``write``, carry out the changes unless one conflicts.

    ``targets`` are those rendered, None for all: files of this recipe and of these targets that are not among them are
    removed. Raises UsageError for files of another recipe, and for a choice of a file that is not generated.
    """
    root = root.resolve()
    with exclusive(root):
        recovered = recover(root) if write else ()
        cut = was_cut(root)
        lock = read_lock(root)
        changes = _decide_all(root, recipe, tuple(rendered), lock, targets, choices)
        entries = {path: entry for path, entry in lock.items() if path not in changes}
        entries |= {path: change.entry for path, change in changes.items() if change.entry is not None}
        stale = cut or file_changes.changed(changes, lock, entries)
        ordered = tuple(changes[path] for path in sorted(changes))
        result = ExportResult(root, ordered, stale, recovered)
        if write and stale and not result.conflicts:
            write_changes(root, {change.path: change for change in ordered}, entries)
    return result


def _decide_all(
    root: Path,
    recipe: str,
    rendered: tuple[RenderedFile, ...],
    lock: Mapping[str, LockEntry],
    targets: Collection[str] | None,
    choices: Mapping[str, Choice],
) -> dict[str, FileChange]:
    changes: dict[str, FileChange] = {}
    for file in rendered:
        entry = lock.get(file.path)
        if entry is not None and entry.recipe != recipe and (root / entry.recipe).is_file():
            message = f"{file.path} is generated for {entry.recipe} too: two recipes cannot share it"
            raise UsageError(message, hint=f"mlkit export {shell_word(recipe)} --out DIR")
        current = read_file(place(root, file.path))
        changes[file.path] = file_changes.decide(file, entry, current, choices.get(file.path, ""))
    for path, entry in lock.items():
        gone = path not in changes and entry.recipe == recipe and (targets is None or entry.target in targets)
        if gone:
            current = read_file(place(root, path))
            changes[path] = file_changes.decide_removed(path, entry, current, choices.get(path, ""))
    unknown = [path for path in choices if path not in changes]
    if unknown:
        known = ", ".join(sorted(changes)) or "no file"
        raise UsageError(f"{unknown[0]} is not generated from {recipe}", hint=f"it generates {known}")
    return changes


def relative_choices(root: Path, theirs: Iterable[Path], mine: Iterable[Path]) -> dict[str, Choice]:
    """The files that a user named, by their paths from ``root``: given from there, or from the current folder."""
    choices: dict[str, Choice] = {}
    for files, choice in ((theirs, "theirs"), (mine, "mine")):
        for file in files:
            absolute = Path(file.parent.resolve(), file.name)
            inside = absolute.is_relative_to(root) and not (root / file).exists()
            path = absolute.relative_to(root).as_posix() if inside else file.as_posix()
            if path in choices:
                raise UsageError(f"{file} is named twice", hint="name it once, with --theirs or with --mine")
            choices[path] = choice  # type: ignore[assignment]
    return choices
