"""What the admin page shows of a service: words, tables and charts, from a `rollout.admin.build_view.ServiceView`.
Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from mlflowkit.report import formatting
from mlflowkit.report.rollout import rollout_charts
from mlflowkit.report.rollout.incident_views import incidents, shadow, webhooks
from mlflowkit.report.rollout.metric_views import evidence
from mlflowkit.report.run.data_views import View
from mlflowkit.rollout.admin.build_view import span
from mlflowkit.rollout.admin.view_models import Command, RolloutView, ServiceView, StepView, VariantView

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
"""Words and tone of each phase."""
ROLES = {"champion": 0, "challenger": 1, "shadow": 2}
"""Series colour of each role, the same in every chart and table."""


def overview(view: ServiceView) -> View:
    """The head of a service's page."""
    found = view.rollout
    words, tone = service_badge(view)
    return {
        "service": view.service,
        "badge": words,
        "tone": tone,
        "endpoint": view.endpoint,
        "grpc": view.grpc_endpoint,
        "epoch": view.epoch,
        "time": formatting.moment(view.time),
        "summary": "" if found is None else found.summary,
        "problems": view.problems,
        "tiles": tiles(view),
    }


def service_badge(view: ServiceView) -> tuple[str, str]:
    """What a service does, in a word or two, and the tone of it."""
    if view.rollout is not None and not view.rollout.ended:
        return PHASES[view.rollout.phase]
    if view.state == "serving":
        return "serving", "ok"
    return view.state, "bad" if view.state.startswith("refused") else "off"


def tiles(view: ServiceView) -> list[View]:
    """The few figures at the top."""
    found = view.rollout
    champion = next((one for one in view.variants if one.role == "champion"), None)
    rates = [one.per_second for one in view.variants if one.role != "shadow" and one.per_second is not None]
    made = []
    if champion is not None:
        made.append(("Champion", champion.version, f"{formatting.share(champion.weight)} of the traffic"))
    if found is not None:
        made.append(("Candidate", found.candidate_version, candidate_words(found)))
    made.append(
        ("Requests a second", formatting.number(sum(rates), 3) if rates else formatting.NONE, f"{view.replicas} of "
         f"{view.replicas_wanted} gateway replica{'' if view.replicas_wanted == 1 else 's'} up")
    )  # fmt: skip
    if found is not None and found.deadline is not None:
        number = f"{found.step + 1} of {len(found.steps)}"
        made.append(("Step", number, f"at most {formatting.seconds(found.deadline)} left"))
    made.append(("Incidents", str(view.incident_count), "rollouts turned down"))
    return [{"name": name, "value": value, "small": small} for name, value, small in made]


def candidate_words(found: RolloutView) -> str:
    """What the candidate has of the traffic, in words."""
    if found.ended and found.phase != "kept":
        return PHASES[found.phase][0]
    if found.weight == 0 and found.phase in ("running", "paused", "awaiting_approval", "kept"):
        return "mirrored requests only"
    return f"{formatting.share(found.weight)} of the traffic"


def now(view: ServiceView) -> View:
    """The variants of the present routing table, and where the rollout stands."""
    return {
        "bar": rollout_charts.traffic_bar([(one.name, one.weight, ROLES[one.role]) for one in view.variants]),
        "variants": [variant_row(one) for one in view.variants],
        "rollout": None if view.rollout is None else rollout(view.rollout, view.service),
        "uncontrolled": uncontrolled(view),
        "standing": standing(view),
    }


def uncontrolled(view: ServiceView) -> str:
    """Why nothing moves although a rollout has not ended; "" when something does."""
    found, holder = view.rollout, view.controller
    if found is None or found.ended or (holder is not None and holder.alive):
        return ""
    seen = "" if holder is None or not holder.seen else f" since {formatting.moment(holder.seen)}"
    return f"No controller runs{seen}: the rollout stays where it is until one does. mlkit up RECIPE starts one."


def variant_row(one: VariantView) -> View:
    """One line of the table of variants."""
    shadow = one.role == "shadow"
    return {
        "name": one.name,
        "role": one.role,
        "style": ROLES[one.role],
        "version": one.version,
        "placement": one.placement,
        "state": one.state,
        "tone": "ok" if one.state == "serving" else "bad" if one.state.startswith("refused") else "off",
        "share": f"mirrors {formatting.share(one.sampling)}" if shadow else formatting.share(one.weight),
        "rate": formatting.number(one.per_second, 3),
        "requests": formatting.number(one.mirrored if shadow else one.requests),
        "dropped": formatting.number(one.dropped) if shadow and one.dropped else "",
        "errors": formatting.share(one.error_rate),
        "p50": milliseconds(one.p50_ms),
        "p99": milliseconds(one.p99_ms),
    }


def rollout(found: RolloutView, service: str) -> View:
    """Where a rollout stands, what it waits for, and what may be said to it."""
    words, tone = PHASES[found.phase]
    return {
        "badge": words,
        "tone": tone,
        "ended": found.ended,
        "summary": found.summary,
        "strategy": found.strategy,
        "experiment": found.experiment,
        "begun": formatting.moment(found.begun or None),
        "finished": formatting.moment(found.finished) if found.finished is not None else "",
        "reason": found.reason,
        "by": "a person" if found.by == "person" else "the policy",
        "steps": [step(one) for one in found.steps],
        "waiting": found.waiting,
        "buttons": buttons(found, service),
    }


def buttons(found: RolloutView, service: str) -> list[View]:
    """What may be said to a rollout that runs."""
    made = [button(command, service, consequence(command, found)) for command in found.commands]
    if "promote" in found.commands and found.step + 1 < len(found.steps):
        words = consequence("promote", found, full=True)
        full = button("promote", service, words, label="Promote at once", body={"full": True})
        made.insert(1, {**full, "command": "promote-full", "tone": "plain"})
        made[0] = {**made[0], "label": "Next step"}
    return made


def step(one: StepView) -> View:
    """One step of the plan."""
    share = f"{formatting.share(one.weight)}" if one.weight else f"mirror {formatting.share(one.sampling)}"
    limit = "" if one.max_seconds is None else f", at most {span(one.max_seconds)}"
    return {
        "number": one.number,
        "share": share,
        "state": one.state,
        "word": {"done": "done", "now": "now", "ahead": "to come", "ended": "ended here", "left": "not reached"}[
            one.state
        ],
        "limits": f"{one.min_samples:,} requests each, {span(one.bake_seconds)} or longer{limit}"
        + (", then approval" if one.approval else ""),
    }


def button(command: Command, service: str, words: str, *, label: str = "", body: View | None = None) -> View:
    """A command, and what it will do, said before it is done."""
    return {
        "command": command,
        "label": label or {"rollback": "Roll back"}.get(command, command.capitalize()),
        "tone": {"promote": "ok", "rollback": "bad", "abort": "bad"}.get(command, "plain"),
        "path": f"/api/services/{service}/rollout/{command}",
        "consequence": words,
        "body": json.dumps(body or {}),
    }


def standing(view: ServiceView) -> list[View]:
    """What may be done while no rollout is running: go back to the version before, remove a shadow that stays."""
    found = view.rollout
    if found is not None and not found.ended:
        return []
    made = []
    champion = next((one for one in view.variants if one.role == "champion"), None)
    if view.previous and champion is not None:
        words = (
            f"Version {view.previous} becomes the champion again and answers every request. Version {champion.version} "
            "is not tried again unless someone asks for it."
        )
        made.append(button("rollback", view.service, words, label=f"Roll back to {view.previous}"))
    for one in view.variants:
        if one.role == "shadow":
            words = f"Nothing is mirrored to {one.name} any more. What was seen of it stays."
            made.append(button("abort", view.service, words, label=f"Remove {one.name}", body={"variant": one.name}))
    return made


def consequence(command: Command, found: RolloutView, *, full: bool = False) -> str:
    """What a command will do, in one or two sentences."""
    new, old = f"version {found.candidate_version}", f"version {found.champion_version}"
    if command == "promote":
        unproven = [one.name for one in found.findings if one.role == "objective" and one.outcome != "PASSED"]
        warning = f" Not yet shown to hold: {', '.join(unproven)}." if unproven else ""
        if found.step + 1 < len(found.steps) and not full:
            share = step(found.steps[found.step + 1])["share"]
            return (
                f"The rollout goes on to step {found.step + 2} at once: {share} for {new}. It is judged there.{warning}"
            )
        return f"{new.capitalize()} becomes the champion and answers every request; {old} leaves.{warning}"
    if command == "pause":
        return (
            f"{new.capitalize()} keeps its {formatting.share(found.weight)} of the traffic and no step follows until "
            "you resume. A metric that FAILED still rolls it back."
        )
    if command == "resume":
        return f"The rollout goes on where it was: step {found.step + 1} of {len(found.steps)}."
    again = f"{new.capitalize()} is not tried again before someone says mlkit rollout forget {found.candidate_version}."
    if command == "abort":
        return f"All traffic goes back to {old} at once, and the rollout ends with a record but no cool-down. {again}"
    return f"All traffic goes back to {old} at once, with a record of the evidence, and the service cools down. {again}"


def arms(view: ServiceView) -> View | None:
    """Champion and candidate beside each other: their traffic over time, their latencies, their predictions."""
    found = view.rollout
    if found is None:
        return None
    figures = [rollout_charts.weights(found)] if len(found.weights) > 1 else []
    figures += [] if found.predictions is None else [rollout_charts.predictions(found.predictions)]
    if found.latency is not None:
        figures += [rollout_charts.latency(found.latency), rollout_charts.percentiles(found.latency)]
    return {"figures": figures} if figures else None


def milliseconds(value: float | None) -> str:
    """A latency given in milliseconds."""
    return formatting.micros(None if value is None else 1000 * value)


def services(views: Sequence[ServiceView]) -> list[View]:
    """One line a service, for the first page."""
    rows: list[View] = []
    for view in views:
        words, tone = service_badge(view)
        champion = next((one for one in view.variants if one.role == "champion"), None)
        rows.append(
            {
                "service": view.service,
                "badge": words,
                "tone": tone,
                "endpoint": view.endpoint or formatting.NONE,
                "champion": champion.version if champion else formatting.NONE,
                "rollout": view.rollout.summary if view.rollout else "none yet",
                "waiting": "; ".join(view.rollout.waiting) if view.rollout else "",
                "incidents": view.incident_count,
                "bar": rollout_charts.traffic_bar([(one.name, one.weight, ROLES[one.role]) for one in view.variants]),
            }
        )
    return rows


SECTIONS = (
    ("now", "Now", now, "This service has no routing table yet: nothing was deployed to it."),
    ("arms", "Champion and candidate", arms, "No rollout has put a candidate beside the champion yet."),
    ("evidence", "Evidence", evidence, "Nothing is judged: no rollout has looked at a metric yet."),
    ("shadow", "Shadow", shadow, "No shadow has been compared: a step of weight 0, or strategy: shadow, does that."),
    ("incidents", "Incidents", incidents, "No rollout has been turned down."),
    (
        "webhooks",
        "Webhooks",
        webhooks,
        "Nobody was told anything: the plan names no webhooks, or nothing happened yet.",
    ),
)
"""Identifier, title, view and what stands there when there is nothing to show."""


def sections(view: ServiceView) -> list[View]:
    """The sections of a service's page, in order; one with nothing to show says so."""
    found: list[View] = []
    for name, title, make, absent in SECTIONS:
        made = make(view)
        empty = made is None or (name == "now" and not view.variants)
        found.append({"id": name, "title": title, "view": made, "absent": absent if empty else ""})
    return found
