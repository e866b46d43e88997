"""The admin page: the services of a state folder, and each of them with its rollout, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlflowkit import __version__
from mlflowkit.report.rollout import rollout_views as views
from mlflowkit.report.run.run_page import TEMPLATES, environment
from mlflowkit.rollout.admin.admin_app import Admin, Asset, Pages
from mlflowkit.rollout.admin.admin_server import AdminListener
from mlflowkit.rollout.admin.view_models import ServiceView


def render(view: ServiceView) -> str:
    """The page of a service. Everything that comes from files and data is escaped."""
    template = environment().get_template("rollout.html")
    return template.render(overview=views.overview(view), sections=views.sections(view), version=__version__)


def render_services(found: Sequence[ServiceView]) -> str:
    """The page that lists services."""
    return environment().get_template("services.html").render(rows=views.services(found), version=__version__)


def pages() -> Pages:
    """What the admin surface renders with."""
    sheets = (TEMPLATES / "page.css").read_bytes() + (TEMPLATES / "rollout.css").read_bytes()
    assets = {
        "page.css": Asset(sheets, "text/css"),
        "page.js": Asset((TEMPLATES / "rollout.js").read_bytes(), "text/javascript"),
    }
    return Pages(render_services, render, assets)


def listener(state: Path) -> AdminListener:
    """The admin page of a state folder, on loopback; it serves as long as the context is entered."""
    return AdminListener(state, Admin(state, pages()))
