"""What a run writes back to the store that its data came from: which files, under which names, with which facts.

Every result has a branch and a folder of its own, both named by the fingerprint of its evaluation, which follows from
data, code and recipe. So two runs never write the same object, and merging one cannot conflict with another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from mlflowkit.errors import DeliveryRefusedError
from mlflowkit.ports import FinishedRun
from mlflowkit.sections import Section
from mlflowkit.values import RunRecord

Part = Literal["split", "profile", "checks", "predictions"]
PARTS: Mapping[Part, tuple[str, tuple[str, ...]]] = {
    "split": ("data", ("train.parquet", "validation.parquet", "test.parquet", "split.npy", "table.json")),
    "profile": ("validate", ("reference.json", "reference.whylogs", "schema.json")),
    "checks": ("validate", ("checks.json",)),
    "predictions": ("evaluate", ("predictions.parquet",)),
}
"""The stage that publishes each part, and its files. A file that a stage did not publish (an empty split) is left out.
"""
SHOWN = 12
"""Digits of a fingerprint in names."""


class WriteBackSection(Section):
    """Results that are committed to the store that the data came from, on a branch of their own."""

    to: str = Field(default="main", pattern=r"^\w[-\w]*$", max_length=100)
    """The branch into which a blessed result is merged."""
    path: str = Field(min_length=1, max_length=200)
    """The folder of the results in the repository, such as _mlkit/lending/. It lies outside of what the source reads;
    each result has a folder of its own below it."""
    what: list[Part] = Field(default_factory=lambda: list(PARTS), min_length=1)
    """What is written: the rows of each part of the split, the profile of the training rows, the results of the data
    checks, the predictions for the test rows."""
    merge: Literal["blessed", "never"] = "blessed"
    """Whether the branch of a blessed result is merged. That of any other stays as it is."""

    @field_validator("path")
    @classmethod
    def _is_a_folder(cls, value: str) -> str:
        parts = value.removesuffix("/").split("/")
        if not value.endswith("/") or {"", ".", ".."} & set(parts) or re.search(r"[*?\[\]\\\x00-\x1f]", value):
            raise ValueError("expected a folder of the repository, such as _mlkit/lending/")
        return value


def evaluation_fingerprint(run: RunRecord) -> str:
    """The fingerprint of a run's evaluation; "" for a run without one."""
    done = (step for step in run.steps if step.stage == "evaluate" and step.status == "done")
    return next((step.fingerprint for step in done), "")


def branch_name(run: RunRecord) -> str:
    """The branch of a result: ``mlkit-lending-3f2a9c41d07e``."""
    return f"mlkit-{run.name}-{evaluation_fingerprint(run)[:SHOWN]}"


def overlaps(source_prefix: str, path: str) -> bool:
    """Whether what a source may read and a folder of results have names in common.

    >>> overlaps("loans/", "_mlkit/loans/"), overlaps("", "_mlkit/"), overlaps("_mlkit/a", "_mlkit/")
    (False, True, True)
    """
    return path.startswith(source_prefix) or source_prefix.startswith(path)


def written_files(section: WriteBackSection, run: FinishedRun) -> dict[str, Path]:
    """The files to write, by their paths in the repository.

    Raises DeliveryRefusedError where the state folder has lost a part: what is left of a result is not all of it.
    """
    folder = f"{section.path}{evaluation_fingerprint(run.record)[:SHOWN]}"
    files: dict[str, Path] = {}
    for part in section.what:
        stage, names = PARTS[part]
        if stage not in run.folders or not run.folders[stage].is_dir():
            message = f"what {stage} made for run {run.record.run} is not in the state folder any more"
            hint = f"mlkit run RECIPE --force {stage} makes it again, then: mlkit deliveries --retry"
            raise DeliveryRefusedError(message, hint=hint)
        paths = {name: run.folders[stage] / name for name in names}
        files |= {f"{folder}/{part}/{name}": path for name, path in paths.items() if path.is_file()}
    return files


def commit_metadata(run: RunRecord, version: str) -> dict[str, str]:
    """What the commit says of its run: texts only, without those that are empty. ``version`` is mlflowkit's."""
    lineage = run.lineage
    facts = {
        "mlkit.run": run.run,
        "mlkit.fingerprint": evaluation_fingerprint(run),
        "mlkit.version": version,
        "git_commit": lineage.git_commit,
        "git_dirty": str(lineage.git_dirty).lower(),
        "recipe_digest": lineage.recipe_digest,
        "data_commit": lineage.data_commit,
        "data_version": lineage.data_version,
    }
    return {name: value for name, value in facts.items() if value}


def merge_metadata(run: FinishedRun) -> dict[str, str]:
    """What the merge says: the blessed bundle, and the policy that it passed."""
    record = run.record
    blessing = json.loads((run.folders["package"] / "bundle" / "blessing.json").read_bytes())
    facts = {
        "mlkit.run": record.run,
        "mlkit.fingerprint": evaluation_fingerprint(record),
        "mlkit.bundle": record.bundle,
        "mlkit.verdict": "PASSED",
        "mlkit.policy": str(blessing.get("policy", "")),
    }
    return {name: value for name, value in facts.items() if value}
