"""The HTML of a service's monitor: live (`render_monitor`), and alone in one file without scripts (`render_alone`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

from mlflowkit import __version__
from mlflowkit.monitoring.monitor_view import MonitorView
from mlflowkit.report.monitor import monitor_sections as views
from mlflowkit.report.monitor.heat_map import HATCHING
from mlflowkit.report.monitor.live_cells import CellCounts
from mlflowkit.report.monitor.monitor_sections import Selection
from mlflowkit.report.run.data_views import View
from mlflowkit.report.run.run_page import TEMPLATES, environment

CountsReader = Callable[[Selection], CellCounts | None]
"""The counts of a selected cell; None where they are not at hand."""
ALONE_COLUMNS = 16
"""Columns with both histograms in the page that is one file."""
SECTIONS = (
    ("alerts", "Alerts", "No alert was raised."),
    ("drift", "Columns and windows", "No window has been judged yet."),
    ("detail", "One column", "Choose a cell of the map to see the reference and the live histogram beside each other."),
    ("performance", "Performance", "No metric is estimated or realised: the recipe has no monitor.performance, or no "
     "label has come yet."),
    ("retrain", "Retraining", "The recipe has no retrain section, or nothing asked for a new version."),
    ("decisions", "Decisions", "The monitor has decided nothing yet."),
    ("blind", "What cannot be seen", "Every judged column would show a shift of twice its margin."),
    ("windows", "Windows", "No window has been closed yet."),
)  # fmt: skip
"""Identifier, title, and the text of an empty section."""


def render_monitor(view: MonitorView, selection: Selection, counts: CellCounts | None) -> str:
    """The live page of a service; all data is escaped."""

    def address(other: Selection) -> str:
        return f"{other.query()}#detail"

    detail = views.detail_view(view, selection, counts, address)
    parts = _views(view, address, live=True) | {"detail": detail}
    return _render("monitor.html", view, parts)


def render_missing(service: str, problem: str) -> str:
    """The live page of a service that has no monitor's record, or one that cannot be read."""
    template = environment().get_template("monitor_missing.html")
    return template.render(service=service, problem=problem, version=__version__)


def render_alone(view: MonitorView, read_counts: CountsReader) -> str:
    """The page as one file: nothing is loaded and no script runs. The columns that need most attention have their
    histograms in it, in their last window."""
    latest = _latest_selections(view)
    numbers = {(one.column, one.segment): number for number, one in enumerate(latest)}

    def address(other: Selection) -> str:
        number = numbers.get((other.column, other.segment))
        return "#detail" if number is None else f"#column-{number}"

    details = []
    for number, selection in enumerate(latest):
        part = views.detail_view(view, selection, read_counts(selection), None)
        details.append({"id": f"column-{number}", "view": part})
    parts = _views(view, address, live=False) | {"detail": {"columns": details} if details else None}
    return _render("monitor_alone.html", view, parts, css=alone_css())


@cache
def alone_css() -> str:
    """The style sheets of the page that is one file, as markup."""
    from markupsafe import Markup

    return Markup("".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "monitor.css")))


def _render(template: str, view: MonitorView, parts: Mapping[str, View | None], css: str = "") -> str:
    """A page from its parts; the page that is one file (``css``) has its many columns last."""
    from markupsafe import Markup

    sections = [
        {"id": name, "title": title, "view": parts[name], "absent": "" if parts[name] else absent}
        for name, title, absent in sorted(SECTIONS, key=lambda section: bool(css) and section[0] == "detail")
    ]
    return (
        environment()
        .get_template(template)
        .render(
            overview=views.monitor_head(view),
            sections=sections,
            hatching=Markup(HATCHING),
            css=css,
            version=__version__,
        )
    )


def _views(view: MonitorView, address: Callable[[Selection], str], *, live: bool) -> dict[str, View | None]:
    return {
        "alerts": views.alerts_view(view),
        "drift": views.heat_view(view, address, live=live),
        "performance": views.performance_view(view.performance),
        "retrain": views.retrain_view(view),
        "decisions": views.decisions_view(view),
        "blind": views.blind_view(view),
        "windows": views.windows_view(view),
    }


def complete_selection(view: MonitorView, selection: Selection) -> Selection:
    """What to show where a reader has not chosen: the column that needs most attention, and the last window."""
    column, segment = selection.column, selection.segment
    if not column:
        failed = [finding for finding in views.ranked(view.columns) if finding.verdict == "FAILED"]
        if not failed:
            return selection
        column, segment = failed[0].column, failed[0].segment
    last = _latest(view, column, segment)
    return last if selection.window is None else Selection(column, segment, selection.window)


def _latest(view: MonitorView, column: str, segment: str) -> Selection:
    return Selection(column, segment, view.windows[-1].start if view.windows else None)


def _latest_selections(view: MonitorView) -> list[Selection]:
    pairs = dict.fromkeys((one.column, one.segment) for one in views.ranked(view.columns) if views.is_drawn(one))
    return [_latest(view, column, segment) for column, segment in list(pairs)[:ALONE_COLUMNS]]
