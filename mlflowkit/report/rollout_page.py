"""The admin page: the services of a state folder, and each of them with its rollout, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlflowkit import __version__
from mlflowkit.report import rollout_views as views
from mlflowkit.report.page import HERE, environment
from mlflowkit.rollout.view import ServiceView


def render(view: ServiceView) -> str:
    """The page of a service. Everything that comes from files and data is escaped."""
    template = environment().get_template("rollout.html")
    return template.render(overview=views.overview(view), sections=views.sections(view), version=__version__)


def render_services(found: Sequence[ServiceView]) -> str:
    """The page that lists services."""
    return environment().get_template("services.html").render(rows=views.services(found), version=__version__)


def assets() -> Mapping[str, tuple[bytes, str]]:
    """The files that the pages load, by name: content and media type."""
    sheets = (HERE / "page.css").read_bytes() + (HERE / "rollout.css").read_bytes()
    return {
        "page.css": (sheets, "text/css; charset=utf-8"),
        "page.js": ((HERE / "rollout.js").read_bytes(), "text/javascript; charset=utf-8"),
    }
