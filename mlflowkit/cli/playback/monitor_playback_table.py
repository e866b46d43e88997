"""`mlkit simulate --monitor` and the monitor's part of `mlkit replay`: their output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.cli.app import echo, emit_json, note
from mlflowkit.errors import UsageError
from mlflowkit.values import Json

if TYPE_CHECKING:
    from mlflowkit.monitoring.monitor_settings import MonitorSection
    from mlflowkit.monitoring.playback.monitor_playback import PlayedWindow
    from mlflowkit.monitoring.playback.monitor_simulation import MonitorSummary
    from mlflowkit.monitoring.playback.synthetic_windows import SyntheticVersion
    from mlflowkit.recipe.schema import LoadedRecipe

MAX_LINES = 200
"""Windows of a replay that are listed; all of them are in the JSON."""


def monitor_section(loaded: LoadedRecipe) -> MonitorSection:
    """The recipe's monitor. Raises UsageError for a recipe without one."""
    if loaded.recipe.monitor is None:
        raise UsageError(f"{loaded.path} has no monitor to simulate", hint="write monitor: {window: 1d}")
    return loaded.recipe.monitor


def simulate_monitoring(loaded: LoadedRecipe, traffic: SyntheticVersion, runs: int, seed: int, as_json: bool) -> None:
    """Simulate the recipe's monitor on clean traffic and on lasting shifts, and print what came of it."""
    from mlflowkit.cli.simulation_table import ScenarioProgress
    from mlflowkit.monitoring.playback import monitor_simulation

    section = monitor_section(loaded)
    scenarios = monitor_simulation.scenarios_of(section, traffic)
    if not as_json:
        echo(
            f"windows of {section.window} with {traffic.rows:,} rows, {traffic.columns} columns, design effect "
            f"{traffic.design_effect:g}, margin {section.margin:g}, level {section.level:g}"
        )
        for warning in _warnings(section, traffic):
            echo(f"  {warning}")
    summaries: list[MonitorSummary] = []
    for name, version in scenarios:
        progress = ScenarioProgress(name, runs)
        lives = list(monitor_simulation.simulate_monitor(section, loaded.recipe.retrain, version, runs, seed, progress))
        summaries.append(monitor_simulation.summarise_monitor(name, version.distance, lives))
        if not as_json:
            echo(f"  {summaries[-1].sentence}")
    if as_json:
        emit_json(
            {
                "recipe": str(loaded.path),
                "seed": seed,
                "traffic": asdict(traffic),
                "window_seconds": section.window_seconds,
                "scenarios": [{**asdict(summary), "sentence": summary.sentence} for summary in summaries],
                "notes": list(_warnings(section, traffic)),
            }
        )


def replay_monitoring(loaded: LoadedRecipe, folder: Path, as_json: bool) -> Json:
    """What the recipe's monitor decides over the windows that a service's folder holds, by version; prints it too."""
    from mlflowkit.monitoring.playback import recorded_windows as recorded
    from mlflowkit.monitoring.playback.monitor_playback import play_monitor
    from mlflowkit.service_state.records import ServiceFiles

    section = monitor_section(loaded)
    files = ServiceFiles(folder.expanduser().resolve())
    versions: list[Json] = []
    for variant in recorded.recorded_versions(files):
        reference = recorded.reference_of(variant)
        if reference is None:
            note(f"version {variant.version} is left out: its bundle {variant.bundle} has no monitoring reference")
            continue
        windows = recorded.recorded_windows(files, variant.version, section)
        played = list(play_monitor(files.service, variant, section, loaded.recipe.retrain, reference, windows))
        versions.append({"version": variant.version, "windows": [_window_json(window) for window in played]})
        if not as_json:
            _print_version(variant.version, played)
    if not versions:
        note(f"{folder} has no profiles of a version whose bundle is here: no decision of the monitor to replay")
    return {"service": files.service, "versions": versions}


def _print_version(version: str, played: Sequence[PlayedWindow]) -> None:
    """The windows in which something changes, one a line."""
    from mlflowkit.report.formatting import moment

    echo(f"version {version}: {len(played):,} windows")
    before, lines = ("", ""), 0
    for window in played:
        decision = "" if window.decision is None or window.decision.kind == "none" else window.decision.kind
        if (window.state, decision) == before and not window.new:
            continue
        before, lines = (window.state, decision), lines + 1
        if lines > MAX_LINES:
            echo("  ... more with --json")
            return
        echo(f"  {moment(window.start)}  {window.state:<10} {window.rows:>8,} rows  {decision}".rstrip())
        for alert in window.new:
            echo(f"    {alert.severity}: {alert.message}")
        if window.decision is not None and window.asks and window.decision.cause:
            echo(f"    asks for a retraining: {window.decision.cause}")


def _window_json(window: PlayedWindow) -> Json:
    return {
        "start": window.start, "rows": window.rows, "state": window.state,
        "alerts": [asdict(alert) for alert in window.alerts], "new": [alert.id for alert in window.new],
        "decision": None if window.decision is None else asdict(window.decision), "asks": window.asks,
    }  # fmt: skip


def _warnings(section: MonitorSection, traffic: SyntheticVersion) -> list[str]:
    effective = traffic.rows / max(1.0, traffic.design_effect)
    if traffic.rows < section.min_rows:
        return [f"fewer rows a window than min_rows ({section.min_rows}): windows are joined, up to 7"]
    if effective < section.min_rows:
        return [f"only {effective:,.0f} effective rows a window"]
    return []
