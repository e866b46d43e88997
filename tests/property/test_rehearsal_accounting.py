"""Whatever the plan and the world, what a rehearsal says was exposed is what its traffic counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflowkit.judging.online.evidence import Evidence, VariantCounts
from mlflowkit.rollout.settings import Rollout
from mlflowkit.rollout.simulation import scenarios
from mlflowkit.rollout.simulation.scenarios import FAMILIES, ScenarioKind, TrafficFigures
from mlflowkit.rollout.simulation.simulator import SimulationEnd, analysis_interval, simulate_once, simulated_plan
from mlflowkit.rollout.simulation.synthetic_traffic import SyntheticTraffic, TrafficSplit

METRICS: tuple[dict[str, Any], ...] = (
    {"metric": "error_rate", "margin": 0.02},
    {"metric": "latency_p99_ms", "ratio": 2},
    {"metric": "accuracy", "margin": 0.05},
    {"metric": "agreement", "min": 0.9, "role": "guardrail"},
    {"metric": "prediction_drift", "max": 0.1, "role": "guardrail"},
)


class Audited(SyntheticTraffic):
    """Traffic that writes down what it was asked for."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.splits: list[TrafficSplit] = []

    def advance(self, split: TrafficSplit, seconds: float) -> None:
        assert seconds > 0
        self.splits.append(split)
        super().advance(split, seconds)


@st.composite
def plans(draw: st.DrawFn) -> Rollout:
    weights = draw(st.lists(st.integers(0, 100), min_size=1, max_size=4, unique=True))
    return simulated_plan(
        Rollout.model_validate(
            {
                "strategy": "canary",
                "steps": sorted(weights),
                "metrics": draw(st.lists(st.sampled_from(METRICS), min_size=1, max_size=3, unique_by=repr)),
                "min_samples": draw(st.integers(1, 200)),
                "bake_seconds": draw(st.floats(0, 20)),
                "max_seconds": draw(st.floats(5, 60)),
                "sampling": draw(st.floats(0.05, 1)),
                "promote": draw(st.sampled_from(["automatic", "manual"])),
            }
        )
    )


@settings(max_examples=20, deadline=None)
@given(
    plans(),
    st.sampled_from([kind for kind, family in FAMILIES.items() if kind not in ("absolute-error", "squared-error")]),
    st.integers(0, 2),
    st.floats(1, 300),
    st.integers(0, 2**32 - 1),
)
def test_exposure_adds_up(plan: Rollout, kind: ScenarioKind, place: int, rate: float, seed: int) -> None:
    sizes = FAMILIES[kind].sizes
    world = scenarios.synthetic_world(TrafficFigures(rate=rate), "classification")
    scenario = scenarios.build_scenario(kind, sizes[min(place, len(sizes) - 1)], world, plan)
    measured = [metric.metric for metric in plan.metrics]
    traffic = Audited(scenario.world, np.random.default_rng(seed), measured, ("term",))
    played = simulate_once(plan, traffic, analysis_interval(plan, scenario.world.rate), keep=True)
    evidence = traffic.evidence("e")
    live = {split.epoch for split in traffic.splits if not split.shadow}
    challenger, champion = (evidence.of(name) for name in ("challenger", "champion"))
    assert played.exposed == evidence.of("challenger", live).requests
    assert played.tried == challenger.requests == played.exposed + challenger.mirrored
    assert played.requests == champion.requests + played.exposed
    assert played.exposed == 0 or any(step.weight > 0 for step in plan.sequence)
    assert all(split.weight == plan.sequence[sight.step].weight / 100 for split, sight in _paired(traffic, played.path))
    limits = [step.max_seconds or 0.0 for step in plan.sequence]
    assert played.seconds <= sum(limits) + 1e-6
    if played.end == SimulationEnd.DEADLINE:
        assert played.reason
    elif played.end == SimulationEnd.FAILED:
        assert played.by in (*measured, "almost no answers")
    _whole(evidence)


def _paired(traffic: Audited, path: Sequence[Any]) -> list[tuple[TrafficSplit, Any]]:
    return list(zip(traffic.splits, path, strict=True))


def _whole(evidence: Evidence) -> None:
    """What is counted of one variant under one table fits together."""
    for variants in evidence.epochs.values():
        for counts in variants.values():
            _fits(counts)


def _fits(counts: VariantCounts) -> None:
    assert 0 <= counts.errors <= counts.requests
    assert counts.rows == counts.requests - counts.errors
    if counts.latency:
        assert sum(counts.latency.values()) == counts.rows
    for prefix in {key.partition(":")[0] for key in counts.predictions}:
        assert sum(n for key, n in counts.predictions.items() if key.startswith(f"{prefix}:")) == counts.rows
    if counts.agreement:
        everywhere = counts.agreement[""]
        parts = [moments for key, moments in counts.agreement.items() if key]
        assert everywhere.count == sum(moments.count for moments in parts) == counts.rows
        assert everywhere.total == sum(moments.total for moments in parts) <= everywhere.count
    for moments in counts.quality.values():
        assert moments.count <= counts.rows
