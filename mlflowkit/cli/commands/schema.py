"""mlkit schema: the JSON Schema of recipes, for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlflowkit.cli.app import app, emit_json, note

OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="The file to write [default: stdout].")
]


@app.command()
def schema(output: OutputOption = None) -> None:
    """Write the JSON Schema of recipes, for editors."""
    from mlflowkit.recipe.jsonschema import schema as recipe_schema

    if output is None:
        emit_json(recipe_schema())
        return
    from mlflowkit.cli.output_file import write_text

    write_text(output, schema_text())
    note(f"wrote {output}")
    note(f"put this line first in a recipe: # yaml-language-server: $schema={output}")


def schema_text() -> str:
    """Return the text of the schema file."""
    import json

    from mlflowkit.recipe.jsonschema import schema as recipe_schema

    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"
