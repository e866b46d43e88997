"""mlkit plan: what a run would do, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import (
    JsonOption,
    OverridesArgument,
    RecipeArgument,
    StateOption,
    app,
    print_result,
    state_folder,
)

if TYPE_CHECKING:
    from mlflowkit.values import Step

UP_TO_BUNDLE = ("package", "deploy")
"""Stages that a run has to reach for a bundle."""
UntilOption = Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")]
ForceOption = Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Run this stage again.")]
BreakingOption = Annotated[
    bool,
    typer.Option(
        "--allow-breaking",
        help="Let all traffic move at once to a version whose signature breaks clients; the same as "
        "serve.rollout.allow_breaking=true.",
    ),
]


def with_breaking(overrides: Sequence[str] | None, allow_breaking: bool) -> list[str]:
    """The overrides, with that of ``--allow-breaking``."""
    return [*(overrides or ()), *(["serve.rollout.allow_breaking=true"] if allow_breaking else [])]


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    until: UntilOption = None,
    force: ForceOption = None,
    allow_breaking: BreakingOption = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Print each step with run or reuse, the reason, and what changes for a service's clients. Changes nothing."""
    from mlflowkit.data_access.registry_sections import describe_registry
    from mlflowkit.judging.coverage import recipe_warnings
    from mlflowkit.pipeline.client_changes import find_changes
    from mlflowkit.pipeline.lineage.data_snapshot import describe_snapshot, snapshot_summary
    from mlflowkit.pipeline.plan import preview
    from mlflowkit.recipe.check import load
    from mlflowkit.wiring import Wiring

    folder = state_folder(state, recipe)
    loaded = load(recipe, with_breaking(overrides, allow_breaking))
    wiring = Wiring(folder)
    planned = preview(loaded, wiring, until=until, force=force or (), services=lambda: wiring.platform.status())
    steps = planned.steps
    changes = None
    if any((step.stage, step.action) == ("deploy", "run") for step in steps):
        changes = find_changes(loaded, planned.results, wiring.objects, lambda: wiring.platform.status())
    rows = [
        {
            **{name: getattr(step, name) for name in ("stage", "action", "reason", "fingerprint")},
            "unless": list(step.awaits) if step.conditional else [],
        }
        for step in steps
    ]
    lines = [f"{step.stage:<9} {step.action:<6} {step.fingerprint[:12]}  {step.reason}" for step in steps]
    if planned.snapshot is not None:
        lines.insert(0, describe_snapshot(planned.snapshot))
    lines += [f"warning: {'breaks clients: ' if change.breaking else ''}{change.message}" for change in changes or ()]
    warnings = recipe_warnings(loaded.composed)
    lines += [f"warning: {warning}" for warning in warnings]
    registries = [describe_registry(section) for section in loaded.recipe.registries if until in (None, *UP_TO_BUNDLE)]
    lines += [f"a blessed bundle is pushed to {name}" for name in registries]
    if (section := loaded.recipe.data.write_back) is not None:
        target = wiring.write_back_target(loaded.recipe, loaded.folder, section)
        lines.append(f"results are written back to {target.name}")
    lines.append(_outlook(steps))
    value = {
        "recipe": str(loaded.path),
        "name": loaded.recipe.name,
        "steps": rows,
        "data": None if planned.snapshot is None else snapshot_summary(planned.snapshot),
        "write_back": None if section is None else section.model_dump(mode="json"),
        "warnings": list(warnings),
        "registries": registries,
        "signature_changes": None if changes is None else [change.to_json() for change in changes],
    }
    print_result(value, "\n".join(lines), json)


def _outlook(steps: Sequence[Step]) -> str:
    """How many steps run; those whose inputs may come out as before are counted apart."""
    running = sum(step.action == "run" for step in steps)
    if not running:
        return "nothing to do"
    conditional = sum(step.conditional for step in steps)
    certain = f"{running - conditional} to run, {len(steps) - running} to reuse"
    return f"{certain}, {conditional} to decide by what the others give" if conditional else certain
