"""What the admin page shows of what was kept: shadows and their disagreements, incidents, deliveries. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflowkit.report import charts, formatting
from mlflowkit.report.rollout.metric_views import finding_row
from mlflowkit.report.run.data_views import View
from mlflowkit.rollout.admin.view_models import ComparisonView, ExampleView, IncidentView, ServiceView, ShareView

EXAMPLES = 20
"""Disagreements that are listed."""
COLUMNS = 30
"""Inputs of them that are shown."""
CELL = 48
"""Letters of a value that are shown."""
TOLD = 20
"""Deliveries of webhooks that are listed."""
SLICES = 40
"""Slices that are listed; they come with the least agreeing first."""


def shadow(view: ServiceView) -> View | None:
    """How far shadows agree, and where they do not."""
    names = [*view.agreement, *(name for name in view.comparisons if name not in view.agreement)]
    return {"shadows": [one_shadow(name, view) for name in names]} if names else None


def one_shadow(name: str, view: ServiceView) -> View:
    """The agreement of one shadow, overall and by slice, and examples of the contrary."""
    found = view.agreement.get(name, ())
    listed = found[: SLICES + 1]
    overall = next((one for one in found if not one.slice), None)
    middle = None if overall is None else overall.value
    bounds = [charts.Bound(one.low, one.value, one.high, reference=middle) for one in listed]
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
        "compared": compared(view.comparisons.get(name)),
    }


def share_row(one: ShareView) -> View:
    return {"slice": one.slice or "all rows", "rows": f"{one.rows:,}", "interval": share_words(one)}


def share_words(one: ShareView) -> str:
    """A share with its interval, in percent.

    >>> share_words(ShareView("", 10, 0.9, 0.6, 0.98))
    '90 % [60 %, 98 %] of 10 rows'
    """
    low, value, high = (formatting.share(number) for number in (one.low, one.value, one.high))
    return f"{value} [{low}, {high}] of {one.rows:,} row{'' if one.rows == 1 else 's'}"


def compared(found: ComparisonView | None) -> View | None:
    """What was seen of a shadow beside its agreement, and the disagreements that were kept."""
    if found is None:
        return None
    facts = [
        ("Version", found.version),
        ("Rows that disagree", f"{found.disagreements:,} of {found.rows:,} compared"),
        ("Mean difference of scores", formatting.number(found.difference)),
        ("Rank correlation of scores", formatting.number(found.rank)),
        ("Slower than the request", "–" if found.latency is None else f"{1000 * found.latency:+.3g} ms on average"),
    ]
    kept = found.examples[:EXAMPLES]
    caption = (
        f"{len(kept)} of {found.disagreements:,}, drawn at random, newest first; columns that are sliced come first."
    )
    return {"facts": facts, "examples": examples(kept, caption)}


def examples(found: Sequence[ExampleView], caption: str) -> View | None:
    """Rows to which a shadow gave another answer: both answers and the inputs."""
    if not found:
        return None
    sliced = {text.partition("=")[0]: None for one in found for text in one.slices}
    columns = [column for column in sliced if any(column in one.inputs for one in found)]
    columns += [column for one in found[:1] for column in one.inputs if column not in sliced]
    return {
        "caption": caption,
        "left_out": max(0, len(columns) - COLUMNS),
        "columns": columns[:COLUMNS],
        "rows": [
            {
                "time": formatting.moment(one.time),
                "id": one.id,
                "row": one.row,
                "champion": answer(one.champion),
                "shadow": answer(one.shadow),
                "difference": formatting.NONE if one.difference is None else f"{one.difference:+.4f}",
                "inputs": [cell(one.inputs.get(column)) for column in columns[:COLUMNS]],
            }
            for one in found
        ],
    }


def answer(outputs: Mapping[str, Any]) -> str:
    """What a model answered to a row, in a few words.

    >>> answer({"label": "good", "probabilities": [0.2, 0.8]}), answer({"prediction": 3.25})
    ('good, 80 %', '3.25')
    """
    if "label" in outputs:
        numbers = [one for one in outputs.get("probabilities") or () if isinstance(one, int | float)]
        return f"{cell(outputs['label'])}, {formatting.share(max(numbers))}" if numbers else cell(outputs["label"])
    return ", ".join(cell(value) for value in outputs.values())


def cell(value: Any) -> str:
    """A value of a row, short enough for a table.

    >>> cell(0.1234567), cell("x" * 100)[-1], cell(None)
    ('0.123457', '…', '–')
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = formatting.NONE if value is None else str(value)
        return text if len(text) <= CELL else f"{text[: CELL - 1]}…"
    return f"{value:.6g}"


def incidents(view: ServiceView) -> View | None:
    """The rollouts that were turned down, each with its evidence."""
    if not view.incidents:
        return None
    return {"incidents": [incident(one) for one in view.incidents], "more": view.incident_count - len(view.incidents)}


def incident(one: IncidentView) -> View:
    """One rollout that was turned down."""
    counted = [
        f"{name} {counts['requests']:,} requests, {counts['errors']:,} failed" for name, counts in one.counts.items()
    ]
    steps = ", ".join(formatting.share(weight) for weight in one.steps)
    facts = [
        ("Experiment", one.experiment),
        ("Decided by", "a person" if one.by == "person" else "the policy"),
        ("Lasted", f"{formatting.seconds(one.time - one.began)}, to step {one.step} of {len(one.steps)} ({steps})"),
        ("Strategy", one.strategy),
        ("Versions", f"{one.candidate_version} against champion {one.champion_version}"),
        ("Counted", "; ".join(counted) or formatting.NONE),
        *((name.replace("_", " ").capitalize(), value) for name, value in one.lineage.items()),
    ]
    return {
        "id": one.id,
        "time": formatting.moment(one.time),
        "version": one.candidate_version,
        "ending": "rolled back" if one.ending == "rolled_back" else "aborted",
        "tone": "bad" if one.ending == "rolled_back" else "off",
        "reason": one.reason,
        "facts": facts,
        "rows": [finding_row(finding) for finding in one.findings],
        "examples": examples(one.examples[:EXAMPLES], "Disagreements that had been kept when it ended."),
    }


def webhooks(view: ServiceView) -> View | None:
    """What became of the last events that were told to hooks."""
    if not view.webhooks and not view.waiting_webhooks:
        return None
    rows = [
        {
            "time": formatting.moment(one.get("time")),
            "event": one.get("event", ""),
            "url": one.get("url", ""),
            "ok": bool(one.get("ok")),
            "words": one.get("error") or f"HTTP {one.get('status')}",
            "attempts": one.get("attempts", ""),
        }
        for one in view.webhooks[:TOLD]
    ]
    return {"rows": rows, "waiting": view.waiting_webhooks}
