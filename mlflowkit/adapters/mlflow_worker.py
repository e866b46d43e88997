"""The child process of MlflowTracker: imports MLflow, takes jobs as lines of JSON, answers each with one.

``python -P -m mlflowkit.adapters.mlflow_worker STATE``; MLFLOW_TRACKING_URI names the server or is empty. Every job
may be repeated: a run is found by its id, a model version by the identity of its bundle. Jobs of several processes on
one state folder take turns.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import sqlite3
import sys
import traceback
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from mlflow import MlflowClient

QUIET: Mapping[str, str] = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
"""Settings made before MLflow is imported, where the environment does not say otherwise."""
NICENESS = 10
"""Importing MLflow must not slow the training that it happens beside."""
BATCH = 100
"""Parameters a call of log_batch may carry."""


def database(state: Path, uri: str) -> str:
    """The URI to use: the one given, or the SQLite file in ``state``, made if it is not there."""
    if uri:
        return uri
    path = state / "mlflow.db"
    if not path.exists():
        with _turn(state):
            if not path.exists():
                _create(path)
    return f"sqlite:///{path}"


def _create(path: Path) -> None:
    """A new database. MLflow's migrations take 2 to 3 s of it: they are done once a user and version, then copied."""
    made = path.with_suffix(".new")
    made.unlink(missing_ok=True)
    cached = _cache() / f"mlflow-{version('mlflow-skinny')}.sqlite"
    if cached.exists():
        _copy(cached, made)
    else:
        _migrate(made)
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            draft = cached.with_suffix(f".{os.getpid()}")
            _copy(made, draft)
            draft.rename(cached)
        except (OSError, sqlite3.Error) as error:
            sys.stderr.write(f"the empty database was not kept at {cached}: {error}\n")
    made.rename(path)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mlflowkit"


def _migrate(path: Path) -> None:
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments(max_results=1)


def _copy(source: Path, target: Path) -> None:
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
        old.backup(new)


@contextlib.contextmanager
def _turn(state: Path) -> Iterator[None]:
    """Wait for the other processes that write to this state folder's MLflow."""
    with (state / "mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Mirror:
    """Runs and model versions in one MLflow server."""

    def __init__(self, state: Path, uri: str) -> None:
        from mlflow import MlflowClient

        self.state = state
        self.local = not uri or uri.startswith("sqlite:")
        self.uri = database(state, uri)
        registry = os.environ.get("MLFLOW_REGISTRY_URI") if uri else None
        self.client: MlflowClient = MlflowClient(tracking_uri=self.uri, registry_uri=registry or self.uri)

    def record(self, facts: Mapping[str, Any]) -> str:
        """Keep a run; returns MLflow's id of it."""
        from mlflow.entities import Metric, Param, RunTag

        run_id = self._run_id(facts)
        params = [Param(key, value) for key, value in facts["params"].items()]
        moment = facts["finished"] or facts["started"]
        metrics = [Metric(key, value, moment, 0) for key, value in facts["metrics"].items()]
        tags = [RunTag(key, value) for key, value in facts["tags"].items()]
        self.client.log_batch(run_id, metrics=metrics, params=params[:BATCH], tags=tags)
        for start in range(BATCH, len(params), BATCH):
            self.client.log_batch(run_id, params=params[start : start + BATCH])
        self._log_dataset(run_id, facts)
        self.client.set_terminated(run_id, status=facts["status"], end_time=facts["finished"])
        return run_id

    def register(self, facts: Mapping[str, Any]) -> str:
        """Keep a bundle as a model version, once for each identity, and move the alias to it."""
        name, identity = facts["name"], facts["tags"]["identity"]
        self._ensure_model(name)
        found = self.client.search_model_versions(f"name = '{name}' and tags.`identity` = '{identity}'")
        if found:
            number = str(max(int(each.version) for each in found))
        else:
            run_id = self._find_run(facts["run"]) or self.record(facts["run"])
            source = self._source(run_id, Path(facts["source"]))
            made = self.client.create_model_version(name, source, run_id=run_id, tags=dict(facts["tags"]))
            number = str(made.version)
        self.client.set_registered_model_alias(name, facts["alias"], number)
        return number

    def _source(self, run_id: str, bundle: Path) -> str:
        """Where the registry says that the bundle is: in the store, or for a server uploaded beside its run."""
        if self.local:
            return bundle.as_uri()
        self.client.log_artifacts(run_id, str(bundle), "bundle")
        return f"{self.client.get_run(run_id).info.artifact_uri}/bundle"

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = (self.state / "mlartifacts" / name).as_uri() if self.local else None
        try:
            return str(self.client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self.client.get_experiment_by_name(name).experiment_id)

    def _find_run(self, facts: Mapping[str, Any]) -> str:
        found = self.client.search_runs(
            [self._experiment(facts["name"])], f"tags.`mlkit.run` = '{facts['run']}'", max_results=1
        )
        return str(found[0].info.run_id) if found else ""

    def _run_id(self, facts: Mapping[str, Any]) -> str:
        known = self._find_run(facts)
        if known:
            return known
        made = self.client.create_run(
            self._experiment(facts["name"]),
            start_time=facts["started"],
            tags={"mlkit.run": facts["run"]},
            run_name=facts["run"],
        )
        return str(made.info.run_id)

    def _log_dataset(self, run_id: str, facts: Mapping[str, Any]) -> None:
        """The data version as an input of the run, tagged as runs and models are."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if not facts["data_version"]:
            return
        lineage = {key: facts["tags"].get(key, "") for key in ("git_commit", "git_dirty", "data_version")}
        dataset = Dataset(
            name=facts["name"],
            digest=facts["data_version"][:36],
            source_type="mlkit",
            source=json.dumps({"data_version": facts["data_version"]}),
        )
        tags = [InputTag(key, value) for key, value in {"mlflow.data.context": "training", **lineage}.items() if value]
        self.client.log_inputs(run_id, [DatasetInput(dataset, tags)])

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            try:
                self.client.create_registered_model(name)
            except MlflowException as raced:
                if raced.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise


def serve(state: Path, uri: str, jobs: IO[bytes], answers: IO[bytes]) -> None:
    """Answer jobs until there are no more."""
    mirror: Mirror | None = None
    fault = ""
    try:
        mirror = Mirror(state, uri)
    except Exception as error:  # noqa: BLE001 - told to whoever asks
        _log()
        fault = _words(error)
    for line in jobs:
        answer = {"error": fault} if mirror is None else _answer(mirror, json.loads(line))
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _answer(mirror: Mirror, job: Mapping[str, Any]) -> dict[str, Any]:
    verbs = {"record": mirror.record, "register": mirror.register}
    try:
        with _turn(mirror.state):
            return {"value": verbs[job["verb"]](job["facts"])}
    except Exception as error:  # noqa: BLE001 - told to whoever asks, with its traceback in the log
        _log()
        return {"error": _words(error), "hint": _hint(mirror, error)}


def _words(error: Exception) -> str:
    words = _redacted((str(error).strip() or type(error).__name__).splitlines()[0])[:500]
    ruined = any(sign in words for sign in ("file is not a database", "disk image is malformed"))
    return f"{words}: move mlflow.db of the state folder away, and a new one is made" if ruined else words


def _log() -> None:
    """The traceback of what is being handled, for the log."""
    sys.stderr.write(_redacted(traceback.format_exc()))


def _redacted(text: str) -> str:
    """The same text without the user and password of any URL in it.

    >>> _redacted("GET http://user:secret@host/api failed")
    'GET http://host/api failed'
    """
    return re.sub(r"//[^/\s@]+@", "//", text)


def _hint(mirror: Mirror, error: Exception) -> str:
    if "out-of-date database schema" in str(error) or "Can't locate revision" in str(error):
        return f"mlflow db upgrade {mirror.uri}"
    host = urlsplit(mirror.uri).hostname
    return "" if mirror.local else f"is {host} up, and may you write to it? MLFLOW_TRACKING_URI names the server"


def main() -> NoReturn:
    """Keep standard output for answers: whatever else is printed goes to the log."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.nice(NICENESS)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    state, uri = Path(sys.argv[1]).resolve(), os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    with contextlib.suppress(BrokenPipeError):  # who asked is gone; the next run asks again
        serve(state, uri, sys.stdin.buffer, answers)
    raise SystemExit(0)


if __name__ == "__main__":
    main()
