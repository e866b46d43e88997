"""Times of the graph that will serve, beside those of the graphs it is compared with, in the same rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from mlflowkit.bench import analysis
from mlflowkit.bench.measure import requests_over, timed_source
from mlflowkit.bench.sequential.sampling import (
    FIRST_LOOK,
    LatencyBudget,
    SequentialMeasurement,
    TimedRounds,
    spend,
)
from mlflowkit.bundle import Signature, open_bundle, read_engine
from mlflowkit.errors import BundleError
from mlflowkit.graphs.candidates import Engine
from mlflowkit.graphs.onnx_file import graph_digest
from mlflowkit.judging import metrics
from mlflowkit.judging.stats import Bounds, Estimate
from mlflowkit.sections import Section
from mlflowkit.values import Event, Json, Outcome

if TYPE_CHECKING:
    import pandas as pd

    from mlflowkit.ports import StageContext

PICKED = "picked"
"""The graph that will serve, in `TimedRounds.blocks`; the graphs it is compared with are ``float`` and ``champion``."""
FIRST_VERSION = (Outcome.PASSED, "no champion yet: nothing to compare with")
NO_CHAMPION = (
    Outcome.INCONCLUSIVE,
    "no champion is here to compare with: --champion BUNDLE names its bundle, --first-version says that there is none",
)
DESCRIPTIONS: Mapping[str, str] = {"float": "the float graph", "champion": "the champion"}
REQUEST_ROWS = 1000
"""Test rows that requests are cut from."""


class LatencySection(Section):
    """How gates on latency are measured: in turns, round by round, until each is decided or this budget ends."""

    seconds: float = Field(default=30.0, gt=0)
    """Seconds of measuring at most. A gate far from its limit is decided within one; on a busy machine the measurement
    goes on for as long, in the hope of quiet moments."""
    rounds: int = Field(default=2000, ge=FIRST_LOOK)
    """Rounds at most. In each, every graph answers up to 50 requests in sequence."""


@dataclass(frozen=True, slots=True)
class TimedGraph:
    """A graph, the engine that runs it, and its inputs."""

    model: Path
    engine: Engine
    signature: Signature

    @property
    def single_threaded(self) -> bool:
        """Whether the calling thread does all the work."""
        return self.engine.runtime == "ort-cpu" and self.engine.threads == 1

    def equals(self, other: TimedGraph) -> bool:
        """Whether graph, weights and engine are the same, so that only chance tells their times apart."""
        return self.engine == other.engine and graph_digest(self.model) == graph_digest(other.model)


@dataclass(frozen=True, slots=True)
class TimingEvidence:
    """What gates on time are judged on."""

    machine: str = ""
    """Description of the machine that measured (`system.machine.describe_machine`)."""
    rounds: TimedRounds | None = None
    class_required: bool = False
    """Whether a limit in milliseconds is judged only where its gate names a class of machines, as in a pipeline."""
    budget: LatencyBudget = field(default_factory=lambda: LatencyBudget(0.0, 0))
    settled: Mapping[str, tuple[Outcome, str]] = field(default_factory=dict)
    """Graphs to compare with that are not there to be measured: the outcome of their gates and the reason."""
    itself: frozenset[str] = frozenset()
    """Graphs to compare with that are the picked one: their ratios are 1, without a measurement."""
    alike: frozenset[str] = frozenset()
    """Graphs that run on as many threads of the same processor, so that a busy machine slows both sides alike."""

    def to_json(self) -> Json:
        """The section ``latency`` of evaluation.json."""
        rounds = self.rounds
        if rounds is None:
            return None
        return {
            "machine": self.machine,
            "rounds": rounds.rounds,
            "requests_per_round": int(next(iter(rounds.blocks.values())).shape[1]),
            "looks": rounds.look,
            "seconds": round(rounds.seconds, 3),
            "budget": {"seconds": self.budget.seconds, "rounds": self.budget.rounds},
            "graphs": list(rounds.blocks),
            "stretches": len(rounds.stretches),
            "disturbed_stretches": len(rounds.disturbed),
            "disturbance": rounds.describe_disturbance(),
        }


def without_champion(context: StageContext) -> tuple[Outcome, str]:
    """Outcome, and its reason, of gates that compare with a champion where there is none."""
    return NO_CHAMPION if context.champion_required else FIRST_VERSION


def rival_graphs(
    names: Sequence[str], context: StageContext, picked: TimedGraph
) -> tuple[dict[str, TimedGraph], dict[str, tuple[Outcome, str]]]:
    """The graphs of these names; or the outcome of their gates, and why, where there is none."""
    graphs: dict[str, TimedGraph] = {}
    settled: dict[str, tuple[Outcome, str]] = {}
    for name in names:
        if name == "champion" and context.champion is None:
            settled[name] = without_champion(context)
            continue
        try:
            graphs[name] = _rival_graph(name, context, picked)
        except BundleError as error:
            settled[name] = (Outcome.ERROR, f"the champion cannot be opened: {error.message}")
    return graphs, settled


def _rival_graph(name: str, context: StageContext, picked: TimedGraph) -> TimedGraph:
    if name == "float" or context.champion is None:
        return TimedGraph(context.inputs["export"] / "model.onnx", Engine(), picked.signature)
    champion = open_bundle(context.champion, blessed=True)
    return TimedGraph(champion.model, read_engine(context.champion), champion.signature)


def measure(
    context: StageContext,
    table: pd.DataFrame,
    graphs: Mapping[str, TimedGraph],
    batch: int,
    budget: LatencyBudget,
    decided: Callable[[TimedRounds], bool],
) -> TimedRounds:
    """Measure graphs in turns on real rows until ``decided`` says so, or the budget ends. Raises EngineError."""
    from mlflowkit.features.tensors import inputs_from_table

    sources = {}
    for name, graph in graphs.items():
        session = context.ports.runtime.load(graph.model, engine=graph.engine)
        inputs = inputs_from_table(graph.signature, table.head(REQUEST_ROWS))
        sources[name] = timed_source(requests_over(session.run, inputs, batch))

    def report(used: float, text: str) -> None:
        context.progress(Event("evaluate", "progress", f"measuring latency: {text}", fraction=0.6 + 0.35 * used))

    single_threaded = all(graph.single_threaded for graph in graphs.values())
    return SequentialMeasurement(sources, budget, decided, report, single_threaded=single_threaded).run()


def time_estimate(metric: str, rounds: TimedRounds, against: str = "") -> Estimate:
    """A latency quantile of the picked graph, or its ratio to another's, with an interval that holds at all looks."""
    picked = rounds.blocks[PICKED]
    if metric in metrics.LATENCY:
        unspent = metrics.latency(metric, picked.ravel(), picked.shape[1])
        return _over_looks(unspent, unspent.bounds, rounds.look)
    other, quantile = rounds.blocks[against], metrics.LATENCY_RATIOS[metric]

    def bounds(confidence: float) -> Bounds:
        return analysis.ratio_interval(picked, other, quantile, confidence=confidence)

    low, high = bounds(analysis.CONFIDENCE)
    size = picked.shape[1]
    basis = f"{len(picked):,} rounds of {size} requests in turns with {DESCRIPTIONS[against]}"
    ratio = Estimate(metric, (low * high) ** 0.5, int(picked.size), bounds, "Student's t by rounds", "x", basis)
    return _over_looks(ratio, bounds, rounds.look)


def _over_looks(estimate: Estimate, bounds: Callable[[float], Bounds], look: int) -> Estimate:
    return replace(estimate, bounds=lambda confidence: bounds(spend(confidence, look)))


def is_of_class(machine: str, named: str) -> bool:
    """Whether the description of a machine contains the words of a class, in their order, whatever their case.

    >>> is_of_class("x86_64 AMD EPYC 7B13 x2", "epyc 7b13"), is_of_class("x86_64 AMD EPYC 7B13 x2", "Xeon")
    (True, False)
    """
    return " ".join(named.casefold().split()) in " ".join(machine.casefold().split())
