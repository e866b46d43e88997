"""`mlkit status --watch` on a terminal: variants, weights, steps, and each metric's evidence towards its boundaries."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mlflowkit.system.text import printable_line

if TYPE_CHECKING:
    from mlflowkit.rollout.admin.view_models import FindingView, RolloutView, ServiceView, StepView, VariantView
    from mlflowkit.values import ServiceStatus

    ServiceStatusView = tuple[ServiceStatus, ServiceView]

TONES = {"PASSED": "green", "FAILED": "bold red", "INCONCLUSIVE": "yellow", "ERROR": "bold red"}
ROLES = {"champion": "blue", "challenger": "dark_orange", "shadow": "cyan"}
STEPS = {"done": "green", "now": "bold blue", "ahead": "dim", "ended": "red", "left": "dim strike"}
BAR = 40
HALF = 14
"""Width of a metric's bar on either side of its middle, in characters."""


def show(
    folder: Path, read: Callable[[], Sequence[ServiceStatusView]], seconds: float, console: Console | None = None
) -> None:
    """Redraw the services every ``seconds``, until KeyboardInterrupt."""
    with Live(screen(folder, read()), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(seconds)
            live.update(screen(folder, read()), refresh=True)


def screen(folder: Path, services: Sequence[ServiceStatusView]) -> RenderableType:
    """Render the services of a state folder."""
    if not services:
        return Text(f"no services in {printable_line(str(folder))}; `mlkit run RECIPE` makes one")
    return Group(*(_service(printable_line(service.state), _printable(view)) for service, view in services))


def _printable(value: Any) -> Any:
    """A view with all its texts free of terminal escapes."""
    if isinstance(value, str):
        return printable_line(value)
    if isinstance(value, tuple | list):
        return type(value)(map(_printable, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{item.name: _printable(getattr(value, item.name)) for item in fields(value) if item.init}
        )
    return value


def _service(state: str, view: ServiceView) -> Panel:
    parts: list[RenderableType] = [_traffic(view.variants), _variants(view.variants, state)]
    if view.rollout is not None:
        parts += ["", *_rollout(view.rollout)]
    parts += [Text(problem, "red") for problem in view.problems]
    tone = "green" if state == "serving" else "red" if state.startswith("refused") else "yellow"
    title = Text.assemble((view.service, "bold"), "  ", (state, tone), f"  epoch {view.epoch}")
    urls = "  ".join(filter(None, (view.endpoint, view.admin)))
    return Panel(Group(*parts), title=title, title_align="left", subtitle=Text(urls, "dim"), subtitle_align="left")


def _traffic(variants: Sequence[VariantView]) -> Text:
    """Render the traffic shares as one bar; a nonzero share has at least one character."""
    bar = Text()
    cells = {v.name: max(1, round(BAR * v.weight)) for v in variants if v.weight > 0 and v.role != "champion"}
    for variant in variants:
        count = BAR - sum(cells.values()) if variant.role == "champion" else cells.get(variant.name, 0)
        bar.append("█" * max(0, count), ROLES[variant.role])
    return bar


def _variants(variants: Sequence[VariantView], state: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("variant", "version", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("traffic", "per s", "requests", "errors", "p50 ms", "p99 ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for variant in variants:
        shadow = variant.role == "shadow"
        table.add_row(
            Text(variant.name, ROLES[variant.role]),
            Text(variant.version),
            Text(state),
            f"mirror {variant.sampling:.0%}" if shadow else f"{variant.weight:.1%}",
            _format(variant.per_second, "{:,.0f}"),
            f"{variant.mirrored if shadow else variant.requests:,}",
            _format(variant.error_rate, "{:.2%}"),
            _format(variant.p50_ms, "{:.2f}"),
            _format(variant.p99_ms, "{:.2f}"),
        )
    return table


def _rollout(rollout: RolloutView) -> list[RenderableType]:
    parts: list[RenderableType] = [
        Text.assemble(("rollout ", "dim"), rollout.summary, (f"  version {rollout.candidate_version}", "dim")),
        Text("  ").join(map(_step, rollout.steps)),
    ]
    if rollout.waiting:
        parts.append(Text.assemble(("waiting for ", "dim"), " · ".join(rollout.waiting)))
    if rollout.ended and rollout.reason:
        parts.append(Text(rollout.reason))
    if not rollout.ended:
        parts += [Text.assemble(("warning ", "yellow"), warning) for warning in rollout.warnings]
    if rollout.findings and not rollout.ended:
        parts += ["", _findings(rollout.findings)]
    return parts


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
    for finding in findings:
        outcome = Text(finding.outcome, TONES[finding.outcome])
        table.add_row(Text(finding.name), outcome, balance(finding), Text(finding.message))
    return table


def balance(finding: FindingView) -> Text:
    """Render the evidence towards both boundaries: left, worse than allowed; right, not worse."""
    worse, not_worse = (round(HALF * min(1.0, max(0.0, part or 0.0))) for part in (finding.harm, finding.proof))
    return Text.assemble(
        ("▕", "red"), ("·" * (HALF - worse), "dim"), ("█" * worse, "red"), ("│", "dim"),
        ("█" * not_worse, "green"), ("·" * (HALF - not_worse), "dim"), ("▏", "green"),
    )  # fmt: skip


def _format(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
