"""mlkit gc: remove what nothing needs any more."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, print_table, state_folder
from mlflowkit.errors import UsageError

if TYPE_CHECKING:
    from mlflowkit.pipeline.storage.garbage import Item

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
"""Seconds of each unit of a duration."""


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go and what stays, and why.")] = False,
    keep_runs: Annotated[int, typer.Option("--keep-runs", min=0, metavar="N", help="Newest runs of each recipe.")] = 10,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="TIME", help="Only what was not used for so long: 12h, 30d, 2w.")
    ] = "1d",
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Remove results, runs, checkpoints and cached trials that no kept run, champion, rollback or service needs."""
    from mlflowkit.pipeline.storage.collector import Collector
    from mlflowkit.pipeline.storage.garbage import Keeping

    folder = state_folder(state)
    if not folder.is_dir():
        raise UsageError(f"there is no state folder {folder}", hint="mlkit gc --state DIR names another")
    keeping = Keeping(keep_runs, time.time() - parse_duration(older_than))
    collector = Collector(folder)
    collection = collector.plan(keeping) if dry_run else collector.collect(keeping)
    freed = sum(item.bytes for item in collection.removed)
    if json:
        lists = {"removed": collection.removed, "kept": collection.kept}
        items = {name: [_item_json(item) for item in group] for name, group in lists.items()}
        emit_json({"state": str(folder), "dry_run": dry_run, "bytes": freed, **items})
        return
    for title, group in (("would go" if dry_run else "removed", collection.removed), ("stays", collection.kept)):
        if rows := _summary(group):
            echo(title)
            print_table(rows)
    echo(f"{'would free' if dry_run else 'freed'} {freed / 1e6:,.1f} MB of {folder}")


def parse_duration(text: str) -> float:
    """Seconds of a duration. Raises UsageError.

    >>> parse_duration("12h"), parse_duration("1.5d"), parse_duration("0")
    (43200.0, 129600.0, 0.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])|(0)", text.strip())
    if match is None:
        raise UsageError(f"--older-than: {text!r} is no time", hint="--older-than 30d")
    return 0.0 if match[3] else float(match[1]) * UNITS[match[2]]


def _item_json(item: Item) -> dict[str, object]:
    return {"kind": item.kind, "name": item.name, "bytes": item.bytes, "reason": item.reason}


def _summary(items: Sequence[Item]) -> list[list[str]]:
    """A row for each kind and reason: how many, and their size."""
    groups: dict[tuple[str, str], list[int]] = {}
    for item in items:
        groups.setdefault((item.kind, item.reason), []).append(item.bytes)
    rows = groups.items()
    return [[f"  {kind}", reason, str(len(sizes)), f"{sum(sizes) / 1e6:,.1f} MB"] for (kind, reason), sizes in rows]
