"""MLflow behind the Tracker port: runs and blessed bundles mirrored into a tracking server and model registry.

Embedded, the server is one SQLite file in the state folder; with a URI (or MLFLOW_TRACKING_URI) it is what answers
there. Importing MLflow takes seconds and 230 MB, so a child process does it (mlflowkit.adapters.mlflow_worker):
`MlflowTracker.prewarm` starts it while a run has better things to do, and each call waits for the child's answer. A
call that returned is done; one that raised is safe to repeat.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflowkit.bundle import open_bundle
from mlflowkit.errors import EngineError
from mlflowkit.values import Json, Outcome, RunRecord

TIMEOUT_SECONDS = 120.0
"""How long one call may take, the import of MLflow and the first migration of its database included."""
PARAM_LENGTH, TAG_LENGTH = 6000, 5000
"""Longer values are cut, as MLflow would refuse them."""

STATUS: Mapping[str, str] = {
    "running": "RUNNING",
    "done": "FINISHED",
    "failed": "FAILED",
    "gate-failed": "FINISHED",
    "inconclusive": "FINISHED",
    "interrupted": "KILLED",
}
"""MLflow's word for each status of a run. A run whose gates refused did its work: the tag ``status`` tells it apart."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What MLflow keeps of a run. Times are milliseconds since the epoch."""

    run: str
    name: str
    status: str
    started: int
    finished: int | None
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    data_version: str


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """What the registry keeps of a bundle."""

    name: str
    alias: str
    source: str
    tags: Mapping[str, str]
    run: RunFacts


def facts_of(record: RunRecord) -> RunFacts:
    """What MLflow keeps of a run: parameters from the recipe, metrics of its steps, tags for where it came from.

    Metrics of the evaluate stage keep their names; those of other stages are ``stage/metric``.
    """
    metrics: dict[str, float] = {}
    outcomes: dict[str, int] = {}
    for step in record.steps:
        if step.result is None:
            continue
        prefix = "" if step.stage == "evaluate" else f"{step.stage}/"
        metrics |= {f"{prefix}{name}": float(value) for name, value in step.result.metrics.items()}
        metrics[f"seconds/{step.stage}"] = step.seconds
        for verdict in step.result.verdicts:
            outcomes[verdict.outcome] = outcomes.get(verdict.outcome, 0) + 1
    lineage = record.lineage
    tags = {
        "mlkit.run": record.run,
        "mlflow.runName": record.run,
        "mlflow.source.name": record.recipe_path,
        "mlflow.source.git.commit": lineage.git_commit,
        "git_commit": lineage.git_commit,
        "git_dirty": str(lineage.git_dirty).lower(),
        "data_version": lineage.data_version,
        "recipe_digest": lineage.recipe_digest,
        "overrides": " ".join(record.overrides),
        "status": record.status,
        "bundle": record.bundle,
        "blessed": str(record.blessed).lower(),
        "gates": ", ".join(f"{outcomes[each]} {each}" for each in Outcome if each in outcomes),
        "error": record.error,
    }
    return RunFacts(
        run=record.run,
        name=record.name,
        status=STATUS[record.status],
        started=round(record.started * 1000),
        finished=None if record.finished is None else round(record.finished * 1000),
        params=dict(_flattened(record.recipe)),
        metrics=metrics,
        tags={name: value[:TAG_LENGTH] for name, value in tags.items() if value},
        data_version=lineage.data_version,
    )


def _flattened(value: Json, path: str = "") -> list[tuple[str, str]]:
    """A recipe as parameters: ``train.optimizer.lr`` -> ``0.001``. Nulls and what is empty are left out.

    >>> _flattened({"train": {"epochs": 3, "tune": None}, "gates": [{"metric": "roc_auc"}]})
    [('train.epochs', '3'), ('gates.0.metric', 'roc_auc')]
    """
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _flattened(item, f"{path}.{key}" if path else key)]
    if isinstance(value, list | tuple):
        return [pair for index, item in enumerate(value) for pair in _flattened(item, f"{path}.{index}")]
    if value is None:
        return []
    text = value if isinstance(value, str) else json.dumps(value)
    return [(_key(path), text[:PARAM_LENGTH])]


def _key(path: str) -> str:
    """MLflow takes letters, digits and ``_-. /:`` in a name, 250 at most."""
    return "".join(letter if letter.isalnum() or letter in "_-. /:" else "_" for letter in path)[:250]


class MlflowTracker:
    """The Tracker port over MLflow. ``uri`` wins over MLFLOW_TRACKING_URI; without both, SQLite in ``state``."""

    def __init__(self, state: Path, uri: str = "") -> None:
        self.state = state
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        self._worker: _Worker | None = None
        self._lock = threading.Lock()

    def prewarm(self) -> None:
        """Start the child, which imports MLflow and opens its database; returns at once. Needless, and cheap."""
        with self._lock:
            self._started()

    def record(self, run: RunRecord) -> None:
        """Parameters, metrics and tags of a run, its data version as a dataset input. A run is kept once, by its id.

        Raises EngineError when MLflow refuses or does not answer.
        """
        self._ask("record", asdict(facts_of(run)))

    def register(self, name: str, bundle: Path, run: RunRecord, alias: str) -> str:
        """Register a blessed bundle and point ``alias`` at it; returns the registry's version.

        One identity digest is one version, however often it is registered. Raises BundleError for a bundle that does
        not verify or is not blessed, EngineError when MLflow refuses or does not answer.
        """
        opened = open_bundle(bundle, blessed=True)
        manifest = opened.manifest
        tags = {
            "identity": manifest.identity,
            "evidence": manifest.evidence,
            "version": manifest.version,
            "git_commit": manifest.git_commit,
            "git_dirty": str(manifest.git_dirty).lower(),
            "data_version": manifest.data_version,
            "recipe_digest": manifest.recipe_digest,
            "policy": manifest.policy,
            "run": run.run,
        }
        tags = {key: value for key, value in tags.items() if value}
        facts = VersionFacts(name, alias, str(bundle.resolve()), tags, facts_of(run))
        return str(self._ask("register", asdict(facts)))

    def close(self) -> None:
        """End the child. A later call starts another."""
        with self._lock:
            if self._worker is not None:
                self._worker.end()
                self._worker = None

    def _started(self) -> _Worker:
        if self._worker is None or not self._worker.alive:
            self._worker = _Worker(self.state, self.uri)
        return self._worker

    def _ask(self, verb: str, facts: Mapping[str, Any]) -> Json:
        with self._lock:
            worker = self._started()
            try:
                return worker.ask(verb, facts)
            except EngineError:
                if not worker.alive:
                    self._worker = None
                raise


class _Worker:
    """The child, spoken to in lines of JSON. It ends when this process does: its standard input closes."""

    def __init__(self, state: Path, uri: str) -> None:
        self.log = state / "logs" / "mlflow.log"
        command = [sys.executable, "-P", "-m", "mlflowkit.adapters.mlflow_worker", str(state)]
        environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}  # not an argument: it may hold a password
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            raise EngineError(f"the MLflow process cannot be started: {error}", hint="is the disk full?") from error
        self._pending = b""

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, verb: str, facts: Mapping[str, Any]) -> Json:
        """Send a job and wait for its answer. Raises EngineError for a refusal, silence or death."""
        stdin = self._process.stdin
        if stdin is None:
            raise EngineError("the MLflow process has no standard input", hint=self._hint)
        try:
            stdin.write(json.dumps({"verb": verb, "facts": facts}).encode() + b"\n")
            stdin.flush()
        except OSError as error:
            self.end()
            raise EngineError(f"the MLflow process ended: {self._last_words()}", hint=self._hint) from error
        answer = self._line(time.monotonic() + TIMEOUT_SECONDS)
        if "error" in answer:
            raise EngineError(f"MLflow: {answer['error']}", hint=answer.get("hint") or self._hint)
        return answer["value"]

    def _line(self, deadline: float) -> dict[str, Any]:
        stdout = self._process.stdout
        if stdout is None:
            raise EngineError("the MLflow process has no standard output", hint=self._hint)
        while b"\n" not in self._pending:
            ready, _, _ = select.select([stdout], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                self.end()
                raise EngineError(f"MLflow did not answer within {TIMEOUT_SECONDS:g} s", hint=self._hint)
            content = os.read(stdout.fileno(), 65536)
            if not content:
                self.end()
                raise EngineError(f"the MLflow process ended: {self._last_words()}", hint=self._hint)
            self._pending += content
        line, self._pending = self._pending.split(b"\n", 1)
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        """End the child: by closing its input, and if it does not heed that, by force."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what was not written is lost with the child, and its caller is told
                    continue
        try:
            self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def _hint(self) -> str:
        return f"its log is {self.log}; the results are safe, run the same command again to tell MLflow"

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1] if lines else f"exit code {self._process.poll()}"
