"""Optuna behind the Search port: TPE (Bergstra, Bardenet, Bengio, Kégl, NIPS 2011) over a list of candidates."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlflowkit.errors import UsageError
from mlflowkit.graphs.candidates import Candidate
from mlflowkit.ports import TrialResult

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution
    from optuna.trial import Trial, TrialState
except ModuleNotFoundError as error:
    raise UsageError(
        "there are more candidates than optimize.search.trials, and Optuna is not installed",
        hint="pip install 'mlflowkit[search]', or write optimize.search.method: exhaustive",
    ) from error

REJECTED = 10.0
"""Factor by which an infeasible candidate counts as worse, so that TPE avoids similar ones."""
ATTEMPTS = 20
"""Repeated or impossible suggestions in a row after which the next candidate of the list is taken."""
STARTUP_TRIALS = 10
"""Random suggestions before TPE has a model."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Log only Optuna's warnings; restores the caller's verbosity."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


class OptunaSearch:
    """Suggests ``trials`` of a list of candidates; deterministic for a seed and results.

    The dimensions of the search are a candidate's passes and each setting of its engine, all categorical. Raises
    UsageError at import when Optuna is not installed.
    """

    def __init__(self, candidates: Sequence[Candidate], trials: int, seed: int) -> None:
        self._left = min(trials, len(candidates))
        self._settings = {candidate.name: _settings(candidate) for candidate in candidates}
        self._by_settings = {_key(self._settings[candidate.name]): candidate for candidate in candidates}
        values: dict[str, dict[Any, None]] = {}
        for settings in self._settings.values():
            for name, value in settings.items():
                values.setdefault(name, {})[value] = None
        space = {name: CategoricalDistribution(list(choices)) for name, choices in values.items()}
        self._space: dict[str, BaseDistribution] = {**space}
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, constant_liar=True)
        with _quiet():
            self._study = optuna.create_study(sampler=sampler, direction="minimize")
        self._open: dict[str, Trial] = {}
        self._suggested: set[str] = set()
        self._results: dict[str, float] = {}

    def suggest(self, count: int) -> list[Candidate]:
        """Up to ``count`` candidates that were not suggested before, ``trials`` in all."""
        suggestions: list[Candidate] = []
        with _quiet():
            while len(suggestions) < count and self._left:
                self._left -= 1
                suggestions.append(self._next())
        return suggestions

    def tell(self, results: Sequence[TrialResult]) -> None:
        """Record ratios; a rejected candidate counts as much worse, one without a measurement as failed."""
        with _quiet():
            for result in results:
                trial = self._open.pop(result.candidate.name)
                if result.ratio is None:
                    self._study.tell(trial, state=TrialState.FAIL)
                    continue
                value = result.ratio * (1.0 if result.feasible else REJECTED)
                self._results[result.candidate.name] = value
                self._study.tell(trial, value)

    def _next(self) -> Candidate:
        """A candidate that was not suggested before: the sampler's, or the first that is left."""
        for _ in range(ATTEMPTS):
            trial = self._study.ask(self._space)
            candidate = self._by_settings.get(_key(trial.params))
            if candidate is None:
                self._study.tell(trial, state=TrialState.FAIL)  # an impossible combination of the dimensions
            elif candidate.name in self._results:
                self._study.tell(trial, self._results[candidate.name])
            elif candidate.name in self._suggested:
                self._study.tell(trial, state=TrialState.FAIL)  # in progress, or failed
            else:
                return self._take(candidate, trial)
        remaining = (candidate for candidate in self._by_settings.values() if candidate.name not in self._suggested)
        candidate = next(remaining)
        self._study.enqueue_trial(self._settings[candidate.name])
        return self._take(candidate, self._study.ask(self._space))

    def _take(self, candidate: Candidate, trial: Trial) -> Candidate:
        self._open[candidate.name] = trial
        self._suggested.add(candidate.name)
        return candidate


def _settings(candidate: Candidate) -> dict[str, Any]:
    """A candidate's value for each dimension."""
    passes = json.dumps([step.model_dump(mode="json") for step in candidate.passes], sort_keys=True)
    return {"passes": passes, **candidate.engine.model_dump(mode="json")}


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(dict(settings), sort_keys=True)
