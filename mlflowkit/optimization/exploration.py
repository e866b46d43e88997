"""Try what a plan asks for, group by group, and find those that may be picked: between `stages.optimize`, which says
what is asked and writes down what came of it, and `optimization.tournament`, which tries a group."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mlflowkit.bench import analysis
from mlflowkit.graphs.candidates import Candidate
from mlflowkit.optimization.objective import quantile_of, timed
from mlflowkit.optimization.search import Exhaustive, SearchSection, method_of
from mlflowkit.optimization.selection import choose
from mlflowkit.optimization.space import FLOAT, key_of
from mlflowkit.optimization.tournament import Bench, Setting, Tried, group_size
from mlflowkit.ports import Search, TrialResult
from mlflowkit.values import Event


@dataclass(frozen=True, slots=True)
class Plan:
    """What is tried: candidates that the recipe names, all of them, then what a search takes of its space."""

    listed: tuple[Candidate, ...]
    space: tuple[Candidate, ...]
    added: bool
    """Whether the float graph was put before a space that lacks it."""
    search: SearchSection

    @property
    def order(self) -> Mapping[str, int]:
        """Order of preference, by `key_of` a candidate."""
        return {key_of(one): index for index, one in enumerate((*self.listed, *self.space))}


@dataclass(frozen=True, slots=True)
class Explored:
    """What was tried, in the order of preference, and those of it that may serve and were measured in the same rounds,
    with the figures of those rounds."""

    tried: tuple[Tried, ...]
    finalists: tuple[Tried, ...]


class Exploration:
    """Asks a search what to try, tries it, tells the search what became of it, until it has no more to suggest."""

    def __init__(self, setting: Setting, plan: Plan) -> None:
        self._setting, self._plan = setting, plan
        self._found: dict[str, Tried] = {}
        self._recalled = 0
        self._began = time.monotonic()
        self._size = group_size((setting.context.inputs["export"] / "model.onnx").stat().st_size)
        wanted = plan.search.trials if self._method == "optuna" else len(plan.space)
        self._expected = len(plan.listed) + min(wanted, len(plan.space))

    @property
    def _method(self) -> str:
        return method_of(self._plan.search, len(self._plan.space))

    def explore(self) -> Explored:
        """Try candidates group by group. Where there were several, the best are measured once more, all together."""
        groups = 0
        with Bench(self._setting, self._progress, float_serves=key_of(FLOAT) in self._plan.order) as bench:
            best: Tried | None = None
            for whole in self._groups():
                group = self._recall(bench, whole)
                if not group:
                    continue
                for one in bench.try_group(group, best.candidate if best else None):
                    self._found[key_of(one.candidate)] = self._constrained(one)
                groups += 1
                best = min(self._eligible(), key=lambda one: middle(one.value), default=None)
                bench.close(but=[FLOAT, *([best.candidate] if best else [])])
            finalists = self._contenders() if groups == 1 and not self._recalled else self._final(bench)
            if not finalists and self._eligible():  # the best failed at last: those that they beat are left
                finalists = self._final(bench)
            finalists = self._confirmed(bench, finalists)
        order = self._plan.order
        in_order = sorted(self._found.values(), key=lambda one: order[key_of(one.candidate)])
        return Explored(tuple(in_order), tuple(finalists))

    def _groups(self) -> Iterator[list[Candidate]]:
        """Listed candidates first, then those of the search, which is told in between."""
        listed, space = list(self._plan.listed), list(self._plan.space)
        search: Search = Exhaustive(space)
        if self._method == "optuna" and space:
            search = self._setting.context.ports.search(space, self._plan.search.trials, self._setting.context.seed)
        while True:
            group, listed = listed[: self._size], listed[self._size :]
            if not self._late():
                group = [*group, *search.suggest(self._size - len(group))]
            if not group:
                return
            yield group
            keys = {key_of(one) for one in space}
            search.told([self._result_of(one) for one in group if key_of(one) in keys])

    def _recall(self, bench: Bench, group: Sequence[Candidate]) -> list[Candidate]:
        """Those of a group that no earlier search measured; what is known of the others is entered."""
        fresh = []
        for candidate in group:
            known = bench.recalled(candidate)
            if known is None:
                fresh.append(candidate)
            else:
                self._found[key_of(candidate)] = known  # no limit of latency is held against another day's times
        self._recalled += len(group) - len(fresh)
        if len(fresh) < len(group):
            said = f"{len(group) - len(fresh)} of {len(group)} candidates are known from an earlier search"
            self._setting.context.progress(Event("optimize", "progress", said))
        return fresh

    def _late(self) -> bool:
        seconds = self._plan.search.seconds
        return seconds is not None and time.monotonic() - self._began > seconds

    def _result_of(self, candidate: Candidate) -> TrialResult:
        tried = self._found[key_of(candidate)]
        ratio = None if tried.value is None else middle(tried.value)
        return TrialResult(candidate, ratio, tried.status in ("ok", "dominated"))

    def _eligible(self) -> list[Tried]:
        """Those that may serve, in the order of preference."""
        order = self._plan.order
        found = [one for one in self._found.values() if one.status == "ok"]
        return sorted(found, key=lambda one: order[key_of(one.candidate)])

    def _final(self, bench: Bench) -> list[Tried]:
        """The best of all groups, measured anew in the same rounds: what was best of many is best by luck in part."""
        left = self._contenders() or self._eligible()
        least = min((one.value[1] for one in left if one.value), default=0.0)
        ranked = sorted((one for one in left if one.value and one.value[0] <= least), key=lambda one: middle(one.value))
        keys = {key_of(one.candidate) for one in ranked[: self._size]}
        wanted = [one.candidate for one in left if key_of(one.candidate) in keys]
        if not wanted:
            return []
        again = [self._constrained(one) for one in bench.try_group(wanted, time="final")]
        self._found |= {key_of(one.candidate): one for one in again}
        return [one for one in again if one.status == "ok" and not one.beaten]

    def _confirmed(self, bench: Bench, finalists: list[Tried]) -> list[Tried]:
        """The finalists without those that would be picked by the luck of one start.

        A process is faster or slower than the next of the same graph by more than its own samples tell: where memory
        came to lie lasts as long as it does. So what would displace the first candidate has to do so in new processes.
        """
        while len(finalists) > 1 and timed(self._setting.objective):
            chosen = choose({one.name: one.figures for one in finalists}, self._setting.objective).name
            first, best = finalists[0], next(one for one in finalists if one.name == chosen)
            if best is first:
                break
            bench.close()
            again = bench.try_group([first.candidate, best.candidate], time=f"confirming {key_of(best.candidate)}")
            if again[1].status == "ok" and not again[1].beaten and self._displaces(*again):
                break
            said = f"faster than {first.name} at first, but not in processes that were started anew"
            self._found[key_of(best.candidate)] = replace(best, beaten=said)
            finalists = [one for one in finalists if one is not best]
        return finalists

    def _displaces(self, first: Tried, best: Tried) -> bool:
        """Whether the second is to be picked rather than the first, which may have been stopped for its sake."""
        if first.status != "ok" or first.beaten:
            return True
        return choose({one.name: one.figures for one in (first, best)}, self._setting.objective).name == best.name

    def _contenders(self) -> list[Tried]:
        """Those that may serve and were not surely beaten before they had all their turns."""
        return [one for one in self._eligible() if not one.beaten]

    def _constrained(self, tried: Tried) -> Tried:
        """The candidate, rejected where it is surely or perhaps beyond the latency that the recipe bears."""
        most = self._setting.max_latency_ms
        if most is None or tried.status != "ok":
            return tried
        quantile = quantile_of(self._setting.objective)
        q = analysis.QUANTILES[quantile]
        low, high = analysis.quantile_interval(tried.figures.microseconds, q)
        if high <= most * 1000:
            return tried
        sure = "more" if low > most * 1000 else "it may be more"
        said = f"{quantile} is {low / 1000:.3g} to {high / 1000:.3g} ms: {sure} than max_latency_ms {most:g}"
        return replace(tried, status="rejected", reason=said)

    def _progress(self, done: float, doing: str) -> None:
        tried = len(self._found)
        eligible = self._eligible()
        best = min(eligible, key=lambda one: middle(one.value), default=None)
        said = f"tried {tried} of {self._expected}" if self._expected > self._size else ""
        if best is not None:
            so_far = f"best so far {best.name} ({middle(best.value):.2f} of the float graph)"
            said = ", ".join(filter(None, (said, so_far)))
        share = min(self._size, self._expected) / self._expected
        fraction = min(1.0, tried / self._expected + share * done * (tried < self._expected))
        self._setting.context.progress(
            Event("optimize", "progress", "; ".join(filter(None, (doing, said))), fraction=fraction)
        )


def middle(bounds: tuple[float, float] | None) -> float:
    """The geometric middle of an interval of ratios; infinite where there is none."""
    return float("inf") if bounds is None else (max(bounds[0], 0.0) * max(bounds[1], 0.0)) ** 0.5
