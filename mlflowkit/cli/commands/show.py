"""mlkit show: one run in full."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, state_folder
from mlflowkit.values import Json

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, the start of one, or last.")]
RecipeOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Look beside this recipe [default: here].", show_default=False)
]


@app.command()
def show(
    run: RunArgument = "last", recipe: RecipeOption = None, state: StateOption = None, json: JsonOption = False
) -> int:
    """Show a run: its steps, metrics, verdicts and where its results are."""
    from mlflowkit.pipeline.journal import Journal
    from mlflowkit.pipeline.run_summary import answer

    folder = state_folder(state, recipe)
    with Journal(folder, create=False) as journal:
        value = answer(journal.run(run), folder)
    if json:
        emit_json(value)
        return 0
    _print(value)
    return 0


def _print(value: dict[str, Json]) -> None:
    lineage = value["lineage"]
    dirty = " (dirty)" if lineage["git_dirty"] else ""
    echo(f"run        {value['run']}  {value['status']}")
    echo(f"recipe     {value['recipe']} {' '.join(value['overrides'])}".rstrip())
    echo(f"code       {lineage['git_commit'][:12] or 'no git commit'}{dirty}")
    echo(f"data       {lineage['data_version'][:12]}")
    for step in value["steps"]:
        seconds = f"{step['seconds']:7.1f} s" if step["action"] == "run" else " " * 9
        echo(f"  {step['stage']:<9} {step['status']:<11} {step['action']:<6}{seconds}  {step['reason']}")
        if step.get("error"):
            echo(f"            {step['error']}")
    for name, figure in value["metrics"].items():
        echo(f"  {name:<24} {figure:.6g}" if figure is not None else f"  {name:<24} undefined")
    for verdict in value["verdicts"]:
        echo(f"  {verdict['verdict']:<12} {verdict['gate']}: {verdict['message']}")
    for name in ("bundle", "endpoint", "report"):
        if value[name]:
            echo(f"{name:<10} {value[name]}")
    if "error" in value:
        echo(f"error      {value['error']['message']}")
