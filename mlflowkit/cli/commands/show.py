"""mlkit show: all details of a run."""

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
) -> None:
    """Show a run: steps, metrics, verdicts, locations of results."""
    from mlflowkit.pipeline.run_summary import summarize
    from mlflowkit.wiring import Wiring

    folder = state_folder(state, recipe)
    with Wiring(folder).open_journal(create=False) as journal:
        value = summarize(journal.run(run), folder)
    if json:
        emit_json(value)
    else:
        _print(value)


def _print(value: dict[str, Json]) -> None:
    from mlflowkit.pipeline.run_summary import delivery_line

    lineage = value["lineage"]
    tree = f", tree {lineage['git_tree'][:12]}" if lineage.get("git_tree") else ""
    changes = f": {lineage['git_changes']}" if lineage.get("git_changes") else ""
    dirty = f" (dirty{changes})" if lineage["git_dirty"] else ""
    echo(f"run        {value['run']}  {value['status']}")
    echo(f"recipe     {value['recipe']} {' '.join(value['overrides'])}".rstrip())
    echo(f"code       {lineage['git_commit'][:12] or 'no git commit'}{tree}{dirty}")
    at = f"@{lineage['data_commit'][:12]}" if lineage.get("data_commit") else ""
    source = f"  {lineage['data_source']}{at}" if lineage.get("data_source") else ""
    echo(f"data       {lineage['data_version'][:12]}{source}")
    for step in value["steps"]:
        seconds = f"{step['seconds']:7.1f} s" if step["action"] == "run" else " " * 9
        echo(f"  {step['stage']:<9} {step['status']:<11} {step['action']:<6}{seconds}  {step['reason']}")
        if step.get("error"):
            echo(f"            {step['error']}")
        if step.get("kept"):
            echo(f"            its results: {step['kept']}")
    for name, metric in value["metrics"].items():
        echo(f"  {name:<24} {metric:.6g}" if metric is not None else f"  {name:<24} undefined")
    if decision := value.get("decision"):
        echo(f"  decision threshold       {decision['threshold']:.6g} ({decision['rule']})")
    if importance := value.get("importance"):
        echo(f"  {importance['metric']} falls without (values shuffled)")
        for name, fall in importance["columns"].items():
            echo(f"    {name:<22} {fall:.4g}")
    for verdict in value["verdicts"]:
        echo(f"  {verdict['verdict']:<12} {verdict['gate']}: {verdict['message']}")
    for name in ("bundle", "endpoint", "report"):
        if value[name]:
            echo(f"{name:<10} {value[name]}")
    for delivery in value["deliveries"]:
        echo(f"delivery   {delivery_line(delivery)}")
    for warning in value["warnings"]:
        echo(f"warning    {warning}")
    if "error" in value:
        echo(f"error      {value['error']['message']}")
