"""A run as one self-contained HTML page: no script, no font, no request."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit import __version__
from mlflowkit.report.run import run_views
from mlflowkit.report.run.run_files import read
from mlflowkit.values import RunRecord

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent.parent / "templates"


def render(record: RunRecord, folders: Mapping[str, Path]) -> str:
    """The page of a run, as HTML text.

    ``folders`` maps each stage that published something to its folder (formats: mlflowkit.stages); a stage left
    out is shown as not reached, so that a failed or partial run has a page too. The same record and folders give
    the same text. Everything that comes from data is escaped, and the page's own Content-Security-Policy forbids
    scripts and requests.

    Raises StoreError when a published file is not JSON.
    """
    evidence = read(folders)
    return (
        environment()
        .get_template("page.html")
        .render(
            record=record,
            overview=run_views.overview(record, evidence),
            sections=run_views.sections(record, evidence),
            css=css(),
            version=__version__,
        )
    )


@cache
def css() -> str:
    """The style sheet, as markup."""
    from markupsafe import Markup

    return Markup((TEMPLATES / "page.css").read_text(encoding="utf-8"))


@cache
def environment() -> Environment:
    """Templates of this room; what they are given is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
