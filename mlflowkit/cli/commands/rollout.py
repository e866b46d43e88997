"""mlkit rollout: how a rollout stands, and what a person may say to it.

``status --json`` prints {services: [{service, rollout, incidents, turned_down, previous, problems}]}: ``rollout`` is
null or what `mlflowkit.rollout.admin.view_models.RolloutView` holds (experiment, phase, step, steps, weight, findings,
history,
reason, ...); ``incidents`` are the last records of rollbacks, newest first, whole; ``turned_down`` [{digest, version,
reason, time, experiment, ending}] are versions that are not tried again unasked; ``previous`` {version, digest} is
what `mlkit rollout rollback` goes back to when no rollout runs, or null; ``problems`` are files that cannot be read.
The other commands print {service, command, message, rollout: {experiment, phase, step, steps, weight, champion,
candidate, reason}}, where ``step`` counts from 1.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlflowkit.cli import findings_table
from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, state_folder
from mlflowkit.errors import ServiceError, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflowkit.rollout.admin.view_models import RolloutView, ServiceView
    from mlflowkit.rollout.commands import Kind
    from mlflowkit.rollout.state import RolloutState
    from mlflowkit.service_state.records import ServiceFiles

ANSWER_SECONDS = 30.0
"""How long the controller may take to answer; one that was killed is started again meanwhile."""
EFFECT_SECONDS = 150.0
SHOWN = 10
"""Incidents that are shown."""

ServiceArgument = Annotated[
    str | None, typer.Argument(metavar="[SERVICE]", help="The service; needless where there is one.")
]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept with the rollout.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Say what it would do, and do nothing.")]
_commands = typer.Typer(
    name="rollout",
    help="See how a rollout stands; promote, pause, resume, abort it, or roll back.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
app.add_typer(_commands)


@_commands.command()
def status(service: ServiceArgument = None, state: StateOption = None, json: JsonOption = False) -> int:
    """Show the rollout of a service, or of all: its step, what was shown, what it waits for, incidents."""
    from mlflowkit.rollout.admin.snapshot import Watch

    folder = state_folder(state)
    chosen = [_service(folder, service)] if service is not None else _services(folder)
    watch = Watch(folder)
    found = [(view, _json(files, view)) for files in chosen if (view := watch.view(files.service)) is not None]
    if json:
        emit_json({"services": [document for _, document in found]})
    elif not found:
        echo(f"no services in {folder}; `mlkit run RECIPE` makes one")
    else:
        echo("\n".join(line for view, document in found for line in _lines(view, document)))
    return 0


@_commands.command()
def promote(
    service: ServiceArgument = None,
    full: Annotated[bool, typer.Option("--full", help="Past all steps, at once.")] = False,
    reason: ReasonOption = "",
    dry_run: DryOption = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """Go on without waiting: to the next step, or from the last one to promotion."""
    return _say(state, service, "promote", reason, dry_run, json, full=full)


@_commands.command()
def pause(
    service: ServiceArgument = None,
    reason: ReasonOption = "",
    dry_run: DryOption = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """Stay at the present step. What FAILED is rolled back all the same."""
    return _say(state, service, "pause", reason, dry_run, json)


@_commands.command()
def resume(
    service: ServiceArgument = None, dry_run: DryOption = False, state: StateOption = None, json: JsonOption = False
) -> int:
    """Go on after a pause."""
    return _say(state, service, "resume", "", dry_run, json)


@_commands.command()
def abort(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[SERVICE|SHADOW]", help="The service, or a shadow that stays, to remove it."),
    ] = None,
    reason: ReasonOption = "",
    dry_run: DryOption = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """End the rollout and give all traffic back to the champion; or remove a shadow that stays."""
    folder = state_folder(state)
    for files in _services(folder):
        table = files.table()
        if table is not None and any(one.role == "shadow" and one.name == name for one in table.variants):
            running = _running(files)
            if running is None or running.candidate.name != name:
                return _say(state, files.service, "abort", reason, dry_run, json, variant=str(name))
            return _say(state, files.service, "abort", reason, dry_run, json)
    return _say(state, name, "abort", reason, dry_run, json)


@_commands.command()
def rollback(
    service: ServiceArgument = None,
    reason: ReasonOption = "",
    dry_run: DryOption = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """Roll the running rollout back; where none runs, go back to the champion before, at once."""
    return _say(state, service, "rollback", reason, dry_run, json)


@_commands.command()
def forget(
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="The version, its digest, or how its digest alone begins.")
    ],
    service: ServiceArgument = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """Let a version that was turned down be tried again."""
    from mlflowkit.service_state import version_history

    files = _service(state_folder(state), service)
    gone = version_history.forget(files, version)
    if not gone:
        known = ", ".join(one.version for one in version_history.failures(files).values()) or "none"
        raise UsageError(
            f"{files.service} turned down no version {version!r}; there is {known}", hint="mlkit rollout status"
        )
    if json:
        emit_json({"service": files.service, "forgotten": [asdict(one) for one in gone]})
    else:
        echo(f"{files.service}: {', '.join(one.version for one in gone)} may be tried again")
    return 0


# ------------------------------------------------------------------------------------------------------------- inside


def _services(folder: Path) -> list[ServiceFiles]:
    from mlflowkit.service_state.records import ServiceFiles

    return list(ServiceFiles.all(folder))


def _service(folder: Path, name: str | None) -> ServiceFiles:
    """The service that is meant. Raises UsageError where there is none, or several and none is named."""
    known = {files.service: files for files in _services(folder)}
    if name is None and len(known) == 1:
        return next(iter(known.values()))
    if name in known:
        return known[name]
    there = ", ".join(known) or "none"
    if name is None:
        hint = f"mlkit rollout status {next(iter(known))}" if known else "mlkit run RECIPE makes one"
        raise UsageError(f"which service? there is {there} in {folder}", hint=hint)
    close = nearest(name, known)
    raise UsageError(
        f"no service {name!r} in {folder}; there is {there}", hint=f"did you mean {close}?" if close else "mlkit status"
    )


def _say(
    state: Path | None,
    service: str | None,
    command: Kind,
    reason: str,
    dry: bool,
    json: bool,
    *,
    full: bool = False,
    variant: str = "",
) -> int:
    """Tell the controller and wait until it is so. Raises UsageError or ServiceError."""
    from mlflowkit.rollout import commands

    files = _service(state_folder(state), service)
    effect = commands.effect(files, command, full=full, variant=variant)
    if dry:
        _tell(files, command, f"would {effect}", json)
        return 0
    before = _running(files)
    told = commands.say(files, command, reason, full=full, variant=variant)
    answer = commands.wait(files, told.id, ANSWER_SECONDS)
    if not answer.ok:
        raise ServiceError(answer.message, hint=answer.hint)
    if command in ("promote", "abort", "rollback") and not variant:
        _await(files, _done(files, before, command))
    _tell(files, command, answer.message, json)
    return 0


def _done(files: ServiceFiles, before: RolloutState | None, command: Kind) -> Callable[[], bool]:
    """Whether what was said has come about: the rollout ended, or a later step is live."""
    from mlflowkit.rollout import state as states

    def done() -> bool:
        saved = states.read(files.folder / "rollout.json")
        if saved is None or saved.todo:
            return False
        now = saved.state
        if now.ended:
            return before is None or now.experiment == before.experiment
        return command == "promote" and before is not None and now.step > before.step and now.phase in states.LIVE

    return done


def _await(files: ServiceFiles, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + EFFECT_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise ServiceError(
                f"{files.service} is not there after {EFFECT_SECONDS:g} s; the controller goes on trying",
                hint=f"mlkit rollout status {files.service}",
            )
        time.sleep(0.05)


def _running(files: ServiceFiles) -> RolloutState | None:
    from mlflowkit.rollout.commands import running

    return running(files)


def _tell(files: ServiceFiles, command: str, message: str, json: bool) -> None:
    from mlflowkit.rollout import policy
    from mlflowkit.rollout import state as states

    saved = states.read(files.folder / "rollout.json")
    now = None if saved is None else saved.state
    if json:
        emit_json({"service": files.service, "command": command, "message": message, "rollout": _short(now)})
        return
    echo(f"{files.service}: {message}")
    if now is not None and not message.startswith("would "):
        echo(f"  {policy.where(now)}")


def _short(now: RolloutState | None) -> dict[str, Any] | None:
    if now is None:
        return None
    return {
        "experiment": now.experiment,
        "phase": now.phase,
        "step": now.step + 1,
        "steps": len(now.steps),
        "weight": now.weight,
        "champion": now.champion.version,
        "candidate": now.candidate.version,
        "reason": now.reason,
    }


def _json(files: ServiceFiles, view: ServiceView) -> dict[str, Any]:
    from mlflowkit.rollout.admin.snapshot import records
    from mlflowkit.service_state import version_history

    whole, table = view.to_json(), files.table()
    before = None if table is None else version_history.previous(files, table.champion.digest)
    return {
        "service": files.service,
        "rollout": whole["rollout"],
        "incidents": records(files, SHOWN),
        "turned_down": [asdict(one) for one in version_history.failures(files).values()],
        "previous": None if before is None else {"version": before.variant.version, "digest": before.variant.digest},
        "problems": whole["problems"],
    }


def _lines(view: ServiceView, document: dict[str, Any]) -> list[str]:
    found = [view.service, *(["  no rollout yet"] if view.rollout is None else _rollout_lines(view.rollout))]
    for one in document["incidents"]:
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(one["time"]))
        found.append(f"  incident  {when} UTC  version {one['candidate']['version']}: {one['reason']}")
    for one in document["turned_down"]:
        found.append(f"  not tried again  version {one['version']}; mlkit rollout forget {one['version']}")
    return found + [f"  problem  {problem}" for problem in view.problems]


def _rollout_lines(rollout: RolloutView) -> list[str]:
    steps = " > ".join(
        f"[{step.weight:.0%}]" if step.state == "now" else f"{step.weight:.0%}" for step in rollout.steps
    )
    found = [
        f"  {rollout.summary}",
        f"  {rollout.champion_version} (champion) against {rollout.candidate_version}  {steps}",
    ]
    if rollout.reason:
        found.append(f"  reason  {rollout.reason}")
    if rollout.waiting:
        found.append(f"  waiting for {', '.join(rollout.waiting)}")
    found += [f"    {line}" for line in findings_table.lines(rollout.findings)]
    if rollout.commands:
        found.append(f"  you can  mlkit rollout {' | '.join(rollout.commands)}")
    return found
