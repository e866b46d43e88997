"""The manifests of two plans, as they are shown in the documentation, and the keys that Argo CD and Flux know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mlflowkit.delivery.targets import target
from mlflowkit.testing import delivery_plans
from tests.support.cluster_manifests import cluster_plan

FOLDER = Path(__file__).parent / "manifests"
GITOPS = {"repo": "git@github.com:acme/env.git", "path": "deploy/overlays/prod"}
PLANS = {
    "kubernetes": cluster_plan(),
    "kuberay": delivery_plans()["cluster"],
    "argocd": cluster_plan(environments={"prod": GITOPS}),
    "flux": cluster_plan(environments={"prod": GITOPS}),
}
KEYS = {
    "Application": {
        "project": None,
        "source": {"repoURL": None, "targetRevision": None, "path": None},
        "destination": {"server": None, "name": None, "namespace": None},
        "syncPolicy": {
            "automated": {"prune": None, "selfHeal": None},
            "syncOptions": None,
            "retry": {
                "limit": None,
                "refresh": None,
                "backoff": {"duration": None, "factor": None, "maxDuration": None},
            },
        },
        "ignoreDifferences": {"group": None, "kind": None, "jqPathExpressions": None},
    },
    "AppProject": {
        "sourceRepos": None,
        "destinations": {"server": None, "name": None, "namespace": None},
        "clusterResourceWhitelist": {"group": None, "kind": None},
    },
    "GitRepository": {
        "interval": None,
        "timeout": None,
        "url": None,
        "ref": {"branch": None},
        "secretRef": {"name": None},
    },
    "Kustomization": {
        "interval": None,
        "retryInterval": None,
        "timeout": None,
        "prune": None,
        "wait": None,
        "path": None,
        "sourceRef": {"kind": None, "name": None},
        "healthChecks": {"apiVersion": None, "kind": None, "name": None, "namespace": None},
        "healthCheckExprs": {"apiVersion": None, "kind": None, "current": None, "inProgress": None},
    },
}
"""The published keys of each resource's spec that we write; the packages of their schemas let unknown keys pass."""


@pytest.mark.parametrize("name", sorted(PLANS))
def test_manifests_are_those_of_the_golden_files(name: str, request: pytest.FixtureRequest) -> None:
    files = target("kubernetes" if name == "kuberay" else name).render(PLANS[name])
    folder = FOLDER / name
    if request.config.getoption("--update-golden"):
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
    golden = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.yaml")}
    assert golden == dict(files)


def _unknown(value: Any, keys: Any) -> list[str]:
    if isinstance(value, list):
        return [key for item in value for key in _unknown(item, keys)]
    if not isinstance(value, dict):
        return []
    own = [key for key in value if key not in (keys or {})]
    return own + [key for name in value if name not in own for key in _unknown(value[name], keys[name])]


@pytest.mark.parametrize("name", ["argocd", "flux"])
@pytest.mark.parametrize("workload", ["deployment", "rayservice"])
def test_resources_have_no_unknown_key(name: str, workload: str) -> None:
    plan = cluster_plan(environments={"prod": GITOPS}, kubernetes={"workload": workload})
    objects = [item for text in target(name).render(plan).values() for item in yaml.safe_load_all(text)]
    for item in objects:
        assert _unknown(item["spec"], KEYS[item["kind"]]) == []
        assert "image" not in item["kind"].lower()
    objects[0]["spec"]["sourceRef2"] = {}
    assert _unknown(objects[0]["spec"], KEYS[objects[0]["kind"]]) == ["sourceRef2"]


@pytest.mark.parametrize("name", ["argocd", "flux"])
@pytest.mark.parametrize("repo", [None, "https://user:secret@host/a.git", "file:///x", "host\n/a", "--upload-pack=x"])
def test_a_repository_that_cannot_be_read_is_a_fault(name: str, repo: str | None) -> None:
    plan = cluster_plan(environments={"prod": {"repo": repo}})
    (fault,) = target(name).unsupported(plan)
    assert fault.key == ("environments", "prod", "repo")
    assert "secret" not in fault.message


def test_flux_deploys_to_its_own_cluster() -> None:
    plan = cluster_plan(environments={"prod": {**GITOPS, "cluster": "https://10.0.0.1"}})
    assert [item.key for item in target("flux").unsupported(plan)] == [("environments", "prod", "cluster")]
    assert list(target("argocd").unsupported(plan)) == []
