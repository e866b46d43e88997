"""mlkit simulate: a recipe's rollout, rehearsed over synthetic traffic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import JsonOption, OverridesArgument, RecipeArgument, app, echo, emit_json, note
from mlflowkit.values import Json

if TYPE_CHECKING:
    from mlflowkit.rollout.settings import Rollout
    from mlflowkit.rollout.simulation.feasibility import Proof, StepTime
    from mlflowkit.rollout.simulation.scenarios import Figures, Scenario
    from mlflowkit.rollout.simulation.simulator import Summary
    from mlflowkit.rollout.simulation.synthetic_traffic import World

DRAWN = 4
"""Rollouts of a scenario that the page draws."""
ScenarioOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND[=SIZE]",
        help="aa, error-rate=0.02, latency=1.5, latency-tail=2, accuracy=0.05, log-loss=1.5, absolute-error=1.5, "
        "squared-error=1.5, prediction-shift=0.1, disagreement=0.05, disagreement-slice=0.3, low-traffic=20; more than "
        "once for several [default: what the recipe's metrics can see].",
        show_default=False,
    ),
]


RateOption = Annotated[float | None, typer.Option(metavar="REQ/S", help="Requests a second [default: 50].")]
IncreaseOption = Annotated[
    list[float] | None, typer.Option(metavar="SHARE", help="The same as --scenario error-rate=SHARE.")
]
ErrorRateOption = Annotated[
    float | None, typer.Option(metavar="SHARE", help="The champion's share of failed requests [default: 0.01].")
]
LatencyOption = Annotated[str | None, typer.Option(metavar="P50,P99", help="The champion's latencies [default: 5,20].")]
DelayOption = Annotated[float, typer.Option(metavar="SECONDS", help="How long that takes, on average.")]
LogOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Take rate, errors and latencies from a service: .mlkit/services/NAME."),
]
OutOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page (HTML) as well.")]


@app.command()
def simulate(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    rollouts: Annotated[int, typer.Option(min=1, max=100_000, help="Rollouts of each scenario.")] = 25,
    rate: RateOption = None,
    scenario: ScenarioOption = None,
    error_increase: IncreaseOption = None,
    error_rate: ErrorRateOption = None,
    latency_ms: LatencyOption = None,
    accuracy: Annotated[float, typer.Option(metavar="SHARE", help="The champion's accuracy.")] = 0.9,
    positive: Annotated[float, typer.Option(metavar="SHARE", help="Share of rows that it says yes to.")] = 0.2,
    feedback: Annotated[float, typer.Option(metavar="SHARE", help="Share of answers whose truth comes back.")] = 0.2,
    feedback_delay: DelayOption = 60.0,
    from_log: LogOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the traffic.")] = 0,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes.")] = 1,
    out: OutOption = None,
    json: JsonOption = False,
) -> int:
    """Rehearse a recipe's rollout: the real policy and judges, synthetic traffic, simulated time.

    Prints what becomes of challengers that are as good as the champion, and of worse ones: how often they are promoted
    and rolled back, after how many requests, and how many clients they answered.
    """
    from mlflowkit.cli.simulation_table import plan_of
    from mlflowkit.recipe.check import load
    from mlflowkit.rollout.simulation import scenarios

    loaded = load(recipe, overrides or ())
    plan, serve = plan_of(loaded)
    base = scenarios.Figures(accuracy=accuracy, positive=positive, feedback=feedback, delay=feedback_delay)
    base = _given(base if from_log is None else _measured(base, from_log), rate, error_rate, latency_ms)
    world = scenarios.world(base, loaded.recipe.task)
    chosen = _chosen(plan, world, scenario or (), error_increase or ())
    job = Job(loaded.recipe.name, plan, serve.rollout, base, world, chosen, rollouts, seed, workers)
    done = _rehearse(job, json)
    if json:
        emit_json({"recipe": str(loaded.path), "service": serve.service, **done.to_json(job)})
    if out is not None:
        _write_page(out, job, done)
    return 0


@dataclass(frozen=True, slots=True)
class Job:
    """What to rehearse. ``written`` is the recipe's plan, ``plan`` what of it can be rehearsed."""

    name: str
    plan: Rollout
    written: Rollout
    base: Figures
    world: World
    chosen: Sequence[Scenario]
    rollouts: int
    seed: int
    workers: int


@dataclass(frozen=True, slots=True)
class Done:
    """What came of it."""

    times: Sequence[StepTime]
    proof: Proof
    summaries: Sequence[Summary]
    conclusions: Sequence[str]
    notes: Sequence[str]

    def to_json(self, job: Job) -> dict[str, Json]:
        """Its JSON, whose keys stay."""
        from mlflowkit.cli.simulation_table import summary_json

        return {
            "strategy": job.plan.strategy, "level": job.plan.level, "seed": job.seed, "rollouts": job.rollouts,
            "base": {**asdict(job.base), "latency": "measured" if job.base.latency is not None else "log-normal"},
            "steps": [asdict(one) for one in self.times], "proof": asdict(self.proof),
            "scenarios": [summary_json(one) for one in self.summaries],
            "conclusions": list(self.conclusions), "notes": list(self.notes),
        }  # fmt: skip


def _measured(base: Figures, folder: Path) -> Figures:
    """The figures, with those that a service's log gives."""
    from mlflowkit.rollout.simulation.recording import figures_of

    return figures_of(folder, base)


def _given(base: Figures, rate: float | None, error_rate: float | None, latency_ms: str | None) -> Figures:
    """The figures, with those that the command line gives."""
    from mlflowkit.errors import UsageError

    if rate is not None:
        base = replace(base, rate=rate)
    if error_rate is not None:
        base = replace(base, error_rate=error_rate)
    if latency_ms is not None:
        try:
            p50, p99 = (float(part) for part in latency_ms.split(","))
        except ValueError as error:
            raise UsageError(f"{latency_ms!r} is not two latencies", hint="--latency-ms 5,20") from error
        base = replace(base, p50_ms=p50, p99_ms=p99, latency=None)
    return base


def _chosen(plan: Rollout, world: World, kinds: Sequence[str], increases: Sequence[float]) -> tuple[Scenario, ...]:
    from mlflowkit.rollout.simulation import scenarios

    texts = [*kinds, *(f"error-rate={size!r}" for size in increases)]
    if not texts:
        return scenarios.suite(plan, world)
    found = [one for text in texts for one in scenarios.asked(text, plan, world)]
    return tuple({one.name: one for one in found}.values())


def _rehearse(job: Job, quiet: bool) -> Done:
    """Play everything, and print it as it comes unless ``quiet``."""
    from mlflowkit.cli import simulation_table
    from mlflowkit.rollout.simulation import feasibility, scenarios
    from mlflowkit.rollout.simulation.simulator import rehearse, summarise

    times = feasibility.step_times(job.plan, job.base.rate)
    told = simulation_table.Told("how long the proof takes", feasibility.PILOTS)
    alike = scenarios.scenario("aa", 0.0, job.world, job.plan)
    proof = feasibility.proof(job.plan, alike, seed=job.seed, done=told)
    notes = simulation_table.left_out(job.written)
    if not quiet:
        echo(simulation_table.headline(job.plan))
        echo(_base_words(job.base))
        for line in (*(one.sentence for one in times), proof.sentence, *notes):
            echo(f"  {line}")
        echo()
    summaries = []
    for one in job.chosen:
        told = simulation_table.Told(one.name, job.rollouts)
        played = rehearse(job.plan, one, job.rollouts, seed=job.seed, workers=job.workers, done=told)
        summaries.append(summarise(one.name, bool(one.violated), played))
    said = simulation_table.conclusions(summaries, job.plan.level)
    if not quiet:
        simulation_table.table(summaries, echo)
        echo()
        for line in (*said, *simulation_table.LEGEND):
            echo(line)
    return Done(times, proof, summaries, said, notes)


def _write_page(out: Path, job: Job, done: Done) -> None:
    """The same as a page, with the evidence of a few rollouts of each scenario drawn."""
    from mlflowkit.cli import simulation_table
    from mlflowkit.cli.output_file import write_text
    from mlflowkit.report.simulation_page import Drawn, render
    from mlflowkit.rollout.simulation.simulator import one as play_one

    drawn = [
        Drawn(
            one.name,
            bool(one.violated),
            [play_one(job.plan, one, job.seed, number, keep=True) for number in range(min(DRAWN, job.rollouts))],
        )
        for one in job.chosen
    ]
    head, *rows = simulation_table.cells(done.summaries)
    sentences = (_base_words(job.base), *(one.sentence for one in done.times), done.proof.sentence, *done.notes,
                 *done.conclusions)  # fmt: skip
    headline = simulation_table.headline(job.plan)
    write_text(out, render(job.name, headline, sentences, head, rows, drawn, simulation_table.LEGEND))
    note(f"page: {out}")


def _base_words(base: Figures) -> str:
    measured = " (latencies as measured)" if base.latency is not None else ""
    return (
        f"{base.rate:g} requests a second; the champion fails {100 * base.error_rate:.3g} % of them, answers in "
        f"{base.p50_ms:.3g} ms (p99 {base.p99_ms:.3g} ms){measured}"
    )
