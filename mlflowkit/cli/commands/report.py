"""mlkit report: the page of a run, written anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, state_folder
from mlflowkit.errors import StoreError, WorldError

if TYPE_CHECKING:
    from mlflowkit.values import RunRecord

RunArgument = Annotated[str, typer.Argument(metavar="[RUN]", help="A run's id, the beginning of one, or last.")]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Where to write it [default: where the run wrote it]."),
]
OpenOption = Annotated[bool, typer.Option("--open", help="Open it in the browser.")]


@app.command()
def report(
    run: RunArgument = "last",
    output: OutputOption = None,
    open_it: OpenOption = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """Write the page of a run and print its path."""
    from mlflowkit.pipeline.journal import Journal
    from mlflowkit.report.run.run_page import render
    from mlflowkit.system.files import replace_file

    folder = state_folder(state)
    with Journal(folder, create=False) as journal:
        record = journal.run(run)
    path = place(record, folder, output)
    replace_file(path, render(record, published(record, folder)).encode())
    if json:
        emit_json({"run": record.run, "name": record.name, "status": record.status, "report": str(path)})
    else:
        echo(str(path))
    if open_it:
        _open(path)
    return 0


def published(record: RunRecord, state: Path) -> dict[str, Path]:
    """The published folder of each stage that has one. Raises StoreError when one is no longer in the store."""
    from mlflowkit.pipeline.store import Store

    store = Store(state)
    folders = {step.stage: store.path(step.digest) for step in record.steps if step.digest}
    for stage, folder in folders.items():
        if not folder.is_dir():
            raise StoreError(
                f"run {record.run}: what {stage} published is no longer in the store ({folder})",
                hint=f"make it again: mlkit run {record.recipe_path} --force {stage}",
            )
    return folders


def place(record: RunRecord, state: Path, output: Path | None) -> Path:
    """Where the page goes: the option, else where the run wrote its own, else beside the others."""
    if output is not None:
        return output.expanduser().resolve()
    return Path(record.report) if record.report else state / "reports" / f"{record.run}.html"


def _open(path: Path) -> None:
    import webbrowser

    if not webbrowser.open(path.as_uri()):
        raise WorldError("there is no browser to open it in", hint=f"open {path.as_uri()} yourself")
