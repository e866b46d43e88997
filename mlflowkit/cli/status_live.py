"""`mlkit status --watch` on a terminal: variants, weights, steps, and each metric's evidence towards its boundary."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mlflowkit.rollout.admin.view_models import FindingView, RolloutView, ServiceView, StepView, VariantView
    from mlflowkit.values import ServiceStatus

    ServiceSnapshot = tuple[ServiceStatus, ServiceView]

TONES = {"PASSED": "green", "FAILED": "bold red", "INCONCLUSIVE": "yellow", "ERROR": "bold red"}
ROLES = {"champion": "blue", "challenger": "dark_orange", "shadow": "cyan"}
STEPS = {"done": "green", "now": "bold blue", "ahead": "dim", "ended": "red", "left": "dim strike"}
BAR = 40
HALF = 14
"""Characters of a metric's bar to either side of its middle."""


def show(
    folder: Path, look: Callable[[], Sequence[ServiceSnapshot]], seconds: float, console: Console | None = None
) -> None:
    """Draw the services again every ``seconds``, until KeyboardInterrupt."""
    with Live(screen(folder, look()), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(seconds)
            live.update(screen(folder, look()), refresh=True)


def screen(folder: Path, seen: Sequence[ServiceSnapshot]) -> RenderableType:
    """The services of a state folder, as one drawing."""
    if not seen:
        return Text(f"no services in {folder}; `mlkit run RECIPE` makes one")
    return Group(*(_service(state, view) for (service, view) in seen for state in (service.state,)))


def _service(state: str, view: ServiceView) -> Panel:
    parts: list[RenderableType] = [_traffic(view.variants), _variants(view.variants, state)]
    if view.rollout is not None:
        parts += ["", *_rollout(view.rollout)]
    parts += [Text(problem, "red") for problem in view.problems]
    tone = "green" if state == "serving" else "red" if state.startswith("refused") else "yellow"
    title = Text.assemble((view.service, "bold"), "  ", (state, tone), f"  epoch {view.epoch}")
    places = "  ".join(filter(None, (view.endpoint, view.admin)))
    return Panel(Group(*parts), title=title, title_align="left", subtitle=Text(places, "dim"), subtitle_align="left")


def _traffic(variants: Sequence[VariantView]) -> Text:
    """The shares of the traffic as one bar. A share that is not nothing has a character at least."""
    bar = Text()
    taking = [one for one in variants if one.weight > 0 and one.role != "champion"]
    cells = {one.name: max(1, round(BAR * one.weight)) for one in taking}
    for one in variants:
        count = BAR - sum(cells.values()) if one.role == "champion" else cells.get(one.name, 0)
        bar.append("█" * max(0, count), ROLES[one.role])
    return bar


def _variants(variants: Sequence[VariantView], state: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("variant", "version", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("traffic", "per s", "requests", "errors", "p50 ms", "p99 ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in variants:
        shadow = one.role == "shadow"
        table.add_row(
            Text(one.name, ROLES[one.role]),
            Text(one.version),
            Text(state),
            f"mirror {one.sampling:.0%}" if shadow else f"{one.weight:.1%}",
            _number(one.per_second, "{:,.0f}"),
            f"{one.mirrored if shadow else one.requests:,}",
            _number(one.error_rate, "{:.2%}"),
            _number(one.p50_ms, "{:.2f}"),
            _number(one.p99_ms, "{:.2f}"),
        )
    return table


def _rollout(rollout: RolloutView) -> list[RenderableType]:
    found: list[RenderableType] = [
        Text.assemble(("rollout ", "dim"), rollout.summary, (f"  version {rollout.candidate_version}", "dim")),
        Text("  ").join(map(_step, rollout.steps)),
    ]
    if rollout.waiting:
        found.append(Text.assemble(("waiting for ", "dim"), " · ".join(rollout.waiting)))
    if rollout.ended and rollout.reason:
        found.append(Text(rollout.reason))
    if rollout.findings and not rollout.ended:
        found += ["", _findings(rollout.findings)]
    return found


def _step(step: StepView) -> Text:
    share = f"{step.weight:.0%}" if step.weight else f"mirror {step.sampling:.0%}"
    mark = {"done": "✓ ", "now": "▸ "}.get(step.state, "")
    return Text(f"{mark}{share}{' (approval)' if step.approval else ''}", STEPS[step.state])


def _findings(findings: Sequence[FindingView]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("metric", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column(Text.assemble(("worse", "red"), " " * (2 * HALF - 11), ("not worse", "green")), no_wrap=True)
    table.add_column("in words", ratio=1)
    for one in findings:
        table.add_row(Text(one.name), Text(one.outcome, TONES[one.outcome]), balance(one), Text(one.message))
    return table


def balance(finding: FindingView) -> Text:
    """Evidence towards both boundaries: to the left, worse than allowed; to the right, not worse."""
    harm, proof = (round(HALF * min(1.0, max(0.0, part or 0.0))) for part in (finding.harm, finding.proof))
    return Text.assemble(
        ("▕", "red"), ("·" * (HALF - harm), "dim"), ("█" * harm, "red"), ("│", "dim"),
        ("█" * proof, "green"), ("·" * (HALF - proof), "dim"), ("▏", "green"),
    )  # fmt: skip


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
