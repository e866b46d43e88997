"""mlkit diff: differences between two runs."""

from __future__ import annotations

from typing import Annotated

import typer

from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, state_folder
from mlflowkit.cli.commands.show import RecipeOption
from mlflowkit.system.text import truncate
from mlflowkit.values import Json


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A run's id, the start of one, or last.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another run.")] = "last",
    recipe: RecipeOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Compare two runs: recipe, data, code, metrics."""
    from mlflowkit.pipeline.compare import compare
    from mlflowkit.wiring import Wiring

    folder = state_folder(state, recipe)
    with Wiring(folder).open_journal(create=False) as journal:
        value = compare(journal.run(a), journal.run(b), journal, Wiring(folder).objects)
    if json:
        emit_json(value)
    else:
        _print(value)


def _print(value: dict[str, Json]) -> None:
    echo(f"a  {value['a']['run']}  {value['a']['name']}  {value['a']['status']}")
    echo(f"b  {value['b']['run']}  {value['b']['name']}  {value['b']['status']}")
    for title, rows in (("recipe", value["recipe"]), ("code", value["code"]["changed"])):
        echo(title if rows else f"{title}: the same")
        for row in rows:
            echo(f"  {row['key']:<32} {_format_value(row['a'])} -> {_format_value(row['b'])}")
    commits = [value["code"][side]["git_commit"][:12] or "none" for side in ("a", "b")]
    if commits[0] != commits[1]:
        echo(f"  {'git commit':<32} {commits[0]} -> {commits[1]}")
    data = value["data"]
    echo(f"data: {data['a'][:12]} -> {data['b'][:12]}" if data["changed"] else f"data: the same ({data['a'][:12]})")
    if value["metrics"]:
        echo("metrics")
    for row in value["metrics"]:
        difference = "" if row["difference"] is None else f"  {row['difference']:+.4g}"
        echo(f"  {row['name']:<24} {_interval(row['a'])} -> {_interval(row['b'])}{difference}")


def _interval(measured: Json) -> str:
    if measured is None:
        return "none"
    numbers = (measured[key] for key in ("value", "low", "high"))
    return "{} [{}, {}]".format(*("undefined" if number is None else f"{number:.4g}" for number in numbers))


def _format_value(value: Json) -> str:
    return truncate("nothing" if value is None else str(value), keep=12)
