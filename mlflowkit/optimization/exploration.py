"""Tries the candidates of a plan, group by group, and finds those that may be picked. Sits between `stages.optimize`,
which makes the plan and publishes the result, and `optimization.tournament`, which tries a group."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mlflowkit.bench import analysis
from mlflowkit.graphs.candidates import Candidate
from mlflowkit.optimization.objective import is_time_based, quantile_of
from mlflowkit.optimization.search import Exhaustive, SearchPlan, method_of
from mlflowkit.optimization.selection import choose
from mlflowkit.optimization.space import FLOAT, key_of
from mlflowkit.optimization.tournament import TrialSession, group_size
from mlflowkit.optimization.trial_outcome import TournamentSettings, TrialOutcome
from mlflowkit.ports import Search, TrialResult
from mlflowkit.values import Event


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The tried candidates in the order of preference, and the finalists: those that may serve and were measured in
    the same rounds, with the figures of those rounds."""

    tried: tuple[TrialOutcome, ...]
    finalists: tuple[TrialOutcome, ...]


class Exploration:
    """Runs a search to its end: takes suggestions, tries them, reports the results back."""

    def __init__(self, settings: TournamentSettings, plan: SearchPlan) -> None:
        self._settings, self._plan = settings, plan
        self._order = {key_of(candidate): index for index, candidate in enumerate((*plan.listed, *plan.space))}
        self._outcomes: dict[str, TrialOutcome] = {}
        self._cached = 0
        self._started = time.monotonic()
        self._method = method_of(plan.search, len(plan.space))
        self._group_size = group_size((settings.context.inputs["export"] / "model.onnx").stat().st_size)
        trials = plan.search.trials if self._method == "optuna" else len(plan.space)
        self._expected = len(plan.listed) + min(trials, len(plan.space))

    def explore(self) -> SearchResult:
        """Try candidates group by group; after several groups, measure the best once more, all together."""
        groups = 0
        with TrialSession(self._settings, self._report_progress, float_serves=key_of(FLOAT) in self._order) as session:
            best: TrialOutcome | None = None
            for suggested in self._groups():
                group = self._without_cached(session, suggested)
                if not group:
                    continue
                self._record(session.try_group(group, best.candidate if best else None))
                groups += 1
                best = self._best()
                session.close(but=[FLOAT, *([best.candidate] if best else [])])
            finalists = self._contenders() if groups == 1 and not self._cached else self._measure_finalists(session)
            if not finalists and self._eligible():  # the best failed in the end: measure those that it had displaced
                finalists = self._measure_finalists(session)
            finalists = self._confirm(session, finalists)
        in_order = sorted(self._outcomes.values(), key=self._preference)
        return SearchResult(tuple(in_order), tuple(finalists))

    def _groups(self) -> Iterator[list[Candidate]]:
        """Groups to try: listed candidates first, then the search's suggestions; results go back to it."""
        listed, space = list(self._plan.listed), list(self._plan.space)
        search: Search = Exhaustive(space)
        if self._method == "optuna" and space:
            context = self._settings.context
            search = context.ports.search(space, self._plan.search.trials, context.seed)
        space_keys = {key_of(candidate) for candidate in space}
        while True:
            group, listed = listed[: self._group_size], listed[self._group_size :]
            seconds = self._plan.search.seconds
            if seconds is None or time.monotonic() - self._started <= seconds:
                group = [*group, *search.suggest(self._group_size - len(group))]
            if not group:
                return
            yield group
            outcomes = [self._outcomes[key_of(candidate)] for candidate in group if key_of(candidate) in space_keys]
            search.tell([_trial_result(outcome) for outcome in outcomes])

    def _without_cached(self, session: TrialSession, group: Sequence[Candidate]) -> list[Candidate]:
        """The candidates of a group that no earlier search measured; records the outcomes of the others."""
        fresh = []
        for candidate in group:
            outcome = session.from_cache(candidate)
            if outcome is None:
                fresh.append(candidate)
            else:
                self._outcomes[key_of(candidate)] = outcome  # latency limits do not apply to another day's times
        cached = len(group) - len(fresh)
        self._cached += cached
        if cached:
            message = f"{cached} of {len(group)} candidates are known from an earlier search"
            self._settings.context.progress(Event("optimize", "progress", message))
        return fresh

    def _record(self, outcomes: Sequence[TrialOutcome]) -> list[TrialOutcome]:
        """Record outcomes after applying the latency limit."""
        limited = [self._apply_latency_limit(outcome) for outcome in outcomes]
        self._outcomes |= {key_of(outcome.candidate): outcome for outcome in limited}
        return limited

    def _preference(self, outcome: TrialOutcome) -> int:
        return self._order[key_of(outcome.candidate)]

    def _eligible(self) -> list[TrialOutcome]:
        """Candidates that may serve, in the order of preference."""
        return sorted((outcome for outcome in self._outcomes.values() if outcome.status == "ok"), key=self._preference)

    def _contenders(self) -> list[TrialOutcome]:
        """Eligible candidates that were not eliminated before they had all their turns."""
        return [outcome for outcome in self._eligible() if not outcome.why_not_picked]

    def _best(self) -> TrialOutcome | None:
        return min(self._eligible(), key=lambda outcome: geometric_middle(outcome.value), default=None)

    def _measure_finalists(self, session: TrialSession) -> list[TrialOutcome]:
        """Measure the finalists again in the same rounds: the minimum of many noisy estimates is biased (winner's
        curse)."""
        candidates = self._contenders() or self._eligible()
        least = min((outcome.value[1] for outcome in candidates if outcome.value), default=0.0)
        ranked = sorted(
            (outcome for outcome in candidates if outcome.value and outcome.value[0] <= least),
            key=lambda outcome: geometric_middle(outcome.value),
        )
        keys = {key_of(outcome.candidate) for outcome in ranked[: self._group_size]}
        finalists = [outcome.candidate for outcome in candidates if key_of(outcome.candidate) in keys]
        if not finalists:
            return []
        measured = self._record(session.try_group(finalists, round_name="final"))
        return [outcome for outcome in measured if outcome.status == "ok" and not outcome.why_not_picked]

    def _confirm(self, session: TrialSession, finalists: list[TrialOutcome]) -> list[TrialOutcome]:
        """The finalists without those that would win by the luck of one process start.

        Processes of the same graph differ by more than the samples of one show, since the memory layout lasts as long
        as the process. So a candidate that displaces the first has to do so again in new processes.
        """
        while len(finalists) > 1 and is_time_based(self._settings.objective):
            chosen = choose({outcome.name: outcome.figures for outcome in finalists}, self._settings.objective).name
            first, best = finalists[0], next(outcome for outcome in finalists if outcome.name == chosen)
            if best is first:
                break
            session.close()
            round_name = f"confirming {key_of(best.candidate)}"
            again = session.try_group([first.candidate, best.candidate], round_name=round_name)
            if again[1].status == "ok" and not again[1].why_not_picked and self._displaces(*again):
                break
            reason = f"faster than {first.name} at first, but not in processes that were started anew"
            self._outcomes[key_of(best.candidate)] = replace(best, why_not_picked=reason)
            finalists = [outcome for outcome in finalists if outcome is not best]
        return finalists

    def _displaces(self, first: TrialOutcome, best: TrialOutcome) -> bool:
        """Whether ``best`` is picked over ``first``, which may have been stopped because of it."""
        if first.status != "ok" or first.why_not_picked:
            return True
        figures = {outcome.name: outcome.figures for outcome in (first, best)}
        return choose(figures, self._settings.objective).name == best.name

    def _apply_latency_limit(self, outcome: TrialOutcome) -> TrialOutcome:
        """Reject a candidate whose latency may exceed max_latency_ms, by the upper bound of its interval."""
        limit = self._settings.max_latency_ms
        if limit is None or outcome.status != "ok":
            return outcome
        quantile = quantile_of(self._settings.objective)
        low, high = analysis.quantile_interval(outcome.figures.microseconds, analysis.QUANTILES[quantile])
        if high <= limit * 1000:
            return outcome
        certainty = "more" if low > limit * 1000 else "it may be more"
        span = f"{low / 1000:.3g} to {high / 1000:.3g} ms"
        reason = f"{quantile} is {span}: {certainty} than max_latency_ms {limit:g}"
        return replace(outcome, status="rejected", reason=reason)

    def _report_progress(self, done: float, activity: str) -> None:
        tried, best = len(self._outcomes), self._best()
        parts = [f"tried {tried} of {self._expected}"] if self._expected > self._group_size else []
        if best is not None:
            parts.append(f"best so far {best.name} ({geometric_middle(best.value):.2f} of the float graph)")
        group_share = min(self._group_size, self._expected) / self._expected
        fraction = min(1.0, tried / self._expected + group_share * done * (tried < self._expected))
        message = "; ".join(filter(None, (activity, ", ".join(parts))))
        self._settings.context.progress(Event("optimize", "progress", message, fraction=fraction))


def _trial_result(outcome: TrialOutcome) -> TrialResult:
    ratio = None if outcome.value is None else geometric_middle(outcome.value)
    return TrialResult(outcome.candidate, ratio, outcome.status in ("ok", "dominated"))


def geometric_middle(bounds: tuple[float, float] | None) -> float:
    """The geometric middle of an interval of ratios; infinite where there is none."""
    return math.inf if bounds is None else math.sqrt(max(bounds[0], 0.0) * max(bounds[1], 0.0))
