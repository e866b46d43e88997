"""mlkit gitops: the desired version of a service in git: promote into it, settle a rollout in it, compare with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import JsonOption, RecipeArgument, StateOption, app, print_result, state_folder
from mlflowkit.errors import ServiceError, UsageError
from mlflowkit.system.text import shell_word

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflowkit.ci.environments.environment_file import EnvironmentFile, PromotionResult
    from mlflowkit.delivery.gitops.served_state import FollowedState

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
GatewayOption = Annotated[
    str | None,
    typer.Option(
        "--gateway",
        metavar="URL",
        help="Ask a gateway that follows the file, with the API key in MLKIT_API_KEY "
        "[default: environments.ENV.gateway, or a state folder].",
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Verify and say what would be committed; push nothing.")]


@group.command()
def promote(
    recipe: RecipeArgument,
    environment: EnvironmentOption,
    report: Annotated[
        Path | None, typer.Option("--from", metavar="REPORT", help="report.json, with bundle/ beside it.")
    ] = None,
    baked: Annotated[
        bool, typer.Option("--baked", help="The champion of the environment before, once it has baked there.")
    ] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Make a judged, blessed bundle the candidate of an environment: one commit to its delivery.yaml.

    Refused are versions that failed a gate, were blessed under other gates or were rolled back there before. One that
    has not served long enough in the environment before ends with 4; with --baked that is an answer (waiting, exit
    code 0), for whatever asks by a schedule. Running it again changes nothing.
    """
    from mlflowkit.ci.environments import environment_promotion

    if (report is None) != baked:
        raise UsageError(
            "name the report of the version, or --baked for that of the environment before, and not both",
            hint=f"mlkit gitops promote {shell_word(recipe)} --environment {shell_word(environment)} --from REPORT",
        )
    if report is None:
        from mlflowkit.ci.environments.baked_promotion import promote_baked

        result = promote_baked(recipe, environment, dry_run=dry_run)
    else:
        result = environment_promotion.promote(recipe, environment, report, dry_run=dry_run)
    print_result(result.to_json(), _text(result), json)


@group.command()
def settle(
    context: typer.Context,
    recipe: RecipeArgument,
    environment: EnvironmentOption,
    wait: Annotated[str, typer.Option("--wait", metavar="TIME", help="How long to wait for the rollout.")] = "1h",
    dry_run: DryRunOption = False,
    gateway: GatewayOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """Commit what became of the candidate: the new champion, or a rejection with its reason.

    Without a candidate, a champion that was rolled back since is recorded, and what is served instead becomes the
    champion. Reads the state folder of the gateway, or asks a gateway that follows the file. Exits with 4 while the
    rollout is undecided.
    """
    from mlflowkit.ci.environments import environment_settlement
    from mlflowkit.ci.environments.environment_file import environment_file
    from mlflowkit.monitoring.monitor_settings import seconds_of

    try:
        seconds = seconds_of(wait)
    except ValueError as error:
        raise UsageError(f"--wait {error}", hint="--wait 1h") from error
    target = environment_file(recipe, environment)
    served, _ = _reader(context, target, gateway, state)
    result = environment_settlement.settle(recipe, environment, served, seconds=seconds, dry_run=dry_run)
    print_result(result.to_json(), _text(result), json)
    return UNDECIDED if result.action == "undecided" else 0


@group.command()
def status(
    context: typer.Context,
    recipe: RecipeArgument,
    environment: EnvironmentOption,
    gateway: GatewayOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Compare the version that git wants with the one that is served, with the reason where they differ."""
    from mlflowkit.ci.environments.environment_file import read_environment
    from mlflowkit.delivery.gitops.served_state import verdict_of

    target, desired, commit = read_environment(recipe, environment)
    read, place = _reader(context, target, gateway, state)
    wanted = desired.champion.identity if desired.champion is not None else ""
    try:
        followed = read()
    except ServiceError as error:
        served, reason = None, error.message
    else:
        served, reason = followed.served, followed.pending
        verdict = verdict_of(served, wanted)
        if wanted and verdict.outcome == "rolled_back":
            reason = f"the gateway rolled the champion of git back, which settle records: {verdict.reason}"
        elif not reason and desired.candidate is not None:
            identity = desired.candidate.identity
            reason = f"candidate {identity[:12]}: {verdict_of(served, identity).reason}"
        elif not reason and wanted != served.champion:
            reason = f"{place} has not taken up the champion of git"
    champion = "" if served is None else served.champion
    value = {
        "environment": environment, "service": target.service, "commit": commit, "desired": desired.to_json(),
        "actual": None if served is None else served.to_json(),
        "in_sync": served is not None and wanted == champion and desired.candidate is None,
        "reason": reason,
    }  # fmt: skip
    candidate = "none" if desired.candidate is None else desired.candidate.identity[:12]
    lines = [
        f"{target.service} in {environment}: champion {wanted[:12] or 'none'}, candidate {candidate} (git)",
        f"  serves {'what is not known' if served is None else champion[:12] or 'nothing'}"
        f"{f': {reason}' if reason else ''}",
        *(f"  rejected {item.identity[:12]} {item.at}: {item.incident}" for item in desired.rejected[-5:]),
    ]
    print_result(value, "\n".join(lines), json)


def _reader(
    context: typer.Context, target: EnvironmentFile, gateway: str | None, state: Path | None
) -> tuple[Callable[[], FollowedState], str]:
    """What asks for the served versions, and whom: a gateway, else a state folder that was typed, else the recipe's
    gateway, else the state folder. Jobs have MLKIT_STATE for their own state, in which nothing is served.
    """
    from mlflowkit.ci.environments.environment_settlement import gateway_reader, state_reader

    source = context.get_parameter_source("state")
    typed = source is not None and source.name == "COMMANDLINE"
    url = gateway or (None if typed else target.environment.settings.gateway)
    if url:
        return gateway_reader(url, target.service, os.environ.get("MLKIT_API_KEY", "")), url
    folder = state_folder(state, target.recipe)
    return state_reader(folder, target.service), str(folder)


def _text(result: PromotionResult) -> str:
    would = "would be " if result.dry_run and result.action in ("promoted", "settled") else ""
    commit = f"\n{result.repository} {result.branch} {result.path}: {result.commit[:12]}" if result.commit else ""
    images = "".join(f"\n  image {name}@{digest}" for name, digest in result.images.items())
    warning = f"\nwarning: {result.warning}" if result.warning else ""
    return f"{result.service} in {result.environment}: {would}{result.action}: {result.reason}{commit}{images}{warning}"
