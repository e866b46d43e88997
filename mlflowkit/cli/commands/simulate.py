"""mlkit simulate: simulate a recipe's rollout over synthetic traffic."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import JsonOption, OverridesArgument, RecipeArgument, app, echo, emit_json, note
from mlflowkit.values import Json

if TYPE_CHECKING:
    from mlflowkit.recipe.schema import LoadedRecipe
    from mlflowkit.rollout.settings import Rollout
    from mlflowkit.rollout.simulation.feasibility import StepTime, TimeToPass
    from mlflowkit.rollout.simulation.scenarios import Scenario, TrafficFigures
    from mlflowkit.rollout.simulation.simulator import SimulatedRollout, Summary
    from mlflowkit.rollout.simulation.synthetic_traffic import SyntheticWorld

DEFAULT_RATE = 50.0
"""Requests a second, where no traffic is given."""
FIRST_SECONDS = 7.0
"""Time for the first answer."""
MAX_DRAWN = 4
"""Rollouts of a scenario drawn on the page."""
ScenarioOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND[=SIZE]",
        help="aa, error-rate=0.02, latency=1.5, latency-tail=2, accuracy=0.05, log-loss=1.5, absolute-error=1.5, "
        "squared-error=1.5, prediction-shift=0.1, disagreement=0.05, disagreement-slice=0.3, kappa=0.5, auc=0.41, "
        "low-traffic=20; more than once for several [default: what the recipe's metrics can detect].",
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
DelayOption = Annotated[float, typer.Option(metavar="SECONDS", help="Mean delay of feedback.")]
LogOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Take rate, errors and latencies from a service: .mlkit/services/NAME."),
]
OutOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write an HTML page.")]


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
    positive: Annotated[float, typer.Option(metavar="SHARE", help="Share of rows that it predicts as positive.")] = 0.2,
    feedback: Annotated[float, typer.Option(metavar="SHARE", help="Share of predictions with feedback.")] = 0.2,
    feedback_delay: DelayOption = 60.0,
    from_log: LogOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the traffic.")] = 0,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Number of processes.")] = 1,
    monitor: Annotated[bool, typer.Option("--monitor", help="Simulate the recipe's monitor instead.")] = False,
    columns: Annotated[int, typer.Option(min=1, max=1000, help="Monitored columns (--monitor).")] = 20,
    windows: Annotated[int, typer.Option(min=1, max=10_000, help="Windows after the baseline (--monitor).")] = 30,
    design_effect: Annotated[
        float, typer.Option(min=1, metavar="ROWS", help="Rows of a window that count as one (--monitor).")
    ] = 1.0,
    out: OutOption = None,
    json: JsonOption = False,
) -> None:
    """Simulate a recipe's rollout: the real policy and judges, synthetic traffic, simulated time.

    Shows how often challengers as good as the champion, and worse ones, are promoted and rolled back, after how many
    requests, and how many clients they served. With --monitor: how often the recipe's monitor alarms on clean traffic,
    how soon it sees a lasting shift, and how many rows are answered until then.
    """
    if monitor:
        _simulate_monitor(load_recipe(recipe, overrides), rate, columns, windows, design_effect, rollouts, seed, json)
        return
    from mlflowkit.cli.simulation_table import plan_of
    from mlflowkit.recipe.check import load
    from mlflowkit.rollout.simulation import scenarios
    from mlflowkit.rollout.simulation.recording import measured_figures

    loaded = load(recipe, overrides or ())
    plan, serve = plan_of(loaded)
    base = scenarios.TrafficFigures(accuracy=accuracy, positive=positive, feedback=feedback, delay=feedback_delay)
    if from_log is not None:
        base = measured_figures(from_log, base)
    base = _override_figures(base, rate, error_rate, latency_ms)
    world = scenarios.synthetic_world(base, loaded.recipe.task)
    selected = _select_scenarios(plan, world, scenario or (), error_increase or ())
    job = SimulationJob(loaded.recipe.name, plan, serve.rollout, base, world, selected, rollouts, seed, workers)
    result = _run_job(job, json)
    if json:
        emit_json({"recipe": str(loaded.path), "service": serve.service, **result.to_json(job)})
    if out is not None:
        _write_page(out, job, result)


def load_recipe(recipe: Path, overrides: Sequence[str] | None) -> LoadedRecipe:
    """Compose and check a recipe."""
    from mlflowkit.recipe.check import load

    return load(recipe, tuple(overrides or ()))


def _simulate_monitor(
    loaded: LoadedRecipe, rate: float | None, columns: int, windows: int, design_effect: float, runs: int, seed: int,
    json: bool,
) -> None:  # fmt: skip
    """Simulate the monitor under a rate of requests of one row."""
    from mlflowkit.cli.playback import monitor_playback_table
    from mlflowkit.monitoring.playback.synthetic_windows import SyntheticVersion

    section = monitor_playback_table.monitor_section(loaded)
    rows = max(1, round((DEFAULT_RATE if rate is None else rate) * section.window_seconds))
    traffic = SyntheticVersion(rows, section.window_seconds, columns, design_effect, windows=windows)
    monitor_playback_table.simulate_monitoring(loaded, traffic, runs, seed, json)


@dataclass(frozen=True, slots=True)
class SimulationJob:
    """A simulation to run. ``written`` is the recipe's rollout, ``plan`` the part that can be simulated."""

    name: str
    plan: Rollout
    written: Rollout
    base: TrafficFigures
    world: SyntheticWorld
    scenarios: Sequence[Scenario]
    rollouts: int
    seed: int
    workers: int


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """Results of a simulation."""

    times: Sequence[StepTime]
    proof: TimeToPass
    summaries: Sequence[Summary]
    conclusions: Sequence[str]
    notes: Sequence[str]

    def to_json(self, job: SimulationJob) -> dict[str, Json]:
        """Return the JSON of the command, whose keys are stable."""
        from mlflowkit.cli.simulation_table import summary_json

        return {
            "strategy": job.plan.strategy, "level": job.plan.level, "seed": job.seed, "rollouts": job.rollouts,
            "base": {**asdict(job.base), "latency": "measured" if job.base.latency is not None else "log-normal"},
            "steps": [asdict(step) for step in self.times], "proof": asdict(self.proof),
            "scenarios": [summary_json(summary) for summary in self.summaries],
            "conclusions": list(self.conclusions), "notes": list(self.notes),
        }  # fmt: skip


def _override_figures(
    base: TrafficFigures, rate: float | None, error_rate: float | None, latency_ms: str | None
) -> TrafficFigures:
    """Replace traffic figures by those of the command line."""
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


def _select_scenarios(
    plan: Rollout, world: SyntheticWorld, kinds: Sequence[str], increases: Sequence[float]
) -> tuple[Scenario, ...]:
    from mlflowkit.rollout.simulation import scenarios

    texts = [*kinds, *(f"error-rate={size!r}" for size in increases)]
    if not texts:
        return scenarios.default_scenarios(plan, world)
    parsed = [scenario for text in texts for scenario in scenarios.parse_scenarios(text, plan, world)]
    return tuple({scenario.name: scenario for scenario in parsed}.values())


def _run_job(job: SimulationJob, quiet: bool) -> SimulationResult:
    """Simulate all scenarios: a first answer on stderr within seconds, then all rollouts; prints unless ``quiet``."""
    from mlflowkit.cli import simulation_table
    from mlflowkit.rollout.simulation import feasibility, scenarios
    from mlflowkit.rollout.simulation.simulator import simulate_many, summarise

    times = feasibility.step_times(job.plan, job.base.rate)
    if not quiet:
        echo(simulation_table.headline(job.plan))
        echo(_traffic_sentence(job.base))
        for step in times:
            echo(f"  {step.sentence}")
    first = _first_rollouts(job)
    progress = simulation_table.ScenarioProgress("time to pass", feasibility.PILOT_ROLLOUTS)
    alike = scenarios.build_scenario("aa", 0.0, job.world, job.plan)
    proof = feasibility.time_to_pass(job.plan, alike, seed=job.seed, done=progress)
    notes = simulation_table.left_out(job.written)
    if not quiet:
        for line in (proof.sentence, *notes):
            echo(f"  {line}")
        echo()
    summaries = []
    for scenario, begun in zip(job.scenarios, first, strict=True):
        progress = simulation_table.ScenarioProgress(scenario.name, job.rollouts)
        progress(len(begun))
        results = [
            *begun,
            *simulate_many(
                job.plan, scenario, job.rollouts, seed=job.seed, start=len(begun), workers=job.workers, done=progress
            ),
        ]
        summaries.append(summarise(scenario.name, bool(scenario.violated), results))
    conclusions = simulation_table.conclusions(summaries, job.plan.level)
    if not quiet:
        simulation_table.print_outcomes(summaries, conclusions)
    return SimulationResult(times, proof, summaries, conclusions, notes)


def _first_rollouts(job: SimulationJob) -> list[list[SimulatedRollout]]:
    """The first rollouts of each scenario, in turn, as many as `FIRST_SECONDS` allow, told on stderr.

    A/A comes first, then what is beyond a limit, the worst before: a bad version is found soon.
    """
    from mlflowkit.cli import simulation_table
    from mlflowkit.rollout.simulation.simulator import simulate_scenario, summarise

    ended = time.monotonic() + FIRST_SECONDS
    first: list[list[SimulatedRollout]] = [[] for _ in job.scenarios]
    turns = list(zip(job.scenarios, first, strict=True))[::-1]
    turns.sort(key=lambda turn: (turn[0].kind != "aa", not turn[0].violated))
    for number in range(job.rollouts):
        for scenario, results in turns:
            if time.monotonic() > ended:
                break
            results.append(simulate_scenario(job.plan, scenario, job.seed, number))
    if all(len(results) == job.rollouts for results in first):
        return first
    done = [(scenario, results) for scenario, results in zip(job.scenarios, first, strict=True) if results]
    summaries = [summarise(scenario.name, bool(scenario.violated), results) for scenario, results in done]
    not_yet = [scenario.name for scenario, results in zip(job.scenarios, first, strict=True) if not results]
    for line in simulation_table.first_lines(summaries, job.rollouts, not_yet):
        note(line)
    return first


def _write_page(out: Path, job: SimulationJob, result: SimulationResult) -> None:
    """Write the results as a page, with the evidence of a few rollouts of each scenario drawn."""
    from mlflowkit.cli import simulation_table
    from mlflowkit.cli.output_file import write_text
    from mlflowkit.report.simulation_page import DrawnScenario, render
    from mlflowkit.rollout.simulation.simulator import simulate_scenario

    drawn = []
    for scenario in job.scenarios:
        numbers = range(min(MAX_DRAWN, job.rollouts))
        played = [simulate_scenario(job.plan, scenario, job.seed, number, keep=True) for number in numbers]
        drawn.append(DrawnScenario(scenario.name, bool(scenario.violated), played))
    head, *rows = simulation_table.cells(result.summaries)
    sentences = (_traffic_sentence(job.base), *(step.sentence for step in result.times), result.proof.sentence,
                 *result.notes, *result.conclusions)  # fmt: skip
    headline = simulation_table.headline(job.plan)
    write_text(out, render(job.name, headline, sentences, head, rows, drawn, simulation_table.LEGEND))
    note(f"page: {out}")


def _traffic_sentence(base: TrafficFigures) -> str:
    measured = " (latencies as measured)" if base.latency is not None else ""
    return (
        f"{base.rate:g} requests a second; the champion fails {100 * base.error_rate:.3g} % of them, answers in "
        f"{base.p50_ms:.3g} ms (p99 {base.p99_ms:.3g} ms){measured}"
    )
