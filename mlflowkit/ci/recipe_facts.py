"""What the delivery plan needs of a composed recipe."""

from __future__ import annotations

import subprocess
from pathlib import Path

from mlflowkit.delivery.delivery_plan import RecipeFacts
from mlflowkit.errors import UsageError
from mlflowkit.recipe.schema import LoadedRecipe


def recipe_facts(loaded: LoadedRecipe) -> RecipeFacts:
    """The facts of a recipe inside a git repository. Raises UsageError outside of one."""
    recipe, serve = loaded.recipe, loaded.recipe.serve
    return RecipeFacts(
        name=recipe.name,
        path=loaded.path.relative_to(repository_root(loaded.folder)).as_posix(),
        service="" if serve is None else serve.service,
        port=8080 if serve is None or not serve.port else serve.port,
        replicas=1 if serve is None else serve.replicas,
        timeout_seconds=10.0 if serve is None else serve.timeout_seconds,
        strategy="direct" if serve is None else serve.rollout.strategy,
        grpc_port=0 if serve is None else serve.grpc_port or 0,
        rollout=None if serve is None else serve.rollout.model_dump(mode="json"),
    )


def repository_root(folder: Path) -> Path:
    """The root of the git repository around a folder, resolved. Raises UsageError where there is none."""
    command = ["git", "-C", str(folder), "rev-parse", "--show-toplevel"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError as error:
        raise UsageError("git is not installed", hint="apt-get install git") from error
    if process.returncode != 0:
        reason = (process.stderr.strip().splitlines() or ["git failed"])[0]
        hint = "git init" if "not a git repository" in reason else f"git -C {folder} status"
        raise UsageError(f"{folder} is not in a usable git repository: {reason}", hint=hint)
    return Path(process.stdout.rstrip("\n")).resolve()
