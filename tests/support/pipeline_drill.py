"""Kills and crowds, each in forked children of one warm process; prints what came of them as JSON.

``python -m tests.support.pipeline_drill kill BASE FAILPOINT...`` runs the small world with each failpoint set, then
again without; ``... crowd BASE COUNT`` starts COUNT runs of one recipe at once.
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
from mlflowkit.pipeline.storage.journal import SqliteJournal
from mlflowkit.values import Event
from tests.support.pipeline_world import PipelineWorld, lay_out


def child(action: Callable[[], dict[str, Any]], result_file: Path) -> int:
    """Fork, run the action and write its result; returns the pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        result_file.write_text(json.dumps(action()))
        os._exit(0)
    except BaseException:  # noqa: BLE001 - a forked child must not unwind into its parent's frames
        result_file.write_text(json.dumps({"crash": traceback.format_exc()}))
        os._exit(70)


def wait(pid: int) -> int:
    """Exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(folder: Path, failpoint: str = "") -> dict[str, Any]:
    """Run the world of a folder; the record's outline, or the error."""
    os.environ["MLKIT_FAILPOINT"] = failpoint
    events: list[Event] = []
    world = PipelineWorld(folder)
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
    """Summarize the state of a folder."""
    state = folder / ".mlkit"
    journal = SqliteJournal(state)
    champion, challenger = journal.alias("tiny", "champion"), journal.alias("tiny", "challenger")
    state_summary = {
        "calls": PipelineWorld(folder).calls(),
        "statuses": [record.status for record in journal.runs()],
        "champion": champion.identity if champion else "",
        "challenger": challenger.identity if challenger else "",
        "left": sorted(path.name for part in ("tmp", "scratch") for path in (state / part).glob("*")),
        "undelivered": len(journal.deliveries("pending", "failed")),
        "recorded": PipelineWorld(folder).noted("recorded"),
    }
    journal.close()
    return state_summary


def kill(base: Path, failpoint: str) -> dict[str, Any]:
    """A run that a failpoint cuts, the state it leaves, and the run after it."""
    folder = base / failpoint.replace(":", "_").replace("@", "_")
    lay_out(folder)
    cut, again = folder / "cut.json", folder / "again.json"
    code = wait(child(lambda: run(folder, failpoint), cut))
    between = PipelineWorld(folder).calls()
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

    result_files = [base / f"run-{number}.json" for number in range(count)]
    pids = [child(lambda number=number: late(number), path) for number, path in enumerate(result_files)]
    gate.touch()
    codes = [wait(pid) for pid in pids]
    return {"codes": codes, "runs": [json.loads(path.read_text()) for path in result_files], **aftermath(base)}


def main() -> None:
    kind, base, *rest = sys.argv[1:]
    drills = {"crowd": lambda: crowd(Path(base), int(rest[0])), "kill": lambda: {p: kill(Path(base), p) for p in rest}}
    results = drills[kind]()
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()
