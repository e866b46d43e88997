"""mlkit export: the files by which other systems run a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import JsonOption, app, echo, emit_json, note
from mlflowkit.errors import GateFailedError, UsageError
from mlflowkit.system.text import format_count, shell_word

if TYPE_CHECKING:
    from mlflowkit.delivery.regeneration.export_result import ExportResult
    from mlflowkit.delivery.regeneration.file_changes import FileChange

MAX_DIFF = 400
"""Lines of a conflict's difference that are printed."""

WordsArgument = Annotated[
    list[str],
    typer.Argument(metavar="[TARGET]... RECIPE", help="Targets [default: those of the recipe], then the recipe."),
]


@app.command()
def export(
    words: WordsArgument,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 if anything would change.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Write nothing; print what would change.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write [default: the repository's root].")
    ] = None,
    theirs: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Take the generated text of FILE, without your edits.")
    ] = None,
    mine: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="FILE is yours from now on: it is not generated again.")
    ] = None,
    json: JsonOption = False,
) -> int:
    """Generate CI workflows, DAGs, images and manifests from a recipe's delivery section.

    Edits of generated files are merged. Where that is not possible nothing is written, and the exit code is 2.
    """
    from mlflowkit.ci.recipe_export import export_recipe

    *targets, recipe = words
    if not recipe.endswith((".yaml", ".yml")):
        hint = f"mlkit export {' '.join(map(shell_word, words))} recipe.yaml"
        raise UsageError(f"the last word is the recipe, a .yaml file, not {recipe!r}", hint=hint)
    writes = not (check or diff)
    result = export_recipe(Path(recipe), targets, out=out, theirs=theirs or (), mine=mine or (), write=writes)
    if json:
        emit_json(result.to_json())
    else:
        _print(result, diff=diff, writes=writes)
        _hints(result, words, check=check)
    if result.conflicts:
        return UsageError.exit_code
    return GateFailedError.exit_code if check and result.stale else 0


def _print(result: ExportResult, *, diff: bool, writes: bool) -> None:
    for path in result.recovered:
        note(f"finished an export that was cut off: {path}")
    for change in result.changes:
        if diff or change.action == "conflict":
            text = change.diff().splitlines()
            for line in text if diff else text[:MAX_DIFF]:
                echo(line)
            if not diff and len(text) > MAX_DIFF:
                echo(f"... {len(text) - MAX_DIFF} more lines: mlkit export RECIPE --diff")
        if not diff:
            echo(f"{change.action:<9}  {change.path}{_detail(change)}")
    if writes and result.conflicts:
        note("nothing was written")
    elif writes and not any(change.writes for change in result.changes):
        yours = sum(bool(change.kept) or change.action == "owned" for change in result.changes)
        own = f", but for your edits in {format_count(yours, 'file')}" if yours else ""
        note(f"every file is as it is generated{own}")


def _detail(change: FileChange) -> str:
    if change.reason:
        return f": {change.reason}"
    return f": {format_count(change.kept, 'line')} of yours stayed" if change.kept else ""


def _hints(result: ExportResult, words: list[str], *, check: bool) -> None:
    command = f"mlkit export {' '.join(map(shell_word, words))}"
    for change in result.conflicts:
        path = shell_word(change.path)
        note(f"error: {change.path}: {change.reason}")
        theirs = "removes the file with your edits" if change.is_removal else "takes the generated text"
        note(f"hint: {command} --theirs {path} {theirs}, --mine {path} keeps yours and owns the file")
    if check and result.stale and not result.conflicts:
        note(f"error: the generated files are not those of {words[-1]}")
        note(f"hint: {command}")
