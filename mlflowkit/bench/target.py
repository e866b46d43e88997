"""Bench targets: graphs with their request data, and the list of entries that one run measures. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from mlflowkit.bench.inputs import Requests
from mlflowkit.errors import UsageError, closest_match
from mlflowkit.graphs.candidates import NAMED, Candidate, Engine, RuntimeName

Tensors = Mapping[str, np.ndarray]

EVERY = "all"
"""Candidate name that stands for all candidates of a recipe."""


@dataclass(frozen=True, slots=True)
class BenchTarget:
    """A graph to measure, with its request data.

    path         path on the command line
    model        the graph as it is
    source       the float graph that passes start from; the same file if there is no other
    calibration  rows that calibrate a quantised graph; read on demand
    engine       engine that serves the graph
    candidates   candidates of the recipe; empty for a bundle or an ONNX file
    notes        caveats of the results
    version      version of a bundle; part of the entry's name only if two targets share a name
    """

    name: str
    kind: Literal["bundle", "onnx", "recipe"]
    path: Path
    model: Path
    source: Path
    requests: Requests
    calibration: Callable[[], Tensors]
    engine: Engine = field(default_factory=Engine)
    candidates: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()
    version: str = ""


@dataclass(frozen=True, slots=True)
class BenchEntry:
    """One thing to measure: a target's graph after passes, on an engine. ``name`` is unique within a run."""

    name: str
    target: BenchTarget
    candidate: Candidate

    @property
    def model(self) -> Path:
        """The graph that the passes start from."""
        return self.target.source if self.candidate.passes else self.target.model


@dataclass(frozen=True, slots=True)
class TargetChoice:
    """Selection of each target's candidates; empty: the graph as it is, on its own engine.

    ``names`` are of `candidates.NAMED`, of the recipe's own candidates, or `EVERY`; ``threads`` replaces the
    candidates' own.
    """

    names: tuple[str, ...] = ()
    runtimes: tuple[RuntimeName, ...] = ()
    threads: int | None = None


def entries(targets: Sequence[BenchTarget], choice: TargetChoice) -> tuple[BenchEntry, ...]:
    """Return everything to measure: each target, or each of its candidates, on its own engine or on each runtime.

    The first entry is the baseline of the comparisons. Raises UsageError for a candidate that a target does not have.
    """
    names, runtimes = choice.names, choice.runtimes
    if EVERY in names and not any(target.candidates for target in targets):
        raise UsageError("--candidate all: only a recipe lists candidates", hint="--candidate onnx-int8")
    update = {} if choice.threads is None else {"threads": choice.threads}
    name_counts = Counter(target.name for target in targets)
    listed = []
    for target in targets:
        label = f"{target.name} {target.version}".rstrip() if name_counts[target.name] > 1 else target.name
        for candidate in _candidates(target, names):
            for runtime in runtimes or (candidate.engine.runtime,):
                engine = candidate.engine.model_copy(update={**update, "runtime": runtime})
                words = [label] if len(targets) > 1 or not (names or len(runtimes) > 1) else []
                words += [candidate.name] if names else []
                words += [runtime] if len(runtimes) > 1 else []
                listed.append(BenchEntry(" ".join(words), target, candidate.model_copy(update={"engine": engine})))
    return _with_unique_names(listed)


def _candidates(target: BenchTarget, names: Sequence[str]) -> list[Candidate]:
    if not names:
        return [Candidate(name="as it is", engine=target.engine)]
    selected: list[Candidate] = []
    own = {candidate.name: candidate for candidate in target.candidates}
    for name in names:
        if name == EVERY:
            if not own:
                raise UsageError(f"{target.name} lists no candidates: only a recipe does", hint="--candidate onnx-int8")
            selected += own.values()
        elif name in own or name in NAMED:
            selected.append(own.get(name) or NAMED[name])
        else:
            available = {**own, **NAMED}
            close = closest_match(name, available)
            raise UsageError(
                f"no candidate {name!r}; there are {', '.join(available)}",
                hint=f"did you mean --candidate {close}?" if close else "--candidate onnx-int8",
            )
    return list({candidate.name: candidate for candidate in selected}.values())


def _with_unique_names(listed: Sequence[BenchEntry]) -> tuple[BenchEntry, ...]:
    """Number the entries that repeat a name."""
    counts: Counter[str] = Counter()
    numbered = []
    for entry in listed:
        counts[entry.name] += 1
        count = counts[entry.name]
        name = entry.name if count == 1 else f"{entry.name} ({count})"
        numbered.append(BenchEntry(name, entry.target, entry.candidate.model_copy(update={"name": name[-120:]})))
    return tuple(numbered)
