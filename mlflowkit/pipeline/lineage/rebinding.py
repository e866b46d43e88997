"""A blessing that names another commit with the same files: after a squash merge, that of the main branch.

The merge makes a commit of its own, and the branch's, which the blessing names, is gone with the branch. What the model
was made from is git's tree of the recipe's folder; where that is the same, the blessing may name the new commit. The
identity and the evidence stay as they are, and nothing is trained, measured or judged again.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from mlflowkit.bundle import BLESSING, MANIFEST, WITHHELD, Bundle, Manifest, open_bundle, rebind
from mlflowkit.errors import UsageError
from mlflowkit.pipeline.lineage.checkout import Checkout
from mlflowkit.pipeline.plan import ExecutionPlan, preview
from mlflowkit.pipeline.run import Reporter, execute
from mlflowkit.ports import RunPorts, RunProgress, StageContext
from mlflowkit.recipe.schema import LoadedRecipe
from mlflowkit.sections import Section
from mlflowkit.system.digests import digest_json
from mlflowkit.system.files import disk_errors, make_folder
from mlflowkit.system.git.git_command import GitAnswer, ask_git
from mlflowkit.system.text import join_words, limited, shell_word
from mlflowkit.values import RunRecord, StageResult, StepResult

WORDS = {"A": "added", "D": "deleted", "M": "modified", "T": "of another type"}


def require_same_source(
    manifest: Manifest, checkout: Checkout, changes: tuple[str, ...], loaded: LoadedRecipe,
    written: Collection[str] = (),
) -> None:  # fmt: skip
    """Raise UsageError unless the checkout's commit has the files and the recipe that a bundle was made from.

    ``changes`` are the inputs that differ from the commit; ``written`` are files, from the recipe's folder, that
    promotions and settlements commit there: no bundle is made from them, so that they may differ.
    """
    again = f"mlkit run {shell_word(loaded.path)} --force package"
    if not checkout.commit:
        raise UsageError(
            f"no commit to name: {checkout.problem or f'{loaded.folder} is in no git repository'}",
            hint=checkout.hint or f"git init {shell_word(loaded.folder)}",
        )
    if changes:
        message = f"commit {checkout.commit[:12]} is not what the checkout holds: {limited(changes)}"
        raise UsageError(message, hint=f"git -C {shell_word(checkout.root)} status")
    if manifest.git_dirty:
        message = f"bundle {manifest.version} was made from changes that no commit holds: no commit can be named for it"
        raise UsageError(message, hint=again)
    if not manifest.git_tree:
        message = f"bundle {manifest.version} does not name the git tree that it was made from"
        raise UsageError(message, hint=again)
    if manifest.git_tree != checkout.tree and not _differ_in(manifest, checkout, written):
        what, hint = _difference(manifest, checkout)
        message = (
            f"bundle {manifest.version} was made from tree {manifest.git_tree[:12]} of the recipe's folder, and commit "
            f"{checkout.commit[:12]} has {checkout.tree[:12] or 'no such folder'}: {what}"
        )
        raise UsageError(message, hint=hint or f"mlkit run {shell_word(loaded.path)}")
    if manifest.recipe_digest != digest_json(loaded.composed):
        message = f"bundle {manifest.version} was made from the recipe with other overrides, or from another recipe"
        raise UsageError(message, hint=f"mlkit plan {shell_word(loaded.path)}")


def _differ_in(manifest: Manifest, checkout: Checkout, written: Collection[str]) -> bool:
    """Whether git knows that the bundle's tree and the commit's differ in these files only."""
    if not checkout.tree or not written:
        return False
    answer = _tree_difference(manifest, checkout)
    return answer.ok and set(answer.text.split("\0")[1::2]) <= set(written)


def _tree_difference(manifest: Manifest, checkout: Checkout) -> GitAnswer:
    trees = (manifest.git_tree, checkout.tree)
    options = ("-r", "-z", "--no-renames", "--name-status")
    return ask_git(Path(checkout.root), "diff-tree", *options, "--end-of-options", *trees)


def _difference(manifest: Manifest, checkout: Checkout) -> tuple[str, str]:
    """What differs between the bundle's tree and the commit's; and a command, where git lacks the bundle's."""
    root = Path(checkout.root)
    if not checkout.tree:
        return "there is nothing to compare", ""
    answer = _tree_difference(manifest, checkout)
    if answer.ok:
        return limited(list(_changed_files(answer.text))), ""
    shallow = ask_git(root, "rev-parse", "--is-shallow-repository").text.strip() == "true"
    what = "a shallow clone" if shallow else "this clone"
    fetch = "--unshallow" if shallow else f"origin {manifest.git_commit}"
    return f"{what} does not have the first, to say what differs", f"git -C {shell_word(root)} fetch {fetch}"


def _changed_files(text: str) -> Iterator[str]:
    """The files of ``git diff-tree -z --name-status``.

    >>> list(_changed_files("M\\0a.yaml\\0A\\0code.py\\0"))
    ['a.yaml (modified)', 'code.py (added)']
    """
    fields = text.split("\0")
    for code, path in zip(fields[::2], fields[1::2], strict=False):
        yield f"{path} ({WORDS.get(code, 'changed')})"


def rebind_folder(source: Path, target: Path, commit: str) -> Bundle:
    """A copy of a bundle whose manifest and blessing name ``commit``; it appears whole or not at all.

    Raises UsageError where the target exists.
    """
    if os.path.lexists(target):
        raise UsageError(f"{target} exists", hint="--out names a new folder")
    make_folder(target.parent)
    staging = target.parent / f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        with disk_errors(staging):
            opened = open_bundle(source, blessed=True)
            own = (MANIFEST, BLESSING, *([WITHHELD] if opened.withheld else []))
            for name in (*filter(opened.has, opened.manifest.files), *own):
                make_folder((staging / name).parent)  # not copytree: the store's folders may not be written
                shutil.copyfile(source / name, staging / name)
            rebind(staging, git_commit=commit)
            staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return open_bundle(target, blessed=True)


def reused_plan(loaded: LoadedRecipe, ports: RunPorts) -> ExecutionPlan:
    """The plan up to the bundle, of which everything is reused. Raises UsageError where a run would make another."""
    plan = preview(loaded, ports, until="package")
    stale = [step for step in plan.steps if step.action == "run"]
    if stale:
        message = f"a run would not reuse {join_words([step.stage for step in stale])} ({stale[0].reason})"
        raise UsageError(f"{message}: there is no bundle to rebind", hint=f"mlkit run {shell_word(loaded.path)}")
    return plan


def rebind_result(
    loaded: LoadedRecipe, state: Path, ports: RunPorts, earlier: StepResult, tree: str, reporter: Reporter,
    progress: RunProgress,
) -> RunRecord:  # fmt: skip
    """Replace the package step's result by one that names the checkout's commit; the other steps are reused.

    ``tree`` is that of the checkout which `require_same_source` compared.
    """
    source = ports.objects.path(earlier.published.digest) / "bundle"

    def package(spec: Section, context: StageContext) -> StageResult:
        if context.lineage.git_dirty or context.lineage.git_tree != tree:
            raise UsageError("the checkout changed meanwhile", hint=f"mlkit run {shell_word(loaded.path)}")
        rebind_folder(source, context.out / "bundle", context.lineage.git_commit)
        return earlier.result

    record = execute(
        loaded, state, ports, progress, until="package", force=("package",), stages={"package": package},
        reporter=reporter,
    )  # fmt: skip
    for receipt in (state / "receipts").glob("*.json"):  # they answer for the result that was replaced
        receipt.unlink(missing_ok=True)
    return record
