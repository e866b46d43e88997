"""Tries candidates, a group at a time: builds them, judges their predictions, measures them in interleaved turns. Acts
for `stages.optimize`, which decides.

Trial processes build in parallel, and load, predict and are measured one at a time. The float graph's process lives
throughout and has its turn in every round: candidates of different groups are compared by their ratio to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from mlflowkit.bench import analysis, validity
from mlflowkit.bench.measure import Samples
from mlflowkit.errors import TrialError
from mlflowkit.features import predictions
from mlflowkit.graphs.candidates import Candidate
from mlflowkit.judging import metrics
from mlflowkit.judging.metrics import LabelledPredictions
from mlflowkit.judging.paired_metrics import difference
from mlflowkit.judging.stats import UndefinedMetricError
from mlflowkit.optimization import trial_cache
from mlflowkit.optimization.interleaved_run import InterleavedRun
from mlflowkit.optimization.objective import CandidateFigures, quantile_of, ratio
from mlflowkit.optimization.space import FLOAT, key_of, reason_unservable
from mlflowkit.optimization.trial_cache import CachedTrial
from mlflowkit.optimization.trial_outcome import TournamentSettings, TrialOutcome
from mlflowkit.ports import BuiltGraph, Trial, TrialJob
from mlflowkit.system.digests import digest_json
from mlflowkit.system.machine import cores, memory
from mlflowkit.values import Measurement

MAX_GROUP = 24
"""Candidates measured in the same rounds at most, besides the float graph and the best so far."""
MIN_GROUP = 3
PROCESS_BYTES = 100_000_000
"""Memory of a candidate's process before it loads anything."""
MEMORY_SHARE = 0.25
"""Share of the free memory that a group's processes may use."""
ROUNDING = 1e-5
"""Largest difference of probabilities that counts as none: float32 sums differ by as much in another order."""


def group_size(model_bytes: int) -> int:
    """Number of candidates of a graph that are measured in the same rounds, limited by free memory.

    >>> group_size(0) <= MAX_GROUP, group_size(10**15)
    (True, 3)
    """
    free = memory("MemAvailable")
    if free is None:
        return MAX_GROUP
    return max(MIN_GROUP, min(MAX_GROUP, int(free * MEMORY_SHARE) // (PROCESS_BYTES + 4 * model_bytes)))


@dataclass
class TrialSession:
    """The processes of a search. A context manager: all its processes end with it."""

    settings: TournamentSettings
    progress: Callable[[float, str], None]
    """Called with the fraction of a group that is done, and the current activity."""
    float_serves: bool = True
    """Whether the float graph may be picked. If not, it stops no other candidate: it is only the reference."""
    _running: dict[str, Trial] = field(default_factory=dict)
    """By `key_of` a candidate."""
    _outcomes: dict[str, TrialOutcome] = field(default_factory=dict)
    _reference: LabelledPredictions | None = None

    def __enter__(self) -> TrialSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, *, but: Sequence[Candidate] = ()) -> None:
        """End all processes except those of the given candidates."""
        spared = {key_of(candidate) for candidate in but}
        trials = [self._running.pop(key) for key in [*self._running] if key not in spared]
        with ThreadPoolExecutor(max(1, len(trials))) as pool:  # each waits for a process to end
            list(pool.map(lambda trial: trial.close(), trials))

    def try_group(
        self, candidates: Sequence[Candidate], best: Candidate | None = None, *, round_name: str = ""
    ) -> list[TrialOutcome]:
        """Try candidates; outcomes come in their order. ``best`` (tried before) is measured again, and comes last.

        ``round_name`` distinguishes this measurement from another of the same candidates by an interrupted run. Raises
        TrialError when the float graph itself fails, since nothing can be compared then.
        """
        group = [FLOAT, *(candidate for candidate in candidates if key_of(candidate) != key_of(FLOAT))]
        if best is not None and key_of(best) not in {key_of(candidate) for candidate in group}:
            group.append(best)
        screened = {key_of(outcome.candidate): outcome for outcome in self._screen(group)}
        reference = screened[key_of(FLOAT)]
        if reference.status in ("failed", "unavailable"):
            raise TrialError(f"the float graph itself: {reference.reason}", hint="mlkit run RECIPE --force export")
        measured = {
            key_of(outcome.candidate): outcome for outcome in self._measure(list(screened.values()), round_name)
        }
        in_order = [*candidates, *([best] if best is not None else [])]
        return [replace(measured[key_of(candidate)], candidate=candidate) for candidate in in_order]

    def from_cache(self, candidate: Candidate) -> TrialOutcome | None:
        """The outcome of exactly this candidate in an earlier search, judged by the current recipe; None without one.

        An interrupted measurement of this very search is not reused here, but as a group (`InterleavedRun.measure`).
        """
        settings = self.settings
        if not settings.reuse:
            return None
        cached = trial_cache.read(settings.context.ports.trials.folder(self._job(candidate)), settings.digest)
        if cached is None or cached.search == settings.context.scratch.name:
            return None
        outcome = TrialOutcome(
            candidate, built=cached.built, loaded=cached.loaded, metric=cached.metric, drop=cached.drop
        )
        if cached.drop is not None:
            accepted, reason = analysis.accepts(cached.drop, settings.max_metric_drop)
            outcome = replace(outcome, status="ok" if accepted else "rejected", reason=reason)
        outcome = self._with_samples(self._check_servable(outcome), cached.samples, cached.reference)
        return replace(outcome, notes=(*outcome.notes, f"measured by an earlier search, on {cached.day}"))

    # ----------------------------------------------------------------------------------------------------- screening

    def _screen(self, candidates: Sequence[Candidate]) -> Iterator[TrialOutcome]:
        """Build, load and judge each candidate."""
        waiting = [candidate for candidate in candidates if key_of(candidate) not in self._running]
        built: dict[str, BuiltGraph | TrialError] = {}
        parallel = max(1, cores())
        for index, candidate in enumerate(waiting):
            for ahead in waiting[index : index + parallel]:
                if key_of(ahead) not in self._running:
                    self._running[key_of(ahead)] = self.settings.context.ports.trials.start(self._job(ahead))
            self.progress(0.3 * index / len(waiting), f"building {candidate.name}")
            try:
                built[key_of(candidate)] = self._running[key_of(candidate)].build()
            except TrialError as error:
                built[key_of(candidate)] = error
        for index, candidate in enumerate(candidates):
            key = key_of(candidate)
            if key not in self._outcomes or key in built:
                self.progress(0.3 + 0.1 * index / len(candidates), f"predicting with {candidate.name}")
                self._outcomes[key] = self._judge(candidate, built[key])
            yield self._outcomes[key]

    def _job(self, candidate: Candidate) -> TrialJob:
        settings, context = self.settings, self.settings.context
        return TrialJob(
            candidate=candidate,
            model=context.inputs["export"] / "model.onnx",
            rows=settings.rows,
            batch=settings.batch,
            requests=settings.requests,
            scratch=context.scratch,
            scripts=context.out / "scripts",
            seconds=settings.timeout,
        )

    def _judge(self, candidate: Candidate, built: BuiltGraph | TrialError) -> TrialOutcome:
        """Load a built candidate and judge its predictions; those of the first one are the reference."""
        settings = self.settings
        if isinstance(built, TrialError):
            return self._as_failed(TrialOutcome(candidate), built)
        if built.reason:
            return TrialOutcome(candidate, "unavailable", built.reason, built)
        trial = self._running[key_of(candidate)]
        outcome = TrialOutcome(candidate, "ok", "", built)
        try:
            outcome = replace(outcome, loaded=trial.load())
            predicted = predictions.to_labelled_predictions(trial.answers(), settings.signature, settings.actual)
        except TrialError as error:
            return self._as_failed(outcome, error)
        if self._reference is None:
            self._reference = predicted
        return self._check_servable(
            judge_drop(outcome, predicted, self._reference, settings.metric, settings.max_metric_drop)
        )

    def _check_servable(self, outcome: TrialOutcome) -> TrialOutcome:
        """Mark a candidate that no gateway serves as a baseline, and reject one that is larger than allowed."""
        reason = reason_unservable(outcome.candidate)
        if reason:
            return replace(outcome, status="baseline", reason=reason)
        max_size, size = self.settings.max_size, outcome.size_bytes
        if max_size is not None and size > max_size and outcome.status == "ok":
            reason = f"the graph has {size / 1e6:.3g} MB: more than max_size_mb {max_size / 1e6:g}"
            return replace(outcome, status="rejected", reason=reason)
        return outcome

    def _as_failed(self, outcome: TrialOutcome, error: TrialError) -> TrialOutcome:
        script = "" if error.script is None else str(error.script.relative_to(self.settings.context.out))
        reason = f"{error.message} ({error.hint})" if error.hint else error.message
        return replace(outcome, status="failed", reason=reason, script=script, samples=None)

    # ----------------------------------------------------------------------------------------------------- measuring

    def _measure(self, outcomes: Sequence[TrialOutcome], round_name: str) -> Iterator[TrialOutcome]:
        """Measure all loaded candidates in the same rounds; adds each one's ratio to the float graph."""
        loaded = [outcome for outcome in outcomes if outcome.loaded is not None and outcome.status != "failed"]
        group = {key_of(outcome.candidate): outcome for outcome in loaded}
        eligible = [key for key, outcome in group.items() if outcome.status == "ok"]
        if not self.float_serves:
            eligible = [key for key in eligible if key != key_of(FLOAT)]
        trials = {key: self._running[key] for key in group}
        run = InterleavedRun(group, eligible, self.settings, trials, self.progress)
        members = [outcome.built.digest for outcome in group.values() if outcome.built is not None]
        settings = self.settings
        shared = [settings.batch, settings.samples, settings.objective, settings.stop_early]
        name = f"measured-{digest_json([members, shared, round_name])[:16]}.npz"  # an interrupted run resumes from it
        samples = run.measure(settings.context.scratch / name)
        reference = replace(group[key_of(FLOAT)], samples=samples[key_of(FLOAT)]).figures
        for outcome in outcomes:
            key = key_of(outcome.candidate)
            if key in run.failed:
                self._outcomes[key] = self._as_failed(outcome, run.failed[key])
                yield self._outcomes[key]
            elif key not in samples:
                yield outcome
            else:
                measured = self._with_samples(outcome, samples[key], reference)
                self._store(measured, reference)
                if measured.status == "ok" and key in run.dominated:
                    measured = replace(measured, status="dominated", reason=run.dominated[key])
                elif measured.status == "ok" and key in run.not_pickable:
                    measured = replace(measured, why_not_picked=run.not_pickable[key])
                yield measured

    def _with_samples(self, outcome: TrialOutcome, samples: Samples, reference: CandidateFigures) -> TrialOutcome:
        objective = self.settings.objective
        outcome = replace(outcome, samples=samples, notes=(*outcome.notes, *validity.notes(samples)))
        paired = replace(reference, microseconds=reference.microseconds[: len(samples.microseconds)])
        relative = value = ratio(quantile_of(objective), outcome.figures, paired, confidence=analysis.CONFIDENCE)
        if objective not in analysis.QUANTILES:
            value = ratio(objective, outcome.figures, paired, confidence=analysis.CONFIDENCE)
        return replace(outcome, relative=relative, value=value)

    def _store(self, outcome: TrialOutcome, reference: CandidateFigures) -> None:
        """Cache the outcome of a candidate that was judged and measured."""
        if outcome.samples is None or outcome.built is None or outcome.loaded is None or outcome.metric is None:
            return
        context = self.settings.context
        results = (outcome.built, outcome.loaded, outcome.metric, outcome.drop, outcome.samples)
        trial = CachedTrial(*results, reference, context.scratch.name)
        trial_cache.write(context.ports.trials.folder(self._job(outcome.candidate)), self.settings.digest, trial)


def judge_drop(
    outcome: TrialOutcome,
    predicted: LabelledPredictions,
    reference: LabelledPredictions,
    metric: str,
    max_metric_drop: float,
) -> TrialOutcome:
    """Score a candidate against the float reference and reject it if its metric drops by more than allowed."""
    if reason := metrics.unusable_reason(predicted):
        return replace(outcome, status="rejected", reason=reason)
    try:
        value = metrics.estimate(metric, predicted).value
        drop = None if predicted is reference else metric_drop(metric, predicted, reference)
    except UndefinedMetricError as error:
        if predicted is reference:
            return outcome
        reason = f"the validation rows do not determine its loss: {error.message}"
        return replace(outcome, status="rejected", reason=reason)
    if drop is None:
        return replace(outcome, metric=value)
    accepted, reason = analysis.accepts(drop, max_metric_drop)
    return replace(outcome, status="ok" if accepted else "rejected", reason=reason, metric=value, drop=drop)


def equal_up_to_rounding(predicted: LabelledPredictions, reference: LabelledPredictions) -> bool:
    """Whether all labels are equal and no probability differs by more than ROUNDING."""
    if predicted.scores is None or reference.scores is None:
        return False
    return bool(
        np.array_equal(predicted.predicted, reference.predicted)
        and np.max(np.abs(predicted.scores - reference.scores), initial=0.0) <= ROUNDING
    )


def metric_drop(metric: str, predicted: LabelledPredictions, reference: LabelledPredictions) -> Measurement:
    """How much worse predictions are than the reference's on the same rows; positive is worse for every metric.

    Predictions equal up to rounding have no drop; otherwise a rewritten graph that ranks all rows as before would pay
    for the uncertainty of a finite sample.
    """
    compared = reference if equal_up_to_rounding(predicted, reference) else predicted
    change = difference(metric, compared, reference).at(analysis.CONFIDENCE)
    if metrics.lower_is_better(metric):
        return change
    return replace(change, value=0.0 - change.value, low=0.0 - change.high, high=0.0 - change.low)  # and no -0.0
