"""Try candidates, a group at a time: build them, judge their answers, measure them in turns. The acting half of
`stages.optimize`, which decides.

Children build in parallel and are loaded, asked and measured one at a time. The float graph's process lives throughout
and has its turn in every round: what candidates of different groups are compared by is their ratio to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlflowkit.bench import analysis, validity
from mlflowkit.bench.measure import BLOCK, LEAD_IN, Samples, measure_blocks
from mlflowkit.bundle import Signature
from mlflowkit.errors import StoreError, TrialError
from mlflowkit.features import predictions
from mlflowkit.graphs.candidates import Candidate
from mlflowkit.judging import metrics
from mlflowkit.judging.stats import UndefinedMetricError
from mlflowkit.optimization import early_stopping, trial_cache
from mlflowkit.optimization.objective import Bounds, Figures, quantile_of, ratio
from mlflowkit.optimization.pareto import Point
from mlflowkit.optimization.space import FLOAT, key_of, unservable
from mlflowkit.optimization.trial_cache import Remembered
from mlflowkit.ports import Built, Loaded, Trial, TrialJob
from mlflowkit.system import arrays
from mlflowkit.system.digests import digest_json
from mlflowkit.system.machine import available_memory, cores
from mlflowkit.values import Measurement

if TYPE_CHECKING:
    import numpy as np

    from mlflowkit.ports import StageContext

Status = Literal["ok", "rejected", "unavailable", "failed", "dominated", "baseline"]

GROUP = 24
"""Candidates measured in the same rounds, the float graph and the best so far apart, where memory bears as many."""
LEAST_GROUP = 3
PROCESS_BYTES = 100_000_000
"""What a candidate's process takes before it loads anything."""
MEMORY_SHARE = 0.25
"""Part of the memory that is free which a group's processes may take."""
WARM_UP = 8
"""Blocks of warm-up at most: a group has many candidates, and what has not settled by then is said."""
FEWEST_BLOCKS = 20
"""Blocks that the samples of a candidate are cut into at least: intervals rest on blocks, and early stopping on looks
between them. So where the recipe asks for few samples, since a request takes long, blocks and warm-up are short too."""
MEMORY_STEP = 1.1
"""Peaks of memory are compared in steps of this factor: the same graph's differ by less from process to process."""
ROUNDING = 1e-5
"""Probabilities that differ by no more are the same: adding float32 numbers in another order makes such differences."""
METRIC_STEPS = 10
"""Losses of the metric are compared in steps of this part of what the recipe bears: less is no reason for anything."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate and what was found out about it, None where it did not come to that.

    ``relative`` is the interval of its latency over the float graph's, in the objective's quantile; ``value`` that of
    the objective itself.
    """

    candidate: Candidate
    status: Status = "ok"
    reason: str = ""
    built: Built | None = None
    loaded: Loaded | None = None
    metric: float | None = None
    drop: Measurement | None = None
    samples: Samples | None = None
    relative: Bounds | None = None
    value: Bounds | None = None
    beaten: str = ""
    """Why it cannot be picked although it may serve: another was surely faster before it had all its turns."""
    script: str = ""
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def figures(self) -> Figures:
        """What an objective goes by. Only of a candidate that was measured."""
        if self.samples is None:
            raise ValueError(f"{self.name} was not measured")
        memory = None if self.loaded is None else self.loaded.memory_bytes
        return Figures(self.samples.microseconds, self.built.size_bytes if self.built else None, memory)

    def rest(self, borne: float) -> Point:
        """All that it is compared by but for latency: loss of the metric, size, memory; see METRIC_STEPS, MEMORY_STEP.

        ``borne`` is max_metric_drop.
        """
        size = float(self.built.size_bytes or 0) if self.built else 0.0
        peak = (self.loaded.memory_bytes or 1) if self.loaded else 1
        memory = float(round(math.log(max(peak, 1), MEMORY_STEP)))
        drop = (0.0, 0.0) if self.drop is None else (self.drop.low, self.drop.high)
        step = borne / METRIC_STEPS
        metric = (round(drop[0] / step) * step, round(drop[1] / step) * step) if step else drop
        return Point({"metric": metric, "size": (size, size), "memory": (memory, memory)})


@dataclass(frozen=True)
class Setting:
    """What all candidates of a search have in common. ``rows`` is the file that their processes read."""

    context: StageContext
    signature: Signature
    rows: Path
    actual: np.ndarray
    metric: str
    objective: str
    max_metric_drop: float
    max_latency_ms: float | None
    max_size: float | None
    batch: int
    samples: int
    requests: int
    stop_early: bool
    reuse: bool
    timeout: float

    @property
    def block(self) -> int:
        """Requests of a candidate before the next has its turn."""
        return block_of(self.samples)

    @cached_property
    def asked(self) -> str:
        """Digest of what is asked of a candidate besides what its own digest has."""
        return digest_json([
            self.metric, hashlib.sha256(self.actual.tobytes()).hexdigest(), self.objective, self.samples,
            self.stop_early, self.block,
        ])  # fmt: skip


def block_of(samples: int) -> int:
    """Requests of a block: as many as usual, where the samples make enough blocks.

    >>> block_of(5000), block_of(200)
    (50, 10)
    """
    return max(1, min(BLOCK, samples // FEWEST_BLOCKS))


def group_size(model_bytes: int) -> int:
    """How many candidates of a graph are measured in the same rounds: as many processes as memory bears, GROUP at most.

    >>> group_size(0) <= GROUP, group_size(10**15)
    (True, 3)
    """
    free = available_memory()
    if free is None:
        return GROUP
    return max(LEAST_GROUP, min(GROUP, int(free * MEMORY_SHARE) // (PROCESS_BYTES + 4 * model_bytes)))


@dataclass
class Bench:
    """The processes of a search. Leave it by ``with``: every process that is still there ends."""

    setting: Setting
    progress: Callable[[float, str], None]
    """Told how much of a group is done, and what is being done."""
    float_serves: bool = True
    """Whether the float graph may be picked. Where not, nothing is stopped for its sake: it is only held against."""
    _alive: dict[str, Trial] = field(default_factory=dict)
    """By `key_of` a candidate."""
    _kept: dict[str, Tried] = field(default_factory=dict)
    _reference: metrics.Answers | None = None

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, *, but: Sequence[Candidate] = ()) -> None:
        """End processes, those of some candidates apart."""
        spared = {key_of(one) for one in but}
        gone = [self._alive.pop(key) for key in [*self._alive] if key not in spared]
        with ThreadPoolExecutor(max(1, len(gone))) as together:  # each waits for a process to end
            list(together.map(lambda trial: trial.close(), gone))

    def try_group(
        self, candidates: Sequence[Candidate], best: Candidate | None = None, *, time: str = ""
    ) -> list[Tried]:
        """Try candidates, in their order. ``best`` (tried before) is measured with them, and its new figures come last.

        ``time`` tells this measurement from another of the same candidates, which a run that was cut may have made.
        Raises TrialError when the float graph itself fails: there is nothing to hold the others against then.
        """
        wanted = [FLOAT, *(one for one in candidates if key_of(one) != key_of(FLOAT))]
        if best is not None and key_of(best) not in {key_of(one) for one in wanted}:
            wanted.append(best)
        screened = {key_of(one.candidate): one for one in self._screened(wanted)}
        reference = screened[key_of(FLOAT)]
        if reference.status in ("failed", "unavailable"):
            raise TrialError(f"the float graph itself: {reference.reason}", hint="mlkit run --force export")
        measured = {key_of(one.candidate): one for one in self._measured(list(screened.values()), time)}
        asked = [*candidates, *([best] if best is not None else [])]
        return [replace(measured[key_of(one)], candidate=one) for one in asked]

    # ---------------------------------------------------------------------------------------------------- building

    def _screened(self, candidates: Sequence[Candidate]) -> Iterator[Tried]:
        """Each candidate built, loaded and judged by its answers."""
        waiting = [one for one in candidates if key_of(one) not in self._alive]
        built: dict[str, Built | TrialError] = {}
        ahead = max(1, cores())
        for index, candidate in enumerate(waiting):
            for one in waiting[index : index + ahead]:
                if key_of(one) not in self._alive:
                    self._alive[key_of(one)] = self._start(one)
            self.progress(0.3 * index / len(waiting), f"building {candidate.name}")
            try:
                built[key_of(candidate)] = self._alive[key_of(candidate)].build()
            except TrialError as error:
                built[key_of(candidate)] = error
        for index, candidate in enumerate(candidates):
            key = key_of(candidate)
            if key not in self._kept or key in built:
                self.progress(0.3 + 0.1 * index / len(candidates), f"asking {candidate.name}")
                self._kept[key] = self._judged(candidate, built[key])
            yield self._kept[key]

    def recalled(self, candidate: Candidate) -> Tried | None:
        """What another search found out about exactly this candidate, judged by today's recipe; None for nothing.

        What this very search measured before it was cut comes with its group (`_Turns`); begun anew, it measures anew.
        """
        if not self.setting.reuse:
            return None
        found = trial_cache.read(self.setting.context.ports.trials.folder(self._job(candidate)), self.setting.asked)
        if found is None or found.search == self.setting.context.scratch.name:
            return None
        tried = Tried(candidate, built=found.built, loaded=found.loaded, metric=found.metric, drop=found.drop)
        if found.drop is not None:
            accepted, reason = analysis.accepts(found.drop, self.setting.max_metric_drop)
            tried = replace(tried, status="ok" if accepted else "rejected", reason=reason)
        tried = self._with_samples(self._limited(tried), found.samples, found.reference)
        return replace(tried, notes=(*tried.notes, f"measured by an earlier search, on {found.day}"))

    def _remember(self, tried: Tried, reference: Figures) -> None:
        """Keep what was found out about a candidate that answered and was measured."""
        if tried.samples is None or tried.built is None or tried.loaded is None or tried.metric is None:
            return
        folder = self.setting.context.ports.trials.folder(self._job(tried.candidate))
        search = self.setting.context.scratch.name
        found = Remembered(tried.built, tried.loaded, tried.metric, tried.drop, tried.samples, reference, search)
        trial_cache.write(folder, self.setting.asked, found)

    def _start(self, candidate: Candidate) -> Trial:
        return self.setting.context.ports.trials.start(self._job(candidate))

    def _job(self, candidate: Candidate) -> TrialJob:
        setting, context = self.setting, self.setting.context
        return TrialJob(
            candidate=candidate,
            model=context.inputs["export"] / "model.onnx",
            rows=setting.rows,
            batch=setting.batch,
            requests=setting.requests,
            scratch=context.scratch,
            scripts=context.out / "scripts",
            seconds=setting.timeout,
        )

    def _judged(self, candidate: Candidate, built: Built | TrialError) -> Tried:
        """The candidate loaded, with its metric and, unless it is the float graph, the metric's drop."""
        if isinstance(built, TrialError):
            return self._failed(Tried(candidate), built)
        if built.reason:
            return Tried(candidate, "unavailable", built.reason, built)
        trial = self._alive[key_of(candidate)]
        tried = Tried(candidate, "ok", "", built)
        try:
            tried = replace(tried, loaded=trial.load())
            answers = predictions.judged(trial.answers(), self.setting.signature, self.setting.actual)
        except TrialError as error:
            return self._failed(tried, error)
        if self._reference is None:
            self._reference = answers
        return self._limited(judge(tried, answers, self._reference, self.setting.metric, self.setting.max_metric_drop))

    def _limited(self, tried: Tried) -> Tried:
        """A candidate that was judged by its answers, with what else keeps it from serving."""
        reason = unservable(tried.candidate)
        if reason:
            return replace(tried, status="baseline", reason=reason)
        most, size = self.setting.max_size, (tried.built.size_bytes or 0) if tried.built else 0
        if most is not None and size > most and tried.status == "ok":
            said = f"the graph has {size / 1e6:.3g} MB: more than max_size_mb {most / 1e6:g}"
            return replace(tried, status="rejected", reason=said)
        return tried

    def _failed(self, tried: Tried, error: TrialError) -> Tried:
        script = "" if error.script is None else str(error.script.relative_to(self.setting.context.out))
        said = f"{error.message} ({error.hint})" if error.hint else error.message
        return replace(tried, status="failed", reason=said, script=script, samples=None)

    # ---------------------------------------------------------------------------------------------------- measuring

    def _measured(self, tried: Sequence[Tried], time: str) -> Iterator[Tried]:
        """All that could be loaded, measured in the same rounds; each with its ratio to the float graph."""
        setting = self.setting
        group = {key_of(one.candidate): one for one in tried if one.loaded is not None and one.status != "failed"}
        judges = [
            key for key, one in group.items() if one.status == "ok" and (self.float_serves or key != key_of(FLOAT))
        ]
        turns = _Turns(group, judges, setting, {key: self._alive[key] for key in group}, self.progress)
        samples = turns.take(self._file_of(group, time))
        reference = replace(group[key_of(FLOAT)], samples=samples[key_of(FLOAT)]).figures
        for one in tried:
            key = key_of(one.candidate)
            if key in turns.failed:
                self._kept[key] = self._failed(one, turns.failed[key])
                yield self._kept[key]
            elif key not in samples:
                yield one
            else:
                found = self._with_samples(one, samples[key], reference)
                self._remember(found, reference)
                if found.status == "ok" and key in turns.stopped:
                    found = replace(found, status="dominated", reason=turns.stopped[key])
                elif found.status == "ok" and key in turns.settled:
                    found = replace(found, beaten=turns.settled[key])
                yield found

    def _with_samples(self, tried: Tried, samples: Samples, reference: Figures) -> Tried:
        objective = self.setting.objective
        tried = replace(tried, samples=samples, notes=(*tried.notes, *validity.notes(samples)))
        mine = tried.figures
        other = replace(reference, microseconds=reference.microseconds[: len(samples.microseconds)])
        confidence = analysis.CONFIDENCE
        relative = ratio(quantile_of(objective), mine, other, confidence=confidence)
        value = relative
        if objective not in analysis.QUANTILES:
            value = ratio(objective, mine, other, confidence=confidence)
        return replace(tried, relative=relative, value=value)

    def _file_of(self, group: Mapping[str, Tried], time: str) -> Path:
        """Where the samples of exactly this group are kept, for a run that was cut and goes on."""
        setting = self.setting
        members = [one.built.digest for one in group.values() if one.built is not None]
        asked = [setting.batch, setting.samples, setting.objective, setting.stop_early]
        return setting.context.scratch / f"measured-{digest_json([members, asked, time])[:16]}.npz"


@dataclass
class _Turns:
    """One measurement of a group in turns, and what became of its members meanwhile."""

    group: Mapping[str, Tried]
    judges: Sequence[str]
    """Members that may be picked."""
    setting: Setting
    trials: Mapping[str, Trial]
    progress: Callable[[float, str], None]
    failed: dict[str, TrialError] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)
    """Why a member is dominated."""
    settled: dict[str, str] = field(default_factory=dict)
    """Why a member cannot be picked, though it may be on the front."""

    def take(self, path: Path) -> dict[str, Samples]:
        """Samples of all members that did not fail; those of an earlier run that got so far, where there are any."""
        kept = self._read(path)
        if kept is not None:
            return kept
        taken = measure_blocks(
            {key: self._source(key) for key in self.group},
            self.setting.samples,
            size=self.setting.block,
            lead_in=min(LEAD_IN, -(-self.setting.block // 10)),
            warm_up=WARM_UP,
            progress=self._told,
            stop=self._stop,
        )
        samples = {key: one for key, one in taken.items() if key not in self.failed}
        if not self.failed:
            self._write(path, samples)
        return samples

    def _told(self, done: float) -> None:
        if (done * 20).is_integer():
            self.progress(0.4 + 0.6 * done, f"measuring {len(self.group)} candidates")

    def _source(self, key: str) -> Callable[[int, int], Sequence[int]]:
        """Blocks of a trial; of one that has failed, numbers that nobody looks at, so that the others go on."""

        def block(start: int, count: int) -> Sequence[int]:
            if key not in self.failed:
                try:
                    return self.trials[key].block(start, count)
                except TrialError as error:
                    if key == key_of(FLOAT):
                        raise
                    self.failed[key] = error
            return [1] * count

        return block

    def _stop(self, taken: Mapping[str, Sequence[Sequence[int]]]) -> list[str]:
        """Members that have no more turns: those that failed and, at a look, those that are known well enough."""
        setting = self.setting
        done = len(next(iter(taken.values())))
        at = early_stopping.looks(-(-setting.samples // setting.block))
        gone = [key for key in taken if key in self.failed]
        if not setting.stop_early or done not in at:
            return gone
        alive = {key: self._figures(key, taken[key]) for key in taken if key not in self.failed}
        judges = [key for key in self.judges if key in alive]
        found = early_stopping.eliminate(
            {key: alive[key] for key in judges},
            {key: self.group[key].rest(setting.max_metric_drop) for key in judges},
            setting.objective,
            judges=judges,
            spared=[key_of(FLOAT)],
            asked=len(at),
        )
        for one in found:
            known = self.stopped if one.dominated else self.settled
            known[one.name] = one.reason.replace(one.by, self.group[one.by].name)
        rejected = [key for key in alive if self.group[key].status == "rejected" and key != key_of(FLOAT)]
        return [*gone, *(one.name for one in found), *rejected]

    def _figures(self, key: str, blocks: Sequence[Sequence[int]]) -> Figures:
        import numpy as np

        return Figures(np.array(blocks) / 1000)

    # ------------------------------------------------------------------------------------- what a cut run measured

    def _write(self, path: Path, samples: Mapping[str, Samples]) -> None:
        import numpy as np

        kept: dict[str, np.ndarray] = {}
        for key, one in samples.items():
            kept[f"{key}/blocks"] = one.microseconds
            kept[f"{key}/warm"] = np.array([one.warm_up, int(one.settled)])
            kept[f"{key}/stopped"] = np.array([self.stopped.get(key, ""), self.settled.get(key, "")], dtype=object)
        arrays.write(path, kept)

    def _read(self, path: Path) -> dict[str, Samples] | None:
        if not path.exists():
            return None
        try:
            kept = arrays.read(path)
        except StoreError:
            with contextlib.suppress(OSError):
                os.unlink(path)
            return None
        if {name.partition("/")[0] for name in kept} != set(self.group):
            return None
        for index, known in enumerate((self.stopped, self.settled)):
            known |= {key: kept[f"{key}/stopped"][index] for key in self.group if kept[f"{key}/stopped"][index]}
        return {
            key: Samples(kept[f"{key}/blocks"], int(kept[f"{key}/warm"][0]), bool(kept[f"{key}/warm"][1]))
            for key in self.group
        }


def judge(tried: Tried, answers: metrics.Answers, reference: metrics.Answers, metric: str, most: float) -> Tried:
    """A candidate with its metric and, unless its answers are the reference, the metric's drop and what follows."""
    if fault := metrics.fault_of(answers):
        return replace(tried, status="rejected", reason=fault)
    try:
        value = metrics.estimate(metric, answers).value
        drop = None if answers is reference else metric_drop(metric, answers, reference)
    except UndefinedMetricError as error:
        unknown = f"the validation rows cannot say what it loses: {error.message}"
        return tried if answers is reference else replace(tried, status="rejected", reason=unknown)
    if drop is None:
        return replace(tried, metric=value)
    accepted, reason = analysis.accepts(drop, most)
    return replace(tried, status="ok" if accepted else "rejected", reason=reason, metric=value, drop=drop)


def same_but_for_rounding(answers: metrics.Answers, reference: metrics.Answers) -> bool:
    """Whether all labels are the same and no probability differs by more than ROUNDING."""
    import numpy as np

    if answers.scores is None or reference.scores is None:
        return False
    return bool(
        np.array_equal(answers.predicted, reference.predicted)
        and np.max(np.abs(answers.scores - reference.scores), initial=0.0) <= ROUNDING
    )


def metric_drop(metric: str, answers: metrics.Answers, reference: metrics.Answers) -> Measurement:
    """How much worse the answers are than the reference's on the same rows; positive is worse, whatever the metric.

    Answers that are the reference's but for rounding lose nothing. A rewriting that orders all rows as before would
    else be charged with the rows that were not there to be ordered differently.
    """
    said = reference if same_but_for_rounding(answers, reference) else answers
    change = metrics.difference(metric, said, reference).at(analysis.CONFIDENCE)
    if metric in metrics.LOWER_IS_BETTER:
        return change
    return replace(change, value=0.0 - change.value, low=0.0 - change.high, high=0.0 - change.low)  # and no -0.0
