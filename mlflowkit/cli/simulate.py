"""mlkit simulate: a recipe's rollout, rehearsed over synthetic traffic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import JsonOption, OverridesArgument, RecipeArgument, app, echo, emit_json

if TYPE_CHECKING:
    from mlflowkit.rollout.feasibility import Proof, StepTime
    from mlflowkit.rollout.plan import Rollout
    from mlflowkit.rollout.scenarios import Figures, Scenario
    from mlflowkit.rollout.traffic import World

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


@app.command()
def simulate(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    rollouts: Annotated[int, typer.Option(min=1, max=100_000, help="Rollouts of each scenario.")] = 25,
    rate: Annotated[float | None, typer.Option(metavar="REQ/S", help="Requests a second [default: 50].")] = None,
    scenario: ScenarioOption = None,
    error_increase: Annotated[
        list[float] | None, typer.Option(metavar="SHARE", help="The same as --scenario error-rate=SHARE.")
    ] = None,
    error_rate: Annotated[
        float | None, typer.Option(metavar="SHARE", help="The champion's share of failed requests [default: 0.01].")
    ] = None,
    latency_ms: Annotated[
        str | None, typer.Option(metavar="P50,P99", help="The champion's latencies [default: 5,20].")
    ] = None,
    accuracy: Annotated[float, typer.Option(metavar="SHARE", help="The champion's accuracy.")] = 0.9,
    positive: Annotated[float, typer.Option(metavar="SHARE", help="Share of rows that it says yes to.")] = 0.2,
    feedback: Annotated[float, typer.Option(metavar="SHARE", help="Share of answers whose truth comes back.")] = 0.2,
    feedback_delay: Annotated[float, typer.Option(metavar="SECONDS", help="How long that takes, on average.")] = 60.0,
    from_log: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Take rate, errors and latencies from a service: .mlkit/services/NAME."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the traffic.")] = 0,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes.")] = 1,
    json: JsonOption = False,
) -> int:
    """Rehearse a recipe's rollout: the real policy and judges, synthetic traffic, simulated time.

    Prints what becomes of challengers that are as good as the champion, and of worse ones: how often they are promoted
    and rolled back, after how many requests, and how many clients they answered.
    """
    from mlflowkit.cli.rehearsal import plan_of
    from mlflowkit.recipe.check import load
    from mlflowkit.rollout import scenarios

    loaded = load(recipe, overrides or ())
    plan, service = plan_of(loaded)
    base = scenarios.Figures(accuracy=accuracy, positive=positive, feedback=feedback, delay=feedback_delay)
    if from_log is not None:
        from mlflowkit.rollout.recording import figures_of

        base = figures_of(from_log, base)
    base = _given(base, rate, error_rate, latency_ms)
    world = scenarios.world(base, loaded.recipe.task)
    chosen = _chosen(plan, world, scenario or (), error_increase or ())
    assert loaded.recipe.serve is not None  # plan_of refuses a recipe without
    _rehearse(
        plan, loaded.recipe.serve.rollout, chosen, {"recipe": str(loaded.path), "service": service}, base,
        rollouts, seed, workers, json,
    )  # fmt: skip
    return 0


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
    from mlflowkit.rollout import scenarios

    texts = [*kinds, *(f"error-rate={size!r}" for size in increases)]
    if not texts:
        return scenarios.suite(plan, world)
    found = [one for text in texts for one in scenarios.asked(text, plan, world)]
    return tuple({one.name: one for one in found}.values())


def _rehearse(
    plan: Rollout, written: Rollout, chosen: Sequence[Scenario], place: dict[str, str], base: Figures,
    rollouts: int, seed: int, workers: int, as_json: bool,
) -> None:  # fmt: skip
    """Play everything, and print it."""
    from mlflowkit.cli import rehearsal
    from mlflowkit.rollout import feasibility, scenarios
    from mlflowkit.rollout.simulate import rehearse, summarise

    alike = scenarios.scenario("aa", 0.0, replace(chosen[0].world, rate=base.rate), plan)
    times = feasibility.step_times(plan, base.rate)
    shown = feasibility.proof(
        plan, alike, seed=seed, done=rehearsal.Told("how long the proof takes", feasibility.PILOTS)
    )
    if not as_json:
        _print_plan(plan, written, base, times, shown)
    summaries = []
    for one in chosen:
        played = rehearse(plan, one, rollouts, seed=seed, workers=workers, done=rehearsal.Told(one.name, rollouts))
        summaries.append(summarise(one.name, bool(one.violated), played))
    said = rehearsal.conclusions(summaries, plan.level)
    if as_json:
        emit_json(
            {
                **place, "strategy": plan.strategy, "level": plan.level, "seed": seed, "rollouts": rollouts,
                "base": _figures_json(base), "steps": [asdict(one) for one in times], "proof": asdict(shown),
                "scenarios": [rehearsal.summary_json(one) for one in summaries],
                "conclusions": list(said), "notes": list(rehearsal.left_out(written)),
            }
        )  # fmt: skip
        return
    rehearsal.table(summaries, echo)
    echo()
    for line in (*said, *rehearsal.LEGEND):
        echo(line)


def _print_plan(plan: Rollout, written: Rollout, base: Figures, times: Sequence[StepTime], shown: Proof) -> None:
    from mlflowkit.cli.rehearsal import headline, left_out

    echo(headline(plan))
    echo(_base_words(base))
    for line in (*(one.sentence for one in times), shown.sentence, *left_out(written)):
        echo(f"  {line}")
    echo()


def _base_words(base: Figures) -> str:
    measured = " (latencies as measured)" if base.latency is not None else ""
    return (
        f"{base.rate:g} requests a second; the champion fails {100 * base.error_rate:.3g} % of them, answers in "
        f"{base.p50_ms:.3g} ms (p99 {base.p99_ms:.3g} ms){measured}"
    )


def _figures_json(base: Figures) -> dict[str, object]:
    value = asdict(base)
    value["latency"] = "measured" if base.latency is not None else "log-normal"
    return value
