"""Fast path of ``mlkit run`` and ``mlkit trigger`` with nothing to do, before the command-line library is imported.

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

UP_TO_DATE = "every step up to the bundle is up to date here"
"""Why a trigger starts nothing, where its state folder holds the finished run."""


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


@dataclass(frozen=True, slots=True)
class TriggerArguments:
    """Arguments of a plain ``mlkit trigger``."""

    recipe: Path
    state: Path
    json: bool


def parse_trigger(arguments: Sequence[str]) -> TriggerArguments | None:
    """Parse ``trigger RECIPE --because EVENT [--state DIR] [--json]``; None for any other command line.

    >>> parse_trigger(["trigger", "lending.yaml", "--because", "data", "--json"]).json
    True
    >>> parse_trigger(["trigger", "lending.yaml", "--because", "dta"]) is None
    True
    """
    if not arguments or arguments[0] != "trigger" or arguments.count("--because") != 1:
        return None
    rest = list(arguments[1:])
    place = rest.index("--because")
    if rest[place + 1 : place + 2] not in (["schedule"], ["data"], ["merge"], ["drift"]):
        return None
    run = parse(["run", *rest[:place], *rest[place + 2 :]])
    if run is None or run.overrides or run.until:
        return None
    return TriggerArguments(run.recipe, run.state, run.json)


def nothing_to_do(arguments: Sequence[str]) -> int | None:
    """If a command would do nothing, print what it would print and return the exit code; else None."""
    trigger = parse_trigger(arguments)
    return _unchanged_run(arguments) if trigger is None else _nothing_to_train(trigger)


def _nothing_to_train(trigger: TriggerArguments) -> int | None:
    """The answer of a trigger where a finished run is up to date; see `ci.pipeline_trigger.trigger`."""
    from mlflowkit.pipeline.noop_cache import NoopKey, look_up

    keys = [NoopKey(trigger.recipe, (), until, trigger.state) for until in ("", "package")]
    if all(look_up(key, None) is None for key in keys):
        return None
    answer = {"action": "nothing-changed", "key": "", "reason": UP_TO_DATE, "run": ""}
    text = json.dumps(answer, indent=1) if trigger.json else f"{answer['action']}: {UP_TO_DATE}"
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    return 0


def _unchanged_run(arguments: Sequence[str]) -> int | None:
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
    from mlflowkit.pipeline.run_summary import delivery_line, nothing_ran

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
    troubled = [item for item in value.get("deliveries", ()) if item["error"] and "error" not in value]
    lines += [f"  delivery     {delivery_line(item)}; mlkit deliveries" for item in troubled]
    if value["curl"]:
        lines.append(f"  try it       {value['curl']}")
    return "\n".join(lines)


def _blessing(value: Mapping[str, Json]) -> str:
    return "blessed" if value["verdicts"] else "blessed by no gate"
