"""mlkit bless: the commit that a blessing names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlflowkit.cli.app import (
    JsonOption,
    OverridesArgument,
    RecipeArgument,
    StateOption,
    app,
    print_result,
    state_folder,
)
from mlflowkit.errors import UsageError
from mlflowkit.system.text import shell_word


@app.command()
def bless(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    *,
    rebind: Annotated[
        bool, typer.Option("--rebind", help="Name this checkout's commit, whose files of the recipe are the same.")
    ] = False,
    bundle: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the bundle [default: the recipe's in the state].")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="With --bundle: the new folder of the rebound copy.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and change nothing.")] = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Name another commit in the blessing of a bundle: that of the main branch after a squash merge.

    A bundle is blessed by its gates, in mlkit run; this changes the commit alone. Git's tree of the recipe's folder
    must be the one that the bundle was made from: where it differs, the differing files are listed and the exit code
    is 2. Identity and evidence stay as they are; nothing is trained or measured.
    """
    from mlflowkit.ci.blessing_commit import RebindRequest, rebind_blessing
    from mlflowkit.cli.progress import run_progress, stdout_to_stderr

    if not rebind:
        message = "only gates bless a bundle, in a run; --rebind names another commit in a blessing"
        raise UsageError(message, hint=f"mlkit bless --rebind {shell_word(recipe)}")
    request = RebindRequest(recipe, state_folder(state, recipe), tuple(overrides or ()), bundle, out, dry_run)
    with stdout_to_stderr(), run_progress() as progress:
        result = rebind_blessing(request, progress)
    verb = "would be rebound" if dry_run and result.action == "rebound" else result.action
    before = f" (before: {result.before[:12]})" if result.action == "rebound" else ""
    text = f"{result.version} {verb}: commit {result.git_commit[:12]}{before}, tree {result.git_tree[:12]}"
    print_result(result.to_json(), f"{text}\nbundle {result.bundle}", json)
