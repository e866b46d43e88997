"""The HTML of the admin pages: the service list, and each service with its rollout, from their `ServiceView`s."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflowkit import __version__
from mlflowkit.monitoring.export.monitor_metrics import MonitorMetrics
from mlflowkit.report import formatting
from mlflowkit.report.monitor import monitor_site
from mlflowkit.report.rollout import rollout_charts
from mlflowkit.report.rollout.incident_views import evidence, incidents, shadow, webhooks
from mlflowkit.report.run.data_views import View
from mlflowkit.report.run.run_page import TEMPLATES, environment
from mlflowkit.rollout.admin.admin_app import AdminApp, Asset, Pages
from mlflowkit.rollout.admin.admin_server import AdminListener
from mlflowkit.rollout.admin.build_view import format_duration
from mlflowkit.rollout.admin.view_models import RolloutView, ServiceView, StepView, VariantView
from mlflowkit.rollout.commands import CommandKind
from mlflowkit.rollout.state import AUTHORS
from mlflowkit.system.text import format_count

PHASES: Mapping[str, tuple[str, str]] = {
    "pending": ("asked for", "go"),
    "preparing": ("loading", "go"),
    "running": ("rolling out", "go"),
    "paused": ("paused", "warn"),
    "awaiting_approval": ("waits for approval", "warn"),
    "promoting": ("promoting", "go"),
    "promoted": ("promoted", "ok"),
    "rolling_back": ("rolling back", "bad"),
    "rolled_back": ("rolled back", "bad"),
    "aborted": ("aborted", "off"),
    "kept": ("stays as a shadow", "ok"),
}
"""Text and tone of each phase."""
ROLES = {"champion": 0, "challenger": 1, "shadow": 2}
"""Series colour of each role in every chart and table."""


def overview(view: ServiceView) -> View:
    """The head of a service's page."""
    badge, tone = service_badge(view)
    return {
        "service": view.service,
        "badge": badge,
        "tone": tone,
        "endpoint": view.endpoint,
        "grpc": view.grpc_endpoint,
        "epoch": view.epoch,
        "time": formatting.moment(view.time),
        "summary": "" if view.rollout is None else view.rollout.summary,
        "problems": view.problems,
        "tiles": tiles(view),
    }


def service_badge(view: ServiceView) -> tuple[str, str]:
    """The state of a service as short text, and its tone."""
    if view.rollout is not None and not view.rollout.ended:
        return PHASES[view.rollout.phase]
    if view.state == "serving":
        return "serving", "ok"
    return view.state, "bad" if view.state.startswith("refused") else "off"


def tiles(view: ServiceView) -> list[View]:
    """The key figures at the top."""
    rollout, champion = view.rollout, _champion(view)
    split = [variant for variant in view.variants if variant.role != "shadow"]
    rates = [variant.per_second for variant in split if variant.per_second is not None]
    rows = []
    if champion is not None:
        rows.append(("Champion", champion.version, f"{formatting.share(champion.weight)} of the traffic"))
    if rollout is not None:
        rows.append(("Candidate", rollout.candidate_version, candidate_share(rollout)))
    total = formatting.number(sum(rates), 3) if rates else formatting.NONE
    up = f"{view.replicas} of {format_count(view.replicas_wanted, 'gateway replica')} up"
    rows.append(("Requests a second", total, up))
    if rollout is not None and rollout.deadline is not None:
        number = f"{rollout.step + 1} of {len(rollout.steps)}"
        rows.append(("Step", number, f"at most {formatting.seconds(rollout.deadline)} left"))
    rows.append(("Incidents", str(view.incident_count), "rollouts turned down"))
    return [{"name": name, "value": value, "small": small} for name, value, small in rows]


def _champion(view: ServiceView) -> VariantView | None:
    return next((variant for variant in view.variants if variant.role == "champion"), None)


def candidate_share(rollout: RolloutView) -> str:
    """The candidate's share of the traffic as text."""
    if rollout.ended and rollout.phase != "kept":
        return PHASES[rollout.phase][0]
    if rollout.weight == 0 and rollout.phase in ("running", "paused", "awaiting_approval", "kept"):
        return "mirrored requests only"
    return f"{formatting.share(rollout.weight)} of the traffic"


def now(view: ServiceView) -> View:
    """The variants of the present routing table, and the rollout's progress."""
    return {
        "bar": _traffic_bar(view),
        "variants": [variant_row(variant) for variant in view.variants],
        "rollout": None if view.rollout is None else rollout_progress(view.rollout, view.service),
        "no_controller": no_controller_note(view),
        "idle_buttons": idle_buttons(view),
    }


def _traffic_bar(view: ServiceView) -> str:
    shares = [(variant.name, variant.weight, ROLES[variant.role]) for variant in view.variants]
    return rollout_charts.traffic_bar(shares)


def no_controller_note(view: ServiceView) -> str:
    """A note that a rollout is stalled without a controller; "" otherwise."""
    rollout, holder = view.rollout, view.controller
    if rollout is None or rollout.ended or (holder is not None and holder.alive):
        return ""
    seen = "" if holder is None or not holder.seen else f" since {formatting.moment(holder.seen)}"
    return f"No controller runs{seen}: the rollout is stalled. mlkit up RECIPE starts one."


def variant_row(variant: VariantView) -> View:
    shadow = variant.role == "shadow"
    return {
        "name": variant.name,
        "role": variant.role,
        "style": ROLES[variant.role],
        "version": variant.version,
        "placement": variant.placement,
        "state": variant.state,
        "tone": "ok" if variant.state == "serving" else "bad" if variant.state.startswith("refused") else "off",
        "share": f"mirrors {formatting.share(variant.sampling)}" if shadow else formatting.share(variant.weight),
        "rate": formatting.number(variant.per_second, 3),
        "requests": formatting.number(variant.mirrored if shadow else variant.requests),
        "dropped": formatting.number(variant.dropped) if shadow and variant.dropped else "",
        "errors": formatting.share(variant.error_rate),
        "p50": milliseconds(variant.p50_ms),
        "p99": milliseconds(variant.p99_ms),
    }


def rollout_progress(rollout: RolloutView, service: str) -> View:
    """The progress of a rollout, its pending conditions, and buttons for its commands."""
    badge, tone = PHASES[rollout.phase]
    return {
        "badge": badge,
        "tone": tone,
        "ended": rollout.ended,
        "summary": rollout.summary,
        "strategy": rollout.strategy,
        "experiment": rollout.experiment,
        "begun": formatting.moment(rollout.begun or None),
        "finished": formatting.moment(rollout.finished) if rollout.finished is not None else "",
        "reason": rollout.reason,
        "by": AUTHORS.get(rollout.by, "the policy"),
        "steps": [step_row(step) for step in rollout.steps],
        "waiting": rollout.waiting,
        "warnings": rollout.warnings,
        "buttons": buttons(rollout, service),
    }


def buttons(rollout: RolloutView, service: str) -> list[View]:
    """Buttons for the commands of a running rollout."""
    rows = [button(command, service, consequence(command, rollout, service)) for command in rollout.commands]
    if "promote" in rollout.commands and rollout.step + 1 < len(rollout.steps):
        text = consequence("promote", rollout, service, full=True)
        full = button("promote", service, text, label="Promote at once", body={"full": True})
        rows.insert(1, {**full, "command": "promote-full", "tone": "plain"})
        rows[0] = {**rows[0], "label": "Next step"}
    return rows


def step_row(step: StepView) -> View:
    share = formatting.share(step.weight) if step.weight else f"mirror {formatting.share(step.sampling)}"
    limits = f"{step.min_samples:,} requests each, {format_duration(step.bake_seconds)} or longer"
    limits += "" if step.max_seconds is None else f", at most {format_duration(step.max_seconds)}"
    limits += ", then approval" if step.approval else ""
    word = {"ahead": "to come", "ended": "ended here", "left": "not reached"}.get(step.state, step.state)
    return {"number": step.number, "share": share, "state": step.state, "word": word, "limits": limits}


def button(command: CommandKind, service: str, text: str, *, label: str = "", body: View | None = None) -> View:
    """A button for a command, with the consequence to confirm."""
    return {
        "command": command,
        "label": label or {"rollback": "Roll back"}.get(command, command.capitalize()),
        "tone": {"promote": "ok", "rollback": "bad", "abort": "bad"}.get(command, "plain"),
        "path": f"/api/services/{service}/rollout/{command}",
        "consequence": text,
        "body": json.dumps(body or {}),
    }


def idle_buttons(view: ServiceView) -> list[View]:
    """Buttons without a running rollout: roll back to the previous version, remove a lasting shadow."""
    if view.rollout is not None and not view.rollout.ended:
        return []
    rows, champion = [], _champion(view)
    if view.previous and champion is not None:
        text = (
            f"Version {view.previous} becomes the champion again and answers every request. Version {champion.version} "
            f"is blocked until mlkit rollout forget {view.service} {champion.version}."
        )
        rows.append(button("rollback", view.service, text, label=f"Roll back to {view.previous}"))
    for variant in view.variants:
        if variant.role == "shadow":
            name, text = variant.name, f"{variant.name} gets no more mirrored requests. Its evidence stays."
            rows.append(button("abort", view.service, text, label=f"Remove {name}", body={"variant": name}))
    return rows


def consequence(command: CommandKind, rollout: RolloutView, service: str, *, full: bool = False) -> str:
    """The consequence of a command in one or two sentences."""
    new, old = f"version {rollout.candidate_version}", f"version {rollout.champion_version}"
    if command == "promote":
        objectives = [finding for finding in rollout.findings if finding.role == "objective"]
        unproven = [finding.name for finding in objectives if finding.outcome != "PASSED"]
        warning = f" Not yet passed: {', '.join(unproven)}." if unproven else ""
        if rollout.step + 1 < len(rollout.steps) and not full:
            share = step_row(rollout.steps[rollout.step + 1])["share"]
            return f"Step {rollout.step + 2} begins at once: {share} for {new}. It is judged there.{warning}"
        return f"{new.capitalize()} becomes the champion and answers every request; {old} leaves.{warning}"
    if command == "pause":
        return (
            f"{new.capitalize()} keeps its {formatting.share(rollout.weight)} of the traffic and no step follows until "
            "you resume. A metric that FAILED still rolls it back."
        )
    if command == "resume":
        return f"The rollout goes on where it was: step {rollout.step + 1} of {len(rollout.steps)}."
    again = f"{new.capitalize()} is blocked until mlkit rollout forget {service} {rollout.candidate_version}."
    if command == "abort":
        return f"All traffic goes back to {old} at once, and the rollout ends with a record but no cool-down. {again}"
    return f"All traffic goes back to {old} at once, with a record of the evidence, and the service cools down. {again}"


def comparison(view: ServiceView) -> View | None:
    """Champion and candidate side by side: traffic over time, latencies, predictions."""
    rollout = view.rollout
    if rollout is None:
        return None
    figures = [rollout_charts.weights(rollout)] if len(rollout.weights) > 1 else []
    figures += [] if rollout.predictions is None else [rollout_charts.predictions(rollout.predictions)]
    if rollout.latency is not None:
        figures += [rollout_charts.latency(rollout.latency), rollout_charts.percentiles(rollout.latency)]
    return {"figures": figures} if figures else None


def milliseconds(value: float | None) -> str:
    return formatting.micros(None if value is None else 1000 * value)


def service_rows(views: Sequence[ServiceView]) -> list[View]:
    """One row per service, for the index page."""
    rows: list[View] = []
    for view in views:
        badge, tone = service_badge(view)
        champion = _champion(view)
        rows.append(
            {
                "service": view.service,
                "badge": badge,
                "tone": tone,
                "endpoint": view.endpoint or formatting.NONE,
                "champion": champion.version if champion else formatting.NONE,
                "rollout": view.rollout.summary if view.rollout else "none yet",
                "waiting": "; ".join(view.rollout.waiting) if view.rollout else "",
                "incidents": view.incident_count,
                "bar": _traffic_bar(view),
            }
        )
    return rows


SECTIONS = (
    ("now", "Now", now, "This service has no routing table yet: nothing was deployed to it."),
    ("arms", "Champion and candidate", comparison, "No rollout has put a candidate beside the champion yet."),
    ("evidence", "Evidence", evidence, "No rollout has evaluated a metric yet."),
    ("shadow", "Shadow", shadow, "No shadow has been compared: use a step of weight 0, or strategy: shadow."),
    ("incidents", "Incidents", incidents, "No rollout has been turned down."),
    ("webhooks", "Webhooks", webhooks, "No event was sent: the plan has no webhooks, or nothing happened yet."),
)
"""Identifier, title, view and the text of an empty section."""


def sections(view: ServiceView) -> list[View]:
    """The sections of a service's page, in order."""
    rows: list[View] = []
    for name, title, build, absent in SECTIONS:
        data = build(view)
        empty = data is None or (name == "now" and not view.variants)
        rows.append({"id": name, "title": title, "view": data, "absent": absent if empty else ""})
    return rows


def render_service(view: ServiceView) -> str:
    """The page of a service; all data is escaped."""
    template = environment().get_template("rollout.html")
    return template.render(overview=overview(view), sections=sections(view), version=__version__)


def render_services(services: Sequence[ServiceView]) -> str:
    return environment().get_template("services.html").render(rows=service_rows(services), version=__version__)


def page_renderers() -> Pages:
    """The renderers and static files of the admin application."""
    sheets = b"".join((TEMPLATES / name).read_bytes() for name in ("page.css", "rollout.css", "monitor.css"))
    assets = {
        "page.css": Asset(sheets, "text/css"),
        "page.js": Asset((TEMPLATES / "rollout.js").read_bytes(), "text/javascript"),
        "monitor.js": Asset((TEMPLATES / "monitor.js").read_bytes(), "text/javascript"),
    }
    return Pages(render_services, render_service, monitor_site.render_page, assets)


def admin_listener(state: Path) -> AdminListener:
    """The admin listener of a state folder, on loopback; it serves while its context is entered."""
    return AdminListener(state, AdminApp(state, page_renderers(), more_metrics=MonitorMetrics(state).render))
