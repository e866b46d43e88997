"""Search methods over a space: exhaustive, or model-based on the results so far. See ports.Search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from mlflowkit.graphs.candidates import Candidate
from mlflowkit.optimization.space import Space
from mlflowkit.ports import TrialResult
from mlflowkit.sections import Section


class SearchSection(Section):
    """How candidates besides the named ones are found."""

    method: Literal["exhaustive", "optuna", "auto"] = "auto"
    """All of the space; Optuna's TPE; or auto: all of it where it has no more candidates than `trials`, else TPE."""
    trials: int = Field(default=40, ge=1)
    """Candidates of the space that Optuna tries."""
    seconds: float | None = Field(default=None, gt=0)
    """Time after which no further candidate of the space is started; without it, the search ends by itself."""
    stop_early: bool = True
    """Whether a candidate is dropped once another is significantly faster and no worse in the rest."""
    reuse: bool = True
    """Whether an earlier search's results of the same candidate are reused, on the same machine, with the same rows and
    libraries; finalists are measured again in any case."""
    space: Space | None = None
    """The space to search; without it only the named candidates are tried."""


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """The candidates of a search: all that the recipe lists, then those that a search method takes from the space."""

    listed: tuple[Candidate, ...]
    space: tuple[Candidate, ...]
    added: bool
    """Whether the float graph was added because the recipe lacks it."""
    search: SearchSection


class Exhaustive:
    """Suggests the candidates of a list, in order."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._waiting = list(candidates)

    def suggest(self, count: int) -> list[Candidate]:
        """The next ``count`` candidates.

        >>> Exhaustive([Candidate(name="a"), Candidate(name="b")]).suggest(1)[0].name
        'a'
        """
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken

    def tell(self, results: Sequence[TrialResult]) -> None:
        """Results are ignored."""


def method_of(section: SearchSection, candidates: int) -> Literal["exhaustive", "optuna"]:
    """The method for a space with this number of candidates.

    >>> method_of(SearchSection(), 40), method_of(SearchSection(), 41)
    ('exhaustive', 'optuna')
    """
    if section.method != "auto":
        return section.method
    return "exhaustive" if candidates <= section.trials else "optuna"
