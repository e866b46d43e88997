"""mlkit monitor: what is seen in the live traffic of services, and acknowledgements of alerts.

``mlkit monitor [SERVICE] --json`` prints the record of `mlflowkit.monitoring.monitor_view.MonitorView`, with distance
[low, value, high], n and n_eff for each column; for several services {services: [...]}. It exits with 0 where all are
HEALTHY, 1 where something FAILED, else 4.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, note, print_result, state_folder
from mlflowkit.cli.monitor_exports import add_exports
from mlflowkit.cli.service_lookup import find_service, services_of
from mlflowkit.errors import ServiceError, UsageError, closest_match
from mlflowkit.system.text import limited

if TYPE_CHECKING:
    from typing import Literal

    from mlflowkit.monitoring.monitor_view import MonitorView

WATCH_SECONDS = 1.0
REPLY_SECONDS = 30.0


class _ShowsByDefault(TyperGroup):
    """A group whose command ``show`` needs no name: ``mlkit monitor lending``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not (args and (args[0] in self.commands or args[0] in ctx.help_option_names)):
            args = ["show", *args]
        return super().parse_args(ctx, args)


ServiceArgument = Annotated[
    str | None, typer.Argument(metavar="[SERVICE]", help="The service [default: all that are monitored].")
]
NamedService = Annotated[str, typer.Argument(metavar="SERVICE", help="The service.", show_default=False)]
AlertArgument = Annotated[
    str, typer.Argument(metavar="ID", help="An alert, or an episode with all its alerts.", show_default=False)
]
ForOption = Annotated[str, typer.Option("--for", metavar="TIME", help="How long, such as 4h or 2d.")]
OnlyService = Annotated[
    str | None, typer.Option("--service", metavar="NAME", help="Its service; optional if there is only one.")
]
PageOption = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="FILE", help="Also write the page of one service to a file.")
]
commands = typer.Typer(
    name="monitor",
    help="Show what is seen in live traffic: drift, performance, alerts; acknowledge or silence an alert.",
    cls=_ShowsByDefault,
    rich_markup_mode=None,
)
app.add_typer(commands)
add_exports(commands)


@commands.command()
def show(
    service: ServiceArgument = None,
    state: StateOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing changes until Ctrl-C.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Show once; the default.")] = False,
    out: PageOption = None,
    json: JsonOption = False,
) -> int:
    """Show the state, the alerts, and what cannot be seen. Without a command, this is what is done."""
    from mlflowkit.cli.monitor_text import document, exit_code

    if watch and (json or once or out):
        raise UsageError("--watch does not go with --json, --once or --out", hint="mlkit monitor show --once")
    folder = state_folder(state)
    if watch:
        return _watch(folder, service)
    views = _views(folder, service)
    if out is not None:
        _write_page(folder, views, out)
    now = time.time()
    if json:
        documents = [document(view, now) for view in views]
        emit_json(documents[0] if service is not None or len(documents) == 1 else {"services": documents})
    else:
        echo("\n".join(_text(views, folder)))
    codes = {exit_code(view, now) for view in views}
    return 1 if 1 in codes else 4 if codes - {0} or not views else 0


@commands.command()
def explain(
    service: NamedService,
    column: Annotated[str, typer.Argument(metavar="COLUMN", help="The column.", show_default=False)],
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Show one column window by window: its distance, evidence, importance and margins."""
    from mlflowkit.cli.monitor_text import document, explained

    [view] = _views(state_folder(state), service)
    names = sorted({item.column for item in view.columns})
    if column not in names:
        close = closest_match(column, names)
        hint = f"mlkit monitor explain {service} {close}" if close else f"mlkit monitor {service}"
        raise UsageError(f"{service} judges no column {column!r}; there is {limited(names) or 'none'}", hint=hint)
    chosen = [item for item in document(view, time.time())["columns"] if item["column"] == column]
    print_result(
        {"service": service, "version": view.version, "columns": chosen}, "\n".join(explained(view, column)), json
    )


@commands.command()
def ack(
    target: AlertArgument,
    period: ForOption = "1d",
    service: OnlyService = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Acknowledge an alert: it is told again after the time, if it still holds. Its end is told as always."""
    _send(state, service, "ack", target, period, json)


@commands.command()
def silence(
    target: AlertArgument,
    period: ForOption = "1d",
    service: OnlyService = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Silence an alert: nothing of it is told for a time, not even its end. It is judged on."""
    _send(state, service, "silence", target, period, json)


def _views(folder: Path, service: str | None) -> list[MonitorView]:
    """The records of a service or of all that are monitored. Raises UsageError for one that is not."""
    from mlflowkit.monitoring.monitor_settings import read_settings
    from mlflowkit.monitoring.monitor_view import MonitorView, read_view

    chosen = services_of(folder) if service is None else [find_service(folder, service)]
    views = []
    for files in chosen:
        view, settings = read_view(files), read_settings(files)
        if settings is None:
            if service is not None:
                hint = "add monitor: {window: 1d} to its recipe, and mlkit run RECIPE"
                raise UsageError(f"{service} is not monitored", hint=hint)
            continue
        table = files.table()
        version = "" if table is None else table.champion.version
        if view is None or view.version != version:
            now = time.time()
            text = "the monitor has not looked at this version yet"
            view = MonitorView(files.service, version, "LEARNING", now, updated=now, message=text)
        views.append(view)
    return views


def _text(views: list[MonitorView], folder: Path) -> list[str]:
    from mlflowkit.cli.monitor_text import lines

    if not views:
        return [f"no service in {folder} is monitored; monitor: {{window: 1d}} in a recipe with serve makes one"]
    now = time.time()
    return [line for view in views for line in lines(view, now)]


def _write_page(folder: Path, views: list[MonitorView], out: Path) -> None:
    """Write the monitor's page of the only service as one file. Raises UsageError where there is not exactly one."""
    from mlflowkit.report.monitor.monitor_site import render_file
    from mlflowkit.system.files import replace_file

    if len(views) != 1:
        names = limited([view.service for view in views]) or "none"
        raise UsageError(
            f"--out writes the page of one service; there is {names}", hint="mlkit status lists the services"
        )
    path = out.expanduser().resolve()
    replace_file(path, render_file(find_service(folder, views[0].service)).encode(), shared=True)
    note(f"page  {path}")


def _watch(folder: Path, service: str | None) -> int:
    """Show changes until Ctrl-C, which stops nothing."""
    before: list[str] = []
    try:
        while True:
            current = _text(_views(folder, service), folder)
            if current != before:
                echo("\n".join([*([""] if before else []), *current]))
                before = current
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return 0


def _send(
    state: Path | None, service: str | None, kind: Literal["ack", "silence"], target: str, period: str, json: bool
) -> None:
    """Have the monitor acknowledge or silence an alert, and print its reply."""
    from mlflowkit.monitoring import alert_commands
    from mlflowkit.monitoring.monitor_settings import seconds_of
    from mlflowkit.rollout.commands import wait_for_reply

    try:
        seconds = seconds_of(period)
    except ValueError as error:
        number = re.match(r"\d+", period)
        raise UsageError(str(error), hint=f"--for {number[0] if number else 1}d") from error
    files = find_service(state_folder(state), service or _owner(state_folder(state), target))
    command = alert_commands.submit(files, kind, target, seconds)
    try:
        reply = wait_for_reply(files, command.id, REPLY_SECONDS)
    except ServiceError:
        alert_commands.remove(files, command)
        message = f"the monitor of {files.service} did not answer within {REPLY_SECONDS:g} s; nothing was changed"
        raise ServiceError(message, hint="mlkit status; mlkit up RECIPE starts what is not running") from None
    if not reply.ok:
        raise UsageError(reply.message, hint=reply.hint)
    result = {"service": files.service, "command": kind, "id": target, "until": command.until, "message": reply.message}
    print_result(result, reply.message, json)


def _owner(folder: Path, target: str) -> str | None:
    """The service that has an alert or an episode; None where none or several do."""
    from mlflowkit.monitoring.monitor_view import read_view

    owners = []
    for files in services_of(folder):
        view = read_view(files)
        if view is not None and any(target in (alert.id, alert.episode) for alert in view.alerts):
            owners.append(files.service)
    return owners[0] if len(owners) == 1 else None
