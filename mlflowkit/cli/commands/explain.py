"""mlkit explain: the origin of a value, what it shadows, what is allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import JsonOption, OverridesArgument, RecipeArgument, app, echo, emit_json

if TYPE_CHECKING:
    from mlflowkit.recipe.explain import Explanation

KeyArgument = Annotated[
    str, typer.Argument(metavar="[KEY]", help="A key path, such as train.optimizer.lr.", show_default=False)
]


@app.command()
def explain(
    recipe: RecipeArgument, key: KeyArgument = "", overrides: OverridesArgument = None, json: JsonOption = False
) -> None:
    """Show what set a value, and what it shadows.

    For a section, or the recipe if no KEY is given, list its keys.
    """
    from mlflowkit.recipe.explain import explain as explain_key

    explanation = explain_key(recipe, key, overrides or ())
    if json:
        emit_json(explanation.to_json())
    else:
        _print(explanation)


def _print(explanation: Explanation) -> None:
    from mlflowkit.recipe.yaml_tree import format_value

    set_by = None if explanation.inside else explanation.set_by
    echo(f"{explanation.key or 'recipe'}{f' = {format_value(set_by.value)}' if set_by else ''}")
    if explanation.description:
        echo(f"  {explanation.description}")
    if explanation.set_by is None and explanation.key:
        echo("  set by   nothing: it is required" if explanation.required else "  set by   nothing")
    elif explanation.set_by is not None and explanation.key:
        echo(f"  set by   {explanation.set_by.where}")
    for index, shadow in enumerate(explanation.shadows):
        if explanation.inside and shadow.source == "default":
            continue
        echo(f"  {'shadows ' if index == 0 else '        '} {format_value(shadow.value)} from {shadow.where}")
    if explanation.key:
        echo(f"  allowed  {explanation.expected}")
    width = max((len(key) for key, _ in explanation.inside), default=0)
    for key, setting in explanation.inside:
        text = f"{format_value(setting.value)}  ({setting.where})" if setting else "required, and not set"
        echo(f"  {key:<{width}}  {text}")
    if explanation.groups:
        echo(f"  add a group with {', '.join(f'+{name}' for name in explanation.groups)}")
