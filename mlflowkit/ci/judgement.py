"""`mlkit ci judge`: run a recipe up to its bundle, judge it against an environment's champion, write the report."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlflowkit import api
from mlflowkit.bundle import Bundle, Manifest, open_bundle, read_manifest
from mlflowkit.ci import forge_formats
from mlflowkit.ci.judge_report import (
    JudgeReport,
    ReportedChampion,
    ReportedChange,
    ReportedComparison,
    ReportedMeasurement,
    ReportedStep,
    ReportedVerdict,
    report_bytes,
)
from mlflowkit.ci.recipe_facts import check_output_folder, repository_root
from mlflowkit.errors import BundleError, Fault, MlkitError, RecipeError, UsageError
from mlflowkit.pipeline.lineage.checkout import Checkout, read_checkout
from mlflowkit.pipeline.lineage.uncommitted import run_inputs, uncommitted_inputs
from mlflowkit.ports import RunProgress
from mlflowkit.recipe.schema import LoadedRecipe
from mlflowkit.system.files import replace_file
from mlflowkit.system.machine import describe_machine
from mlflowkit.system.text import shell_word, truncate
from mlflowkit.values import Json
from mlflowkit.wiring import Wiring

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
REPORT = "report.json"
LAST_STAGE = "package"
"""A pipeline judges bundles; what deploys them is another step."""


@dataclass(frozen=True)
class JudgeRequest:
    """What is judged. ``champion`` is the folder of the bundle to compare with, None where there is none."""

    recipe: Path
    out: Path
    state: Path
    overrides: Sequence[str] = ()
    environment: str = ""
    champion: Path | None = None
    champion_source: str = ""
    first_version: bool = False
    """Whether there is no champion yet, so that nothing can be worse than it."""
    force: Sequence[str] = ()


@dataclass(frozen=True)
class Judgement:
    """The report, and the error with which the command ends."""

    report: JudgeReport
    error: MlkitError | None = None
    faults: Sequence[Fault] = field(default=())
    run: api.Run | None = None


def judge(request: JudgeRequest, progress: RunProgress) -> Judgement:
    """Judge a recipe and write report.json, junit.xml, mlkit.sarif, metrics.txt, page.html and bundle/ into ``out``.

    A failure of the run is a judgement too: its report has the error and the exit code. Raises InterruptedRunError, and
    UsageError for an ``out`` inside the checkout that git does not ignore, an environment that is not there, or a
    repository without a commit.
    """
    root = repository_root(request.recipe.resolve().parent)
    check_output_folder(request.out, root, REPORT)
    (request.out / REPORT).unlink(missing_ok=True)  # a run that is killed leaves no earlier judgement behind
    head = _head_of_change()
    git = read_checkout(request.recipe.resolve().parent)
    if not git.commit:
        raise UsageError(f"{git.problem}: a judgement names the commit that it is about", hint=git.hint)
    base = {
        "path": request.recipe.resolve().relative_to(root).as_posix(),
        "environment": request.environment,
        "git_commit": git.commit,
        "tree": git.tree,
        "head": head or git.commit,
        "machine": describe_machine(),
        "recipe": request.recipe.stem,
    }
    judgement = _judge(request, root, base, git, progress)
    _write(request.out, judgement)
    return judgement


def _judge(request: JudgeRequest, root: Path, base: dict[str, Any], git: Checkout, progress: RunProgress) -> Judgement:
    try:
        recipe = api.load(request.recipe, request.overrides)
        section = recipe.loaded.recipe.delivery
        base |= _uncommitted(git, recipe.loaded, ())
        base |= {"recipe": recipe.name, "runner": (section.runner.machine or "") if section else ""}
        _check_environment(request, tuple(section.environments) if section else ())
        request = _with_champion(request)
        base |= {"trigger": _trigger_key(request, recipe.loaded)}
        run = _run(request, recipe, request.force, progress)
        base |= _uncommitted(git, recipe.loaded, _ingredients(run.answer, request.state))
        if _names_another_commit(run, git.commit) and not base["git_dirty"]:
            run = _run(request, recipe, [*request.force, LAST_STAGE], progress)
    except RecipeError as error:
        faults = [_relative(fault, root) for fault in error.faults]
        return Judgement(_failed(base, error), error, faults)
    except MlkitError as error:
        if error.exit_code not in (2, 3):
            raise
        return Judgement(_failed(base, error), error)
    return Judgement(_report(request, base, run), run.error, run=run)


def _run(request: JudgeRequest, recipe: api.Recipe, force: Sequence[str], progress: RunProgress) -> api.Run:
    return api.run(
        recipe,
        until=LAST_STAGE,
        force=force,
        state=request.state,
        progress=progress,
        champion=request.champion,
        in_pipeline=True,
        first_version=request.first_version and request.champion is None,
    )


def _names_another_commit(run: api.Run, commit: str) -> bool:
    """Whether the bundle is one of an earlier commit, all of whose inputs are the same: after a squash merge, or a
    change of other files. Packaged again it names this commit; nothing is trained or measured for that."""
    reused = any(step["stage"] == LAST_STAGE and step["action"] == "reuse" for step in run.answer["steps"])
    return reused and run.bundle is not None and read_manifest(run.bundle).git_commit != commit


def _uncommitted(git: Checkout, loaded: LoadedRecipe, ingredients: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """What of the inputs no commit holds, as the report's keys."""
    changes = uncommitted_inputs(git, run_inputs(loaded, ingredients)).changes
    return {"git_dirty": bool(changes), "git_changes": tuple(truncate(change, 1900) for change in changes[:50])}


def _ingredients(answer: Mapping[str, Json], state: Path) -> list[Mapping[str, str]]:
    """The ingredients of the fingerprints of a run's steps."""
    with Wiring(state).open_journal(create=False) as journal:
        results = [journal.result(step["fingerprint"]) for step in answer["steps"]]
    return [result.ingredients for result in results if result is not None]


def _with_champion(request: JudgeRequest) -> JudgeRequest:
    """The request with the champion that its environment's file in git names, fetched by digest.

    A file that names none, or is not there yet, says that this is the first version. Raises UsageError or ServiceError
    where the file or the registry cannot be read, and BundleError where the registry has another bundle.
    """
    if not request.environment or request.champion is not None or request.first_version:
        return request
    from mlflowkit.ci.environments.environment_file import read_environment
    from mlflowkit.delivery.image.bundle_artifact import pull_bundle

    target, desired, commit = read_environment(request.recipe, request.environment)
    place = f"{target.path} at {commit[:12] or 'no commit'}"
    if desired.champion is None:
        return replace(request, first_version=True, champion_source=f"{place} names no champion")
    champion = desired.champion
    folder = pull_bundle(champion.bundle, request.state / "champions" / champion.identity)
    if read_manifest(folder).identity != champion.identity:
        message = f"{champion.bundle} is another bundle than the champion {champion.identity[:12]} of {place}"
        raise BundleError(message, hint=f"mlkit gitops status {shell_word(request.recipe)}")
    return replace(request, champion=folder, champion_source=f"{request.environment}: {champion.bundle}")


def _trigger_key(request: JudgeRequest, loaded: LoadedRecipe) -> str:
    """The key of the claim that `mlkit trigger` makes for this training; "" where the recipe has no such trigger."""
    from mlflowkit.ci.pipeline_trigger import has_claimed_triggers, trigger_key

    return trigger_key(request.recipe, loaded, request.state) if has_claimed_triggers(loaded) else ""


def _check_environment(request: JudgeRequest, environments: Sequence[str]) -> None:
    if request.environment and request.environment not in environments:
        listed = ", ".join(environments) or "none"
        raise UsageError(
            f"delivery.environments of {request.recipe} has no {request.environment!r}: it has {listed}",
            hint=f"mlkit explain {shell_word(request.recipe)} delivery.environments",
        )


def _failed(base: Mapping[str, Any], error: MlkitError) -> JudgeReport:
    message, hint = truncate(error.message, 1900), truncate(error.hint, 1900)
    return JudgeReport(**base, status="error", exit_code=error.exit_code, error=message, hint=hint)  # type: ignore[arg-type]


def _relative(fault: Fault, root: Path) -> Fault:
    """The fault with its file relative to the repository's root, as forges want it."""
    path = Path(os.path.abspath(fault.file))
    inside = not fault.file.startswith("<") and path.is_relative_to(root)
    return replace(fault, file=path.relative_to(root).as_posix()) if inside else fault


def _report(request: JudgeRequest, base: Mapping[str, Any], run: api.Run) -> JudgeReport:
    answer = run.answer
    evaluation = _evaluation(answer, request.state)
    compared = evaluation.get("champion") or {}
    blessed = answer["blessing"] is not None
    bundle = open_bundle(run.bundle) if run.bundle is not None else None
    champion = None if request.champion is None else read_manifest(request.champion)
    return JudgeReport(
        **base,
        status=answer["status"],
        exit_code=0 if run.error is None else run.error.exit_code,  # type: ignore[arg-type]
        identity=str(answer["identity"] or ""),
        version=str(answer["version"] or ""),
        blessed=blessed,
        run=str(answer["run"]),
        verdicts=tuple(_verdict(verdict) for verdict in answer["verdicts"]),
        metrics={name: _measurement(value) for name, value in evaluation.get("metrics", {}).items()},
        comparisons={name: _comparison(value) for name, value in compared.get("metrics", {}).items()},
        compared_rows=int(compared.get("rows", 0)),
        champion=None if champion is None else _champion(champion, request.champion_source or str(request.champion)),
        changes=tuple(_changes(champion, None if bundle is None else bundle)),
        steps=tuple(
            ReportedStep(stage=step["stage"], action=step["action"], reason=step["reason"], seconds=step["seconds"])
            for step in answer["steps"]
        ),
        warnings=tuple(truncate(str(warning), 1900) for warning in (*_first_version(request), *answer["warnings"])),
        data_version=str(answer["lineage"]["data_version"]),
        error="" if run.error is None else truncate(run.error.message, 1900),
        hint=_hint(run.error, request.state),
    )


def _hint(error: MlkitError | None, state: Path) -> str:
    """What to do about an error; "" where that names a file of this job's own state, which ends with it."""
    return "" if error is None or str(state) in error.hint else truncate(error.hint, 1900)


def _first_version(request: JudgeRequest) -> list[str]:
    """The warning that gates against a champion passed for want of one."""
    if not request.first_version or request.champion is not None:
        return []
    reason = f": {request.champion_source}" if request.champion_source else ""
    return [f"judged as the first version, compared with no champion{reason}"]


def _evaluation(answer: Mapping[str, Json], state: Path) -> Mapping[str, Any]:
    """The content of evaluation.json; {} where the run ended before it."""
    digest = next((step["digest"] for step in answer["steps"] if step["stage"] == "evaluate"), "")
    path = Wiring(state).objects.path(digest) / "evaluation.json" if digest else None
    value: Mapping[str, Any] = json.loads(path.read_bytes()) if path is not None and path.is_file() else {}
    return value


def _verdict(value: Mapping[str, Json]) -> ReportedVerdict:
    measurement = value["measurement"]
    return ReportedVerdict(
        gate=truncate(value["gate"], 1900),
        verdict=value["verdict"],
        message=truncate(value["message"], 1900),
        metric=value["metric"],
        measurement=None if measurement is None else _measurement(measurement),
        threshold=value["threshold"],
        direction=value["direction"],
        blocking=value["blocking"],
        slice=truncate(value["slice"], 1900),
        change=value["change"],
    )


def _measurement(value: Mapping[str, Json]) -> ReportedMeasurement:
    names = ("value", "low", "high", "samples", "confidence", "unit", "method")
    return ReportedMeasurement(**{name: value[name] for name in names if value.get(name) is not None})


def _comparison(value: Mapping[str, Json]) -> ReportedComparison:
    return ReportedComparison(**{name: _measurement(value[name]) for name in ("champion", "candidate", "difference")})


def _champion(manifest: Manifest, source: str) -> ReportedChampion:
    return ReportedChampion(
        identity=manifest.identity,
        version=manifest.version,
        source=source,
        git_commit=manifest.git_commit,
        data_version=manifest.data_version,
    )


def _changes(champion: Manifest | None, candidate: Bundle | None) -> list[ReportedChange]:
    """In which of code, data, recipe and policy the candidate differs from the champion."""
    if champion is None or candidate is None:
        return []
    fields = {"code": "git_commit", "data": "data_version", "recipe": "recipe_digest", "gates": "policy"}
    pairs = [(kind, getattr(champion, name), getattr(candidate.manifest, name)) for kind, name in fields.items()]
    return [
        ReportedChange(kind=kind, name=fields[kind], before=before[:12] or "unknown", after=after[:12] or "unknown")
        for kind, before, after in pairs
        if before != after and not (kind == "code" and _is_same_tree(champion, candidate.manifest))
    ]


def _is_same_tree(champion: Manifest, candidate: Manifest) -> bool:
    """Whether two bundles were made from the same files of the recipe's folder, by whatever commit."""
    clean = not champion.git_dirty and not candidate.git_dirty
    return clean and champion.git_tree == candidate.git_tree != ""


def _head_of_change() -> str:
    """The head commit of the pull request that a job runs for; "" elsewhere. The checkout may be a merge commit."""
    for name in ("CI_MERGE_REQUEST_SOURCE_BRANCH_SHA", "SYSTEM_PULLREQUEST_SOURCECOMMITID"):
        if _COMMIT.fullmatch(os.environ.get(name, "")):
            return os.environ[name]
    path = os.environ.get("GITHUB_EVENT_PATH", "")
    try:
        event = json.loads(Path(path).read_bytes()) if path else {}
        head = event["pull_request"]["head"]["sha"] if "pull_request" in event else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return head if isinstance(head, str) and _COMMIT.fullmatch(head) else ""


def _write(out: Path, judgement: Judgement) -> None:
    """Write the outputs, report.json last: it is there when the others are."""
    report = judgement.report
    out.mkdir(parents=True, exist_ok=True)
    run = judgement.run
    _copy(None if run is None else run.report, None if run is None else run.bundle, out)
    replace_file(out / "junit.xml", forge_formats.junit(report))
    replace_file(out / "mlkit.sarif", (json.dumps(forge_formats.sarif(judgement.faults), indent=1) + "\n").encode())
    replace_file(out / "metrics.txt", forge_formats.gitlab_metrics(report).encode())
    replace_file(out / REPORT, report_bytes(report))


def _copy(page: Path | None, bundle: Path | None, out: Path) -> None:
    """Copy the run's page and its bundle, whose files are read-only in the store, to where a job uploads them from."""
    (out / "page.html").unlink(missing_ok=True)
    if page is not None:
        shutil.copyfile(page, out / "page.html")
    target = out / "bundle"
    if target.exists():
        shutil.rmtree(target)
    if bundle is not None:
        shutil.copytree(bundle, target, copy_function=shutil.copyfile)
