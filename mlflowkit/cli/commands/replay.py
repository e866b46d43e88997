"""mlkit replay: simulate a recipe's rollout over recorded traffic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import (
    JsonOption,
    OverridesArgument,
    RecipeArgument,
    StateOption,
    app,
    echo,
    emit_json,
    note,
    state_folder,
)
from mlflowkit.values import Json

if TYPE_CHECKING:
    from mlflowkit.recipe.schema import LoadedRecipe
    from mlflowkit.rollout.settings import Rollout
    from mlflowkit.rollout.simulation.recording import Recording
    from mlflowkit.rollout.simulation.scenarios import Scenario
    from mlflowkit.rollout.simulation.simulator import SimulatedRollout

PlantOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND[=SIZE]",
        help="Inject this regression into a random part of the champion's requests: aa, error-rate=0.02, latency=1.5, "
        "latency-tail=2, accuracy=0.05, log-loss=1.5, absolute-error=1.5, squared-error=1.5, prediction-shift=0.1, "
        "disagreement=0.05 [default if the log has no experiment: what the recipe's metrics can detect].",
        show_default=False,
    ),
]


@app.command()
def replay(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    log: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="A service's folder [default: that of the recipe's service].", show_default=False
        ),
    ] = None,
    experiment: Annotated[str | None, typer.Option(metavar="ID", help="Which experiment [default: the last].")] = None,
    candidate: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which variant [default: the only one].")
    ] = None,
    plant: PlantOption = None,
    rollouts: Annotated[int, typer.Option(min=1, max=10_000, help="Rollouts of each injected regression.")] = 20,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the assignment to the challenger and of the regression.")
    ] = 0,
    monitor: Annotated[bool, typer.Option("--monitor", help="Replay the monitor's decisions only.")] = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Simulate a recipe's rollout over a prediction log: the real policy and judges, recorded requests.

    For an experiment in the log, show what the recipe's plan would have decided, and when. For a champion's requests,
    show whether the plan would detect a challenger that is worse by a given amount. With a monitor in the recipe, also
    show what it would have decided over the recorded windows of each version: states, alerts, retraining.
    """
    from mlflowkit.cli.playback.monitor_playback_table import replay_monitoring
    from mlflowkit.cli.simulation_table import plan_of
    from mlflowkit.recipe.check import load
    from mlflowkit.rollout.simulation.recording import read_recording

    loaded = load(recipe, overrides or ())
    if monitor:
        _replay_monitor(loaded, state_folder(state, recipe), log, json)
        return
    plan, serve = plan_of(loaded)
    folder = state_folder(state, recipe) / "services" / serve.service if log is None else log
    note(f"reading the log in {folder}")
    recording = read_recording(folder)
    if not json:
        _print_head(plan, recording, folder)
    recorded = [name for name in recording.experiments if name and recording.challengers(name)]
    if plant or not (recorded or experiment or candidate):
        value = _replay_injected(plan, recording, plant or (), rollouts, seed, json)
    else:
        value = _replay_experiment(plan, recording, _choose(experiment, recorded, json), candidate, json)
    if loaded.recipe.monitor is not None:
        value = {**value, "monitor": replay_monitoring(loaded, folder, json)}
    if json:
        source = {"recipe": str(loaded.path), "service": serve.service, "log": str(folder)}
        emit_json({**source, **_size(recording), **value})


def _choose(experiment: str | None, recorded: Sequence[str], as_json: bool) -> str:
    """The experiment to replay: the named one, else the last; names the others of the log."""
    name = experiment if experiment is not None else recorded[-1] if recorded else ""
    others = [other for other in recorded if other != name]
    if others and not as_json:
        echo(f"other experiments of this log (--experiment ID): {', '.join(others)}")
    return name


def _replay_monitor(loaded: LoadedRecipe, state: Path, log: Path | None, as_json: bool) -> None:
    """Replay the monitor's decisions alone, over the profiles of a service's folder."""
    from mlflowkit.cli.playback.monitor_playback_table import replay_monitoring

    service = loaded.recipe.name if loaded.recipe.serve is None else loaded.recipe.serve.service
    folder = state / "services" / service if log is None else log
    played = replay_monitoring(loaded, folder, as_json)
    if as_json:
        emit_json({"recipe": str(loaded.path), "service": service, "log": str(folder), "monitor": played})


def _size(recording: Recording) -> dict[str, Json]:
    feedback = recording.feedback
    return {
        "requests": len(recording), "seconds": recording.seconds, "rate": recording.rate, "begun": recording.begun,
        "feedback": 0 if feedback is None else len(feedback.times),
    }  # fmt: skip


def _print_head(plan: Rollout, recording: Recording, folder: Path) -> None:
    from mlflowkit.cli.simulation_table import headline
    from mlflowkit.rollout.simulation.feasibility import format_span

    size = _size(recording)
    echo(headline(plan))
    echo(
        f"{folder}: {len(recording):,} requests in {format_span(recording.seconds)} ({recording.rate:.3g} a second), "
        f"feedback on {size['feedback']:,}"
    )
    echo()


def _replay_experiment(
    plan: Rollout, recording: Recording, experiment: str, candidate: str | None, as_json: bool
) -> dict[str, Json]:
    """Replay an experiment through the plan."""
    from mlflowkit.cli import simulation_table
    from mlflowkit.errors import UsageError
    from mlflowkit.rollout.simulation.log_replay import replay_recorded

    names = recording.challengers(experiment)
    if candidate is None and len(names) > 1:
        raise UsageError(
            f"experiment {experiment} has several challengers: {', '.join(names)}", hint=f"--candidate {names[0]}"
        )
    chosen = candidate or next(iter(names), "")
    part = recording.of(experiment) if names else recording
    total = max(1, round(part.seconds))
    progress = simulation_table.ScenarioProgress(f"replaying {experiment}, seconds", total)
    played = replay_recorded(plan, recording, experiment, chosen, lambda seconds: progress(round(seconds)))
    begun = part.begun
    if not as_json:
        _print_decision(plan, played, experiment, chosen, begun)
    return {
        "mode": "recorded", "experiment": experiment, "candidate": chosen, "end": played.end, "by": played.by,
        "step": played.step + 1, "time": begun + played.seconds, "after_seconds": played.seconds,
        "challenger_requests": played.tried, "all_requests": played.requests, "reason": played.reason,
        "waiting": played.waiting,
        "looks": [
            {"seconds": look.seconds, "step": look.step + 1, "challenger_requests": look.tried,
             "evidence": {name: {"harm": pair[0], "proof": pair[1]} for name, pair in look.evidence.items()}}
            for look in played.path
        ],
    }  # fmt: skip


DECISIONS = {
    "promoted": "promotes it",
    "failed": "rolls it back",
    "deadline": "rolls it back at the deadline",
    "kept": "keeps it as a shadow",
    "undecided": "has not decided when the log ends",
}


def _print_decision(plan: Rollout, played: SimulatedRollout, experiment: str, candidate: str, begun: float) -> None:
    from mlflowkit.report.formatting import moment
    from mlflowkit.rollout.simulation.feasibility import format_span

    step = plan.sequence[played.step]
    echo(f"{candidate} of experiment {experiment}: this plan {DECISIONS[played.end]}")
    echo(f"  after      {format_span(played.seconds)}, at {moment(begun + played.seconds)}")
    echo(f"  in step    {played.step + 1} of {len(plan.sequence)} ({step.weight:g} %)")
    echo(f"  requests   {played.tried:,} of the challenger, {played.requests:,} in all")
    if played.reason:
        echo(f"  because    {played.reason}")
    if played.waiting:
        echo(f"  waits for  {played.waiting}")
        if step.weight == 0 and played.waiting.startswith("0 of"):
            without = ",".join(f"{later.weight:g}" for later in plan.sequence if later.weight > 0)
            echo(
                f"  note       step {played.step + 1} mirrors requests, and the log has none that were mirrored to it;"
            )
            echo(f"             without such steps: serve.rollout.steps=[{without or 5}]")
    if played.path:
        for name, (harm, proof) in played.path[-1].evidence.items():
            outcome = "FAILED" if harm >= 1 else "PASSED" if proof >= 1 else "INCONCLUSIVE"
            shares = (f"{min(1.0, max(0.0, share)):.0%}" for share in (harm, proof))
            echo("  {:<24} {:<12} evidence: worse {}, not worse {} of what decides".format(name, outcome, *shares))


def _replay_injected(
    plan: Rollout, recording: Recording, kinds: Sequence[str], rollouts: int, seed: int, as_json: bool
) -> dict[str, Json]:
    """Test whether the plan detects a regression injected into part of the champion's requests."""
    from mlflowkit.cli import simulation_table
    from mlflowkit.rollout.simulation import log_replay as replay
    from mlflowkit.rollout.simulation.simulator import summarise

    if any(metric.metric == "kappa" for metric in plan.metrics):
        note("kappa is left out and assumed to pass: no injected regression changes it")
    summaries = []
    for scenario in _injectable_scenarios(plan, recording, kinds):
        progress = simulation_table.ScenarioProgress(scenario.name, rollouts)
        played = replay.replay_injected(
            plan, recording, scenario.kind, scenario.size, rollouts, seed=seed, done=progress
        )
        summaries.append(summarise(scenario.name, bool(scenario.violated), played))
    conclusions = simulation_table.conclusions(summaries, plan.level)
    if not as_json:
        simulation_table.print_outcomes(summaries, conclusions)
    return {
        "mode": "planted", "rollouts": rollouts, "seed": seed,
        "scenarios": [simulation_table.summary_json(summary) for summary in summaries],
        "conclusions": list(conclusions),
    }  # fmt: skip


def _injectable_scenarios(plan: Rollout, recording: Recording, kinds: Sequence[str]) -> tuple[Scenario, ...]:
    """Return the requested scenarios, else those that the plan's metrics and the log support."""
    from mlflowkit.rollout.simulation import log_replay as replay
    from mlflowkit.rollout.simulation import scenarios

    world = replay.recorded_world(recording)
    if kinds:
        return tuple(scenario for text in kinds for scenario in scenarios.parse_scenarios(text, plan, world))
    return tuple(
        scenario
        for scenario in scenarios.default_scenarios(plan, world)
        if replay.can_inject(scenario.kind, recording, plan)
    )
