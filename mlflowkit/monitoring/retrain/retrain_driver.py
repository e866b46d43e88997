"""Carries the decisions about retraining out: opens episodes, starts their processes, and follows what comes of them.

One a service, in the process that controls it. `RetrainDriver.tick` may be called as often as one likes: it decides
once a closed window, and again when an attempt has ended. What is decided is durable before a process is started;
a driver that was killed at any point is replaced by one that reads the records and goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast, get_args

from mlflowkit.bundle import read_manifest
from mlflowkit.errors import MlkitError
from mlflowkit.judging.shift.counts import WindowCounts
from mlflowkit.monitoring.retrain import data_nearness, episodes, retrain_policy
from mlflowkit.monitoring.retrain.attempt_outcome import champion_digest, follow_rollout, judge_result
from mlflowkit.monitoring.retrain.attempt_work import read_reference
from mlflowkit.monitoring.retrain.data_nearness import ComparedColumn
from mlflowkit.monitoring.retrain.episodes import Attempt, AttemptResult, Episode
from mlflowkit.monitoring.retrain.retrain_policy import (
    ColumnAlarm,
    DataFacts,
    DecisionKind,
    PerformanceFinding,
    RetrainDecision,
    RetrainFacts,
    RetrainTerms,
)
from mlflowkit.monitoring.retrain.runner import Launcher
from mlflowkit.monitoring.retrain.steady_clock import Moment, this_moment
from mlflowkit.rollout import commands, policy
from mlflowkit.rollout.commands import CommandReply
from mlflowkit.rollout.requests import REQUEST
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system import failpoint
from mlflowkit.values import Json, Outcome, Variant

PERSON_REQUEST = "monitor/retrain_request.json"
"""The record by which a person asks for a retraining: {id, time}. The driver takes it, and replies to the id."""
_log = logging.getLogger("mlflowkit.monitoring")

Quantiles = Callable[[Sequence[str]], Mapping[str, Sequence[float]]]
"""Quartiles of the live values of columns of numbers, as far as they are known."""


@dataclass(frozen=True, slots=True)
class RetrainSituation:
    """What the monitor knows at a closed window.

    window   start of the newest closed window; None before the first
    healthy  closed windows in a row without an alarm
    live     counts of the windows that the alarm is about, in the cells of the champion's reference
    effects  rows per effective row of the live counts, by column
    probation  verdict about the champion against the former one on the same rows, FAILED when it is worse
    """

    champion: Variant
    window: float | None = None
    alarms: tuple[ColumnAlarm, ...] = ()
    performance: tuple[PerformanceFinding, ...] = ()
    healthy: int = 0
    live: WindowCounts | None = None
    effects: Mapping[str, float] = field(default_factory=dict)
    probation: Outcome | None = None
    probation_message: str = ""


@dataclass(frozen=True, slots=True)
class RetrainPlan:
    """What is run: the recipe with its overrides, under which terms."""

    terms: RetrainTerms
    recipe: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RetrainDeps:
    """The driver's effects on the outside, replaceable in tests.

    guard      prevents that another controller takes over while a record is written
    runs       what runs of this recipe, by others, are under way, in words; "" for none
    """

    launcher: Launcher
    guard: Callable[[], AbstractContextManager[None]] = nullcontext
    clock: Callable[[], Moment] = this_moment
    runs: Callable[[], str] = lambda: ""
    quantiles: Quantiles = lambda columns: {}


@dataclass(frozen=True, slots=True)
class RetrainReport:
    """The state of retraining for the monitor's view; ``sentences`` are new since the last tick.

    state  off, idle, wanted, waiting, checking, running, or asking
    """

    state: str
    decision: RetrainDecision
    episode: str = ""
    budget_left: int = 0
    runs: tuple[Mapping[str, Json], ...] = ()
    sentences: tuple[str, ...] = ()


class RetrainDriver:
    """Retraining of one service."""

    def __init__(self, files: ServiceFiles, plan: RetrainPlan, deps: RetrainDeps) -> None:
        self.files = files
        self.plan = plan
        self._deps = deps
        self._episodes = list(episodes.read_episodes(files))
        self._decision = RetrainDecision("none", "nothing has drifted")
        self._decided: tuple[object, ...] | None = None
        self._sentences: list[str] = []
        self._started: set[tuple[str, str]] = set()

    def tick(self, situation: RetrainSituation) -> RetrainReport:
        """Follow the attempts, decide if there is something new to decide by, and act. Raises MlkitError; the next
        tick goes on."""
        self._take_request(situation)
        self._follow(situation)
        if champion_digest(self.files, situation.champion.digest) != situation.champion.digest:
            return self._report()  # another champion since the situation was read: its alarms are not about that one
        key = self._decision_key(situation)
        asked = self.episode is not None and self.episode.by == "person"
        if (situation.window is not None or asked) and key != self._decided:
            self._decide(situation)
            self._decided = self._decision_key(situation)
        return self._report()

    @property
    def episode(self) -> Episode | None:
        """The open episode."""
        return next((episode for episode in reversed(self._episodes) if episode.open), None)

    def facts(self, situation: RetrainSituation, *, by_person: bool = False) -> RetrainFacts:
        """All that the policy decides by."""
        now, episode = self._deps.clock(), self.episode
        return RetrainFacts(
            now=now.wall,
            service=self.files.service,
            champion=situation.champion.digest,
            version=situation.champion.version,
            alarms=situation.alarms,
            performance=situation.performance,
            under_way=self._under_way(),
            probation=situation.probation,
            probation_message=situation.probation_message,
            runs=episodes.past_runs(self._episodes, now),
            healthy=situation.healthy,
            data=self._data_facts(situation),
            episode="" if episode is None else episode.id,
            by_person=by_person or (episode is not None and episode.by == "person"),
        )

    def _take_request(self, situation: RetrainSituation) -> None:
        """Open the episode that a person asks for, in the place of the one that is open, and reply."""
        if not self.files.exists(PERSON_REQUEST):
            return
        try:
            value = self.files.read_json(PERSON_REQUEST)
            request, moment = str(value["id"]), float(value["time"])
        except (MlkitError, KeyError, TypeError, ValueError) as error:
            _log.error("%s is damaged and was removed: %s", self.files.location(PERSON_REQUEST), error)
            self.files.delete(PERSON_REQUEST)
            return
        before = self.episode
        id = retrain_policy.episode_id(self.files.service, situation.champion.digest, moment)
        busy = before is not None and (before.current is not None or before.rolling_out)
        if busy and before is not None and before.id != id:
            reply = CommandReply(request, False, f"episode {before.id} is under way", "mlkit status")
        else:
            if before is not None and before.id != id:
                self._save(replace(before, ending="superseded"))
            if all(episode.id != id for episode in self._episodes):
                decision = RetrainDecision("look at data", "", moment, "a person asked for it")
                self._save(replace(self._open(situation, decision), by="person"))
            reply = CommandReply(request, True, id)
        commands.write_reply(self.files, reply)
        self.files.delete(PERSON_REQUEST)

    # -------------------------------------------------------------------------------------------- what is under way

    def _follow(self, situation: RetrainSituation) -> None:
        """Read what became of the attempts, and close an episode that is over."""
        episode = self._read_again(self.episode)
        if episode is None or not episode.open:
            return
        current = episode.current
        if current is not None:
            self._follow_attempt(episode, current)
        episode = self.episode
        if episode is not None and episode.rolling_out:
            outcome, message = follow_rollout(self.files, episode.runs[-1])
            if outcome != "rolling out":
                self._conclude(episode, replace(episode.runs[-1], outcome=outcome, message=message))
        episode = self.episode
        if episode is not None and (ending := self._ending(episode, situation)):
            self._save(replace(episode, ending=ending))
            self._say(f"episode {episode.id} is over: {_ENDINGS[ending]}")

    def _read_again(self, episode: Episode | None) -> Episode | None:
        """The episode as it is stored: another controller may have gone on with it."""
        stored = None if episode is None else episodes.read_episode(self.files, episode.id)
        if stored is None or stored == episode:
            return episode
        _log.warning("%s: another controller wrote episode %s", self.files.service, stored.id)
        self._keep(stored)
        return stored

    def _keep(self, episode: Episode) -> None:
        self._episodes = [other for other in self._episodes if other.id != episode.id] + [episode]

    def _follow_attempt(self, episode: Episode, attempt: Attempt) -> None:
        """Start the process of an attempt that nobody has claimed; else read its result, or notice that it is lost."""
        claim = episodes.read_claim(self.files, episode.id, attempt.name)
        if claim is None:
            code = self._deps.launcher.ended(episode.id, attempt.name)
            if code is not None and code != 0:
                self._lose(episode, attempt, f"its process ended with code {code} before it began")
            elif code is not None or (episode.id, attempt.name) not in self._started:
                self._start(episode, attempt)
            return
        gone = claim.is_gone  # before the result is read: a process writes it as its last act
        result = episodes.read_result(self.files, episode.id, attempt.name)
        if result is not None:
            self._finish(episode, attempt, result)
        elif gone:
            self._lose(episode, attempt, "its process was lost")
        elif attempt.status == "starting":
            self._save(episode.with_attempt(replace(attempt, status="running")))

    def _start(self, episode: Episode, attempt: Attempt) -> None:
        failpoint.hit("retrain.starting")
        self._deps.launcher.start(self.files, episode.id, attempt.name)
        self._started.add((episode.id, attempt.name))
        failpoint.hit("retrain.started")

    def _lose(self, episode: Episode, attempt: Attempt, message: str) -> None:
        lost = replace(attempt, status="lost", outcome="failed", message=message)
        self._say(f"attempt {attempt.name} of episode {episode.id} failed: {message}")
        self._save(episode.with_attempt(lost))

    def _finish(self, episode: Episode, attempt: Attempt, result: AttemptResult) -> None:
        done = replace(attempt, status="done", result=result, message=result.message)
        if attempt.task == "look":
            self._save(episode.with_attempt(done))
            return
        outcome, message = judge_result(self.files, episode, result)
        self._conclude(episode, replace(done, outcome=outcome, message=message))

    def _conclude(self, episode: Episode, run: Attempt) -> None:
        """Record what became of a run."""
        self._save(episode.with_attempt(run))
        self._say(f"run {run.number} of episode {episode.id}: {run.outcome}{f': {run.message}' if run.message else ''}")

    def _ending(self, episode: Episode, situation: RetrainSituation) -> str:
        """Why an episode is over; "" while it is not."""
        last = episode.runs[-1] if episode.runs else None
        if last is not None and last.outcome == "promoted":
            return "promoted"
        if episode.current is not None or episode.rolling_out:
            return ""
        if champion_digest(self.files, situation.champion.digest) != episode.champion:
            return "superseded"
        if episode.by == "person":
            return "answered" if episode.decision not in ("none", "train", "hold") else ""
        return "resolved" if situation.healthy >= self.plan.terms.rearm else ""

    # -------------------------------------------------------------------------------------------------- the decision

    def _decision_key(self, situation: RetrainSituation) -> tuple[object, ...]:
        """Changes with what there is to decide by."""
        episode = self.episode
        attempts = () if episode is None else (episode.look, *episode.runs)
        states = tuple((item.name, item.status, item.outcome) for item in attempts if item is not None)
        ended = sum(not other.open for other in self._episodes)
        return situation.window, situation.champion.digest, ended, "" if episode is None else episode.id, states

    def _decide(self, situation: RetrainSituation) -> None:
        episode = self.episode
        if episode is not None and episode.current is not None:
            return  # what was decided is being done
        decision = retrain_policy.decide_retrain(self.facts(situation), self.plan.terms)
        before, self._decision = self._decision, decision
        if decision.wanted and episode is None:
            episode = self._open(situation, decision)
        stored = ("none", "") if episode is None else (episode.decision, episode.reason)
        known = stored if stored[0] != "none" else (before.kind, before.reason)
        looking = decision.kind == "look at data"  # told by what comes of it
        news = decision.kind != known[0] or (decision.reason != known[1] and decision.kind not in _TERSE)
        if news and not looking:
            cause = f"; {decision.cause}" if decision.cause and decision.kind == "train" else ""
            self._say(f"{decision.kind}: {decision.reason}{cause}")
        if episode is None:
            return
        if not looking:
            episode = replace(episode, decision=decision.kind, reason=decision.reason)
        if episode.look is not None and not episode.judged and not looking:
            episode = replace(episode, window=situation.window, judged=True)
        if looking:
            self._begin(replace(episode, window=situation.window, judged=False), "look", episode.looks + 1)
        elif decision.kind == "train":
            self._begin(episode, "train", len(episode.runs) + 1)
        elif episode != self.episode:
            self._save(episode)

    def _open(self, situation: RetrainSituation, decision: RetrainDecision) -> Episode:
        """The episode of a decision: a new one, or one that a rollback to its champion opens again."""
        since = 0.0 if decision.since is None else decision.since
        id = retrain_policy.episode_id(self.files.service, situation.champion.digest, since)
        known = next((episode for episode in self._episodes if episode.id == id), None)
        if known is not None:
            runs = tuple(replace(run, outcome="rejected") if run.outcome == "promoted" else run for run in known.runs)
            return replace(known, ending="", runs=runs, window=None)
        return Episode(
            id, self.files.service, situation.champion.digest, situation.champion.version, situation.champion.bundle,
            since, decision.cause, self._deps.clock(), self.plan.recipe, self.plan.overrides,
            champion_data=champion_data_version(situation.champion),
        )  # fmt: skip

    def _begin(self, episode: Episode, task: episodes.Task, number: int) -> None:
        """Record an attempt, then start its process."""
        if task == "look" and episode.look is not None:
            episodes.forget_attempt(self.files, episode.id, episode.look.name)
        attempt = Attempt(task, number, self._deps.clock())
        self._save(episode.with_attempt(attempt))
        self._start(episode, attempt)

    def _under_way(self) -> str:
        """A rollout, or a run of this recipe by others, in words."""
        running = commands.running_rollout(self.files)
        if running is not None:
            return f"version {running.candidate.version} is rolled out ({policy.describe(running)})"
        return "a rollout is requested" if self.files.exists(REQUEST) else self._deps.runs()

    def _data_facts(self, situation: RetrainSituation) -> DataFacts:
        """What the look of this window says of the data."""
        champion = champion_data_version(situation.champion)
        episode = self.episode
        look = None if episode is None else episode.look
        if episode is None or look is None or look.under_way:
            return DataFacts(champion=champion)
        if episode.judged and episode.window != situation.window:
            return DataFacts(champion=champion)  # what was there at an earlier window
        if look.status == "lost":
            return DataFacts(champion=champion, problem=f"looking at them failed: {look.message}")
        result = look.result or AttemptResult(MlkitError.exit_code)
        if result.code != 0:
            return DataFacts(result.data_version, champion, result.message or "the run of `data` failed")
        helps, message = self._nearness(situation, result)
        return DataFacts(result.data_version, champion, helps=helps, helps_message=message)

    def _nearness(self, situation: RetrainSituation, result: AttemptResult) -> tuple[Outcome | None, str]:
        """Whether the new training rows are nearer to the live ones."""
        reference = read_reference(Path(situation.champion.bundle))
        if reference is None or situation.live is None:
            return Outcome.PASSED, "the champion has no reference to compare the new data with"
        live = situation.live.total.columns
        columns = {
            name: ComparedColumn(
                column.counts, result.counts[name], live[name], column.cells.ordered, column.importance,
                situation.effects.get(name, 1.0),
            )
            for name, column in reference.columns.items()
            if name in result.counts and name in live
        }  # fmt: skip
        drifted = [name for name in retrain_policy.drifted_columns(situation.alarms) if name in reference.columns]
        quantiles = self._deps.quantiles([name for name in drifted if name in result.quantiles])
        hints = [data_nearness.unit_hint(name, result.quantiles[name], values) for name, values in quantiles.items()]
        nearness = data_nearness.compare_training_rows(columns, drifted, hint=", ".join(filter(None, hints)))
        return nearness.outcome, nearness.message

    # ------------------------------------------------------------------------------------------------------ records

    def _save(self, episode: Episode) -> None:
        """Write an episode while no other controller can take over. What another one has written of it meanwhile is
        taken instead, and the next tick goes on from there."""
        failpoint.hit("retrain.deciding")
        before = next((other for other in self._episodes if other.id == episode.id), None)
        with self._deps.guard():
            stored = episodes.read_episode(self.files, episode.id)
            if stored is not None and stored != before:
                _log.warning("%s: another controller wrote episode %s", self.files.service, episode.id)
                episode = stored
            else:
                episodes.write_episode(self.files, episode)
        failpoint.hit("retrain.decided")
        self._keep(episode)
        if not episode.open:
            episodes.sweep_episodes(self.files, self._episodes)

    def _say(self, sentence: str) -> None:
        _log.info("%s: %s", self.files.service, sentence)
        self._sentences.append(sentence)

    def _report(self) -> RetrainReport:
        episode = self.episode
        sentences, self._sentences = tuple(self._sentences), []
        runs = episodes.past_runs(self._episodes, self._deps.clock())
        return RetrainReport(
            self._state_word(),
            self._shown,
            "" if episode is None else episode.id,
            retrain_policy.budget_left(runs, self.plan.terms),
            tuple(_run_view(other, run) for other in self._episodes for run in other.runs)[-20:],
            sentences,
        )

    def _state_word(self) -> str:
        episode = self.episode
        current = None if episode is None else episode.current
        if current is not None and current.task == "train":
            return "running"
        if current is not None and self._shown.kind == "look at data":
            return "checking"
        if episode is not None and episode.rolling_out:
            return "running"
        return _STATES.get(self._shown.kind, "wanted" if self._shown.wanted else "idle")

    @property
    def _shown(self) -> RetrainDecision:
        """The newest decision; while the data are looked at again, the one that the look before led to."""
        episode, decision = self.episode, self._decision
        if decision.kind != "look at data" or episode is None or episode.decision not in get_args(DecisionKind):
            return decision
        if episode.decision in ("none", "train"):
            return decision
        return replace(decision, kind=cast(DecisionKind, episode.decision), reason=episode.reason)


_STATES: Mapping[str, str] = {
    "waiting for data": "waiting",
    "ask a person": "asking",
    "none": "idle",
    "hold": "waiting",
}
_TERSE = ("none", "hold", "refused")
"""Decisions whose reason changes with the clock or the traffic: said once."""
_ENDINGS = {
    "promoted": "the new version is the champion",
    "superseded": "another version is the champion",
    "resolved": "nothing asks for a new model any more",
    "answered": "the person who asked was told",
}


def champion_data_version(champion: Variant) -> str:
    """The data version that a champion was trained on; "" when its bundle does not tell."""
    try:
        return read_manifest(Path(champion.bundle)).data_version
    except (MlkitError, OSError):
        return ""


def _run_view(episode: Episode, run: Attempt) -> Mapping[str, Json]:
    return {
        "run": "" if run.result is None else run.result.run,
        "episode": episode.id,
        "started": run.begun.wall,
        "outcome": run.outcome,
        "message": run.message,
        "number": run.number,
        "version": "" if run.result is None else run.result.version,
    }
