"""mlkit init: a small recipe that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlflowkit.cli.app import app, echo
from mlflowkit.errors import UsageError

DirectoryArgument = Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to write it.", show_default=False)]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")]


@app.command()
def init(directory: DirectoryArgument = Path(), force: ForceOption = False) -> None:
    """Write a small recipe that runs.

    With it come the code that it names and the schema that editors use.
    """
    from mlflowkit.cli.output_file import write_text

    files = _files()
    there = [name for name in files if (directory / name).exists()]
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file, not a directory", hint="mlkit init DIR")
    if there and not force:
        which = ", ".join(str(directory / name) for name in there)
        are = "are" if len(there) > 1 else "is"
        raise UsageError(
            f"{which} {are} there already", hint=f"mlkit init {directory} --force overwrites; or name another directory"
        )
    for name, text in files.items():
        write_text(directory / name, text)
        echo(f"wrote {directory / name}")
    echo(f"next: mlkit run {directory / 'recipe.yaml'}")


def _files() -> dict[str, str]:
    """Name and text of each file of the template."""
    from mlflowkit.cli.commands.schema import schema_text
    from mlflowkit.recipe import templates
    from mlflowkit.recipe.jsonschema import FILE

    return {**templates.texts("start"), FILE: schema_text()}
