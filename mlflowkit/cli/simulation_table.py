"""Output shared by `mlkit simulate` and `mlkit replay`: the table of outcomes, and progress on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from mlflowkit.cli.app import echo, note, print_table
from mlflowkit.system.text import printable_line
from mlflowkit.values import Json

if TYPE_CHECKING:
    from mlflowkit.recipe.schema import LoadedRecipe
    from mlflowkit.rollout.settings import Rollout
    from mlflowkit.rollout.simulation.simulator import Spread, Summary
    from mlflowkit.stages.deploy import ServeSection

QUIET_SECONDS = 0.2
LINE_SECONDS = 5.0
"""Interval between lines of progress where there is no terminal."""
HEAD = ("scenario", "limits", "promoted", "failed [95 %]", "deadline", "its requests", "all requests", "took",
        "exposed")  # fmt: skip
LEGEND = (
    "failed: rolled back by a metric, a false alarm for a challenger within its limits. Requests (the challenger's,",
    "and all) and time: from the start to that rollback; otherwise the time to promotion. exposed: client requests",
    "served by the challenger. Medians, 90th percentiles in brackets.",
)
NONE = "-"


def plan_of(loaded: LoadedRecipe) -> tuple[Rollout, ServeSection]:
    """Return the part of the recipe's rollout that can be simulated, and its serve section.

    Raises UsageError without a service, or without a metric to judge a rollout by.
    """
    from mlflowkit.errors import UsageError
    from mlflowkit.rollout.simulation.simulator import simulated_plan

    serve = loaded.recipe.serve
    if serve is None:
        hint = "write serve: {service: NAME, rollout: {strategy: canary, ...}}"
        raise UsageError(f"{loaded.path} serves nothing: there is no rollout to simulate", hint=hint)
    return simulated_plan(serve.rollout), serve


def left_out(plan: Rollout) -> tuple[str, ...]:
    """Return the parts of a recipe's rollout that are not simulated, as sentences."""
    notes = []
    queries = sum(metric.metric == "prometheus" for metric in plan.metrics)
    if queries:
        notes.append(f"{queries} Prometheus quer{'ies are' if queries > 1 else 'y is'} left out and assumed to pass")
    if plan.promote == "manual" or any(step.approval for step in plan.sequence):
        notes.append("approval is assumed to be given at once")
    return tuple(notes)


def headline(plan: Rollout) -> str:
    """Format a plan in one line."""
    steps = ", ".join(f"{step.weight:g}" for step in plan.sequence)
    metrics = ", ".join(metric.metric for metric in plan.metrics)
    return f"{plan.strategy} by {steps} %, judged by {metrics}, level {100 * plan.level:g} %"


class ScenarioProgress:
    """Progress on stderr: one rewritten line on a terminal, else a line every few seconds and one at the end."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total = name, total
        self._live = sys.stderr.isatty()
        self._last = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if self._live and (done == self._total or now - self._last >= QUIET_SECONDS):
            self._last = now
            sys.stderr.write(
                f"\r\x1b[K{printable_line(self._name)}: {done} of {self._total}" + "\r\x1b[K" * (done == self._total)
            )
            sys.stderr.flush()
        elif not self._live and (done == self._total or now - self._last >= LINE_SECONDS):
            self._last = now
            note(f"{self._name}: {done} of {self._total}")


def first_lines(summaries: Sequence[Summary], rollouts: int, not_yet: Sequence[str]) -> list[str]:
    """The first answer of a simulation, a line a scenario: shares of few rollouts, with their intervals."""
    lines = [f"first answer, from a few of the {rollouts} rollouts of each scenario (95 % intervals); refining it:"]
    for summary in summaries:
        bounds = f"[{_percent(summary.low)}, {_percent(summary.high)}] %"
        outcome = (
            f"{summary.failed} of {summary.rollouts} rolled back by a metric {bounds}, {summary.promoted} promoted"
        )
        limits = "beyond a limit" if summary.harmful else "within limits"
        lines.append(f"  {summary.scenario} ({limits}): {outcome}")
    return lines + ([f"  not yet: {', '.join(not_yet)}"] if not_yet else [])


def print_outcomes(summaries: Sequence[Summary], conclusions: Sequence[str]) -> None:
    """Print the table of outcomes, the conclusions and the legend."""
    print_table(cells(summaries))
    echo()
    for line in (*conclusions, *LEGEND):
        echo(line)


def cells(summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """Return the header and a row for each scenario: medians, and 90th percentiles in brackets."""
    lines = [HEAD, *map(_row_cells, summaries)]
    if any(summary.undecided for summary in summaries):  # only a log can end before a decision
        ended = ["log ended", *(str(summary.undecided) for summary in summaries)]
        lines = [(*line[:5], cell, *line[5:]) for line, cell in zip(lines, ended, strict=True)]
    return lines


def _row_cells(summary: Summary) -> tuple[str, ...]:
    from mlflowkit.rollout.simulation.feasibility import format_span

    detected, promoted = summary.found_seconds, summary.promoted_seconds
    duration = detected if summary.harmful or promoted is None else promoted
    failed = f"{summary.failed} = {_percent(summary.share)} % [{_percent(summary.low)}, {_percent(summary.high)}]"
    return (
        summary.scenario, "beyond" if summary.harmful else "within", str(summary.promoted), failed,
        str(summary.deadline), _spread(summary.found_tried), _spread(summary.found_requests),
        NONE if duration is None else format_span(duration.median), _spread(summary.exposed),
    )  # fmt: skip


def _percent(share: float) -> str:
    return f"{max(100 * share, 0.0):.3g}" if share > 1e-6 else "0"


def _spread(spread: Spread | None) -> str:
    return NONE if spread is None else f"{spread.median:,.0f} ({spread.p90:,.0f})"


def summary_json(summary: Summary) -> Json:
    """Return a summary as JSON; spreads are {median, p90} or null."""
    value = asdict(summary)
    value["stuck"] = {str(step): count for step, count in summary.stuck.items()}
    return value


def conclusions(summaries: Sequence[Summary], level: float) -> tuple[str, ...]:
    """Return conclusions from the outcomes, as sentences."""
    sentences = []
    for summary in summaries:
        name, rollouts = summary.scenario, summary.rollouts
        if not summary.harmful and summary.low > level:
            share = f"{summary.failed} of {rollouts}"
            sentences.append(f"{name}: {share} failed although within limits: the level is broken")
        if summary.harmful and summary.promoted:
            sentences.append(f"{name}: {summary.promoted} of {rollouts} promoted although beyond a limit")
        for step, count in summary.stuck.items():
            if count * 2 >= rollouts:
                sentences.append(f"{name}: {count} of {rollouts} end at the deadline of step {step}")
    return tuple(sentences)
