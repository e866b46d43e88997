"""mlkit monitor rules, dashboard, evidently: what other systems read of a service's monitoring."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import JsonOption, StateOption, echo, note, print_result, state_folder
from mlflowkit.errors import UsageError
from mlflowkit.system.text import shell_word

if TYPE_CHECKING:
    from mlflowkit.monitoring.export.alert_rules import RuleTarget

SETTINGS = "monitor/settings.json"
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Where to write [default: stdout].", show_default=False)
]
ServiceOption = Annotated[
    str | None, typer.Argument(metavar="[SERVICE]", help="A service [default: each].", show_default=False)
]


def add_exports(commands: typer.Typer) -> None:
    """Add the commands to the group of ``mlkit monitor``."""
    commands.command("rules")(rules)
    commands.command("dashboard")(dashboard)
    commands.command("evidently")(evidently)


def rules(
    service: ServiceOption = None,
    out: OutOption = None,
    alertmanager: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write an example configuration of Alertmanager too.", show_default=False),
    ] = None,
    webhook: Annotated[
        str, typer.Option(metavar="URL", help="The receiver in that example.")
    ] = "http://127.0.0.1:9000/alerts",
    state: StateOption = None,
) -> None:
    """Write Prometheus's alerting rules of monitored services."""
    import yaml

    from mlflowkit.cli.output_file import write_text
    from mlflowkit.monitoring.export.alert_rules import alertmanager_config, rule_groups

    groups = rule_groups(rule_targets(state_folder(state), service))
    _write(out, "# Alerting rules of mlflowkit, for rule_files of prometheus.yml.\n" + _yaml(groups))
    if alertmanager is not None:
        if not webhook.startswith(("http://", "https://")):
            raise UsageError(f"{webhook!r} is no URL of a webhook: http:// or https:// is expected")
        config = yaml.safe_dump(alertmanager_config(webhook), sort_keys=False)
        write_text(alertmanager, f"# Receiver, grouping and inhibitions of mlflowkit's alerts.\n{config}")
        note(f"{alertmanager} has the receiver and the inhibitions")


def dashboard(out: OutOption = None) -> None:
    """Write a Grafana dashboard of monitoring, for its import."""
    import json

    from mlflowkit.monitoring.export.grafana import dashboard as grafana_dashboard

    _write(out, json.dumps(grafana_dashboard(), indent=2, ensure_ascii=False) + "\n")


def evidently(
    service: Annotated[str, typer.Argument(metavar="SERVICE", help="The service.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The report (HTML).")] = Path("evidently.html"),
    since: Annotated[
        str, typer.Option(metavar="TIME", help="How far back the compared rows go, such as 6h; older rows are before.")
    ] = "1d",
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Write Evidently's report: the last logged rows of the champion against those before them, sampled."""
    import time

    from mlflowkit.cli.service_lookup import find_service
    from mlflowkit.monitoring.export.evidently_report import write_report
    from mlflowkit.monitoring.monitor_settings import seconds_of
    from mlflowkit.wiring import Wiring

    folder = state_folder(state)
    files = find_service(folder, service)
    table = files.table()
    if table is None:
        raise UsageError(f"{service} serves no version yet", hint=f"mlkit rollout status {service}")
    try:
        seconds = seconds_of(since)
    except ValueError as error:
        raise UsageError(f"--since: {error}") from error
    now = time.time()
    target = out.expanduser().resolve()
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is no folder", hint=f"mkdir -p {shell_word(target.parent)}")
    version = table.champion.version
    result = write_report(files, version, Wiring(folder).sample_reports, target, since=now - seconds, until=now)
    before, current = result["rows"]
    text = (
        f"{target} compares {current:,} rows of {version} with {before:,} before them, in {result['columns']} columns"
    )
    left_out = [f"{name} is left out: {reason}" for name, reason in result["left_out"].items()]
    print_result({"service": service, "version": version, "report": str(target), **result},
                 "\n".join([text, *left_out]), json)  # fmt: skip


def rule_targets(folder: Path, service: str | None) -> list[RuleTarget]:
    """The monitored services of a state folder, or one of them. Raises UsageError where there is none."""
    from mlflowkit.cli.service_lookup import find_service, services_of
    from mlflowkit.monitoring.export.alert_rules import RuleTarget

    services = services_of(folder) if service is None else [find_service(folder, service)]
    settings = {files.service: files.read_json(SETTINGS) for files in services}
    targets = [RuleTarget.from_settings(name, value) for name, value in settings.items() if value]
    if not targets:
        subject = "no service" if service is None else f"service {service}"
        raise UsageError(
            f"{subject} in {folder} is {'not ' if service else ''}monitored; a recipe's section monitor turns it on",
            hint="mlkit run RECIPE +monitor.window=1h",
        )
    return targets


def _yaml(value: object) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, width=1000, allow_unicode=True)


def _write(out: Path | None, text: str) -> None:
    from mlflowkit.cli.output_file import write_text

    if out is None:
        echo(text.removesuffix("\n"))
    else:
        write_text(out, text)
        note(f"{out} is written")
