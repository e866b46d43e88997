"""What the admin page shows of a service: words, tables and charts, from a `rollout.view.ServiceView`. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlflowkit.report import charts, rollout_charts, wording
from mlflowkit.report.data_views import View
from mlflowkit.rollout.view import Command, FindingView, RolloutView, ServiceView, ShareView, StepView, VariantView

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
OUTCOMES = {"PASSED": "ok", "FAILED": "bad", "INCONCLUSIVE": "warn", "ERROR": "bad"}
ROLES = {"champion": 0, "challenger": 1, "shadow": 2}
"""Series colour of each role, the same in every chart and table."""
RATES = ("error_rate", "agreement", "accuracy")
"""Metrics that are shares of one: told in percent."""
SLICES = 40
"""Slices that are listed; they come with the least agreeing first."""


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
        "time": wording.moment(view.time),
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
        made.append(("Champion", champion.version, f"{wording.share(champion.weight)} of the traffic"))
    if found is not None:
        made.append(("Candidate", found.candidate_version, candidate_words(found)))
    made.append(
        ("Requests a second", wording.number(sum(rates), 3) if rates else wording.NONE, f"{view.replicas} of "
         f"{view.replicas_wanted} gateway replica{'' if view.replicas_wanted == 1 else 's'} up")
    )  # fmt: skip
    if found is not None and found.deadline is not None:
        number = f"{found.step + 1} of {len(found.steps)}"
        made.append(("Step", number, f"at most {wording.seconds(found.deadline)} left"))
    made.append(("Incidents", str(view.incident_count), "rollbacks that were recorded"))
    return [{"name": name, "value": value, "small": small} for name, value, small in made]


def candidate_words(found: RolloutView) -> str:
    """What the candidate has of the traffic, in words."""
    if found.ended and found.phase != "kept":
        return PHASES[found.phase][0]
    if found.weight == 0 and found.phase in ("running", "paused", "awaiting_approval", "kept"):
        return "mirrored requests only"
    return f"{wording.share(found.weight)} of the traffic"


def now(view: ServiceView) -> View:
    """The variants of the present routing table, and where the rollout stands."""
    return {
        "bar": rollout_charts.traffic_bar([(one.name, one.weight, ROLES[one.role]) for one in view.variants]),
        "variants": [variant_row(one) for one in view.variants],
        "rollout": None if view.rollout is None else rollout(view.rollout, view.service),
    }


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
        "share": f"mirrors {wording.share(one.sampling)}" if shadow else wording.share(one.weight),
        "rate": wording.number(one.per_second, 3),
        "requests": wording.number(one.mirrored if shadow else one.requests),
        "dropped": wording.number(one.dropped) if shadow and one.dropped else "",
        "errors": wording.share(one.error_rate),
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
        "begun": wording.moment(found.begun or None),
        "finished": wording.moment(found.finished) if found.finished is not None else "",
        "reason": found.reason,
        "by": "a person" if found.by == "person" else "the policy",
        "steps": [step(one) for one in found.steps],
        "waiting": found.waiting,
        "buttons": [button(command, found, service) for command in found.commands],
    }


def step(one: StepView) -> View:
    """One step of the plan."""
    share = f"{wording.share(one.weight)}" if one.weight else f"mirror {wording.share(one.sampling)}"
    limit = "" if one.max_seconds is None else f", at most {wording.seconds(one.max_seconds)}"
    return {
        "number": one.number,
        "share": share,
        "state": one.state,
        "word": {"done": "done", "now": "now", "ahead": "to come", "left": "not reached"}[one.state],
        "limits": f"{one.min_samples:,} requests each, {wording.seconds(one.bake_seconds)} or longer{limit}"
        + (", then approval" if one.approval else ""),
    }


def button(command: Command, found: RolloutView, service: str) -> View:
    """A command, and what it will do, said before it is done."""
    label = {"rollback": "Roll back"}.get(command, command.capitalize())
    return {
        "command": command,
        "label": label,
        "tone": {"promote": "ok", "rollback": "bad", "abort": "bad"}.get(command, "plain"),
        "path": f"/api/services/{service}/rollout/{command}",
        "consequence": consequence(command, found),
    }


def consequence(command: Command, found: RolloutView) -> str:
    """What a command will do, in one or two sentences."""
    new, old = f"version {found.candidate_version}", f"version {found.champion_version}"
    if command == "promote":
        unproven = [one.name for one in found.findings if one.role == "objective" and one.outcome != "PASSED"]
        warning = f" Not yet shown to hold: {', '.join(unproven)}." if unproven else ""
        if found.step + 1 < len(found.steps):
            share = step(found.steps[found.step + 1])["share"]
            return (
                f"The rollout goes on to step {found.step + 2} at once: {share} for {new}. It is judged there.{warning}"
            )
        return f"{new.capitalize()} becomes the champion and answers every request; {old} leaves.{warning}"
    if command == "pause":
        return (
            f"{new.capitalize()} keeps its {wording.share(found.weight)} of the traffic and no step follows until you "
            "resume. A metric that FAILED still rolls it back."
        )
    if command == "resume":
        return f"The rollout goes on where it was: step {found.step + 1} of {len(found.steps)}."
    if command == "abort":
        return f"All traffic goes back to {old} at once and the rollout ends. Nothing is held against {new}."
    return (
        f"All traffic goes back to {old} at once. An incident is recorded with the evidence so far, and {new} is not "
        "tried again unless someone asks for it."
    )


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


def evidence(view: ServiceView) -> View | None:
    """What each metric says, and how it came to say it."""
    found = view.rollout
    if found is None or not found.findings:
        return None
    rows = [finding_row(one) for one in found.findings]
    figures = []
    for one in found.findings:
        points = found.history.get(one.name, ())
        if len(points) > 1:
            figures.append({**rollout_charts.boundary(one, points, found.begun), "kind": "boundary"})
            figures.append(rollout_charts.estimate(one, points, found.begun, *scale_of(one)))
    return {"rows": rows, "figures": figures, "level": wording.share(found.level)}


def finding_row(one: FindingView) -> View:
    """One metric: its verdict, its evidence towards both boundaries, and the estimate."""
    factor, unit = scale_of(one)
    return {
        "name": one.name,
        "role": one.role,
        "outcome": one.outcome,
        "tone": OUTCOMES[one.outcome],
        "svg": rollout_charts.balance(one.name, one.harm, one.proof),
        "harm": wording.share(capped(one.harm)),
        "proof": wording.share(capped(one.proof)),
        "interval": rollout_charts.interval_words(one, factor, unit),
        "threshold": threshold(one),
        "samples": f"{one.champion:,} · {one.challenger:,}",
        "message": one.message if one.value is None or one.slice else "",
        "method": one.method,
    }


def capped(value: float | None) -> float | None:
    return None if value is None else min(1.0, max(0.0, value))


def scale_of(one: FindingView) -> tuple[float, str]:
    """What the numbers of a metric are multiplied by to be shown, and in what unit they are then."""
    if one.metric in RATES:
        return 100.0, "points" if one.change else "%"
    return 1.0, "times" if one.unit == "x" else one.unit


def threshold(one: FindingView) -> str:
    """The bound that a metric is held against, in words."""
    if one.threshold is None:
        return ""
    factor, unit = scale_of(one)
    word = "at least" if one.direction == "min" else "at most"
    sign = "+" if one.change and one.unit != "x" and one.threshold > 0 else ""
    return f"{word} {sign}{wording.number(one.threshold * factor)} {unit}".strip()


def shadow(view: ServiceView) -> View | None:
    """How far shadows agree, and where they do not."""
    if not view.agreement and not view.disagreements:
        return None
    names = [*view.agreement, *(name for name in view.disagreements if name not in view.agreement)]
    return {"shadows": [one_shadow(name, view) for name in names]}


def one_shadow(name: str, view: ServiceView) -> View:
    """The agreement of one shadow, overall and by slice, and examples of the contrary."""
    found = view.agreement.get(name, ())
    listed = found[: SLICES + 1]
    overall = next((one for one in found if not one.slice), None)
    bounds = [
        charts.Bound(one.low, one.value, one.high, reference=overall.value if overall else None) for one in listed
    ]
    domain = charts.forest_domain(bounds)
    rows = [
        {**share_row(one), "svg": charts.forest_row(bound, domain, f"{one.slice or 'all rows'}: {share_words(one)}")}
        for one, bound in zip(listed, bounds, strict=True)
    ]
    return {
        "name": name,
        "overall": share_words(overall) if overall else "",
        "rows": rows,
        "more": len(found) - len(listed),
        "axis": charts.forest_axis(domain) if rows else "",
        "examples": examples(view.disagreements.get(name)),
    }


def share_row(one: ShareView) -> View:
    return {"slice": one.slice or "all rows", "rows": f"{one.rows:,}", "interval": share_words(one)}


def share_words(one: ShareView) -> str:
    """A share with its interval, in percent.

    >>> share_words(ShareView("", 10, 0.9, 0.6, 0.98))
    '90 % [60 %, 98 %] of 10 rows'
    """
    low, value, high = (wording.share(number) for number in (one.low, one.value, one.high))
    return f"{value} [{low}, {high}] of {one.rows:,} row{'' if one.rows == 1 else 's'}"


def examples(document: Any) -> View | None:
    """Rows to which a shadow gave another answer: their inputs and both answers."""
    return None


def incidents(view: ServiceView) -> View | None:
    """The rollbacks, each with its evidence."""
    return None


def milliseconds(value: float | None) -> str:
    """A latency given in milliseconds."""
    return wording.micros(None if value is None else 1000 * value)


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
                "endpoint": view.endpoint or wording.NONE,
                "champion": champion.version if champion else wording.NONE,
                "rollout": view.rollout.summary if view.rollout else "none yet",
                "waiting": "; ".join(view.rollout.waiting) if view.rollout else "",
                "incidents": view.incident_count,
                "bar": rollout_charts.traffic_bar([(one.name, one.weight, ROLES[one.role]) for one in view.variants]),
            }
        )
    return rows


def finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


SECTIONS = (
    ("now", "Now", now, "This service has no routing table yet: nothing was deployed to it."),
    ("arms", "Champion and candidate", arms, "No rollout has put a candidate beside the champion yet."),
    ("evidence", "Evidence", evidence, "Nothing is judged: no rollout has looked at a metric yet."),
    ("shadow", "Shadow", shadow, "No shadow has been compared: a step of weight 0, or strategy: shadow, does that."),
    ("incidents", "Incidents", incidents, "No rollback has been recorded."),
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
