"""Simulation results as one self-contained HTML page: outcomes by scenario, and evidence against its boundary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlflowkit.report import charts
from mlflowkit.report.run.run_page import render_template
from mlflowkit.rollout.simulation.simulator import SimulatedRollout

CEILING = 1.5
"""Upper end of the evidence axis, relative to the deciding boundary."""


@dataclass(frozen=True, slots=True)
class DrawnScenario:
    """A scenario with some of its rollouts, with all looks."""

    scenario: str
    harmful: bool
    rollouts: Sequence[SimulatedRollout]


def render(
    name: str, plan: str, sentences: Sequence[str], head: Sequence[str], rows: Sequence[Sequence[str]],
    drawn: Sequence[DrawnScenario], legend: Sequence[str],
) -> str:  # fmt: skip
    """Render the page as HTML; all arguments are escaped.

    ``plan`` is the plan in one line, with ``sentences`` about it; ``head`` and ``rows`` are the table of outcomes.
    """
    return render_template(
        "simulation.html", name=name, plan=plan, sentences=sentences, head=head, rows=rows, legend=" ".join(legend),
        figures=[figure(scenario) for scenario in drawn],
    )  # fmt: skip


def figure(scenario: DrawnScenario) -> dict[str, str]:
    """Chart the evidence of harm over the challenger's requests, against the deciding boundary."""
    lines = []
    for number, rollout in enumerate(scenario.rollouts):
        requests = [float(look.tried) for look in rollout.path]
        harms = [min(CEILING, max((harm for harm, _ in look.evidence.values()), default=0.0)) for look in rollout.path]
        lines.append(charts.Line(f"rollout {number + 1}: {rollout.end}", requests, harms, number))
    end = max((line.x[-1] for line in lines if line.x), default=1.0)
    limits = "beyond its limits" if scenario.harmful else "within its limits"
    return charts.figure(
        f"{scenario.scenario} ({limits})",
        [charts.Level("rolled back", 1.0, "bad"), *lines],
        label=f"Evidence of harm over the requests of a challenger, {scenario.scenario}, in {len(lines)} rollouts",
        x_label="requests of the challenger",
        y_label="evidence of harm; 1 decides",
        x_domain=(0.0, max(end, 1.0)),
        y_domain=(0.0, CEILING),
    )
