"""Regression check of a run against an earlier baseline: is a candidate slower by more than a given share? Pure.

The verdict is about the interval of a ratio: FAILED if all of it lies beyond the limit, PASSED if all of it lies
within, else INCONCLUSIVE. All intervals of one check hold simultaneously (Bonferroni). A baseline from a file is
unpaired, so the state of the machine on either day is in the ratio; it is judged only on the same machine, and over
starts if there are enough of them (`analysis.unpaired_ratio_interval`). To detect small changes, measure both in one
run: their starts are then paired (`analysis.started_ratio_interval`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlflowkit.bench.analysis import CONFIDENCE, STARTS, rests_on_starts, unpaired_ratio_interval
from mlflowkit.bench.load.pattern import LoadPattern
from mlflowkit.bench.result_file import Key, SavedResults
from mlflowkit.bench.validity import check_adequacy, percentile
from mlflowkit.errors import UsageError
from mlflowkit.values import Outcome

DECISIVE: Mapping[str, str] = {
    "processor": "processor", "architecture": "architecture", "cores": "number of cores",
    "cpu_limit": "limit of processor time", "governor": "governor",
}  # fmt: skip
"""Facts that must agree between two machines whose latencies are compared, and their names in messages."""
INPUT_CHANGES: Mapping[str, str] = {
    "graph": "another graph than the baseline's",
    "requests": "other input rows than the baseline's",
}
"""Keys of a row that may differ from its baseline's, and the messages for that."""


@dataclass(frozen=True, slots=True)
class RegressionChange:
    """One candidate relative to its baseline; ``low`` and ``high`` are None without an interval."""

    name: str
    batch: int
    outcome: Outcome
    low: float | None
    high: float | None
    words: str


@dataclass(frozen=True, slots=True)
class Regression:
    """``outcome`` is the worst of the ``changes``; ``new`` lists candidates without a baseline."""

    outcome: Outcome
    quantile: str
    fail_above: float
    confidence: float
    changes: tuple[RegressionChange, ...]
    new: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "outcome": str(self.outcome),
            "changes": [asdict(change) | {"outcome": str(change.outcome)} for change in self.changes],
            "new": list(self.new),
            "notes": list(self.notes),
        }


def judge(low: float, high: float, fail_above: float) -> Outcome:
    """Judge the interval of a ratio (now to baseline) against a slowdown of ``fail_above``.

    >>> [str(judge(*bounds, 0.05)) for bounds in ((1.06, 1.2), (0.9, 1.05), (1.0, 1.1))]
    ['FAILED', 'PASSED', 'INCONCLUSIVE']
    """
    if low > 1 + fail_above:
        return Outcome.FAILED
    return Outcome.PASSED if high <= 1 + fail_above else Outcome.INCONCLUSIVE


def compare(
    baseline: SavedResults, now: SavedResults, fail_above: float, *, confidence: float = CONFIDENCE
) -> Regression:
    """Compare every measured candidate of a baseline with the current run, at the quantile of ``now``.

    Raises UsageError for a negative ``fail_above``.
    """
    if fail_above < 0:
        raise UsageError(f"a slowdown of {fail_above:g} cannot be the limit", hint="give a share: 5% or 0.05")
    keys, level = list(baseline.starts), 1 - (1 - confidence) / max(1, len(baseline.starts))
    elsewhere = "; ".join(differences(baseline.machine, now.machine))
    changes = tuple(_judge_change(key, baseline, now, fail_above, level, elsewhere) for key in keys)
    few = [key for key in keys if key in now.starts and not rests_on_starts(_blocks(now, key), _blocks(baseline, key))]
    notes = [change for key in keys if key in now.starts for change in _changed_settings(key, baseline, now)]
    notes += _value_changes(_versions(baseline.machine), _versions(now.machine))
    if few:
        notes.append(f"fewer than {STARTS} starts a side: the intervals leave out the variation between starts")
    return Regression(
        outcome=worst([change.outcome for change in changes]),
        quantile=percentile(now.quantile),
        fail_above=fail_above,
        confidence=level,
        changes=changes,
        new=tuple(_title(*key) for key in now.starts if key not in baseline.starts),
        notes=tuple(notes),
    )


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the worst outcome: FAILED, INCONCLUSIVE, PASSED; INCONCLUSIVE if there is none.

    >>> str(worst([Outcome.PASSED, Outcome.INCONCLUSIVE])), str(worst([]))
    ('INCONCLUSIVE', 'INCONCLUSIVE')
    """
    for outcome in (Outcome.FAILED, Outcome.INCONCLUSIVE):
        if outcome in outcomes:
            return outcome
    return Outcome.PASSED if outcomes else Outcome.INCONCLUSIVE


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return why latencies of two machines cannot be compared, as clauses.

    >>> differences({"cores": 8, "gpus": None}, {"cores": 2, "gpus": None})
    ['the number of cores was 8 and is 2']
    """
    changes = [
        f"the {label} was {before.get(key)} and is {now.get(key)}"
        for key, label in DECISIVE.items()
        if before.get(key) != now.get(key)
    ]
    gpus = [[gpu["name"] for gpu in machine.get("gpus") or ()] for machine in (before, now)]
    if gpus[0] != gpus[1]:
        changes.append(f"the GPUs were {', '.join(gpus[0]) or 'none'} and are {', '.join(gpus[1]) or 'none'}")
    return changes


def _judge_change(
    key: Key, baseline: SavedResults, now: SavedResults, fail_above: float, confidence: float, elsewhere: str
) -> RegressionChange:
    title = _title(*key)
    if reason := _reason_undecided(key, baseline, now, elsewhere):
        return RegressionChange(*key, Outcome.INCONCLUSIVE, None, None, f"{title}: {reason}")
    bounds = unpaired_ratio_interval(_blocks(now, key), _blocks(baseline, key), now.quantile, confidence=confidence)
    outcome = judge(*bounds, fail_above)
    span = " to ".join(dict.fromkeys(f"{bound:.3g}" for bound in bounds))
    limit = f"{1 + fail_above:.4g}"
    meaning = {
        Outcome.FAILED: f"more than the limit {limit}",
        Outcome.PASSED: f"within the limit {limit}",
        Outcome.INCONCLUSIVE: f"which may or may not be more than {limit}: add --starts to decide",
    }[outcome]
    message = f"{title}: {percentile(now.quantile)} is {span} times the baseline, {meaning}"
    return RegressionChange(*key, outcome, *bounds, message)


def _reason_undecided(key: Key, baseline: SavedResults, now: SavedResults, elsewhere: str) -> str:
    """Return why two measurements of a candidate cannot be compared, or ""."""
    if elsewhere:
        return f"measured on another machine: {elsewhere}"
    if key not in now.starts:
        row = now.rows.get(key)
        why = f"{row['status']}: {row['reason']}" if row else "this run has no such candidate"
        return f"not measured now ({why})"
    before, after = _load(baseline, key), _load(now, key)
    if before != after:
        return f"the load was {before.label} and is {after.label}"
    for when, results in (("now", now), ("in the baseline", baseline)):
        side = _blocks(results, key)
        if lacking := check_adequacy(np.concatenate(side), now.quantile).message:
            return f"{when}, {lacking}"
        if any(len(blocks) < 2 for blocks in side):
            return f"{when}, one block of samples has no interval"
    return ""


def _blocks(results: SavedResults, key: Key) -> list[np.ndarray]:
    return [samples.microseconds for samples in results.starts[key]]


def _title(name: str, batch: int) -> str:
    return name if batch == 1 else f"{name} (batch {batch})"


def _load(results: SavedResults, key: Key) -> LoadPattern:
    """Return a row's load; one caller if the file does not say."""
    load = results.rows.get(key, {}).get("load") or {}
    return LoadPattern(int(load.get("callers", 1)), load.get("rate"))


def _changed_settings(key: Key, baseline: SavedResults, now: SavedResults) -> list[str]:
    """Return other differences of a candidate to its baseline, which may explain a change of latency."""
    before, after = (results.rows.get(key, {}) for results in (baseline, now))
    changes = [text for name, text in INPUT_CHANGES.items() if name in before and before[name] != after.get(name)]
    if before.get("engine"):
        changes += _value_changes(before["engine"], after.get("engine") or {}, " of its engine")
    return [f"{_title(*key)}: {change}" for change in changes]


def _versions(machine: Mapping[str, Any]) -> dict[str, Any]:
    """Return the versions of libraries, kernel and Python, whose changes may explain a change of latency."""
    return {**(machine.get("libraries") or {}), "kernel": machine.get("kernel"), "Python": machine.get("python")}


def _value_changes(before: Mapping[str, Any], now: Mapping[str, Any], owner: str = "") -> list[str]:
    before, now = ({name: value for name, value in side.items() if value is not None} for side in (before, now))
    return [
        f"{name}{owner} was {before.get(name, 'absent')} and is {now.get(name, 'absent')}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
