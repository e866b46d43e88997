"""Decide whether a service's model is trained again: a pure function of the facts at one closed window.

No clock and no I/O; times are ages in seconds, so that a step of the clock can free neither a budget nor a cooldown.
Rules, in order:

1. An alarm about the schema, missing values, types or units blocks: a model that is trained on broken rows is worse.
2. A rollout or a run of this recipe that is under way holds everything.
3. In probation, a former champion that is shown better on the same rows comes back.
4. Retraining is wanted where performance FAILED (an estimate acts only while its back-test says TRUSTED), or where
   drift lasts in columns whose importance sums to enough.
5. A run that is wanted is refused in a cooldown, without budget, or until it is re-armed after a version that was not
   promoted; after too many failed runs a person is asked.
6. Without new data nothing is trained: the data are looked at again at each window.
7. New data must be nearer to the live rows than the champion's training rows were.
8. Then one run starts.

An *episode* is what begins with the alarm of one champion; its id is the idempotency key of all that it starts.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mlflowkit.values import Outcome

AlarmKind = Literal["schema", "missing", "type", "unit", "new", "range", "distribution"]
BLOCKING: tuple[AlarmKind, ...] = ("schema", "missing", "type", "unit")
"""Kinds of alarms that say that rows are broken upstream."""
Trust = Literal["TRUSTED", "BIASED", "UNKNOWN"]
DecisionKind = Literal[
    "none", "mend upstream", "hold", "rollback", "refused", "ask a person", "look at data", "waiting for data",
    "would not help", "train",
]  # fmt: skip
"""none: nothing is wrong that a new model would mend. "look at data" and "train" start a process; "rollback" gives the
traffic back to the former champion."""
WANTED: frozenset[DecisionKind] = frozenset(
    ("refused", "ask a person", "look at data", "waiting for data", "would not help", "train")
)
"""Decisions about a retraining that the facts ask for."""


@dataclass(frozen=True, slots=True)
class ColumnAlarm:
    """An alarm that lasts: of a column, or of all rows (column "") where requests are refused by their schema.

    ``importance`` is the column's share of the summed permutation importance; None when it was not measured (outputs,
    older bundles).
    """

    column: str
    kind: AlarmKind
    since: float
    importance: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class PerformanceFinding:
    """A metric against its bound. Only ``realised`` ones, and estimates that are TRUSTED, may start a run."""

    metric: str
    kind: Literal["realised", "estimated"]
    outcome: Outcome
    trust: Trust = "UNKNOWN"
    since: float | None = None
    message: str = ""

    @property
    def acts(self) -> bool:
        """Whether it says that performance is lost, and may be acted upon."""
        return self.outcome is Outcome.FAILED and (self.kind == "realised" or self.trust == "TRUSTED")


@dataclass(frozen=True, slots=True)
class RetrainTerms:
    """The recipe's ``retrain`` section; times in seconds. ``on`` names what may ask for a run."""

    on: tuple[Literal["performance", "drift"], ...] = ("performance", "drift")
    importance: float = 0.1
    changed_data: bool = True
    helps: bool = True
    budget_runs: int = 2
    budget_seconds: float = 7 * 86400.0
    cooldown: float = 86400.0
    rearm: int = 2
    failures: int = 2


@dataclass(frozen=True, slots=True)
class PastRun:
    """A run that was started before. ``age``: seconds since its start, never negative.

    status  promoted; rejected (a gate or the rollout turned the version down); failed (nothing came of it: an error, a
            lost process); running
    """

    episode: str
    age: float
    status: Literal["promoted", "rejected", "failed", "running"]
    data_version: str = ""


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What is known of the data source now, at this window.

    version       of the data; "" while nobody looked at it in this window
    champion      version that the champion was trained on; "" when its bundle does not tell
    problem       why the data cannot be used (a failed check, an unreadable source); "" for none
    helps         FAILED: the new rows are not nearer to the live ones; None while that was not compared
    helps_message the comparison in numbers
    """

    version: str = ""
    champion: str = ""
    problem: str = ""
    helps: Outcome | None = None
    helps_message: str = ""


@dataclass(frozen=True, slots=True)
class RetrainFacts:
    """All that a decision depends on, at one closed window.

    now          seconds since the epoch; only shown in messages
    service      with its ``champion`` (digest) and ``version``
    under_way    what is under way in words: a rollout, a run; "" for nothing
    probation    verdict about the champion against the former one on the same rows, FAILED when it is worse; None
                 outside a probation
    runs         runs of this service, newest last
    healthy      closed windows without an alarm since the newest run ended
    episode      id of the open episode; "" for none
    by_person    a person asks: what is wanted, and cooldown, budget and re-arming do not count
    """

    now: float
    service: str
    champion: str
    version: str
    alarms: tuple[ColumnAlarm, ...] = ()
    performance: tuple[PerformanceFinding, ...] = ()
    under_way: str = ""
    probation: Outcome | None = None
    probation_message: str = ""
    runs: tuple[PastRun, ...] = ()
    healthy: int = 0
    data: DataFacts = DataFacts()
    episode: str = ""
    by_person: bool = False


@dataclass(frozen=True, slots=True)
class RetrainDecision:
    """What follows, and why, in a sentence. ``since`` is the start of the first window of the alarm behind it;
    ``cause`` says what asked for the run."""

    kind: DecisionKind
    reason: str
    since: float | None = None
    cause: str = ""

    @property
    def wanted(self) -> bool:
        """Whether the facts ask for a new model, whatever becomes of it."""
        return self.kind in WANTED


@dataclass(frozen=True, slots=True)
class Demand:
    """What asks for a new model: the first window of it, and the sentence."""

    since: float
    cause: str


def episode_id(service: str, champion: str, since: float) -> str:
    """The id of the episode that began with the window ``since`` of a champion.

    >>> episode_id("lending", "a", 0.0) == episode_id("lending", "a", 0.0) != episode_id("lending", "b", 0.0)
    True
    """
    key = json.dumps([service, champion, round(since, 3)])
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def decide_retrain(facts: RetrainFacts, terms: RetrainTerms) -> RetrainDecision:
    """The decision at one closed window; see the module for the order of the rules."""
    demand = find_demand(facts, terms)
    blocking = [alarm for alarm in facts.alarms if alarm.kind in BLOCKING]
    if blocking:
        names = _listed([_describe_alarm(alarm) for alarm in blocking])
        return _decision("mend upstream", f"no retrain: {names}; a model trained on broken rows is worse", demand)
    if facts.under_way:
        return _decision("hold", f"no retrain while {facts.under_way}", demand)
    if facts.probation is Outcome.FAILED:
        return _decision("rollback", f"the former champion is better: {facts.probation_message}", demand)
    if demand is None:
        return RetrainDecision("none", _describe_rest(facts, terms))
    refusal = refuse(facts, terms)
    if refusal is not None:
        return _decision(*refusal, demand)
    return _decision(*_decide_on_data(facts, terms), demand)


def find_demand(facts: RetrainFacts, terms: RetrainTerms) -> Demand | None:
    """What asks for a new model: lost performance, else lasting drift of columns that matter; None for nothing."""
    if facts.by_person:
        return Demand(facts.now, "a person asked for it")
    if "performance" in terms.on:
        lost = [finding for finding in facts.performance if finding.acts]
        if lost:
            since = min((finding.since for finding in lost if finding.since is not None), default=facts.now)
            names = _listed([finding.message or f"{finding.kind} {finding.metric} FAILED" for finding in lost])
            return Demand(since, f"performance: {names}")
    drifted = drifted_columns(facts.alarms)
    share = sum(drifted.values())
    if "drift" in terms.on and drifted and share >= terms.importance:
        since = min(alarm.since for alarm in facts.alarms if alarm.column in drifted)
        names = _listed([f"{column} ({importance:.0%})" for column, importance in drifted.items()])
        return Demand(since, f"drift of {names}: {share:.0%} of the importance, {terms.importance:.0%} is needed")
    return None


def drifted_columns(alarms: Sequence[ColumnAlarm]) -> Mapping[str, float]:
    """The importance of the columns whose values drift, the largest first; a column counts once."""
    known = {
        alarm.column: alarm.importance
        for alarm in alarms
        if alarm.kind not in BLOCKING and alarm.importance is not None
    }
    return dict(sorted(known.items(), key=lambda item: (-item[1], item[0])))


def refuse(facts: RetrainFacts, terms: RetrainTerms) -> tuple[DecisionKind, str] | None:
    """Why a run that is wanted may not start now (rule 5); None when it may."""
    failed = [run for run in facts.runs if run.episode == facts.episode and run.status == "failed"]
    if facts.episode and len(failed) >= terms.failures:
        times = "once" if len(failed) == 1 else f"{len(failed)} times"
        return "ask a person", f"the run failed {times}; mlkit retrain {facts.service} tries again"
    if facts.by_person:
        return None
    ended = [run for run in facts.runs if run.status != "running"]
    retry = bool(failed) and ended[-1].episode == facts.episode
    newest = min((run.age for run in facts.runs), default=None)
    if newest is not None and newest < terms.cooldown and not retry:
        until = clock_text(facts.now + terms.cooldown - newest)
        return "refused", f"cooldown until {until}"
    spent = [run.age for run in facts.runs if run.age < terms.budget_seconds and not _is_retry(run, facts.runs)]
    if len(spent) >= terms.budget_runs and not retry:
        free = clock_text(facts.now + terms.budget_seconds - max(spent))
        return "refused", f"budget: {len(spent)} of {terms.budget_runs} runs are used until {free}"
    last = ended[-1] if ended else None
    if last is not None and last.status == "rejected" and facts.healthy < terms.rearm and not _is_new(facts, last):
        return "refused", (
            f"not re-armed: the last run's version was not promoted; {facts.healthy} of {terms.rearm} healthy windows "
            "since, and no new data"
        )
    return None


def budget_left(runs: Sequence[PastRun], terms: RetrainTerms) -> int:
    """How many runs the budget still has."""
    spent = [run for run in runs if run.age < terms.budget_seconds and not _is_retry(run, runs)]
    return max(0, terms.budget_runs - len(spent))


def clock_text(moment: float) -> str:
    """A time in UTC, for sentences.

    >>> clock_text(86400.0)
    '1970-01-02 00:00 UTC'
    """
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment))


def _decide_on_data(facts: RetrainFacts, terms: RetrainTerms) -> tuple[DecisionKind, str]:
    """Rules 6 to 8."""
    data = facts.data
    if data.problem:
        return "would not help", f"the data cannot be used: {data.problem}"
    if not data.version:
        return "look at data", "the data source is looked at before anything is trained"
    same = bool(data.champion) and data.version == data.champion
    if terms.changed_data and same:
        return "waiting for data", f"data version {data.version[:12]} is the champion's; looked at in each window"
    tried = next((run for run in reversed(facts.runs) if run.status == "rejected"), None)
    if terms.changed_data and tried is not None and tried.data_version == data.version and not facts.by_person:
        return "waiting for data", f"data version {data.version[:12]} gave a version that was not promoted"
    if terms.helps and not same:
        if data.helps is None:
            return "look at data", "the new training rows are compared with the live ones first"
        if data.helps is not Outcome.PASSED:
            return "would not help", f"retraining would not help: {data.helps_message}"
    helped = f"; {data.helps_message}" if data.helps_message else ""
    return "train", f"data version {data.version[:12]} is new{helped}" if not same else "the data are the champion's"


def _is_new(facts: RetrainFacts, last: PastRun) -> bool:
    """Whether there may be data that the last run did not have. Unknown data are looked at: rule 6 decides."""
    return not facts.data.version or facts.data.version != last.data_version


def _is_retry(run: PastRun, runs: Sequence[PastRun]) -> bool:
    """Whether a run repeats one of its episode that had failed: a repetition is of the budget of the first."""
    return any(other.episode == run.episode and other.age > run.age and other.status == "failed" for other in runs)


def _decision(kind: DecisionKind, reason: str, demand: Demand | None) -> RetrainDecision:
    if demand is None:
        return RetrainDecision(kind, reason)
    return RetrainDecision(kind, reason, demand.since, demand.cause)


def _describe_alarm(alarm: ColumnAlarm) -> str:
    return alarm.message or f"{alarm.kind} alarm of {alarm.column or 'the requests'}"


def _describe_rest(facts: RetrainFacts, terms: RetrainTerms) -> str:
    """Why nothing asks for a new model although there may be alarms."""
    untrusted = [
        f"{finding.metric} is estimated to be lost, but its back-test says {finding.trust}"
        for finding in facts.performance
        if finding.outcome is Outcome.FAILED and not finding.acts
    ]
    drifted = drifted_columns(facts.alarms)
    unknown = {alarm.column for alarm in facts.alarms if alarm.importance is None and alarm.kind not in BLOCKING}
    texts = list(untrusted)
    if drifted:
        texts.append(
            f"drift of {_listed(list(drifted))} has {sum(drifted.values()):.0%} of the importance, "
            f"{terms.importance:.0%} is needed"
        )
    if unknown:
        texts.append(f"the importance of {_listed(sorted(unknown))} is not known")
    return "; ".join(texts) or "nothing has drifted"


def _listed(names: Sequence[str]) -> str:
    shown = [*names[:5], *([f"{len(names) - 5} more"] if len(names) > 5 else [])]
    return ", ".join(shown)
