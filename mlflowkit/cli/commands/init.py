"""mlkit init: write a small recipe that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlflowkit.cli.app import app, echo
from mlflowkit.errors import UsageError
from mlflowkit.system.text import shell_word

DirectoryArgument = Annotated[
    Path, typer.Argument(metavar="[DIR]", help="The directory to write to.", show_default=False)
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]


@app.command()
def init(directory: DirectoryArgument = Path(), force: ForceOption = False) -> None:
    """Write a small recipe that runs, with its code and the schema for editors."""
    from mlflowkit.cli.commands.schema import schema_text
    from mlflowkit.cli.output_file import write_text
    from mlflowkit.recipe import templates
    from mlflowkit.recipe.jsonschema import FILE

    files = {**templates.texts("start"), FILE: schema_text()}
    existing = [name for name in files if (directory / name).exists()]
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file, not a directory", hint="mlkit init DIR")
    if existing and not force:
        names = ", ".join(str(directory / name) for name in existing)
        exist = "exist" if len(existing) > 1 else "exists"
        raise UsageError(
            f"{names} {exist} already",
            hint=f"mlkit init {shell_word(directory)} --force overwrites; or name another directory",
        )
    for name, text in files.items():
        write_text(directory / name, text)
        echo(f"wrote {directory / name}")
    echo(f"next: mlkit run {shell_word(directory / 'recipe.yaml')}")
