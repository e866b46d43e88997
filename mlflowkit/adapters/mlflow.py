"""MLflow behind the Tracker port: mirrors runs and blessed bundles into a tracking server and model registry.

The default backend is one SQLite file in the state folder; a URI (or MLFLOW_TRACKING_URI) selects a server. Importing
MLflow takes seconds and 230 MB, so a child process does it (mlflowkit.adapters.mlflow_worker): `MlflowTracker.prewarm`
starts it early, and each call waits for the child's reply. A call that returned is complete; one that raised is safe to
repeat.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflowkit.bundle import open_bundle
from mlflowkit.errors import EngineError, UsageError
from mlflowkit.system.child_process import module_command, python_path
from mlflowkit.system.files import make_folder, private_opener
from mlflowkit.system.logs import rotate_log
from mlflowkit.system.text import shell_word
from mlflowkit.values import Json, Outcome, RunRecord

TIMEOUT_SECONDS = 120.0
"""Timeout of one call, including the import of MLflow and the first migration of its database."""
MAX_PARAM_LENGTH, MAX_TAG_LENGTH = 6000, 5000
"""Longer values are truncated: MLflow rejects them."""

STATUS: Mapping[str, str] = {"running": "RUNNING", "failed": "FAILED", "interrupted": "KILLED"}
"""MLflow's status for each run status; FINISHED for others. The ``status`` tag has the difference (failed gates)."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The fields of a run in MLflow. Times are milliseconds since the epoch."""

    run: str
    name: str
    status: str
    started: int
    finished: int | None
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    data_version: str


def facts_of(record: RunRecord) -> RunFacts:
    """Map a run to MLflow: parameters from the recipe, metrics of its steps, provenance as tags.

    Metrics of the evaluate stage keep their names; those of other stages become ``stage/metric``.
    """
    metrics: dict[str, float] = {}
    verdicts: dict[str, int] = {}
    for step in record.steps:
        if step.result is None:
            continue
        prefix = "" if step.stage == "evaluate" else f"{step.stage}/"
        metrics |= {f"{prefix}{name}": float(value) for name, value in step.result.metrics.items()}
        metrics[f"seconds/{step.stage}"] = step.seconds
        for verdict in step.result.verdicts:
            verdicts[verdict.outcome] = verdicts.get(verdict.outcome, 0) + 1
    lineage = record.lineage
    tags = {
        "mlkit.run": record.run,
        "mlflow.runName": record.run,
        "mlflow.source.name": record.recipe_path,
        "mlflow.source.git.commit": lineage.git_commit,
        "git_commit": lineage.git_commit,
        "git_tree": lineage.git_tree,
        "git_dirty": str(lineage.git_dirty).lower(),
        "data_version": lineage.data_version,
        "data_source": lineage.data_source,
        "data_commit": lineage.data_commit,
        "recipe_digest": lineage.recipe_digest,
        "overrides": " ".join(record.overrides),
        "status": record.status,
        "bundle": record.bundle,
        "blessed": str(record.blessed).lower(),
        "gates": ", ".join(f"{verdicts[outcome]} {outcome}" for outcome in Outcome if outcome in verdicts),
        "error": record.error,
    }
    return RunFacts(
        run=record.run,
        name=record.name,
        status=STATUS.get(record.status, "FINISHED"),
        started=round(record.started * 1000),
        finished=None if record.finished is None else round(record.finished * 1000),
        params=dict(_flatten(record.recipe)),
        metrics=metrics,
        tags={name: value[:MAX_TAG_LENGTH] for name, value in tags.items() if value},
        data_version=lineage.data_version,
    )


def _flatten(value: Json, path: str = "") -> list[tuple[str, str]]:
    """A recipe as parameters: ``train.optimizer.lr`` -> ``0.001``. Omits nulls and empty containers.

    >>> _flatten({"train": {"epochs": 3, "tune": None}, "gates": [{"metric": "roc_auc"}]})
    [('train.epochs', '3'), ('gates.0.metric', 'roc_auc')]
    """
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _flatten(item, f"{path}.{key}" if path else key)]
    if isinstance(value, list | tuple):
        return [pair for index, item in enumerate(value) for pair in _flatten(item, f"{path}.{index}")]
    if value is None:
        return []
    text = value if isinstance(value, str) else json.dumps(value)
    name = "".join(letter if letter.isalnum() or letter in "_-. /:" else "_" for letter in path)  # MLflow's letters
    return [(name[:250], text[:MAX_PARAM_LENGTH])]


class MlflowTracker:
    """The Tracker port over MLflow. ``uri`` overrides MLFLOW_TRACKING_URI; without both, SQLite in ``state``."""

    def __init__(self, state: Path, uri: str = "") -> None:
        self.state, self.uri = state, uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        self._worker: _MlflowProcess | None = None
        self._lock = threading.Lock()

    def prewarm(self) -> None:
        """Optionally start the child early, where a run will wait for it; returns at once while it imports MLflow."""
        if self.uri:
            with self._lock:
                self._start()

    def defer(self) -> bool:
        """With the database of the state folder, record in a process that outlives this one and ends when done."""
        if self.uri:
            return False
        log = self.state / "logs" / "mlflow.log"
        try:
            make_folder(log.parent)
            with open(log, "ab", opener=private_opener) as stream:
                subprocess.Popen(
                    module_command("mlflowkit.processes.tracker_main", str(self.state.resolve())),
                    stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True, cwd="/",
                    env={**os.environ, **python_path()},
                )  # fmt: skip
        except OSError:  # the caller records, and says what is wrong
            return False
        return True

    def record(self, run: RunRecord) -> None:
        """Record a run: parameters, metrics, tags, and its data version as a dataset input. Idempotent by run id.

        Raises EngineError when MLflow fails or does not answer.
        """
        self._call("record", asdict(facts_of(run)))

    def register(self, name: str, bundle: Path, run: RunRecord, alias: str) -> str:
        """Register a blessed bundle and point ``alias`` at it; returns the registry's version.

        Idempotent by identity digest. Raises BundleError for a bundle that does not verify or is not blessed,
        EngineError when MLflow fails or does not answer.
        """
        manifest = open_bundle(bundle, blessed=True).manifest
        names = ("identity", "evidence", "version", "git_commit", "git_tree", "recipe_digest", "policy")
        data = ("data_version", "data_source", "data_commit")
        tags = {name: getattr(manifest, name) for name in (*names, *data)}
        tags |= {"git_dirty": str(manifest.git_dirty).lower(), "run": run.run}
        tags = {key: value for key, value in tags.items() if value}
        facts = {"name": name, "alias": alias, "source": str(bundle.resolve()), "tags": tags}
        return str(self._call("register", {**facts, "run": asdict(facts_of(run))}))

    def unalias(self, name: str, identity: str, alias: str) -> None:
        """Take an alias from the version with that identity. Raises EngineError as `register` does."""
        self._call("unalias", {"name": name, "identity": identity, "alias": alias})

    def describe_version(self, reference: str) -> Mapping[str, str]:
        """The tags of models:/NAME/VERSION, models:/NAME@ALIAS or runs:/ID.

        Raises UsageError when MLflow has none, EngineError as `register` does.
        """
        if not self.uri and not (self.state / "mlflow.db").exists():
            message = f"{self.state} has no MLflow database, so there is no {reference}"
            raise UsageError(message, hint="MLFLOW_TRACKING_URI names a server; --state another folder")
        tags = self._call("describe", {"reference": reference})
        if tags is None:
            message = f"MLflow has no {reference}"
            raise UsageError(message, hint="mlkit lineage NAME shows what the champion of a recipe was made from")
        return {str(key): str(value) for key, value in tags.items()}

    def download_bundle(self, reference: str, out: Path) -> Path | None:
        """Download the bundle of a version below ``out``; None where MLflow has no such artifact. Not verified.

        Raises EngineError when MLflow fails, and for more than `mlflow_worker.MAX_FILES` files or MAX_BYTES.
        """
        folder = self._call("download", {"reference": reference, "out": str(out)})
        return Path(folder) if folder else None

    def close(self) -> None:
        """Stop the child. A later call starts another."""
        with self._lock:
            if self._worker is not None:
                self._worker.stop()
                self._worker = None

    def _start(self) -> _MlflowProcess:
        if self._worker is None or not self._worker.alive:
            self._worker = _MlflowProcess(self.state, self.uri)
        return self._worker

    def _call(self, verb: str, facts: Mapping[str, Any]) -> Json:
        with self._lock:
            worker = self._start()
            try:
                return worker.call(verb, facts)
            except EngineError:
                if not worker.alive:
                    self._worker = None
                raise


class _MlflowProcess:
    """The child process; exchanges lines of JSON. It ends with this process, when its standard input closes."""

    def __init__(self, state: Path, uri: str) -> None:
        self.log = state / "logs" / "mlflow.log"
        command = module_command("mlflowkit.adapters.mlflow_worker", str(state))
        environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}  # not an argument: it may contain a password
        try:
            make_folder(self.log.parent)
            rotate_log(self.log)
            with open(self.log, "ab", opener=private_opener) as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment,
                    start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise EngineError(
                f"the MLflow process cannot be started: {error}",
                hint=f"df {shell_word(state)} shows whether the disk is full",
            ) from error
        self._pending = b""

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def call(self, verb: str, facts: Mapping[str, Any]) -> Json:
        """Send a job and wait for its reply. Raises EngineError for an error, a timeout or the child's end."""
        stdin = self._process.stdin
        if stdin is None:
            raise EngineError("the MLflow process has no standard input", hint=self._hint)
        try:
            stdin.write(json.dumps({"verb": verb, "facts": facts}).encode() + b"\n")
            stdin.flush()
        except OSError as error:
            raise self._stopped(f"the MLflow process ended: {self._last_log_line()}") from error
        reply = self._read_line(time.monotonic() + TIMEOUT_SECONDS)
        if "error" in reply:
            raise EngineError(f"MLflow: {reply['error']}", hint=reply.get("hint") or self._hint)
        return reply["value"]

    def _read_line(self, deadline: float) -> dict[str, Any]:
        stdout = self._process.stdout
        if stdout is None:
            raise EngineError("the MLflow process has no standard output", hint=self._hint)
        while b"\n" not in self._pending:
            ready, _, _ = select.select([stdout], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise self._stopped(f"MLflow did not answer within {TIMEOUT_SECONDS:g} s")
            content = os.read(stdout.fileno(), 65536)
            if not content:
                raise self._stopped(f"the MLflow process ended: {self._last_log_line()}")
            self._pending += content
        line, self._pending = self._pending.split(b"\n", 1)
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _stopped(self, message: str) -> EngineError:
        self.stop()
        return EngineError(message, hint=self._hint)

    def stop(self) -> None:
        """Stop the child by closing its input; kill it after a second."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # unsent data is lost with the child; the caller gets an error
                    stream.close()
        try:
            self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def _hint(self) -> str:
        return (
            f"tail -n 50 {shell_word(self.log)} shows its log; the results are safe, "
            "run the same command again to record them in MLflow"
        )

    def _last_log_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1] if lines else f"exit code {self._process.poll()}"
