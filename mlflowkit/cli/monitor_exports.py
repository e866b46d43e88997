"""mlkit monitor rules, dashboard, evidently: what other systems read of a service's monitoring."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import StateOption, note, state_folder
from mlflowkit.errors import UsageError

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
        typer.echo(text, nl=False)
    else:
        write_text(out, text)
        note(f"{out} is written")
