"""What no linter says of a GitHub workflow: jobs without a limit, caches that a pull request could poison, actions that
are not those pinned here. Pure; `mlkit export` never writes such a file, and a hand-made change of one is found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from mlflowkit.delivery import pins

RELEASING = ("packages", "id-token", "attestations")
"""Scopes whose write access makes a job one that releases: it restores no cache."""
PULL_REQUEST_TEXTS = ("github.head_ref", "github.event.pull_request", "github.event.number", "github.ref")
"""What a pull request chooses: no part of a cache's key."""


def workflow_faults(text: str) -> Iterator[str]:
    """The faults of a workflow, each a sentence. Raises ValueError when it is no workflow."""
    value = yaml.safe_load(text)
    if not isinstance(value, dict) or not isinstance(value.get("jobs"), dict):
        raise ValueError("a workflow has jobs")
    if value.get("permissions") != {}:
        yield "the workflow grants permissions to every job: write permissions: {} at the top"
    for name, job in value["jobs"].items():
        if "timeout-minutes" not in job:
            yield f"job {name} has no timeout-minutes: GitHub ends it after 6 hours"
        if not isinstance(job.get("permissions"), dict):
            yield f"job {name} does not list its permissions"
        for step in job.get("steps", ()):
            yield from _step_faults(name, job, step)


def _step_faults(name: str, job: Mapping[str, Any], step: Mapping[str, Any]) -> Iterator[str]:
    uses = str(step.get("uses", ""))
    if not uses:
        return
    action, _, sha = uses.partition("@")
    known = {pin.name: pin.sha for pin in pins.actions()}
    repository = "/".join(action.split("/")[:2])
    if known.get(repository) != sha:
        yield f"job {name} uses {uses}, which is none of the pinned actions"
    if repository == "actions/checkout" and step.get("with", {}).get("persist-credentials") is not False:
        yield f"job {name} leaves the token in the checkout: write persist-credentials: false"
    if repository == "actions/cache":
        yield from _cache_faults(name, job, step, action)


def _cache_faults(name: str, job: Mapping[str, Any], step: Mapping[str, Any], action: str) -> Iterator[str]:
    rights = job.get("permissions")
    if isinstance(rights, dict) and any(rights.get(scope) == "write" for scope in RELEASING):
        yield f"job {name} releases, and takes files from a cache"
    keys = "\n".join(str(step.get("with", {}).get(key, "")) for key in ("key", "restore-keys"))
    for text in PULL_REQUEST_TEXTS:
        if text in keys:
            yield f"job {name} has {text} in the key of a cache: a pull request chooses it"
    if action == "actions/cache" or (action.endswith("/save") and "pull_request" not in _saves_never(step)):
        yield f"job {name} saves a cache on pull requests: restore there, and save on pushes only"


def _saves_never(step: Mapping[str, Any]) -> str:
    """The events on which a step does not run, by its condition."""
    return "pull_request" if str(step.get("if", "")) == "github.event_name == 'push'" else ""
