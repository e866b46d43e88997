"""What is measured: a graph with what it is asked; and the list of everything that one command measures. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlflowkit.bench.inputs import Requests
from mlflowkit.errors import UsageError, nearest
from mlflowkit.graphs.candidates import NAMED, Candidate, Engine, RuntimeName

if TYPE_CHECKING:
    import numpy as np

Tensors = Mapping[str, "np.ndarray"]

EVERY = "all"
"""Stands for all the candidates that a recipe lists."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A graph to be measured, and what it is asked.

    path         what was named on the command line
    model        the graph as it is
    source       the float graph that passes begin with; the same file where there is no other
    calibration  rows that fix the ranges of a quantised graph; read when they are needed
    engine       what the graph is served with
    candidates   what the recipe lists; empty for a bundle and for an ONNX file
    notes        what a reader of the figures should know
    version      of a bundle; part of its name only where two of one name are measured, so that a version can be held
                 against what an earlier one was
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
class Entry:
    """One thing to measure: a subject's graph after passes, on an engine. ``name`` is unique within a run."""

    name: str
    subject: Subject
    candidate: Candidate

    @property
    def model(self) -> Path:
        """The graph that the passes begin with."""
        return self.subject.source if self.candidate.passes else self.subject.model


@dataclass(frozen=True, slots=True)
class Choice:
    """What of each subject is measured; empty: the graph as it is, on the engine that it is served with.

    ``names`` are of `candidates.NAMED`, of the recipe's own candidates, or `EVERY`; ``threads`` replaces what
    candidates say.
    """

    names: tuple[str, ...] = ()
    runtimes: tuple[RuntimeName, ...] = ()
    threads: int | None = None


def entries(subjects: Sequence[Subject], choice: Choice) -> tuple[Entry, ...]:
    """Everything to measure: each subject as it is, or each candidate of it; on its own engine, or on each runtime.

    The first entry is what the others are compared with. Raises UsageError for a name that a subject does not know.
    """
    names, runtimes, threads = choice.names, choice.runtimes, choice.threads
    if EVERY in names and not any(subject.candidates for subject in subjects):
        raise UsageError("--candidate all: only a recipe lists candidates", hint="--candidate onnx-int8")
    made = []
    titles = Counter(subject.name for subject in subjects)
    for subject in subjects:
        for candidate in _candidates(subject, names):
            for engine in _engines(candidate.engine, runtimes, threads):
                called = f"{subject.name} {subject.version}".rstrip() if titles[subject.name] > 1 else subject.name
                title = _title(called, candidate, engine, len(subjects) > 1, bool(names), len(runtimes) > 1)
                made.append(Entry(title, subject, candidate.model_copy(update={"name": title[:120], "engine": engine})))
    return _unique(made)


def _candidates(subject: Subject, names: Sequence[str]) -> list[Candidate]:
    if not names:
        return [Candidate(name="as it is", engine=subject.engine)]
    found: list[Candidate] = []
    own = {candidate.name: candidate for candidate in subject.candidates}
    for name in names:
        if name == EVERY:
            if not own:
                raise UsageError(
                    f"{subject.name} lists no candidates: only a recipe does", hint="--candidate onnx-int8"
                )
            found += own.values()
        elif name in own or name in NAMED:
            found.append(own.get(name) or NAMED[name])
        else:
            known = {**own, **NAMED}
            close = nearest(name, known)
            raise UsageError(
                f"no candidate {name!r}; there are {', '.join(known)}",
                hint=f"did you mean --candidate {close}?" if close else "--candidate onnx-int8",
            )
    return list({candidate.name: candidate for candidate in found}.values())


def _engines(engine: Engine, runtimes: Sequence[RuntimeName], threads: int | None) -> list[Engine]:
    update = {} if threads is None else {"threads": threads}
    return [engine.model_copy(update={**update, "runtime": runtime}) for runtime in runtimes or (engine.runtime,)]


def _title(called: str, candidate: Candidate, engine: Engine, several: bool, named: bool, by_runtime: bool) -> str:
    words = [called] if several or not (named or by_runtime) else []
    words += [candidate.name] if named else []
    words += [engine.runtime] if by_runtime else []
    return " ".join(words)


def _unique(made: Sequence[Entry]) -> tuple[Entry, ...]:
    """The same with names of their own: a second one of a name is numbered."""
    seen: dict[str, int] = {}
    found = []
    for entry in made:
        count = seen[entry.name] = seen.get(entry.name, 0) + 1
        name = entry.name if count == 1 else f"{entry.name} ({count})"
        found.append(Entry(name, entry.subject, entry.candidate.model_copy(update={"name": name[-120:]})))
    return tuple(found)
