"""mlkit gitops: the desired version of a service in git: promote into it, settle a rollout in it, compare with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import JsonOption, RecipeArgument, StateOption, app, print_result, state_folder
from mlflowkit.errors import UsageError

if TYPE_CHECKING:
    from mlflowkit.ci.environment_promotion import PromotionResult

UNDECIDED = 4
"""Exit code where the rollout has not come to its end."""

group = typer.Typer(
    help="The desired version of a service in git (GitOps).", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(group, name="gitops")

EnvironmentOption = Annotated[
    str,
    typer.Option("--environment", metavar="ENV", help="The environment, as the recipe's delivery section names it."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Verify and say what would be committed; push nothing.")]


@group.command()
def promote(
    recipe: RecipeArgument,
    environment: EnvironmentOption,
    report: Annotated[Path, typer.Option("--from", metavar="REPORT", help="report.json, with bundle/ beside it.")],
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Make a judged, blessed bundle the candidate of an environment: one commit to its delivery.yaml.

    Refused are versions that failed a gate, were blessed under other gates, were rolled back there before, or have not
    served long enough in the environment before. Running it again changes nothing.
    """
    from mlflowkit.ci import environment_promotion

    result = environment_promotion.promote(recipe, environment, report, dry_run=dry_run)
    print_result(result.to_json(), _text(result), json)


@group.command()
def settle(
    recipe: RecipeArgument,
    environment: EnvironmentOption,
    wait: Annotated[str, typer.Option("--wait", metavar="TIME", help="How long to wait for the rollout.")] = "1h",
    dry_run: DryRunOption = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """Commit what became of the candidate: the new champion, or a rejection with its reason.

    Reads the state folder of the gateway. Exits with 4 while the rollout is undecided.
    """
    from mlflowkit.ci import environment_promotion
    from mlflowkit.monitoring.monitor_settings import seconds_of

    try:
        seconds = seconds_of(wait)
    except ValueError as error:
        raise UsageError(f"--wait {error}", hint="--wait 1h") from error
    service = environment_promotion.environment_file(recipe, environment).service
    folder = state_folder(state, recipe)
    result = environment_promotion.settle(
        recipe,
        environment,
        lambda candidate: environment_promotion.state_verdict(folder, service, candidate),
        seconds=seconds,
        dry_run=dry_run,
    )
    print_result(result.to_json(), _text(result), json)
    return UNDECIDED if result.action == "undecided" else 0


@group.command()
def status(
    recipe: RecipeArgument, environment: EnvironmentOption, state: StateOption = None, json: JsonOption = False
) -> None:
    """Compare the version that git wants with the one that is served, with the reason where they differ."""
    from mlflowkit.ci import environment_promotion
    from mlflowkit.cli.service_lookup import services_of

    target, desired, commit = environment_promotion.read_environment(recipe, environment)
    folder = state_folder(state, recipe)
    files = next((item for item in services_of(folder) if item.service == target.service), None)
    table = None if files is None else files.table()
    wanted = desired.champion.identity if desired.champion is not None else ""
    actual = "" if table is None else table.champion.digest
    if desired.candidate is not None and files is not None:
        verdict = environment_promotion.state_verdict(folder, target.service, desired.candidate)
        reason = f"candidate {desired.candidate.identity[:12]}: {verdict.reason}"
    elif files is None:
        reason = f"no service {target.service} in {folder}"
    else:
        reason = "" if wanted == actual else "the gateway has not taken up the champion of git"
    value = {
        "environment": environment, "service": target.service, "commit": commit, "desired": desired.to_json(),
        "actual": {"champion": actual}, "in_sync": wanted == actual and desired.candidate is None, "reason": reason,
    }  # fmt: skip
    candidate = "none" if desired.candidate is None else desired.candidate.identity[:12]
    lines = [
        f"{target.service} in {environment}: champion {wanted[:12] or 'none'}, candidate {candidate} (git)",
        f"  serves {actual[:12] or 'nothing'}{f': {reason}' if reason else ''}",
        *(f"  rejected {item.identity[:12]} {item.at}: {item.incident}" for item in desired.rejected[-5:]),
    ]
    print_result(value, "\n".join(lines), json)


def _text(result: PromotionResult) -> str:
    would = "would be " if result.dry_run and result.action in ("promoted", "settled") else ""
    commit = f"\n{result.repository} {result.branch} {result.path}: {result.commit[:12]}" if result.commit else ""
    return f"{result.service} in {result.environment}: {would}{result.action}: {result.reason}{commit}"
