"""`mlkit bless --rebind`: the commit that a blessing names, after the branch that it was given on was merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from mlflowkit import api, usercode
from mlflowkit.bundle import open_bundle
from mlflowkit.ci.environments.environment_file import FILE
from mlflowkit.ci.recipe_facts import recipe_facts
from mlflowkit.delivery.delivery_plan import delivery_plan
from mlflowkit.delivery.manifests.image_digests import FILE as IMAGES
from mlflowkit.errors import UsageError
from mlflowkit.pipeline.fingerprint import file_checks
from mlflowkit.pipeline.lineage.checkout import read_checkout
from mlflowkit.pipeline.lineage.rebinding import rebind_folder, rebind_result, require_same_source, reused_plan
from mlflowkit.pipeline.lineage.uncommitted import run_inputs, uncommitted_inputs
from mlflowkit.pipeline.plan import ExecutionPlan
from mlflowkit.ports import RunProgress
from mlflowkit.recipe.schema import LoadedRecipe
from mlflowkit.stages.train import IMPORTED
from mlflowkit.system.text import shell_word
from mlflowkit.values import Json
from mlflowkit.wiring import Wiring


@dataclass(frozen=True, slots=True)
class RebindRequest:
    """What is rebound: the recipe's bundle in ``state``, or the folder ``bundle``, of which ``out`` is the copy."""

    recipe: Path
    state: Path
    overrides: Sequence[str] = ()
    bundle: Path | None = None
    out: Path | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class RebindResult:
    """``action`` is "rebound", or "unchanged" where the blessing names this commit already."""

    action: str
    identity: str
    version: str
    bundle: str
    git_commit: str
    git_tree: str
    before: str
    """The commit that the blessing named before."""
    rebound_from: str
    """The commit at which the gates passed; "" where it is ``git_commit``."""
    dry_run: bool

    def to_json(self) -> dict[str, Json]:
        return asdict(self)


def rebind_blessing(request: RebindRequest, progress: RunProgress) -> RebindResult:
    """Make the blessing of a recipe's bundle name the checkout's commit, which must have the same files.

    Raises UsageError where they differ, or a run would make another bundle, and BundleError for one that is altered or
    not blessed.
    """
    if (request.bundle is None) != (request.out is None):
        raise UsageError("--bundle and --out go together", hint="--bundle FOLDER --out FOLDER")
    recipe = api.load(request.recipe, request.overrides)
    loaded, wiring = recipe.loaded, Wiring(request.state)
    plan = reused_plan(loaded, wiring) if request.bundle is None else None
    source = request.bundle or _folder(wiring, plan)
    opened = open_bundle(source, blessed=True)
    manifest, blessing = opened.manifest, opened.blessing
    assert blessing is not None
    if manifest.name != loaded.recipe.name:
        message = f"{source} is of the recipe {manifest.name}, not {loaded.recipe.name}"
        raise UsageError(message, hint=f"mlkit bless --rebind {shell_word(request.recipe)}")
    checkout = read_checkout(loaded.folder)
    ingredients = [_code(loaded)] if plan is None else [step.ingredients for step in plan.steps]
    changes = uncommitted_inputs(checkout, run_inputs(loaded, ingredients)).changes
    require_same_source(manifest, checkout, changes, loaded, _promotion_files(loaded, checkout.prefix))
    action = "unchanged" if manifest.git_commit == checkout.commit else "rebound"
    target, judged_at = source, blessing.rebound_from or blessing.git_commit
    if not request.dry_run and request.out is not None:
        target = rebind_folder(source, request.out, checkout.commit).path
    elif not request.dry_run and action == "rebound" and plan is not None:
        from mlflowkit.report.run.run_page import render

        rebind_result(loaded, request.state, wiring, plan.results["package"], checkout.tree, render, progress)
        target = _folder(wiring, reused_plan(loaded, wiring))
    return RebindResult(
        action, manifest.identity, manifest.version, str(target), checkout.commit, checkout.tree, manifest.git_commit,
        "" if judged_at == checkout.commit else judged_at, request.dry_run,
    )  # fmt: skip


def _folder(wiring: Wiring, plan: ExecutionPlan | None) -> Path:
    """The bundle of a plan whose package step is reused."""
    assert plan is not None
    return wiring.objects.path(plan.results["package"].published.digest) / "bundle"


def _promotion_files(loaded: LoadedRecipe, prefix: str) -> frozenset[str]:
    """What promotions and settlements commit below the recipe's folder, by path from there."""
    if loaded.recipe.delivery is None:
        return frozenset()
    plan = delivery_plan(loaded.recipe.delivery, recipe_facts(loaded))
    files = [PurePosixPath(item.path, name) for item in plan.environments for name in (FILE, IMAGES)]
    return frozenset(str(file.relative_to(prefix)) for file in files if file.is_relative_to(prefix))


def _code(loaded: LoadedRecipe) -> dict[str, str]:
    """The recipe's code as ingredients; where a bundle comes from elsewhere, the data need not be here."""
    model = loaded.recipe.model
    references = [*loaded.recipe.data.source.code_references()]
    references += [] if isinstance(model, IMPORTED) else [model.module]
    references += [reference for check in file_checks(loaded.recipe) for reference in check.code_references()]
    closures = [usercode.source_closure(reference, loaded.folder) for reference in references]
    return {f"code:{name}": "" for closure in closures for name in closure.files}
