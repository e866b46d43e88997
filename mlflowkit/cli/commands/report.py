"""mlkit report: write the page of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import JsonOption, StateOption, app, print_result, state_folder
from mlflowkit.errors import StoreError, WorldError
from mlflowkit.system.text import shell_word

if TYPE_CHECKING:
    from mlflowkit.ports import ObjectStore
    from mlflowkit.values import RunRecord

RunArgument = Annotated[str, typer.Argument(metavar="[RUN]", help="A run's id, the beginning of one, or last.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="The file to write [default: that of the run].")
]
OpenOption = Annotated[bool, typer.Option("--open", help="Open it in the browser.")]


@app.command()
def report(
    run: RunArgument = "last",
    output: OutputOption = None,
    open_it: OpenOption = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Write the page of a run and print its path."""
    import webbrowser

    from mlflowkit.report.run.run_page import render
    from mlflowkit.system.files import replace_file
    from mlflowkit.wiring import Wiring

    wiring = Wiring(folder := state_folder(state))
    with wiring.open_journal(create=False) as journal:
        record = journal.run(run)
    folders = {**_published_folders(record, wiring.objects), **_kept_folders(record, folder)}
    own = Path(record.report) if record.report else folder / "reports" / f"{record.run}.html"
    path = own if output is None else output.expanduser().resolve()
    replace_file(path, render(record, folders).encode(), shared=output is not None)
    value = {"run": record.run, "name": record.name, "status": record.status, "report": str(path)}
    print_result(value, str(path), json)
    if open_it and not webbrowser.open(path.as_uri()):
        raise WorldError("no browser is available", hint=f"open {path.as_uri()} yourself")


def _kept_folders(record: RunRecord, state: Path) -> dict[str, Path]:
    """What stages that failed kept."""
    from mlflowkit.pipeline import RUNS
    from mlflowkit.pipeline.run_summary import kept_folder

    kept = {step.stage: kept_folder(step, state / RUNS / record.run) for step in record.steps}
    return {stage: folder for stage, folder in kept.items() if folder is not None}


def _published_folders(record: RunRecord, store: ObjectStore) -> dict[str, Path]:
    """Return the published folder of each stage. Raises StoreError if one is missing from the store."""
    folders = {step.stage: store.path(step.digest) for step in record.steps if step.digest}
    for stage, folder in folders.items():
        if not folder.is_dir():
            raise StoreError(
                f"run {record.run}: the output of {stage} is missing from the store ({folder})",
                hint=f"mlkit run {shell_word(record.recipe_path)} --force {stage}",
            )
    return folders
