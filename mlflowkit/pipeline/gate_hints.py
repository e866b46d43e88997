"""What to type after a gate did not pass: the run again, a longer measurement, or a looser gate. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence

from mlflowkit.judging.metrics import LATENCY, LATENCY_RATIOS, TIMES
from mlflowkit.values import Outcome, RunRecord, Verdict

LONGER = 4
"""Factor of the longer budget that a hint names."""
SLACK = 1.1
"""Factor between the upper bound that was measured and the limit that a hint names."""


def gate_hint(record: RunRecord, verdicts: Sequence[Verdict], options: Sequence[str] = ()) -> str:
    """The commands that help with these blocking verdicts of a run; "" where none is about a time.

    ``options`` are those that the run was asked with (``--until``, ``--state``).
    """
    command = _command(record, options)
    remedies = []
    if any(verdict.remeasure for verdict in verdicts):
        budget = record.recipe.get("latency") or {}
        seconds, rounds = LONGER * float(budget.get("seconds", 30.0)), LONGER * int(budget.get("rounds", 2000))
        remedies.append(f"{command} measures the latency again, and only that")
        longer = _command(record, options, {"latency.seconds", "latency.rounds"})
        remedies.append(f"{longer} latency.seconds={seconds:g} latency.rounds={rounds} lets it take longer")
    failed = [verdict for verdict in verdicts if verdict.metric in TIMES and verdict.outcome is Outcome.FAILED]
    if any(verdict.measurement is not None for verdict in failed):
        remedies.append(f"{command} --force evaluate measures the latency again")
    for index in _other_machines(record, verdicts):
        remedies.append(f"run it on such a machine, or {command} gates.{index}.machine=null judges it on this one")
    loosened = [text for verdict in verdicts if (text := _looser(record, verdict))]
    if loosened:
        remedies.append(f"{command} {' '.join(loosened)} loosens {'it' if len(loosened) == 1 else 'them'}")
    return "; ".join(remedies)


def _command(record: RunRecord, options: Sequence[str], replaced: Collection[str] = ()) -> str:
    """The command that made a run, without its overrides of the keys ``replaced``."""
    overrides = [text for text in record.overrides if text.partition("=")[0].lstrip("+") not in replaced]
    return shlex.join(["mlkit", "run", record.recipe_path, *options, *overrides])


def _other_machines(record: RunRecord, verdicts: Sequence[Verdict]) -> list[int]:
    """The gates, by position, that are for another class of machines."""
    undecided = {
        (verdict.metric, verdict.threshold)
        for verdict in verdicts
        if verdict.outcome is Outcome.INCONCLUSIVE and not verdict.remeasure
    }
    return [
        index
        for index, gate in enumerate(record.recipe.get("gates") or ())
        if gate.get("machine") and (gate.get("metric"), gate.get("max")) in undecided
    ]


def _looser(record: RunRecord, verdict: Verdict) -> str:
    """The override that would let a gate on time pass, were the same measured again; "" without a measurement."""
    measured = verdict.measurement
    if verdict.metric not in TIMES or measured is None or verdict.direction != "max":
        return ""
    against = "" if verdict.metric in LATENCY else verdict.gate.partition(" against ")[2].partition(" ")[0]
    for index, gate in enumerate(record.recipe.get("gates") or ()):
        same = gate.get("metric") == verdict.metric and gate.get("max") == verdict.threshold
        if same and (verdict.metric not in LATENCY_RATIOS or (gate.get("against") or "float") == against):
            return f"gates.{index}.max={measured.high * SLACK:.2g}"
    return ""
