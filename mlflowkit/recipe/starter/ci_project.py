"""What makes a recipe a project with a pipeline: requirements, .gitignore, a test, and a delivery section."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Literal, get_args

from mlflowkit import __version__
from mlflowkit.recipe.templates import FOLDER

Forge = Literal["github", "gitlab", "jenkins"]
FORGES: tuple[str, ...] = get_args(Forge)
_REGISTRIES = {
    "github": ("ghcr.io/your-organisation", "{oidc: github}"),
    "gitlab": ("registry.gitlab.com/your-group", "{oidc: gitlab}"),
    "jenkins": ("registry.example.com/your-team", "{env: REGISTRY_TOKEN}"),
}
"""Where images go by default, and how the pipeline logs in there."""
EXTRAS = "train,serve,track,cpu"


def project_files(*, has_code: bool) -> dict[str, str]:
    """The files beside a recipe, by path."""
    template = "test_datasets" if has_code else "test_recipe"
    return {
        "requirements.txt": _requirements(),
        ".gitignore": _template("gitignore"),
        f"tests/{template}.py": _template(template),
    }


def delivery_text(name: str, forge: str, folder: str) -> str:
    """A delivery section. ``folder`` is that of the recipe, from the repository's root: "" for the root itself."""
    registry, credentials = _REGISTRIES[forge]
    requirements = f"{folder}/requirements.txt" if folder else "requirements.txt"
    return f"""
# CI/CD. After a change here: mlkit export recipe.yaml
delivery:
  registry:
    image: {registry}/{name}    # without a tag: images go by digest
    credentials: {credentials}
  requirements: {requirements}
  triggers:
    - {{on: pull_request}}
    - {{on: merge, branch: main}}
  targets: [{forge}]
"""


def gitlab_text(name: str) -> str:
    """A project's ``.gitlab-ci.yml`` that includes the generated file.

    >>> print(gitlab_text("my_model").splitlines()[1])
      - local: .gitlab/mlkit-my-model.yml
    """
    return f"""\
include:
  - local: .gitlab/mlkit-{name.replace("_", "-")}.yml
workflow:
  rules:
    - if: $CI_PIPELINE_SOURCE == 'merge_request_event'
      auto_cancel: {{on_new_commit: interruptible}}
    - if: $CI_COMMIT_BRANCH
      auto_cancel: {{on_new_commit: none}}    # never a half-done promotion
"""


def allow_no_champion(recipe: str) -> str:
    """A recipe whose gates against a champion let the first version pass: a new pipeline has no champion yet.

    >>> allow_no_champion("  - {metric: latency_ratio, against: champion, max: 2}   # in turns")
    '  - {metric: latency_ratio, against: champion, max: 2, on_inconclusive: allow}   # in turns'
    """
    return re.sub(r"(\{(?![^}]*on_inconclusive)[^}]*against: champion[^}]*)\}", r"\1, on_inconclusive: allow}", recipe)


def _requirements() -> str:
    lines = [
        "# What the pipeline and the images install. With hashes, as images need them:",
        "#   pip-compile --generate-hashes --output-file=requirements.txt requirements.in",
        f"mlflowkit[{EXTRAS}]=={__version__}",
    ]
    for tool in ("pytest", "ruff"):  # what `mlkit ci check` runs
        try:
            lines.append(f"{tool}=={metadata.version(tool)}")
        except metadata.PackageNotFoundError:
            lines.append(tool)
    return "\n".join(lines) + "\n"


def _template(name: str) -> str:
    return (FOLDER / "ci" / f"{name}.txt").read_text(encoding="utf-8")


def needs_repository(folder: Path) -> bool:
    """Whether no folder from this one up is a git repository."""
    return not any((parent / ".git").exists() for parent in (folder, *folder.parents))
