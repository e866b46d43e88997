"""Argo CD's and Flux's own types accept what is rendered, by the npm packages of their published schemas."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlflowkit.delivery.targets import target
from tests.support.cluster_manifests import cluster_plan
from tests.support.tools import CHECKOUT, require_tool

pytestmark = pytest.mark.delivery
PROGRAM = """
const at = {argoproj: "@kubernetes-models/argo-cd/", toolkit: "@kubernetes-models/flux-cd/"};
const {createRequire} = require("module");
const load = createRequire(process.argv[1] + "/");
for (const value of JSON.parse(require("fs").readFileSync(0, "utf8"))) {
  const folder = value.apiVersion.startsWith("argoproj") ? at.argoproj : at.toolkit;
  new (load(folder + value.apiVersion)[value.kind])(value).validate();
}
"""


def _packages() -> Path:
    """The folder of npm packages; skips the test where it is absent."""
    for folder in (os.environ.get("MLKIT_TOOLS", ""), str(CHECKOUT / ".tools")):
        if folder and all(
            (Path(folder) / "node_modules/@kubernetes-models" / name).is_dir() for name in ("argo-cd", "flux-cd")
        ):
            return Path(folder)
    pytest.skip("@kubernetes-models is not installed: npm install --prefix .tools @kubernetes-models/{argo-cd,flux-cd}")


def _validate(objects: list[Any], packages: Path) -> subprocess.CompletedProcess[str]:
    command = [require_tool("node"), "-e", PROGRAM, str(packages)]
    return subprocess.run(command, input=json.dumps(objects), capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("workload", ["deployment", "rayservice"])
@pytest.mark.parametrize("name", ["argocd", "flux"])
def test_published_types_accept_the_resources(name: str, workload: str) -> None:
    packages = _packages()
    plan = cluster_plan(
        environments={"prod": {"repo": "git@github.com:acme/env.git"}}, kubernetes={"workload": workload}
    )
    objects = [item for text in target(name).render(plan).values() for item in yaml.safe_load_all(text)]
    process = _validate(objects, packages)
    assert process.returncode == 0, process.stderr
    mutant = next(item for item in objects if item["kind"] in ("Application", "Kustomization"))
    mutant["spec"].pop("project" if name == "argocd" else "sourceRef")
    assert _validate(objects, packages).returncode != 0
