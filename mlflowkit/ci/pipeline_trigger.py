"""`mlkit trigger`: whether a pipeline has work, asked by any event and answered from the state of the world."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlflowkit.delivery.gitops.git_repository import open_repository
from mlflowkit.delivery.gitops.trigger_claims import (
    ClaimStore,
    GitClaims,
    RecordClaims,
    TriggerAnswer,
    TriggerClaim,
    TriggerReason,
    TriggerTerms,
    claim_trigger,
    finish_trigger,
    give_up_trigger,
)
from mlflowkit.errors import UsageError
from mlflowkit.system.digests import digest_json

if TYPE_CHECKING:
    from mlflowkit.ci.judge_report import JudgeReport
    from mlflowkit.recipe.schema import LoadedRecipe
    from mlflowkit.values import Step

STAGES = ("data", "validate", "train", "export")
"""Stages whose ingredients are the same on every machine; those after them measure."""
ClaimPlace = Literal["journal", "git"]


def trigger(
    recipe: Path, because: TriggerReason, state: Path, *, claim: ClaimPlace | None = None, lease: float | None = None,
    now: float | None = None, dry_run: bool = False,
) -> TriggerAnswer:  # fmt: skip
    """Ask whether a recipe is to be trained, and claim the training; see `TriggerAnswer`.

    Nothing is trained here: the caller goes on with the pipeline where the action is ``started``.
    """
    from mlflowkit.recipe.check import load

    loaded = load(recipe)
    key, plan, steps = _key(recipe, loaded, state)
    if all(step.action == "reuse" for step in steps):
        return TriggerAnswer("nothing-changed", "", "every step up to the bundle is up to date here")
    at = time.time() if now is None else now
    terms = _terms(loaded, lease)
    wanted = TriggerClaim(key, plan, loaded.recipe.name, _owner(), because, at, at + terms.lease)
    with _store(loaded.folder, state, claim) as store:
        return claim_trigger(store, wanted, terms, at, dry_run=dry_run)


def has_claimed_triggers(loaded: LoadedRecipe) -> bool:
    """Whether a recipe's pipeline begins with `mlkit trigger` for some events."""
    section = loaded.recipe.delivery
    return section is not None and any(item.on in ("schedule", "data", "drift") for item in section.triggers)


def trigger_key(recipe: Path, loaded: LoadedRecipe, state: Path) -> str:
    """The key of the training that a recipe needs now. Raises as `trigger` does."""
    return _key(recipe, loaded, state)[0]


def _key(recipe: Path, loaded: LoadedRecipe, state: Path) -> tuple[str, str, Sequence[Step]]:
    """The key, the digest of what is trained, and the steps up to the bundle."""
    from mlflowkit.pipeline.plan import preview
    from mlflowkit.recipe.schema import policy_digest
    from mlflowkit.wiring import Wiring

    steps = preview(loaded, Wiring(state), until="package").steps
    plan = digest_json({step.stage: step.origin for step in steps if step.stage in STAGES})
    environment, champion = _champion(recipe, loaded)
    return digest_json([plan, champion, policy_digest(loaded.recipe), environment]), plan, steps


def finish_judged(
    recipe: Path, report: JudgeReport, state: Path, *, claim: ClaimPlace | None = None, dry_run: bool = False
) -> TriggerAnswer:
    """Note that the training of a report is done, whatever its verdict.

    A judgement that ended with an error is none: its claim ends with its lease, and the next caller takes it over.
    Raises UsageError for a report of no claim.
    """
    if report.status == "error":
        reason = f"the judgement ended with an error (exit code {report.exit_code}): the claim ends with its lease"
        return TriggerAnswer("running", report.trigger, reason)
    if not report.trigger:
        raise UsageError(
            f"the report of {report.recipe} names no claim: its recipe has no trigger schedule, data or drift",
            hint="mlkit trigger RECIPE --because data --json prints a key, for --finish KEY",
        )
    return finish(recipe, report.trigger, state, claim=claim, dry_run=dry_run)


def finish(
    recipe: Path, key: str, state: Path, *, claim: ClaimPlace | None = None, dry_run: bool = False
) -> TriggerAnswer:
    """Note that the training of a key is done. Raises UsageError for an unknown key."""
    with _store(Path(os.path.realpath(recipe)).parent, state, claim) as store:
        return finish_trigger(store, key, dry_run=dry_run)


def give_up(
    recipe: Path, key: str, state: Path, *, claim: ClaimPlace | None = None, dry_run: bool = False
) -> TriggerAnswer:
    """Take the claim of a key away, whatever its state. Raises UsageError for an unknown key."""
    with _store(Path(os.path.realpath(recipe)).parent, state, claim) as store:
        return give_up_trigger(store, key, dry_run=dry_run)


@contextmanager
def _store(folder: Path, state: Path, place: ClaimPlace | None) -> Iterator[ClaimStore]:
    """The claims in git where the repository has a remote, else in the state folder, unless the place is given."""
    from mlflowkit.ci.environments.environment_file import find_remote, own_remote
    from mlflowkit.service_state.records import control_records

    url = "" if place == "journal" else own_remote(folder) if place == "git" else find_remote(folder)
    if not url:
        yield RecordClaims(control_records(state))
        return
    with open_repository(url, "main") as repository:
        yield GitClaims(repository)


def _champion(recipe: Path, loaded: LoadedRecipe) -> tuple[str, str]:
    """The last environment and the identity of its champion; "" where there is none."""
    from mlflowkit.ci.environments.environment_file import read_environment

    section = loaded.recipe.delivery
    environment = "" if section is None else next(reversed(section.environments), "")
    if not environment:
        return "", ""
    _, desired, _ = read_environment(recipe, environment)
    return environment, "" if desired.champion is None else desired.champion.identity


def _terms(loaded: LoadedRecipe, lease: float | None) -> TriggerTerms:
    """The recipe's retrain section, and twice its runner's timeout unless a lease is given."""
    from mlflowkit.monitoring.monitor_settings import seconds_of

    section, retrain = loaded.recipe.delivery, loaded.recipe.retrain
    timeout = 7200.0 if section is None else seconds_of(section.runner.timeout)
    seconds = 2 * timeout if lease is None else lease
    if retrain is None:
        return TriggerTerms(seconds)
    return TriggerTerms(
        seconds,
        retrain.failures,
        seconds_of(retrain.cooldown),
        retrain.budget.runs,
        seconds_of(retrain.budget.per),
    )


def _owner() -> str:
    """Who claims: the pipeline's run where its system names one, else this process."""
    for name in ("GITHUB_RUN_ID", "CI_PIPELINE_ID", "BUILD_TAG", "AIRFLOW_CTX_DAG_RUN_ID"):
        if os.environ.get(name):
            return f"{name}={os.environ[name][:200]}"
    return f"{socket.gethostname()}:{os.getpid()}"
