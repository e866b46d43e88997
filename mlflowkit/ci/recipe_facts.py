"""What the delivery plan needs of a composed recipe."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from mlflowkit.delivery.delivery_plan import RecipeFacts
from mlflowkit.errors import UsageError
from mlflowkit.recipe.schema import LoadedRecipe
from mlflowkit.recipe.section_rules.delivery_rules import is_own_variable
from mlflowkit.system.git.git_command import ask_git
from mlflowkit.system.text import shell_word


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
        affinity="request_id" if serve is None else serve.routing.affinity,
        rollout=None if serve is None else serve.rollout.model_dump(mode="json"),
        secrets=_secret_variables(loaded),
    )


def _secret_variables(loaded: LoadedRecipe) -> tuple[str, ...]:
    """Environment variables from which connections read secrets, without those that a pipeline sets by itself."""
    references = [secret for connection in loaded.recipe.connections.values() for secret in connection.secrets()]
    names = sorted({reference.env for reference in references if reference.env is not None})
    return tuple(name for name in names if not is_own_variable(name))


def repository_root(folder: Path) -> Path:
    """The root of the git repository around a folder, resolved. Raises UsageError where there is none."""
    answer = ask_git(folder, "rev-parse", "--show-toplevel")
    if answer.outside:
        raise UsageError(f"{folder} is not in a git repository", hint=answer.hint or f"git init {shell_word(folder)}")
    if answer.problem:
        raise UsageError(f"{folder} is not in a usable git repository: {answer.problem}", hint=answer.hint)
    return Path(answer.text.rstrip("\n")).resolve()


def check_output_folder(out: Path, root: Path, file: str) -> None:
    """Raise UsageError for a folder of outputs (``file`` is one of them) that would make the checkout dirty."""
    folder = Path(os.path.abspath(out))
    if not folder.is_relative_to(root):
        return
    if not ask_git(root, "check-ignore", "-q", str(folder / file)).ok:
        message = f"--out {out} lies in the checkout and git does not ignore it: the outputs would make it dirty"
        raise UsageError(message, hint=f"--out {shell_word(Path(tempfile.gettempdir()) / 'mlkit-out')}")
