"""How a space is searched: whole, or by a model of what was found so far. See ports.Search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from mlflowkit.graphs.candidates import Candidate
from mlflowkit.optimization.space import Space
from mlflowkit.ports import TrialResult
from mlflowkit.sections import Section


class SearchSection(Section):
    """How candidates beyond those that are named are found."""

    method: Literal["exhaustive", "optuna", "auto"] = "auto"
    """All of the space; Optuna's TPE; or auto: all of it where it has no more candidates than `trials`, else TPE."""
    trials: int = Field(default=40, ge=1)
    """Candidates of the space that Optuna tries."""
    seconds: float | None = Field(default=None, gt=0)
    """After so long nothing further of the space is begun; without it, the search ends by itself."""
    stop_early: bool = True
    """Whether a candidate is measured no longer once another is surely faster and no worse in the rest."""
    reuse: bool = True
    """Whether what an earlier search found out about the very same candidate is taken for granted, on the same machine,
    with the same rows and libraries; those that may be picked are measured anew in any case."""
    space: Space | None = None
    """What to search; without it there are the candidates that are named."""


class Exhaustive:
    """Suggests each candidate of a list, in its order."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._waiting = list(candidates)

    def suggest(self, count: int) -> list[Candidate]:
        """The next ``count`` of the list.

        >>> Exhaustive([Candidate(name="a"), Candidate(name="b")]).suggest(1)[0].name
        'a'
        """
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken

    def told(self, results: Sequence[TrialResult]) -> None:
        """Whatever was found, the next one is tried."""


def method_of(section: SearchSection, candidates: int) -> Literal["exhaustive", "optuna"]:
    """The method for a space of so many candidates.

    >>> method_of(SearchSection(), 40), method_of(SearchSection(), 41)
    ('exhaustive', 'optuna')
    """
    if section.method != "auto":
        return section.method
    return "exhaustive" if candidates <= section.trials else "optuna"
