"""Whether a recipe is being run now, by anybody."""

from __future__ import annotations

from mlflowkit.ports import StatePorts

RECENT = 20
"""Runs of the recipe that are looked at, the newest."""


def describe_running_run(storage: StatePorts, name: str) -> str:
    """The run of the recipe ``name`` that is under way, in words; "" for none. One whose process is gone is over."""
    with storage.open_journal(create=False) as journal:
        running = [run for run in journal.runs(RECENT, name) if run.status == "running"]
        if running:
            journal.sweep()
            running = [run for run in journal.runs(RECENT, name) if run.status == "running"]
    return f"run {running[0].run} of {name} is under way" if running else ""
