"""What `mlkit simulate` and `mlkit replay` share: the table of outcomes, and progress on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from mlflowkit.values import Json

if TYPE_CHECKING:
    from mlflowkit.recipe.schema import LoadedRecipe
    from mlflowkit.rollout.settings import Rollout
    from mlflowkit.rollout.simulation.simulator import Spread, Summary
    from mlflowkit.stages.deploy import ServeSection

QUIET_SECONDS = 0.2
HEAD = ("scenario", "limits", "promoted", "failed [95 %]", "deadline", "its requests", "all requests", "took",
        "exposed")  # fmt: skip
LEGEND = (
    "failed: rolled back by a metric, which is false for a challenger within its limits. Requests (the challenger's,",
    "and all) and time: from the start to that rollback; time of the others to promotion. exposed: requests of clients",
    "that the challenger was given. Medians, 90th percentiles in brackets.",
)
NONE = "-"


def plan_of(loaded: LoadedRecipe) -> tuple[Rollout, ServeSection]:
    """The recipe's rollout as it can be rehearsed, and the section that has it as it is written.

    Raises UsageError where there is no service, or nothing to judge a rollout by.
    """
    from mlflowkit.errors import UsageError
    from mlflowkit.rollout.simulation.simulator import judged

    serve = loaded.recipe.serve
    if serve is None:
        hint = "write serve: {service: NAME, rollout: {strategy: canary, ...}}"
        raise UsageError(f"{loaded.path} serves nothing: there is no rollout to rehearse", hint=hint)
    return judged(serve.rollout), serve


def left_out(plan: Rollout) -> tuple[str, ...]:
    """What of a recipe's rollout is not rehearsed, in sentences."""
    notes = []
    queries = sum(metric.metric == "prometheus" for metric in plan.metrics)
    if queries:
        notes.append(f"{queries} Prometheus quer{'ies are' if queries > 1 else 'y is'} left out: taken to hold")
    if plan.promote == "manual" or any(step.approval for step in plan.sequence):
        notes.append("approval is taken to be given at once")
    return tuple(notes)


def headline(plan: Rollout) -> str:
    """A plan in one line."""
    steps = ", ".join(f"{step.weight:g}" for step in plan.sequence)
    metrics = ", ".join(metric.metric for metric in plan.metrics)
    return f"{plan.strategy} by {steps} %, judged by {metrics}, level {100 * plan.level:g} %"


class Told:
    """Progress on stderr: a line that is rewritten on a terminal, a line a scenario elsewhere."""

    def __init__(self, name: str, whole: int) -> None:
        self._name, self._whole = name, whole
        self._live = sys.stderr.isatty()
        self._last = 0.0

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if self._live and (done == self._whole or now - self._last >= QUIET_SECONDS):
            self._last = now
            sys.stderr.write(f"\r\x1b[K{self._name}: {done} of {self._whole}" + "\r\x1b[K" * (done == self._whole))
            sys.stderr.flush()
        elif not self._live and done == self._whole:
            sys.stderr.write(f"{self._name}: {done} of {self._whole}\n")


def table(summaries: Sequence[Summary], write: Callable[[str], None]) -> None:
    """Outcomes by scenario in columns; ``write`` takes a line."""
    lines = cells(summaries)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        write("  ".join(padded).rstrip())


def cells(summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """The head and a row a scenario: medians, and 90th percentiles in brackets."""
    lines = [HEAD, *map(_cells, summaries)]
    if any(summary.undecided for summary in summaries):  # only a log can end too early
        ended = ["log ended", *(str(summary.undecided) for summary in summaries)]
        lines = [(*line[:5], cell, *line[5:]) for line, cell in zip(lines, ended, strict=True)]
    return lines


def _cells(summary: Summary) -> tuple[str, ...]:
    from mlflowkit.rollout.simulation.feasibility import span

    found, promoted = summary.found_seconds, summary.promoted_seconds
    took = found if summary.harmful or promoted is None else promoted
    failed = f"{summary.failed} = {_percent(summary.share)} % [{_percent(summary.low)}, {_percent(summary.high)}]"
    return (
        summary.scenario,
        "beyond" if summary.harmful else "within",
        str(summary.promoted),
        failed,
        str(summary.deadline),
        _spread(summary.found_tried),
        _spread(summary.found_requests),
        NONE if took is None else span(took.median),
        _spread(summary.exposed),
    )


def _percent(share: float) -> str:
    return f"{max(100 * share, 0.0):.3g}" if share > 1e-6 else "0"


def _spread(found: Spread | None) -> str:
    return NONE if found is None else f"{found.median:,.0f} ({found.p90:,.0f})"


def summary_json(summary: Summary) -> Json:
    """A summary as JSON; spreads are {median, p90} or null."""
    value = asdict(summary)
    value["stuck"] = {str(step): count for step, count in summary.stuck.items()}
    return value


def conclusions(summaries: Sequence[Summary], level: float) -> tuple[str, ...]:
    """What the outcomes mean, in sentences."""
    found = []
    for summary in summaries:
        name, rollouts = summary.scenario, summary.rollouts
        if not summary.harmful and summary.low > level:
            found.append(f"{name}: {summary.failed} of {rollouts} failed although within limits: the level is broken")
        if summary.harmful and summary.promoted:
            found.append(f"{name}: {summary.promoted} of {rollouts} promoted although beyond a limit")
        for step, count in summary.stuck.items():
            if count * 2 >= rollouts:
                found.append(f"{name}: {count} of {rollouts} end at the deadline of step {step}")
    return tuple(found)
