"""The child process of MlflowTracker: imports MLflow, reads jobs as lines of JSON and replies to each with one.

``python -P -m mlflowkit.adapters.mlflow_worker STATE``; MLFLOW_TRACKING_URI names the server or is empty. Jobs are
idempotent: a run is identified by its id, a model version by its bundle's identity. A file lock serialises the jobs of
several processes on one state folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import sqlite3
import sys
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from mlflowkit.system.files import replace_file, use_private_umask
from mlflowkit.system.text import first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENVIRONMENT_DEFAULTS: Mapping[str, str] = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
"""Environment variables set before the import of MLflow, unless the user set them."""
LOADER = "mlflowkit.processes.mlflow_model"
"""The module that `mlflow.pyfunc` loads a version with."""
TIME_FORMAT = "%Y-%m-%d %H:%M:%S.%f"
NICENESS = 10
LINEAGE_TAGS = ("git_commit", "git_dirty", "data_version", "data_source", "data_commit")
"""Tags of a run that its dataset has too."""
"""Importing MLflow must not slow down a concurrent training."""
BUNDLE_ARTIFACT = "model/bundle"
"""The folder of a version's bundle in the artifacts of its run."""
MAX_FILES, MAX_BYTES = 10_000, 16 << 30
"""Bounds of a bundle that is downloaded."""
MAX_BATCH_PARAMS = 100
"""MLflow's limit of parameters per log_batch call."""


def database_uri(state: Path, uri: str) -> str:
    """``uri``, or else that of the SQLite file in ``state``, created when absent."""
    if uri:
        return uri
    path = state / "mlflow.db"
    if not path.exists():
        with _exclusive_access(state):
            if not path.exists():
                _create(path)
    return f"sqlite:///{path}"


def _create(path: Path) -> None:
    """Create a database. MLflow's migrations take 2 to 3 s, so they run once per user and version, then are copied."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cached = Path(base) / "mlflowkit" / f"mlflow-{version('mlflow-skinny')}.sqlite"
    if cached.exists():
        _copy(cached, draft)
    else:
        from mlflow import MlflowClient

        MlflowClient(tracking_uri=f"sqlite:///{draft}").search_experiments(max_results=1)  # runs the migrations
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            cache_draft = cached.with_suffix(f".{os.getpid()}")
            _copy(draft, cache_draft)
            cache_draft.rename(cached)
        except (OSError, sqlite3.Error) as error:
            sys.stderr.write(f"the empty database was not cached at {cached}: {error}\n")
    draft.rename(path)


def _copy(source: Path, target: Path) -> None:
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
        old.backup(new)


@contextlib.contextmanager
def _exclusive_access(state: Path) -> Iterator[None]:
    """Lock out other processes that write to this state folder's MLflow."""
    with (state / "mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _ignored(code: str) -> Iterator[None]:
    """Suppress MLflow's error with this code."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != code:
            raise


class MlflowMirror:
    """Writes runs and model versions to one MLflow server."""

    def __init__(self, state: Path, uri: str) -> None:
        from mlflow import MlflowClient

        self.state = state
        self.local = not uri or uri.startswith("sqlite:")
        self.uri = database_uri(state, uri)
        registry = os.environ.get("MLFLOW_REGISTRY_URI") if uri else None
        self.client: MlflowClient = MlflowClient(tracking_uri=self.uri, registry_uri=registry or self.uri)

    def record(self, facts: Mapping[str, Any]) -> str:
        """Record a run; returns MLflow's run id."""
        from mlflow.entities import Metric, Param, RunTag

        run_id = self._run_id(facts)
        params = [Param(key, value) for key, value in facts["params"].items()]
        timestamp = facts["finished"] or facts["started"]
        metrics = [Metric(key, value, timestamp, 0) for key, value in facts["metrics"].items()]
        tags = [RunTag(key, value) for key, value in facts["tags"].items()]
        self.client.log_batch(run_id, metrics=metrics, params=params[:MAX_BATCH_PARAMS], tags=tags)
        for start in range(MAX_BATCH_PARAMS, len(params), MAX_BATCH_PARAMS):
            self.client.log_batch(run_id, params=params[start : start + MAX_BATCH_PARAMS])
        self._log_dataset(run_id, facts)
        self.client.set_terminated(run_id, status=facts["status"], end_time=facts["finished"])
        return run_id

    def register(self, facts: Mapping[str, Any]) -> str:
        """Register a bundle as a model version, once per identity, and move the alias to it."""
        name, identity = facts["name"], facts["tags"]["identity"]
        self._ensure_model(name)
        versions = self.client.search_model_versions(f"name = '{name}' and tags.`identity` = '{identity}'")
        if versions:
            number = str(max(int(version.version) for version in versions))
        else:
            run_id = self._find_run(facts["run"]) or self.record(facts["run"])
            source = self._source(name, identity, run_id, Path(facts["source"]))
            tags = {**facts["tags"], "bundle": facts["source"]}
            created = self.client.create_model_version(name, source, run_id=run_id, tags=tags)
            number = str(created.version)
        self.client.set_registered_model_alias(name, facts["alias"], number)
        return number

    def unalias(self, facts: Mapping[str, Any]) -> str:
        """Delete an alias that points at the version with an identity; returns that version, or "" if none has it."""
        from mlflow.exceptions import MlflowException

        try:
            version = self.client.get_model_version_by_alias(facts["name"], facts["alias"])
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model, no alias
                raise
            return ""
        if version.tags.get("identity") != facts["identity"]:
            return ""
        self.client.delete_registered_model_alias(facts["name"], facts["alias"])
        return str(version.version)

    def describe(self, facts: Mapping[str, Any]) -> dict[str, str] | None:
        """The tags of a version or of a run, with its name and its number in the registry; None when there is none."""
        version = self._version(facts["reference"])
        if version is not None:
            return {**version.tags, "name": version.name, "registered": str(version.version)}
        run = self._run(facts["reference"])
        if run is None:
            return None
        name = self.client.get_experiment(run.info.experiment_id).name
        tags = dict(run.data.tags)
        return {**tags, "name": name, "identity": tags.get("bundle", ""), "run": tags.get("mlkit.run", "")}

    def download(self, facts: Mapping[str, Any]) -> str:
        """Download the bundle that was uploaded with a version; returns its folder, "" when there is none."""
        version = self._version(facts["reference"])
        run_id = self._run_of(facts["reference"]) if version is None else str(version.run_id)
        if self.local or not run_id or not self.client.list_artifacts(run_id, BUNDLE_ARTIFACT):
            return ""
        self._check_size(run_id)
        return str(self.client.download_artifacts(run_id, BUNDLE_ARTIFACT, facts["out"]))

    def _check_size(self, run_id: str) -> None:
        """Raise ValueError for a bundle of too many files or bytes."""
        folders, files, size = [BUNDLE_ARTIFACT], 0, 0
        while folders:
            for item in self.client.list_artifacts(run_id, folders.pop()):
                files, size = files + 1, size + (item.file_size or 0)
                folders += [item.path] if item.is_dir else []
                if files > MAX_FILES or size > MAX_BYTES:
                    raise ValueError(f"its bundle has more than {MAX_FILES} files or {MAX_BYTES} bytes")

    def _version(self, reference: str) -> Any:
        """The model version of models:/NAME/VERSION, models:/NAME@ALIAS or runs:/ID; None when there is none."""
        if run_id := self._run_of(reference):
            versions = self.client.search_model_versions(f"run_id = '{run_id}'")
            return max(versions, key=lambda version: int(version.version), default=None)
        parts = re.fullmatch(r"models:/(.+?)(?:@([^@/]+)|/(\d{1,18}))", reference)
        if parts is None:
            return None
        with _ignored("RESOURCE_DOES_NOT_EXIST"), _ignored("INVALID_PARAMETER_VALUE"):
            if parts[2]:
                return self.client.get_model_version_by_alias(parts[1], parts[2])
            return self.client.get_model_version(parts[1], parts[3])
        return None

    def _run(self, reference: str) -> Any:
        with _ignored("RESOURCE_DOES_NOT_EXIST"):
            return self.client.get_run(run_id) if (run_id := self._run_of(reference)) else None
        return None

    @staticmethod
    def _run_of(reference: str) -> str:
        """The run id of runs:/ID, "" for another reference."""
        parts = re.fullmatch(r"runs:/([\w-]{1,64})", reference)
        return parts[1] if parts else ""

    def _source(self, name: str, identity: str, run_id: str, bundle: Path) -> str:
        """The source URI of a model version: a folder with its MLmodel, which names the bundle in the store; for a
        server both are uploaded to the run. MLflow writes into such a folder, so it is never the bundle itself."""
        if self.local:
            folder = self.state / "mlartifacts" / name / "models" / identity
            replace_file(folder / "MLmodel", mlmodel(bundle, os.path.relpath(bundle, folder), run_id).encode())
            return folder.as_uri()
        self.client.log_artifacts(run_id, str(bundle), BUNDLE_ARTIFACT)
        self.client.log_text(run_id, mlmodel(bundle, "bundle", run_id), "model/MLmodel")
        return f"{self.client.get_run(run_id).info.artifact_uri}/model"

    def _experiment_id(self, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            location = (self.state / "mlartifacts" / name).as_uri() if self.local else None
            with _ignored("RESOURCE_ALREADY_EXISTS"):
                return str(self.client.create_experiment(name, artifact_location=location))
            experiment = self.client.get_experiment_by_name(name)
        return str(experiment.experiment_id)

    def _find_run(self, facts: Mapping[str, Any]) -> str:
        condition = f"tags.`mlkit.run` = '{facts['run']}'"
        runs = self.client.search_runs([self._experiment_id(facts["name"])], condition, max_results=1)
        return str(runs[0].info.run_id) if runs else ""

    def _run_id(self, facts: Mapping[str, Any]) -> str:
        if run_id := self._find_run(facts):
            return run_id
        tags, experiment = {"mlkit.run": facts["run"]}, self._experiment_id(facts["name"])
        created = self.client.create_run(experiment, start_time=facts["started"], tags=tags, run_name=facts["run"])
        return str(created.info.run_id)

    def _log_dataset(self, run_id: str, facts: Mapping[str, Any]) -> None:
        """Log the data version as an input of the run, with the lineage tags of runs and models."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if not facts["data_version"]:
            return
        lineage = {key: facts["tags"].get(key, "") for key in LINEAGE_TAGS}
        data_version = facts["data_version"]
        remote = {key: lineage[key] for key in ("data_source", "data_commit") if lineage[key]}
        source = json.dumps({"data_version": data_version, **remote})
        dataset = Dataset(name=facts["name"], digest=data_version[:36], source_type="mlkit", source=source)
        tags = [InputTag(key, value) for key, value in {"mlflow.data.context": "training", **lineage}.items() if value]
        self.client.log_inputs(run_id, [DatasetInput(dataset, tags)])

    def _ensure_model(self, name: str) -> None:
        with _ignored("RESOURCE_DOES_NOT_EXIST"):
            self.client.get_registered_model(name)
            return
        with _ignored("RESOURCE_ALREADY_EXISTS"):  # another process may create it too
            self.client.create_registered_model(name)


def mlmodel(bundle: Path, place: str, run_id: str) -> str:
    """The MLmodel of a bundle at ``place`` beside it: mlflowkit's loader behind pyfunc, and the graph as ONNX.

    It has no signature: MLflow would convert the rows by it, and the bundle has rules of its own.
    """
    import yaml

    from mlflowkit import __version__

    manifest = json.loads((bundle / "manifest.json").read_bytes())
    flavors: dict[str, Any] = {
        "python_function": {"loader_module": LOADER, "data": place, "python_version": platform.python_version()},
        "mlflowkit": {"version": __version__, "requires": f"mlflowkit[serve,cpu]=={__version__}"},
    }
    if (bundle / "model.onnx").exists():
        flavors["onnx"] = {"data": f"{place}/model.onnx", "onnx_version": "", "providers": ["CPUExecutionProvider"]}
    document = {
        "flavors": flavors,
        "mlflow_version": version("mlflow-skinny"),
        "model_uuid": str(manifest.get("identity", ""))[:32],
        "run_id": run_id,
        "utc_time_created": datetime.now(UTC).strftime(TIME_FORMAT),
    }
    return str(yaml.safe_dump(document, sort_keys=True))


def serve(state: Path, uri: str, jobs: IO[bytes], replies: IO[bytes]) -> None:
    """Reply to jobs until the end of the input."""
    mirror, startup_error = None, ""
    try:
        mirror = MlflowMirror(state, uri)
    except Exception as error:  # noqa: BLE001 - the reply to every job
        startup_error = _logged_message(error)
    for line in jobs:
        reply = {"error": startup_error} if mirror is None else _run_job(mirror, json.loads(line))
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def _run_job(mirror: MlflowMirror, job: Mapping[str, Any]) -> dict[str, Any]:
    try:
        with _exclusive_access(mirror.state):
            verbs = {
                "record": mirror.record,
                "register": mirror.register,
                "unalias": mirror.unalias,
                "describe": mirror.describe,
                "download": mirror.download,
            }
            return {"value": verbs[job["verb"]](job["facts"])}
    except Exception as error:  # noqa: BLE001 - the reply; the log has the traceback
        return {"error": _logged_message(error), "hint": _hint(mirror, error)}


def _logged_message(error: Exception) -> str:
    """Log the traceback of the current exception; returns its message."""
    sys.stderr.write(_redact(traceback.format_exc()))
    message = _redact(first_line(error))[:500]
    damaged = any(phrase in message for phrase in ("file is not a database", "disk image is malformed"))
    return f"{message}: move mlflow.db of the state folder away to create a new one" if damaged else message


def _redact(text: str) -> str:
    """Remove user and password from the URLs in a text.

    >>> _redact("GET http://user:secret@host/api failed")
    'GET http://host/api failed'
    """
    return re.sub(r"//[^/\s@]+@", "//", text)


def _hint(mirror: MlflowMirror, error: Exception) -> str:
    if "out-of-date database schema" in str(error) or "Can't locate revision" in str(error):
        return f"mlflow db upgrade {mirror.uri}"
    host = urlsplit(mirror.uri).hostname
    return "" if mirror.local else f"is {host} up, and do you have write access? MLFLOW_TRACKING_URI names the server"


def main() -> NoReturn:
    """Run the worker. Standard output carries only replies; other output goes to the log."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    use_private_umask()
    os.nice(NICENESS)
    for name, value in ENVIRONMENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    state, uri = Path(sys.argv[1]).resolve(), os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    with contextlib.suppress(BrokenPipeError):  # the parent is gone; the next run repeats the job
        serve(state, uri, sys.stdin.buffer, replies)
    raise SystemExit(0)


if __name__ == "__main__":
    main()
