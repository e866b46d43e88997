"""Kills and crowds, each in forked children of one warm process; prints what came of them as JSON.

``python pipeline_drill.py kill BASE FAILPOINT...`` runs the small world with each failpoint set, then again without.
``python pipeline_drill.py crowd BASE COUNT`` starts COUNT runs of one recipe at once.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflowkit.errors import MlkitError
from mlflowkit.pipeline.journal import Journal
from mlflowkit.values import Event
from pipeline_world import World, lay_out


def child(action: Callable[[], dict[str, Any]], told: Path) -> int:
    """Fork, act, write what came of it; the pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        told.write_text(json.dumps(action()))
        os._exit(0)
    except BaseException:  # noqa: BLE001 - a forked child must not unwind into its parent's frames
        told.write_text(json.dumps({"crash": traceback.format_exc()}))
        os._exit(70)


def wait(pid: int) -> int:
    """Exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(folder: Path, failpoint: str = "") -> dict[str, Any]:
    """Run the world of a folder; the record's outline, or the error."""
    os.environ["MLKIT_FAILPOINT"] = failpoint
    events: list[Event] = []
    world = World(folder)
    try:
        record = world.run(events=events, reporter=lambda record, folders: "<html>")
    except MlkitError as error:
        return {"error": error.to_json(), "code": error.exit_code}
    return {
        "run": record.run,
        "status": record.status,
        "digests": {step.stage: step.digest for step in record.steps},
        "actions": {step.stage: step.action for step in record.steps},
        "bundle": record.bundle,
        "messages": [event.message for event in events],
    }


def aftermath(folder: Path) -> dict[str, Any]:
    """What a folder's state holds."""
    state = folder / ".mlkit"
    journal = Journal(state)
    champion, challenger = journal.alias("tiny", "champion"), journal.alias("tiny", "challenger")
    found = {
        "calls": World(folder).calls(),
        "statuses": [record.status for record in journal.runs()],
        "champion": champion.identity if champion else "",
        "challenger": challenger.identity if challenger else "",
        "left": sorted(path.name for part in ("tmp", "scratch") for path in (state / part).glob("*")),
        "untracked": len(journal.untracked()),
        "recorded": World(folder).noted("recorded"),
    }
    journal.close()
    return found


def kill(base: Path, failpoint: str) -> dict[str, Any]:
    """A run that a failpoint cuts, the state it leaves, and the run after it."""
    folder = base / failpoint.replace(":", "_").replace("@", "_")
    lay_out(folder)
    cut, again = folder / "cut.json", folder / "again.json"
    code = wait(child(lambda: run(folder, failpoint), cut))
    between = World(folder).calls()
    second = wait(child(lambda: run(folder), again))
    return {
        "code": code,
        "cut": json.loads(cut.read_text()) if cut.exists() else {},
        "between": between,
        "second": second,
        "again": json.loads(again.read_text()),
        **aftermath(folder),
    }


def crowd(base: Path, count: int) -> dict[str, Any]:
    """Several runs that start together."""
    lay_out(base)
    gate = base / "gate"

    def late(number: int) -> dict[str, Any]:
        while not gate.exists():
            time.sleep(0.002)
        return run(base)

    told = [base / f"run-{number}.json" for number in range(count)]
    pids = [child(lambda number=number: late(number), path) for number, path in enumerate(told)]
    gate.touch()
    codes = [wait(pid) for pid in pids]
    return {"codes": codes, "runs": [json.loads(path.read_text()) for path in told], **aftermath(base)}


def main() -> None:
    kind, base, *rest = sys.argv[1:]
    drills = {"crowd": lambda: crowd(Path(base), int(rest[0])), "kill": lambda: {p: kill(Path(base), p) for p in rest}}
    found = drills[kind]()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
