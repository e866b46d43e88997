"""A git repository with a recipe that is exported."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from mlflowkit.delivery.delivery_plan import DeliveryPlan, RecipeFacts, delivery_plan
from mlflowkit.delivery.delivery_settings import DeliverySection
from mlflowkit.delivery.delivery_target import DeliveryTarget
from mlflowkit.delivery.regeneration.export_result import ExportResult, export_files, render_files
from mlflowkit.delivery.regeneration.file_changes import Choice

RECIPE = """\
name: lending
task: classification
data: {source: {kind: csv, path: rows.csv}, target: bad, split: {kind: random}}
model: {kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}
serve: {service: lending}
delivery:
  registry: {image: ghcr.io/acme/lending}
"""
"""The delivery section comes last: tests append to it."""


def make_project(folder: Path, delivery: str = "") -> Path:
    """A repository with a recipe; returns the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (folder / "rows.csv").write_text("a,bad\n1,0\n")
    (folder / "requirements.txt").write_text("")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE + "".join(f"  {line}\n" for line in delivery.splitlines()))
    return recipe


class TextTarget(DeliveryTarget):
    """A target that renders given texts."""

    name: ClassVar[str] = "texts"

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = dict(files)

    def render(self, plan: DeliveryPlan) -> Mapping[str, str]:
        return self.files


def plan() -> DeliveryPlan:
    section = DeliverySection.model_validate({"registry": {"image": "ghcr.io/acme/lending"}})
    return delivery_plan(section, RecipeFacts("lending", "recipe.yaml"))


def export_texts(
    root: Path, files: Mapping[str, str], choices: Mapping[str, Choice] | None = None, *, write: bool = True
) -> ExportResult:
    """Export given texts into a folder."""
    rendered = render_files(plan(), [TextTarget(files)], "0.0.0")
    return export_files(root, "recipe.yaml", rendered, None, choices or {}, write=write)


def tree(root: Path) -> dict[str, bytes]:
    """The files below a folder, without git's."""
    files = (path for path in root.rglob("*") if path.is_file() and ".git" not in path.relative_to(root).parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
