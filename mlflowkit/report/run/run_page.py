"""A run as one self-contained HTML page, without scripts, fonts or requests."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflowkit import __version__
from mlflowkit.report import formatting
from mlflowkit.report.run import pareto_views, run_views
from mlflowkit.report.run.run_files import read
from mlflowkit.values import RunRecord

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent.parent / "templates"
FILTERS = ("number", "share", "seconds", "micros", "millis", "format_bytes", "moment", "interval", "short")
"""Functions of `formatting` that the templates call as filters."""


def render(record: RunRecord, folders: Mapping[str, Path]) -> str:
    """Render the page of a run as HTML; deterministic.

    ``folders`` maps each stage to its published folder (formats: mlflowkit.stages); a missing stage is shown as not
    reached, so failed and partial runs have a page too; a stage that failed may have a folder with what it judged by.
    Data is escaped, and the page's Content-Security-Policy forbids scripts and requests. Raises StoreError if a
    published file is not JSON.
    """
    evidence = read(folders)
    overview, sections = run_views.overview(record, evidence), run_views.sections(record, evidence)
    return render_template("page.html", record=record, overview=overview, sections=sections)


def render_template(template: str, **values: Any) -> str:
    """Render a template as a page of its own, with the style sheet."""
    return environment().get_template(template).render(css=css(), version=__version__, **values)


@cache
def css() -> str:
    """Return the style sheet as markup."""
    from markupsafe import Markup

    return Markup((TEMPLATES / "page.css").read_text(encoding="utf-8"))


@cache
def environment() -> Environment:
    """Return the template environment; it escapes values."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {name: getattr(formatting, name) for name in FILTERS}
    environment.filters["graph_section"] = pareto_views.format_section
    return environment
