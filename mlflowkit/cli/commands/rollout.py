"""mlkit rollout: the state of rollouts, and operator commands.

``status --json`` prints {services: [{service, rollout, incidents, turned_down, previous, problems}]}: ``rollout`` is
the JSON of `mlflowkit.rollout.admin.view_models.RolloutView`, or null; ``incidents`` are the last rollback records,
newest first; ``turned_down`` [{digest, version, reason, time, experiment, ending}] are the rejected versions;
``previous`` {version, digest} is the target of `mlkit rollout rollback` while no rollout runs, or null; ``problems``
are files that cannot be read. The other commands print {service, command, message, rollout: {experiment, phase, step,
steps, weight, champion, candidate, reason}}, where ``step`` counts from 1.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlflowkit.cli import findings_table
from mlflowkit.cli.app import JsonOption, StateOption, app, note, print_result, state_folder
from mlflowkit.cli.service_lookup import WORDS, find_service, services_of
from mlflowkit.errors import ServiceError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from mlflowkit.rollout.admin.view_models import RolloutView, ServiceView
    from mlflowkit.rollout.commands import CommandKind
    from mlflowkit.rollout.state import RolloutState
    from mlflowkit.service_state.records import ServiceFiles

REPLY_SECONDS = 30.0
"""Timeout of the controller's reply; a killed controller is restarted within it."""
EFFECT_SECONDS = 150.0
MAX_INCIDENTS = 10
"""Incidents in the output."""

ServiceArgument = Annotated[
    str | None, typer.Argument(metavar="[SERVICE]", help="The service; optional if there is only one.")
]
ReasonOption = Annotated[str, typer.Option(metavar="TEXT", help="The reason; recorded with the rollout.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Print the effect without doing anything.")]
_commands = typer.Typer(
    name="rollout",
    help="Show, promote, pause, resume, abort or roll back a rollout.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
app.add_typer(_commands)


@_commands.command()
def status(service: ServiceArgument = None, state: StateOption = None, json: JsonOption = False) -> None:
    """Show the rollout of a service, or of all: step, metrics, pending conditions, incidents."""
    from mlflowkit.rollout.admin.snapshot import ServiceMonitor

    folder = state_folder(state)
    chosen = [find_service(folder, service)] if service is not None else services_of(folder)
    monitor = ServiceMonitor(folder)
    services = [(view, _json(files, view)) for files in chosen if (view := monitor.view(files.service)) is not None]
    text = "\n".join(line for view, document in services for line in _lines(view, document))
    text += f"\n{WORDS}" if any(view.rollout is not None for view, _ in services) else ""
    text = text if services else f"no services in {folder}; `mlkit run RECIPE` makes one"
    print_result({"services": [document for _, document in services]}, text, json)


@_commands.command()
def promote(
    service: ServiceArgument = None,
    full: Annotated[bool, typer.Option("--full", help="Skip all remaining steps.")] = False,
    allow_breaking: Annotated[
        bool, typer.Option("--allow-breaking", help="Also where the version's signature breaks clients.")
    ] = False,
    reason: ReasonOption = "",
    dry_run: DryOption = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """Advance without waiting: to the next step, or from the last one to promotion."""
    return _send(state, service, "promote", reason, dry_run, json, full=full, allow_breaking=allow_breaking)


def _add_command(kind: CommandKind, description: str) -> None:
    """Add a command without options of its own."""

    def command(
        service: ServiceArgument = None,
        reason: ReasonOption = "",
        dry_run: DryOption = False,
        state: StateOption = None,
        json: JsonOption = False,
    ) -> int:
        return _send(state, service, kind, reason, dry_run, json)

    _commands.command(kind, help=description)(command)


_add_command("pause", "Hold the rollout at its current step. A FAILED metric still rolls it back.")
_add_command("resume", "Continue after a pause.")


@_commands.command()
def abort(
    name: Annotated[
        str | None, typer.Argument(metavar="[SERVICE|SHADOW]", help="The service, or a lasting shadow to remove.")
    ] = None,
    reason: ReasonOption = "",
    dry_run: DryOption = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """End the rollout and return all traffic to the champion; or remove a lasting shadow."""
    from mlflowkit.rollout.commands import running_rollout

    for files in services_of(state_folder(state)):
        table = files.table()
        variants = () if table is None else table.variants
        if any(variant.role == "shadow" and variant.name == name for variant in variants):
            running = running_rollout(files)
            shadow = "" if running is not None and running.candidate.name == name else str(name)
            return _send(state, files.service, "abort", reason, dry_run, json, variant=shadow)
    return _send(state, name, "abort", reason, dry_run, json)


_add_command("rollback", "Roll the running rollout back; if none runs, return to the previous champion at once.")


@_commands.command()
def forget(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[SERVICE] VERSION",
            help="The service, if there are several, and the version, its digest, or a unique prefix of the digest.",
            show_default=False,
        ),
    ],
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Unblock a rejected version."""
    from mlflowkit.service_state import version_history

    service, version = _service_and_version(state_folder(state), words)
    files = find_service(state_folder(state), service)
    forgotten = version_history.forget_rejections(files, version)
    if not forgotten:
        rejected = ", ".join(rejection.version for rejection in version_history.rejections(files).values()) or "none"
        raise UsageError(
            f"{files.service} has not rejected version {version!r}; rejected: {rejected}", hint="mlkit rollout status"
        )
    value = {"service": files.service, "forgotten": [asdict(rejection) for rejection in forgotten]}
    versions = ", ".join(rejection.version for rejection in forgotten)
    print_result(value, f"{files.service}: {versions} can be rolled out again", json)


def _service_and_version(folder: Path, words: list[str]) -> tuple[str | None, str]:
    """The service, None for the only one, and the version; the order of older releases is accepted with a notice."""
    if len(words) == 1:
        return None, words[0]
    if len(words) > 2:
        message = f"{len(words)} arguments, where a service and a version are expected"
        raise UsageError(message, hint="mlkit rollout forget SERVICE VERSION")
    names = {files.service for files in services_of(folder)}
    if words[0] not in names and words[1] in names:
        note(f"notice: the service comes first now: mlkit rollout forget {words[1]} {words[0]}")
        return words[1], words[0]
    return words[0], words[1]


def _send(
    state: Path | None, service: str | None, kind: CommandKind, reason: str, dry_run: bool, json: bool, *,
    full: bool = False, variant: str = "", allow_breaking: bool = False,
) -> int:  # fmt: skip
    """Send a command to the controller and wait for its effect. Raises UsageError or ServiceError."""
    from mlflowkit.rollout import commands

    files = find_service(state_folder(state), service)
    effect = commands.describe_effect(files, kind, full=full, variant=variant)
    if dry_run:
        _print_outcome(files, kind, f"would {effect}", json)
        return 0
    if kind == "rollback" and (breaks := commands.rollback_breaks(files)):
        note(f"warning: clients of the present version break: {breaks}")  # not refused: what answers now is worse
    before = commands.running_rollout(files)
    command = commands.submit(files, kind, reason, full=full, variant=variant, allow_breaking=allow_breaking)
    reply = commands.wait_for_reply(files, command.id, REPLY_SECONDS)
    if not reply.ok:
        raise ServiceError(reply.message, hint=reply.hint)
    if kind in ("promote", "abort", "rollback") and not variant:
        deadline = time.monotonic() + EFFECT_SECONDS
        while not _took_effect(files, before, kind):
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{files.service}: no effect after {EFFECT_SECONDS:g} s; the controller keeps trying",
                    hint=f"mlkit rollout status {files.service}",
                )
            time.sleep(0.05)
    _print_outcome(files, kind, reply.message, json)
    return 0


def _took_effect(files: ServiceFiles, before: RolloutState | None, kind: CommandKind) -> bool:
    """Whether the rollout has ended, or after a promotion a later step is live."""
    from mlflowkit.rollout import state as states

    saved = states.read(files)
    if saved is None or saved.todo:
        return False
    now = saved.state
    if now.ended:
        return before is None or now.experiment == before.experiment
    return kind == "promote" and before is not None and now.step > before.step and now.phase in states.LIVE_PHASES


def _print_outcome(files: ServiceFiles, kind: str, message: str, json: bool) -> None:
    from mlflowkit.rollout import policy
    from mlflowkit.rollout import state as states

    saved = states.read(files)
    now = None if saved is None else saved.state
    rollout = None if now is None else _state_json(now)
    value = {"service": files.service, "command": kind, "message": message, "rollout": rollout}
    progress = "" if now is None or message.startswith("would ") else f"\n  {policy.describe(now)}"
    print_result(value, f"{files.service}: {message}{progress}", json)


def _state_json(now: RolloutState) -> dict[str, Any]:
    return {
        "experiment": now.experiment, "phase": now.phase, "step": now.step + 1, "steps": len(now.steps),
        "weight": now.weight, "champion": now.champion.version, "candidate": now.candidate.version,
        "reason": now.reason,
    }  # fmt: skip


def _json(files: ServiceFiles, view: ServiceView) -> dict[str, Any]:
    from mlflowkit.rollout.admin.snapshot import incident_records
    from mlflowkit.service_state import version_history

    value, table = view.to_json(), files.table()
    previous = None if table is None else version_history.previous_champion(files, table.champion.digest)
    variant = None if previous is None else previous.variant
    return {
        "service": files.service,
        "rollout": value["rollout"],
        "incidents": incident_records(files, MAX_INCIDENTS),
        "turned_down": [asdict(rejection) for rejection in version_history.rejections(files).values()],
        "previous": None if variant is None else {"version": variant.version, "digest": variant.digest},
        "problems": value["problems"],
    }


def _lines(view: ServiceView, document: dict[str, Any]) -> list[str]:
    lines = [view.service, *(["  no rollout yet"] if view.rollout is None else _rollout_lines(view.rollout))]
    for incident in document["incidents"]:
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(incident["time"]))
        lines.append(f"  incident  {when} UTC  version {incident['candidate']['version']}: {incident['reason']}")
    for rejection in document["turned_down"]:
        version = rejection["version"]
        lines.append(f"  rejected  version {version}; unblock it with: mlkit rollout forget {view.service} {version}")
    return lines + [f"  problem  {problem}" for problem in view.problems]


def _rollout_lines(rollout: RolloutView) -> list[str]:
    weights = (f"[{step.weight:.0%}]" if step.state == "now" else f"{step.weight:.0%}" for step in rollout.steps)
    versions = f"{rollout.champion_version} (champion) against {rollout.candidate_version}"
    lines = [f"  {rollout.summary}", f"  {versions}  {' > '.join(weights)}"]
    if rollout.reason:
        lines.append(f"  reason  {rollout.reason}")
    lines += [f"  warning  {warning}" for warning in rollout.warnings]
    if rollout.waiting:
        lines.append(f"  waiting for {', '.join(rollout.waiting)}")
    lines += [f"    {line}" for line in findings_table.lines(rollout.findings)]
    if rollout.commands:
        lines.append(f"  commands  mlkit rollout {' | '.join(rollout.commands)}")
    return lines
