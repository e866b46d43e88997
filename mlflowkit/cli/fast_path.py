"""``mlkit run`` with nothing to do, answered before the command-line library is imported.

Only the plainest forms of the command are understood here; whatever else there is (an option that is not known, a
recipe that has to be looked at) is left to `mlflowkit.cli.app` by returning None.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflowkit.values import Json, ServiceStatus


@dataclass(frozen=True, slots=True)
class Command:
    """A plain ``mlkit run``."""

    recipe: Path
    overrides: tuple[str, ...]
    until: str
    state: Path
    json: bool


def parse(arguments: Sequence[str]) -> Command | None:
    """Read ``run RECIPE [OVERRIDE]... [--until STAGE] [--state DIR] [--json]``; None for any other command line.

    >>> parse(["run", "lending.yaml", "train.epochs=3", "--until", "train", "--state", "/tmp/s"]).overrides
    ('train.epochs=3',)
    >>> parse(["run", "lending.yaml", "--force", "train"]) is None
    True
    """
    if not arguments or arguments[0] != "run":
        return None
    given: dict[str, str] = {}
    words: list[str] = []
    waiting = iter(arguments[1:])
    for word in waiting:
        name, separator, value = word.partition("=")
        if word == "--json":
            given[word] = "yes"
        elif name in ("--until", "--state"):
            given[name] = value if separator else next(waiting, "")
        elif word.startswith("-"):
            return None
        else:
            words.append(word)
    if not words:
        return None
    recipe = Path(os.path.realpath(Path(words[0]).expanduser()))
    state = given.get("--state") or os.environ.get("MLKIT_STATE")
    folder = Path(state).expanduser().resolve() if state else recipe.parent / ".mlkit"
    return Command(recipe, tuple(words[1:]), given.get("--until", ""), folder, "--json" in given)


def nothing_to_do(arguments: Sequence[str]) -> int | None:
    """Print what the finished run said of itself and return the exit code, when a run now would do nothing."""
    command = parse(arguments)
    if command is None:
        return None
    from mlflowkit.pipeline.noop_cache import Question, look_up

    def services() -> Sequence[ServiceStatus]:
        from mlflowkit.wiring import Wiring

        return Wiring(command.state).platform.status()

    answer = look_up(Question(command.recipe, command.overrides, command.until, command.state), services)
    if answer is None:
        return None
    text = json.dumps(answer, ensure_ascii=False, allow_nan=False, indent=1) if command.json else told(answer)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    return 0


def told(value: Mapping[str, Json]) -> str:
    """A run for people, in a few lines."""
    from mlflowkit.pipeline.run_summary import idle

    done = [step for step in value["steps"] if step["status"] == "done"]
    ran = sum(step["action"] == "run" for step in done)
    if idle(value):
        lines = [f"{value['name']}: nothing to do, all {len(done)} steps are unchanged since run {value['run']}"]
    else:
        seconds = f" in {value['seconds']:.1f} s" if value["seconds"] is not None else ""
        head = f"{value['name']}: run {value['run']} {value['status']}{seconds}"
        lines = [f"{head}, {ran} run, {len(done) - ran} reused"]
    for verdict in value["verdicts"]:
        dry = "" if verdict["blocking"] or verdict["verdict"] == "PASSED" else " (does not block)"
        lines.append(f"  {verdict['verdict']:<12} {verdict['gate']}: {verdict['message']}{dry}")
    for name in ("bundle", "endpoint", "report"):
        if value[name]:
            blessed = " (blessed)" if name == "bundle" and value["blessing"] else ""
            lines.append(f"  {name:<12} {value[name]}{blessed}")
    if idle(value):
        lines += [f"  rollout      {step['reason']}" for step in done if step["stage"] == "deploy" and _rolling(step)]
    elif value.get("rollout"):
        lines.append(f"  rollout      {value['rollout']}; mlkit rollout status {value['service']} shows how it goes")
    if value["curl"]:
        lines.append(f"  try it       {value['curl']}")
    return "\n".join(lines)


def _rolling(step: Mapping[str, Json]) -> bool:
    """Whether a deploy that is left alone is so for its rollout's sake (see pipeline.plan.rollout_of)."""
    return not str(step["reason"]).startswith(("unchanged", "made by"))
