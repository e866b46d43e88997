"""GitOps without a cluster: environments in a bare repository, a syncer as kubelet's, a registry, and a gateway that
follows its delivery.yaml in the foreground.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from mlflowkit.bundle import Bundle
from mlflowkit.ci.environments.environment_file import PromotionResult, environment_file
from mlflowkit.ci.environments.environment_promotion import promote
from mlflowkit.ci.environments.environment_settlement import gateway_reader, settle
from mlflowkit.delivery.gitops.desired_delivery import DesiredDelivery, parse_delivery
from mlflowkit.delivery.image.bundle_artifact import push_bundle
from tests.support.export_project import make_project
from tests.support.waiting import wait_for

PATH = "deploy/overlays/staging/delivery.yaml"
ROW = {"age": 30.0, "income": 30_000.0, "debt": 100.0, "term": "36 months", "purpose": "car"}


class MountedFile:
    """A delivery.yaml in a folder that is mounted as kubelet mounts a ConfigMap."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.file = folder, folder / "delivery.yaml"
        self._versions = 0

    def replace(self, content: str | None) -> None:
        """Mount another content (None: no file): a new folder, and a link that changes in one step."""
        self._versions += 1
        fresh = self.folder / f"..{self._versions}"
        fresh.mkdir()
        if content is not None:
            (fresh / self.file.name).write_text(content)
        link = self.folder / "..next"
        link.symlink_to(fresh.name)
        link.replace(self.folder / "..data")
        if not self.file.is_symlink():
            self.file.symlink_to(f"..data/{self.file.name}")


class GitopsWorld:
    """A recipe, its environment ``staging`` in a bare repository, and the folder that a gateway has mounted."""

    def __init__(self, folder: Path, registry: str, rollout: str) -> None:
        self.folder, self.registry = folder, registry
        self.remote, self.mounted = folder / "environments.git", MountedFile(folder / "mounted")
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(self.remote)], check=True)
        self.recipe = make_project(folder / "project", f"environments:\n  staging: {{repo: {self.remote}}}")
        text = self.recipe.read_text().replace("ghcr.io/acme/lending", f"{registry}/acme/lending")
        self.recipe.write_text(text.replace("{service: lending}", f"{{service: lending, rollout: {rollout}}}"))
        self.policy = environment_file(self.recipe, "staging").policy

    def judged(self, bundle: Bundle, name: str) -> Path:
        """The report of a judgement that passed, with its bundle beside it and in the registry."""
        out = self.folder / f"out-{name}"
        out.mkdir()
        (out / "bundle").symlink_to(bundle.path)
        push_bundle(bundle.path, f"{self.registry}/acme/lending-bundle")
        report = {
            "schema": 1, "recipe": "lending", "path": "recipe.yaml", "status": "done", "exit_code": 0,
            "identity": bundle.manifest.identity, "run": f"run-{name}",
        }  # fmt: skip
        (out / "report.json").write_text(json.dumps(report))
        return out / "report.json"

    def promote(self, report: Path) -> PromotionResult:
        return promote(self.recipe, "staging", report)

    def settle(self, url: str, seconds: float = 0.0) -> PromotionResult:
        return settle(self.recipe, "staging", gateway_reader(url, "lending"), seconds=seconds, poll=0.2)

    def git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.remote), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def desired(self, commit: str = "main") -> DesiredDelivery:
        return parse_delivery(self.git("show", f"{commit}:{PATH}"))

    def head(self) -> str:
        return self.git("rev-parse", "main").strip()

    def revert(self, commit: str) -> None:
        """`git revert` by a person, in a clone of their own."""
        clone = self.folder / f"clone-{commit[:8]}"
        subprocess.run(["git", "clone", "-q", str(self.remote), str(clone)], check=True)
        own = ["git", "-C", str(clone), "-c", "user.name=x", "-c", "user.email=x@y"]
        subprocess.run([*own, "revert", "--no-edit", commit], check=True, capture_output=True)
        subprocess.run([*own, "push", "-q", "origin", "HEAD:main"], check=True)

    def sync(self, commit: str = "main") -> None:
        """Mount the file of a commit."""
        self.mount(self.git("show", f"{commit}:{PATH}"))

    def mount(self, content: str | None) -> None:
        self.mounted.replace(content)


class FollowingGateway:
    """`mlkit serve --delivery` in a process of its own."""

    def __init__(self, file: Path, port: int, state: Path) -> None:
        self.url, self.state, self.log = f"http://127.0.0.1:{port}", state, state.with_name(f"{state.name}.log")
        command = [sys.executable, "-m", "mlflowkit.cli", "serve", "--delivery", str(file), "--port", str(port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--drain", "1", "--state", str(state)],
                stdout=log, stderr=log, start_new_session=True, env=dict(os.environ),
            )  # fmt: skip

    def wait_ready(self) -> None:
        wait_for(lambda: self.answers() or self.process.poll() is not None, 240, "mlkit serve", poll=0.2)
        assert self.process.poll() is None, self.log.read_text()

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ping", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def record(self) -> dict[str, Any]:
        """What `GET /v2/delivery` says; {} while there is nothing."""
        reply = httpx.get(f"{self.url}/v2/delivery", timeout=10)
        value: dict[str, Any] = reply.json() if reply.status_code == 200 else {}
        return value

    def wait_record(self, what: str, seconds: float = 240.0, **expected: Any) -> dict[str, Any]:
        """Wait until the record, or what is served in it, has some values; a callable judges its value."""

        def reached() -> dict[str, Any] | None:
            record = self.record()
            values: Mapping[str, Any] = {**record.get("served", {}), **record}
            good = all(
                test(values.get(name)) if callable(test) else values.get(name) == test
                for name, test in expected.items()
            )
            return record if good else None

        try:
            found: dict[str, Any] = wait_for(reached, seconds, what, poll=0.2)
        except AssertionError as error:
            raise AssertionError(f"{what}: {self.record()}\n{self.log.read_text()[-6000:]}") from error
        return found

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(240)


class SteadyTraffic:
    """Two clients that send rows, one after the other, until they are stopped, and keep what failed."""

    def __init__(self, url: str, rows: Sequence[Mapping[str, Any]] = (ROW,)) -> None:
        self._url, self._rows, self.answered, self.failed = url, rows, 0, list[str]()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(2)]

    def __enter__(self) -> SteadyTraffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _send(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=20) as client:
            while not self._stop.wait(0.004):
                number += 2
                row = self._rows[number % len(self._rows)]
                try:
                    reply = client.post("/predict", json={"rows": [row]}, headers={"x-card": str(number)})
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                    continue
                if reply.status_code == 200:
                    self.answered += 1
                else:
                    self.failed.append(f"{reply.status_code} {reply.text[:300]}")
