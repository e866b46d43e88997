"""A run against a baseline that was measured earlier: has a candidate become slower by more than a share? Pure.

The verdict is about the interval of a ratio, never about two numbers: FAILED only where the whole interval lies beyond
what may be, PASSED only where all of it lies within, and INCONCLUSIVE otherwise. All intervals of one comparison hold
together (Bonferroni). A baseline that comes from a file was measured at another time: its blocks are not paired with
today's, so what the machine did on either day is in the ratio. It is judged only where the machine is the same, and
rests on the starts of the processes where there are enough of them (`analysis.unpaired_ratio_interval`). To be sure of
small changes, measure both in one run: their starts are then paired (`analysis.started_ratio_interval`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlflowkit.bench.analysis import CONFIDENCE, STARTS, rests_on_starts, unpaired_ratio_interval
from mlflowkit.bench.load.pattern import Load
from mlflowkit.bench.validity import enough, percentile
from mlflowkit.errors import UsageError
from mlflowkit.values import Outcome

if TYPE_CHECKING:
    import numpy as np

    from mlflowkit.bench.result_file import Key, Results

DECISIVE: Mapping[str, str] = {
    "processor": "processor",
    "architecture": "architecture",
    "cores": "number of cores",
    "cpu_limit": "limit of processor time",
    "governor": "governor",
}
"""Facts of a machine without which two latencies cannot be compared, and their names in words."""


@dataclass(frozen=True, slots=True)
class Change:
    """One candidate now over the baseline. ``low`` and ``high`` are None where there is no interval; words say why."""

    name: str
    batch: int
    outcome: Outcome
    low: float | None
    high: float | None
    words: str


@dataclass(frozen=True, slots=True)
class Regression:
    """``outcome`` is that of the worst candidate: a regression before a doubt. ``new`` has no baseline."""

    outcome: Outcome
    quantile: str
    fail_above: float
    confidence: float
    changes: tuple[Change, ...]
    new: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "outcome": str(self.outcome),
            "changes": [asdict(change) | {"outcome": str(change.outcome)} for change in self.changes],
            "new": list(self.new),
            "notes": list(self.notes),
        }


ASKED: Mapping[str, str] = {"graph": "another graph than the baseline's", "requests": "asked other rows than then"}
"""Keys of a row that may differ from its baseline's, and what that is in words."""


def judge(low: float, high: float, fail_above: float) -> Outcome:
    """What the interval of now over before says about a slowdown of more than ``fail_above``.

    >>> [str(judge(*bounds, 0.05)) for bounds in ((1.06, 1.2), (0.9, 1.05), (1.0, 1.1))]
    ['FAILED', 'PASSED', 'INCONCLUSIVE']
    """
    if low > 1 + fail_above:
        return Outcome.FAILED
    return Outcome.PASSED if high <= 1 + fail_above else Outcome.INCONCLUSIVE


def compare(baseline: Results, now: Results, fail_above: float, *, confidence: float = CONFIDENCE) -> Regression:
    """Every candidate of a baseline that was measured then, against what it is now, at the quantile of ``now``.

    Raises UsageError for a negative ``fail_above``.
    """
    if fail_above < 0:
        raise UsageError(f"a slowdown of {fail_above:g} cannot be the limit", hint="give a share: 5% or 0.05")
    keys, level = list(baseline.starts), 1 - (1 - confidence) / max(1, len(baseline.starts))
    elsewhere = "; ".join(differences(baseline.machine, now.machine))
    changes = tuple(_judged(key, baseline, now, fail_above, level, elsewhere) for key in keys)
    few = [key for key in keys if key in now.starts and not rests_on_starts(_blocks(now, key), _blocks(baseline, key))]
    notes = [words for key in keys if key in now.starts for words in _otherwise(key, baseline, now)]
    notes += _versions(baseline.machine, now.machine)
    if few:
        notes.append(f"fewer than {STARTS} starts a side: what differs from start to start is not in the intervals")
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
    """A regression before a doubt; of nothing, a doubt.

    >>> str(worst([Outcome.PASSED, Outcome.INCONCLUSIVE])), str(worst([]))
    ('INCONCLUSIVE', 'INCONCLUSIVE')
    """
    for outcome in (Outcome.FAILED, Outcome.INCONCLUSIVE):
        if outcome in outcomes:
            return outcome
    return Outcome.PASSED if outcomes else Outcome.INCONCLUSIVE


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Why latencies of two machines cannot be compared, in words; empty where they can.

    >>> differences({"cores": 8, "gpus": None}, {"cores": 2, "gpus": None})
    ['the number of cores was 8 and is 2']
    """
    found = [
        f"the {words} was {before.get(key)} and is {now.get(key)}"
        for key, words in DECISIVE.items()
        if before.get(key) != now.get(key)
    ]
    gpus = [[gpu["name"] for gpu in machine.get("gpus") or ()] for machine in (before, now)]
    if gpus[0] != gpus[1]:
        found.append(f"the GPUs were {', '.join(gpus[0]) or 'none'} and are {', '.join(gpus[1]) or 'none'}")
    return found


def _judged(key: Key, baseline: Results, now: Results, fail_above: float, confidence: float, elsewhere: str) -> Change:
    import numpy as np

    name, batch = key
    title = _title(name, batch)
    if elsewhere:
        return _doubt(key, f"{title}: measured on another machine: {elsewhere}")
    if key not in now.starts:
        row = now.rows.get(key)
        why = f"{row['status']}: {row['reason']}" if row else "this run has no such candidate"
        return _doubt(key, f"{title}: not measured now ({why})")
    loads = [_load(results, key) for results in (baseline, now)]
    if loads[0] != loads[1]:
        return _doubt(key, f"{title}: the load was {loads[0].words} and is {loads[1].words}")
    later, earlier = _blocks(now, key), _blocks(baseline, key)
    for when, side in (("now", later), ("in the baseline", earlier)):
        if lacking := enough(np.concatenate(side), now.quantile).words:
            return _doubt(key, f"{title}: {when}, {lacking}")
        if any(len(blocks) < 2 for blocks in side):
            return _doubt(key, f"{title}: {when}, one block of samples has no interval")
    bounds = unpaired_ratio_interval(later, earlier, now.quantile, confidence=confidence)
    return _change(name, batch, bounds, now.quantile, fail_above, title)


def _doubt(key: Key, words: str) -> Change:
    return Change(*key, Outcome.INCONCLUSIVE, None, None, words)


def _change(name: str, batch: int, bounds: tuple[float, float], q: float, fail_above: float, title: str = "") -> Change:
    outcome = judge(*bounds, fail_above)
    ends = [f"{bound:.3g}" for bound in bounds]
    said = f"{title or name}: {percentile(q)} is {' to '.join(dict.fromkeys(ends))} times the baseline"
    limit = f"{1 + fail_above:.4g}"
    meaning = {
        Outcome.FAILED: f"more than the {limit} that may be",
        Outcome.PASSED: f"within the {limit} that may be",
        Outcome.INCONCLUSIVE: f"which may or may not be more than {limit}: more --starts tell",
    }
    return Change(name, batch, outcome, *bounds, f"{said}, {meaning[outcome]}")


def _blocks(results: Results, key: Key) -> list[np.ndarray]:
    return [samples.microseconds for samples in results.starts[key]]


def _title(name: str, batch: int) -> str:
    return name if batch == 1 else f"{name} (batch {batch})"


def _load(results: Results, key: Key) -> Load:
    """What asked; one caller in a file that does not say."""
    told = results.rows.get(key, {}).get("load") or {}
    return Load(int(told.get("callers", 1)), told.get("rate"))


def _otherwise(key: Key, baseline: Results, now: Results) -> list[str]:
    """What differs between a candidate and its baseline besides its latency, and may be why that changed."""
    before, after = (results.rows.get(key, {}) for results in (baseline, now))
    said = [words for name, words in ASKED.items() if name in before and before[name] != after.get(name)]
    engines = [row.get("engine") or {} for row in (before, after)]
    said += [
        f"{name} of its engine was {engines[0].get(name)} and is {engines[1].get(name)}"
        for name in {**engines[0], **engines[1]}
        if engines[0] and engines[0].get(name) != engines[1].get(name)
    ]
    return [f"{_title(*key)}: {words}" for words in said]


def _versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs and may be why a candidate changed: versions and the system."""
    earlier = {**(before.get("libraries") or {}), "kernel": before.get("kernel"), "Python": before.get("python")}
    later = {**(now.get("libraries") or {}), "kernel": now.get("kernel"), "Python": now.get("python")}
    return [
        f"{name} was {earlier.get(name) or 'absent'} and is {later.get(name) or 'absent'}"
        for name in {**earlier, **later}
        if earlier.get(name) != later.get(name)
    ]
