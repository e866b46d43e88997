"""mlkit init: write a small recipe that runs, or one for a CSV."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlflowkit.cli.app import JsonOption, app, echo, emit_json, note
from mlflowkit.errors import RecipeError, UsageError
from mlflowkit.system.text import printable_line, shell_word

if TYPE_CHECKING:
    from mlflowkit.recipe.starter.choices import RecipeChoices

DirectoryArgument = Annotated[
    Path, typer.Argument(metavar="[DIR]", help="The directory to write to.", show_default=False)
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]


CsvOption = Annotated[
    Path | None, typer.Option("--csv", metavar="FILE", help="Write a recipe for this CSV, with reasons as comments.")
]
TargetOption = Annotated[
    str | None, typer.Option("--target", metavar="COLUMN", help="The column to predict; goes with --csv.")
]
CiOption = Annotated[
    str | None, typer.Option("--ci", metavar="SYSTEM", help="Make a project with a pipeline: github, gitlab, jenkins.")
]
NameOption = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Name of recipe and service [default: the file's].")
]


@app.command()
def init(
    directory: DirectoryArgument = Path(),
    csv: CsvOption = None,
    target: TargetOption = None,
    name: NameOption = None,
    ci: CiOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Write a recipe: a small one that runs, or (--csv FILE --target COLUMN) one for a table of your own.

    With --ci it is a project with a pipeline: requirements, a test, a delivery section, and the pipeline itself.
    """
    from mlflowkit.cli.commands.schema import schema_text
    from mlflowkit.recipe import templates
    from mlflowkit.recipe.jsonschema import FILE

    if (csv is None) != (target is None):
        missing = "--csv FILE" if csv is None else "--target COLUMN"
        raise UsageError(f"{missing} is missing", hint="mlkit init --csv rows.csv --target COLUMN")
    choices = None
    if csv is None or target is None:
        texts = templates.texts("start")
    else:
        choices, text = _recipe_for(csv, target, name, directory)
        texts = {"recipe.yaml": text}
    files = {**texts, FILE: schema_text()}
    if ci is not None:
        files = _with_ci(directory, files, ci)
    options = {"--ci": ci, "--csv": csv, "--target": target, "--name": name}
    given = [f"{option} {shell_word(value)}" for option, value in options.items() if value is not None]
    _write(directory, files, force, " ".join(["mlkit init", *given, shell_word(directory), "--force"]))
    recipe = directory / "recipe.yaml"
    generated = () if ci is None else _export(directory, recipe)
    if json:
        value = {"recipe": str(recipe), "choices": None if choices is None else _to_json(choices)}
        emit_json(value if ci is None else {**value, "generated": list(generated)})
        return
    for file in (*(str(directory / name) for name in files), *generated):
        echo(f"wrote {file}")
    if choices is not None:
        _print_choices(choices)
        faults = _faults(recipe)
        echo(faults or f"next: read {recipe}, then mlkit run {shell_word(recipe)}")
    else:
        echo(f"next: mlkit run {shell_word(recipe)}")


def _with_ci(directory: Path, files: Mapping[str, str], ci: str) -> dict[str, str]:
    """The files of a project with a pipeline; makes a git repository of the directory where it is in none.

    Raises UsageError for a system that nothing is generated for.
    """
    from mlflowkit.ci.recipe_facts import repository_root
    from mlflowkit.delivery.targets import BUILT_IN
    from mlflowkit.recipe.starter.ci_project import (
        FORGES,
        allow_no_champion,
        delivery_text,
        needs_repository,
        project_files,
    )

    known = [name for name in FORGES if name in BUILT_IN]
    if ci not in known:
        raise UsageError(f"--ci {ci}: it may be {', '.join(known)}", hint=f"mlkit init --ci {known[0]}")
    folder = directory.resolve()
    if needs_repository(folder):
        directory.mkdir(parents=True, exist_ok=True)
        _git(folder, "init", "--quiet", "--initial-branch=main")
        note(f"made a git repository of {directory}")
    below = folder.relative_to(repository_root(next(path for path in (folder, *folder.parents) if path.is_dir())))
    name = next(
        line.partition(":")[2].strip() for line in files["recipe.yaml"].splitlines() if line.startswith("name:")
    )
    delivery = delivery_text(name, ci, "" if below == Path() else below.as_posix())
    recipe = allow_no_champion(files["recipe.yaml"]).rstrip("\n") + "\n" + delivery
    return {**files, "recipe.yaml": recipe, **project_files(has_code="datasets.py" in files)}


def _git(folder: Path, *arguments: str) -> None:
    import subprocess

    try:
        subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True, timeout=60)
    except FileNotFoundError as error:
        raise UsageError("git is not installed", hint="apt-get install git") from error
    except subprocess.CalledProcessError as error:
        raise UsageError(
            f"git {arguments[0]} failed: {error.stderr.strip()}", hint=f"git -C {folder} status"
        ) from error


def _export(directory: Path, recipe: Path) -> tuple[str, ...]:
    """Generate the pipeline; returns the paths of its files."""
    from mlflowkit.ci.recipe_export import export_recipe

    try:
        result = export_recipe(recipe)
    except RecipeError:  # of a table with problems: they are printed, and the pipeline comes after they are solved
        note(f"the pipeline is not generated yet: mlkit export {shell_word(recipe)}")
        return ()
    if result.conflicts:
        path = result.conflicts[0].path
        raise UsageError(
            f"{path} is there already, and was not generated",
            hint=f"mlkit export {shell_word(recipe)} --theirs {shell_word(path)} replaces it",
        )
    written = [
        *_include(result.root, recipe),
        *(result.root / change.path for change in result.changes if change.writes),
    ]
    return tuple(os.path.relpath(path, Path.cwd()) for path in written)


def _include(root: Path, recipe: Path) -> tuple[Path, ...]:
    """GitLab reads one file: write it, with the generated one included, or say what is to be added to the one there."""
    from mlflowkit.cli.output_file import write_text
    from mlflowkit.recipe.check import load
    from mlflowkit.recipe.starter.ci_project import gitlab_text

    loaded, file = load(recipe).recipe, root / ".gitlab-ci.yml"
    if loaded.delivery is None or "gitlab" not in loaded.delivery.targets:
        return ()
    text = gitlab_text(loaded.name)
    if not file.exists():
        write_text(file, text)
        return (file,)
    local = text.splitlines()[1].strip().removeprefix("- ")
    if local.partition(": ")[2] not in file.read_text(encoding="utf-8", errors="replace"):
        note(f"{file} is there already: add {local} to its include")
    return ()


def _recipe_for(csv: Path, target: str, name: str | None, directory: Path) -> tuple[RecipeChoices, str]:
    """Look at a CSV; return the choices and the recipe."""
    from mlflowkit.recipe.starter.choices import choose, is_classification, require_target, tested_features
    from mlflowkit.recipe.starter.column_facts import read_facts
    from mlflowkit.recipe.starter.leaks import scores_alone
    from mlflowkit.recipe.starter.recipe_text import recipe_text

    if not csv.is_file():
        raise UsageError(f"there is no file {csv}", hint=f"ls {shell_word(csv.parent)}")
    note(f"reading {csv}")
    facts = read_facts(csv)
    classification, _ = is_classification(require_target(facts, target))
    features = tested_features(facts, target)
    note(f"{len(facts.table):,} rows, {len(facts.columns)} columns; looking for features that predict {target} alone")
    choices = choose(facts, target, scores_alone(facts, target, features, classification))
    path = os.path.relpath(csv.resolve(), directory.resolve())
    return choices, recipe_text(choices, name=name or _name_of(csv), path=path, port=8080)


def _name_of(csv: Path) -> str:
    """A name for recipe and service from a file's name.

    >>> _name_of(Path("My Cars-2024.csv.gz"))
    'my-cars-2024'
    """
    stem = csv.name.partition(".")[0].lower()
    name = re.sub(r"[^a-z0-9]+", "-", stem).strip("-")
    return name if name[:1].isalpha() else f"table-{name}".rstrip("-")


def _write(directory: Path, files: Mapping[str, str], force: bool, again: str) -> None:
    """Write the files; ``again`` is the command that overwrites those that exist."""
    from mlflowkit.cli.output_file import write_text

    existing = [name for name in files if (directory / name).exists()]
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file, not a directory", hint="mlkit init DIR")
    if existing and not force:
        names = ", ".join(str(directory / name) for name in existing)
        exist = "exist" if len(existing) > 1 else "exists"
        raise UsageError(
            f"{names} {exist} already",
            hint=f"{again} overwrites; or name another directory",
        )
    for name, text in files.items():
        write_text(directory / name, text)


def _print_choices(choices: RecipeChoices) -> None:
    echo(f"{choices.task}: {choices.task_reason}")
    if choices.missing_targets:
        echo(f"warning: {choices.missing_targets:,} rows have no {choices.target} and are dropped")
    width = max(len(item.name) for item in choices.columns)
    for item in choices.columns:
        echo(printable_line(f"  {item.name:<{width}}  {item.role:<11}  {item.reason}"))
    for item in choices.columns:
        if item.warning:
            echo(printable_line(f"warning: {item.name} {item.warning}"))


def _to_json(choices: RecipeChoices) -> dict[str, Any]:
    return {
        "task": choices.task,
        "target": choices.target,
        "positive": choices.positive,
        "missing_targets": choices.missing_targets,
        "rows": len(choices.facts.table),
        "complete": choices.facts.complete,
        "columns": [asdict(column) for column in choices.columns],
    }


def _faults(recipe: Path) -> str:
    """What `mlkit validate` says of the written recipe, or ""."""
    from mlflowkit.cli.error_format import render
    from mlflowkit.recipe.check import load

    try:
        load(recipe)
    except RecipeError as error:
        return render(error)
    return ""
