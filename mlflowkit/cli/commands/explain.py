"""mlkit explain: what set a value, what it shadows, what is allowed."""

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
    """Say what set a value, and what it shadowed.

    Of a section, and of the whole recipe when no KEY is given, its keys are listed.
    """
    from mlflowkit.recipe.explain import explain as explain_key

    found = explain_key(recipe, key, overrides or ())
    if json:
        emit_json(found.to_json())
    else:
        _print(found)


def _print(found: Explanation) -> None:
    from mlflowkit.recipe.yaml_tree import show

    value = f" = {show(found.set_by.value)}" if found.set_by is not None and not found.inside else ""
    echo(f"{found.key or 'recipe'}{value}")
    if found.description:
        echo(f"  {found.description}")
    if found.set_by is None and found.key:
        echo("  set by   nothing: it is required" if found.required else "  set by   nothing")
    elif found.set_by is not None and found.key:
        echo(f"  set by   {found.set_by.where}")
    for index, shadow in enumerate(found.shadows):
        if found.inside and shadow.source == "default":
            continue
        echo(f"  {'shadows ' if index == 0 else '        '} {show(shadow.value)} from {shadow.where}")
    if found.key:
        echo(f"  allowed  {found.expected}")
    width = max((len(key) for key, _ in found.inside), default=0)
    for key, setting in found.inside:
        shown = f"{show(setting.value)}  ({setting.where})" if setting else "required, and not set"
        echo(f"  {key:<{width}}  {shown}")
    if found.groups:
        echo(f"  add a group with {', '.join(f'+{name}' for name in found.groups)}")
