"""Optuna behind the Search port: TPE (Bergstra, Bardenet, Bengio, Kégl, NIPS 2011) over a list of candidates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import Trial, TrialState

from mlflowkit.graphs.candidates import Candidate
from mlflowkit.ports import TrialResult

REJECTED = 10.0
"""How many times worse a candidate counts that may not serve: TPE keeps away from what is like it."""
ATTEMPTS = 20
"""Suggestions in a row that were made before, or are no candidate, after which the next in the list is taken."""
STARTING = 10
"""Suggestions that are drawn at random before there is a model."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


class OptunaSearch:
    """Suggests ``trials`` of a list of candidates. The same seed and results give the same suggestions.

    A candidate is seen by its passes and each setting of its engine, all as categories.
    """

    def __init__(self, candidates: Sequence[Candidate], trials: int, seed: int) -> None:
        self._left = min(trials, len(candidates))
        self._settings = {candidate.name: _settings(candidate) for candidate in candidates}
        self._by_settings = {_key(self._settings[candidate.name]): candidate for candidate in candidates}
        names = list(next(iter(self._settings.values()), {}))
        values = {name: list(dict.fromkeys(one[name] for one in self._settings.values())) for name in names}
        self._space: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(found) for name, found in values.items()
        }
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTING, constant_liar=True)
        self._study = optuna.create_study(sampler=sampler, direction="minimize")
        self._open: dict[str, Trial] = {}
        self._seen: set[str] = set()
        self._results: dict[str, float] = {}

    def suggest(self, count: int) -> list[Candidate]:
        """Up to ``count`` candidates that were not suggested before, ``trials`` in all."""
        found: list[Candidate] = []
        while len(found) < count and self._left:
            self._left -= 1
            found.append(self._next())
        return found

    def told(self, results: Sequence[TrialResult]) -> None:
        """Enter ratios; one that was rejected counts as much worse, one that could not be measured as failed."""
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
                self._study.tell(trial, state=TrialState.FAIL)  # the dimensions cross to what makes no sense
            elif candidate.name in self._results:
                self._study.tell(trial, self._results[candidate.name])
            elif candidate.name in self._seen:
                self._study.tell(trial, state=TrialState.FAIL)  # it is being tried, or it failed
            else:
                return self._take(candidate, trial)
        candidate = next(one for one in self._by_settings.values() if one.name not in self._seen)
        self._study.enqueue_trial(self._settings[candidate.name])
        return self._take(candidate, self._study.ask(self._space))

    def _take(self, candidate: Candidate, trial: Trial) -> Candidate:
        self._open[candidate.name] = trial
        self._seen.add(candidate.name)
        return candidate


def _settings(candidate: Candidate) -> dict[str, Any]:
    """A candidate as values of categories."""
    passes = json.dumps([one.model_dump(mode="json") for one in candidate.passes], sort_keys=True)
    return {"passes": passes, **candidate.engine.model_dump(mode="json")}


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(dict(settings), sort_keys=True)
