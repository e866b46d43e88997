"""Fast path of ``mlkit run`` with nothing to do, before the command-line library is imported.

It handles only plain forms of the command; for all others it returns None, and `mlflowkit.cli.app` takes over.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflowkit.system.text import printable, printable_json
from mlflowkit.values import Json, ServiceStatus


@dataclass(frozen=True, slots=True)
class RunArguments:
    """Arguments of a plain ``mlkit run``."""

    recipe: Path
    overrides: tuple[str, ...]
    until: str
    state: Path
    json: bool


def parse(arguments: Sequence[str]) -> RunArguments | None:
    """Parse ``run RECIPE [OVERRIDE]... [--until STAGE] [--state DIR] [--json]``; None for any other command line.

    >>> parse(["run", "lending.yaml", "train.epochs=3", "--until", "train", "--state", "/tmp/s"]).overrides
    ('train.epochs=3',)
    >>> parse(["run", "lending.yaml", "--force", "train"]) is None
    True
    """
    if not arguments or arguments[0] != "run":
        return None
    options: dict[str, str] = {}
    words: list[str] = []
    remaining = iter(arguments[1:])
    for word in remaining:
        name, separator, value = word.partition("=")
        if word == "--json":
            options[word] = "yes"
        elif name in ("--until", "--state"):
            options[name] = value if separator else next(remaining, "")
        elif word.startswith("-"):
            return None
        else:
            words.append(word)
    if not words:
        return None
    recipe = Path(os.path.realpath(Path(words[0]).expanduser()))
    state = options.get("--state") or os.environ.get("MLKIT_STATE")
    folder = Path(state).expanduser().resolve() if state else recipe.parent / ".mlkit"
    return RunArguments(recipe, tuple(words[1:]), options.get("--until", ""), folder, "--json" in options)


def nothing_to_do(arguments: Sequence[str]) -> int | None:
    """If a run would do nothing, print the summary of the finished run and return the exit code; else None."""
    run = parse(arguments)
    if run is None:
        return None
    from mlflowkit.pipeline.noop_cache import NoopKey, look_up

    def services() -> Sequence[ServiceStatus]:
        from mlflowkit.wiring import Wiring

        return Wiring(run.state).platform.status()

    summary = look_up(NoopKey(run.recipe, run.overrides, run.until, run.state), services)
    if summary is None:
        return None
    if run.json:
        text = printable_json(json.dumps(summary, ensure_ascii=False, allow_nan=False, indent=1))
    else:
        text = printable(format_run(summary))
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    return 0


def format_run(value: Mapping[str, Json]) -> str:
    """Format the summary of a run in a few lines."""
    from mlflowkit.pipeline.run_summary import nothing_ran

    done = [step for step in value["steps"] if step["status"] == "done"]
    ran = sum(step["action"] == "run" for step in done)
    if nothing_ran(value):
        lines = [f"{value['name']}: nothing to do, all {len(done)} steps are unchanged since run {value['run']}"]
    else:
        seconds = f" in {value['seconds']:.1f} s" if value["seconds"] is not None else ""
        head = f"{value['name']}: run {value['run']} {value['status']}{seconds}"
        lines = [f"{head}, {ran} run, {len(done) - ran} reused"]
    for verdict in value["verdicts"]:
        suffix = "" if verdict["blocking"] or verdict["verdict"] == "PASSED" else " (does not block)"
        lines.append(f"  {verdict['verdict']:<12} {verdict['gate']}: {verdict['message']}{suffix}")
    for name in ("bundle", "endpoint", "report"):
        if value[name]:
            blessed = f" ({_blessing(value)})" if name == "bundle" and value["blessing"] else ""
            lines.append(f"  {name:<12} {value[name]}{blessed}")
    if nothing_ran(value):
        deployed = [str(step["reason"]) for step in done if step["stage"] == "deploy"]
        # any other reason is that of a rollout (pipeline.plan.rollout_status)
        lines += [f"  rollout      {why}" for why in deployed if not why.startswith(("unchanged", "made by"))]
    elif value.get("rollout"):
        lines.append(f"  rollout      {value['rollout']}; mlkit rollout status {value['service']} shows its progress")
    lines += [f"  warning      {warning}" for warning in value.get("warnings", ())]
    if value["curl"]:
        lines.append(f"  try it       {value['curl']}")
    return "\n".join(lines)


def _blessing(value: Mapping[str, Json]) -> str:
    return "blessed" if value["verdicts"] else "blessed by no gate"
