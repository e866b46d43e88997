"""A rehearsal as one self-contained HTML page: what came of each scenario, and the evidence against its boundary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlflowkit import __version__
from mlflowkit.report import charts
from mlflowkit.report.run.run_page import css, environment
from mlflowkit.rollout.simulation.simulator import Rehearsal

CEILING = 1.5
"""Evidence beyond this share of what decides is drawn at it."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A scenario with some of its rollouts, every look kept."""

    scenario: str
    harmful: bool
    played: Sequence[Rehearsal]


def render(
    name: str, plan: str, sentences: Sequence[str], head: Sequence[str], rows: Sequence[Sequence[str]],
    drawn: Sequence[Drawn], legend: Sequence[str],
) -> str:  # fmt: skip
    """The page, as HTML text; everything that is given is escaped.

    ``plan`` is the plan in one line, ``sentences`` what is said of it; ``head`` and ``rows`` are the table of outcomes.
    """
    return (
        environment()
        .get_template("simulation.html")
        .render(
            name=name,
            plan=plan,
            sentences=sentences,
            head=head,
            rows=rows,
            legend=" ".join(legend),
            figures=[figure(one) for one in drawn],
            css=css(),
            version=__version__,
        )
    )


def figure(one: Drawn) -> dict[str, str]:
    """The evidence of harm of some rollouts over the challenger's requests, against the boundary where it decides."""
    lines = []
    for number, played in enumerate(one.played):
        places = [float(sight.tried) for sight in played.path]
        harms = [min(CEILING, _largest(sight.evidence)) for sight in played.path]
        lines.append(charts.Line(f"rollout {number + 1}: {played.end}", places, harms, number))
    far = max((line.x[-1] for line in lines if line.x), default=1.0)
    limits = "beyond its limits" if one.harmful else "within its limits"
    return charts.figure(
        f"{one.scenario} ({limits})",
        [charts.Level("rolled back", 1.0, "bad"), *lines],
        label=f"Evidence of harm over the requests of a challenger, {one.scenario}, in {len(lines)} rollouts",
        x_label="requests of the challenger",
        y_label="evidence of harm; 1 decides",
        x_domain=(0.0, max(far, 1.0)),
        y_domain=(0.0, CEILING),
    )


def _largest(evidence: Mapping[str, tuple[float, float]]) -> float:
    return max((harm for harm, _ in evidence.values()), default=0.0)
