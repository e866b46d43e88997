"""Generated workflows run by act on this machine, with stubs in place of actions that need GitHub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mlflowkit.delivery.pins import action
from tests.support.tools import require_tool

RUNNER = "ubuntu-24.04=-self-hosted"
STUBS = {
    "actions/setup-python": ("", "true"),
    "actions/create-github-app-token": ("", "echo token=stub >> \"$GITHUB_OUTPUT\""),
    "actions/upload-artifact": ("upload", 'mkdir -p "$ARTIFACTS/$NAME"; cp -r $FILES "$ARTIFACTS/$NAME/" || true'),
    "actions/download-artifact": ("download", """mkdir -p "$FILES"
for part in "$ARTIFACTS/$NAME"/*; do if [ -d "$part" ]; then part="$part/."; fi; cp -r "$part" "$FILES"/; done"""),
    "actions/cache": ("", "true"),
}  # fmt: skip
CANARIES = {
    name: f"canary-{index:02}-{'k' * 24}"
    for index, name in enumerate(
        ("GITHUB_TOKEN", "MLKIT_API_KEY", "MLKIT_APP_PRIVATE_KEY", "DB_URL", "REGISTRY_TOKEN", "MLKIT_GIT_TOKEN",
         "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD",
         "SLACK_WEBHOOK")
    )
}  # fmt: skip
"""Values of secrets that a pipeline's jobs may have; none may leave them."""


def _stub(folder: Path, script: str) -> None:
    """A composite action that runs a script with its inputs name and path."""
    inputs = ("name", "path", "python-version", "key", "restore-keys", "if-no-files-found", "retention-days", "run-id",
              "github-token", "client-id", "private-key", "owner", "repositories", "permission-contents")  # fmt: skip
    step = {
        "shell": "bash",
        "env": {"NAME": "${{ inputs.name }}", "FILES": "${{ inputs.path }}"},
        "run": script,
    }
    value: dict[str, Any] = {
        "name": "stub",
        "inputs": {name: {"required": False, "default": ""} for name in inputs},
        "runs": {"using": "composite", "steps": [step]},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "action.yml").write_text(json.dumps(value))


class ActWorld:
    """A checkout whose workflows act runs. ``folder`` holds stubs, artifacts and events."""

    def __init__(self, folder: Path, checkout: Path) -> None:
        self.act = require_tool("act")
        self.folder, self.checkout = folder, checkout
        self.artifacts = folder / "artifacts"
        self.artifacts.mkdir(parents=True)
        for name, (_, script) in STUBS.items():
            _stub(folder / "stubs" / name.partition("/")[2], script)
        for part in ("restore", "save"):
            _stub(folder / "stubs" / "cache" / part, "true")

    def alone(self, workflow: str, job: str) -> str:
        """A workflow with one job of another, as that stands there but for what it waits for, and without the
        installation of packages: those of the test's own environment are used. Returns its path."""
        document = yaml.safe_load((self.checkout / workflow).read_text())
        body = {key: value for key, value in document["jobs"][job].items() if key not in ("needs", "if")}
        body["steps"] = [step for step in body["steps"] if step.get("name") != "Install"]
        path = self.folder / f"{job}.yml"
        path.write_text(json.dumps({"on": "push", "defaults": document["defaults"], "jobs": {job: body}}))
        return str(path)

    def run(
        self, workflow: str, event: str, *, job: str = "", payload: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None, secrets: Mapping[str, str] | None = None, timeout: float = 600,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a workflow (or one job and what it needs) for an event. No secret is hidden in the log."""
        file = self.folder / "event.json"
        file.write_text(json.dumps(payload or {}))
        command = [self.act, event, "-W", workflow, "-P", RUNNER, "-e", str(file), "--pull=false", "--insecure-secrets"]
        command += ["-j", job] if job else []
        for name in STUBS:
            pin = action(name)
            command += ["--local-repository", f"{name}@{pin.sha}={self.folder / 'stubs' / name.partition('/')[2]}"]
        for key, value in {"ARTIFACTS": str(self.artifacts), **(env or {})}.items():
            command += ["--env", f"{key}={value}"]
        command += [word for key, value in (secrets or {}).items() for word in ("--secret", f"{key}={value}")]
        binaries = str(Path(sys.executable).parent)
        environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "HOME": str(self.folder)}
        return subprocess.run(
            command, cwd=self.checkout, capture_output=True, text=True, timeout=timeout, check=False, env=environment
        )
