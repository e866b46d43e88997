"""mlkit lineage: what a model was made from."""

from __future__ import annotations

from typing import Annotated

import typer

from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, state_folder
from mlflowkit.cli.commands.show import RecipeOption
from mlflowkit.values import Json


@app.command()
def lineage(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A bundle's folder, a version, a run, a recipe's name (its champion), models:/NAME/VERSION, "
            "models:/NAME@ALIAS or runs:/ID of MLflow, REPOSITORY@sha256:DIGEST, or hf://ORG/NAME@REVISION.",
        ),
    ],
    recipe: RecipeOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Show a model's commit, data, recipe, run and verdicts, from any name of it."""
    from contextlib import closing

    from mlflowkit.pipeline.lineage.model_lookup import ModelLookup
    from mlflowkit.wiring import Wiring

    wiring = Wiring(state_folder(state, recipe))
    with closing(wiring.tracker) as tracker:
        origin = ModelLookup(wiring, tracker).origin(model).to_json()
    if json:
        emit_json(origin)
    else:
        _print(origin)


def _print(value: dict[str, Json]) -> None:
    code = value["lineage"]
    tree = f", tree {code['git_tree'][:12]}" if code["git_tree"] else ""
    changes = f": {code['git_changes']}" if code["git_changes"] else ""
    echo(f"model      {value['name']} {value['version']}{_registered(value)}")
    echo(f"blessed    {_blessed(value)}")
    echo(f"code       {code['git_commit'] or 'no git commit'}{tree}{f' (dirty{changes})' if code['git_dirty'] else ''}")
    echo(f"data       {code['data_version'] or 'unknown'}")
    for name in ("data_source", "data_commit"):
        if code.get(name):
            echo(f"           {name.replace('_', ' ')} {code[name]}")
    recipe = " ".join([value["recipe"], *value["overrides"]]).strip()
    echo(f"recipe     {recipe or 'of digest'} {code['recipe_digest'][:12]}")
    echo(f"run        {value['run'] or 'unknown'}")
    echo(f"identity   {value['identity']}")
    if value["bundle"]:
        echo(f"bundle     {value['bundle']}")
    if value["verdicts"] is None:
        echo("verdicts   unknown: neither its bundle nor its run is at hand")
    for verdict in value["verdicts"] or ():
        echo(f"  {verdict['outcome']:<12} {verdict['message']}")
    for source in value["sources"]:
        echo(f"source     {source}")
    for difference in value["differences"]:
        echo(f"differs    {difference}")


def _registered(value: dict[str, Json]) -> str:
    return f" (version {value['registered']} in MLflow)" if value["registered"] else ""


def _blessed(value: dict[str, Json]) -> str:
    blessing = value["blessing"]
    if blessing is None:
        return "no" if value["bundle"] else "unknown: its bundle is not at hand"
    rebound = f"; its gates passed at {blessing['rebound_from'][:12]}" if blessing.get("rebound_from") else ""
    return f"by run {blessing['run']}{rebound}"
