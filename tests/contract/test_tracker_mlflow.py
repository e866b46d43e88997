"""What a Tracker must do, held against MLflow on its embedded SQLite file and read back with MLflow's own client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlflowkit import bundle
from mlflowkit.adapters import mlflow as adapter
from mlflowkit.adapters.mlflow import MlflowTracker, facts_of
from mlflowkit.adapters.mlflow_worker import mlmodel
from mlflowkit.errors import BundleError, EngineError, UsageError
from mlflowkit.values import Lineage, Outcome, RunRecord, StageResult, StepRecord, Verdict
from tests.support import lending_bundle

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REMOTE = {"data_source": "lakefs://lending/loans/", "data_commit": "3f" * 32}
LINEAGE = Lineage(COMMIT, True, "d" * 64, "e" * 64, **REMOTE)


def step(stage: str, metrics: dict[str, float], *verdicts: Verdict) -> StepRecord:
    return StepRecord(stage, "run", "new", "f" * 64, "done", 1.5, "0" * 64, StageResult(metrics, {}, verdicts))


def run_record(run: str, name: str = "loans", **changes: Any) -> RunRecord:
    passed = Verdict("roc_auc >= 0.7", Outcome.PASSED, "roc_auc 0.74: PASSED", "roc_auc")
    allowed = Verdict("f1 >= 0.2", Outcome.INCONCLUSIVE, "f1 0.21: INCONCLUSIVE", "f1", blocking=False)
    record = RunRecord(
        run=run,
        name=name,
        recipe_path="/recipes/loans.yaml",
        status="done",
        started=1_700_000_000.25,
        finished=1_700_000_060.5,
        lineage=LINEAGE,
        recipe={"name": name, "train": {"epochs": 3, "tune": None}, "gates": [{"metric": "roc_auc", "min": 0.7}]},
        overrides=("train.epochs=3",),
        steps=(step("train", {"val_loss": 0.25}), step("evaluate", {"roc_auc": 0.74}, passed, allowed)),
        bundle="b" * 64,
        blessed=True,
    )
    return replace(record, **changes)


def make_bundle(path: Path, model: bytes = b"graph", *, blessed: bool = True) -> bundle.Bundle:
    path.mkdir(parents=True)
    (path / "model.onnx").write_bytes(model)
    (path / "signature.json").write_text(bundle.Signature(task="regression", inputs=(), outputs=()).model_dump_json())
    return bundle.write(path, name="loans", lineage=LINEAGE, policy="p", run="run-1", blessed=blessed, created=1.0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a cache of its own, so that the first database is migrated and later ones are copies."""
    root = tmp_path_factory.mktemp("mlflow")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield root
    patch.undo()


@pytest.fixture(scope="module")
def tracker(home: Path) -> Iterator[MlflowTracker]:
    tracker = MlflowTracker(home / "state")
    tracker.prewarm()
    yield tracker
    tracker.close()


@pytest.fixture(scope="module")
def client(home: Path, tracker: MlflowTracker) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    tracker.record(run_record("first"))
    uri = f"sqlite:///{home / 'state' / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def only_run(client: Any, run: str, name: str = "loans") -> Any:
    experiment = client.get_experiment_by_name(name)
    (record,) = client.search_runs([experiment.experiment_id], f"tags.`mlkit.run` = '{run}'")
    return record


def test_a_run_is_kept_with_parameters_metrics_and_tags(tracker: MlflowTracker, client: Any) -> None:
    tracker.record(run_record("kept"))
    run = only_run(client, "kept")
    assert run.info.status == "FINISHED"
    assert (run.info.start_time, run.info.end_time) == (1_700_000_000_250, 1_700_000_060_500)
    assert run.data.params["train.epochs"] == "3"
    assert run.data.params["gates.0.min"] == "0.7"
    assert "train.tune" not in run.data.params
    assert run.data.metrics["roc_auc"] == 0.74
    assert run.data.metrics["train/val_loss"] == 0.25
    tags = run.data.tags
    assert (tags["git_commit"], tags["git_dirty"], tags["data_version"]) == (COMMIT, "true", "d" * 64)
    assert {name: tags[name] for name in REMOTE} == REMOTE
    assert (tags["bundle"], tags["blessed"], tags["gates"]) == ("b" * 64, "true", "1 PASSED, 1 INCONCLUSIVE")


def test_the_data_version_is_a_tagged_input_of_the_run(tracker: MlflowTracker, client: Any) -> None:
    tracker.record(run_record("with-data"))
    (used,) = only_run(client, "with-data").inputs.dataset_inputs
    assert used.dataset.digest == "d" * 36
    tags = {tag.key: tag.value for tag in used.tags}
    assert (tags["git_commit"], tags["git_dirty"], tags["data_version"]) == (COMMIT, "true", "d" * 64)
    assert {name: tags[name] for name in REMOTE} == REMOTE
    assert json.loads(used.dataset.source) == {"data_version": "d" * 64, **REMOTE}


def test_a_run_told_twice_is_one_run_with_its_last_state(tracker: MlflowTracker, client: Any) -> None:
    tracker.record(run_record("twice", status="failed", error="disk full", blessed=False))
    assert only_run(client, "twice").info.status == "FAILED"
    tracker.record(run_record("twice"))
    run = only_run(client, "twice")
    assert run.info.status == "FINISHED"
    assert run.data.tags["blessed"] == "true"


@pytest.mark.parametrize(
    ("status", "theirs"), [("gate-failed", "FINISHED"), ("inconclusive", "FINISHED"), ("interrupted", "KILLED")]
)
def test_every_end_of_a_run_has_its_word(tracker: MlflowTracker, client: Any, status: Any, theirs: str) -> None:
    tracker.record(run_record(f"ended-{status}", status=status))
    run = only_run(client, f"ended-{status}")
    assert (run.info.status, run.data.tags["status"]) == (theirs, status)


def test_many_and_long_parameters_and_odd_numbers_are_taken(tracker: MlflowTracker, client: Any) -> None:
    recipe = {"columns": {f"a column, no. {number}": "numeric" for number in range(250)}, "note": "x" * 10_000}
    steps = (step("evaluate", {"r2": float("-inf"), "rmse": float("nan")}),)
    tracker.record(run_record("large", recipe=recipe, steps=steps, error="e" * 20_000))
    run = only_run(client, "large")
    assert len(run.data.params) == 251
    assert run.data.params["columns.a column_ no. 7"] == "numeric"
    assert len(run.data.params["note"]) == adapter.MAX_PARAM_LENGTH


def test_a_blessed_bundle_becomes_a_version_with_an_alias(tracker: MlflowTracker, client: Any, tmp_path: Path) -> None:
    bundle_folder = make_bundle(tmp_path / "bundle")
    tracker.record(run_record("made-it", name="aliased"))
    number = tracker.register("aliased", bundle_folder.path, run_record("made-it", name="aliased"), "challenger")
    version = client.get_model_version_by_alias("aliased", "challenger")
    assert str(version.version) == number
    assert version.tags["bundle"] == str(bundle_folder.path)
    assert "model.onnx" not in os.listdir(version.source.removeprefix("file://")), "MLflow writes into its folders"
    assert version.run_id == only_run(client, "made-it", "aliased").info.run_id
    assert version.tags["identity"] == bundle_folder.manifest.identity
    assert (version.tags["git_commit"], version.tags["git_dirty"]) == (COMMIT, "true")
    assert {name: version.tags[name] for name in REMOTE} == REMOTE
    assert (version.tags["data_version"], version.tags["policy"], version.tags["run"]) == ("d" * 64, "p", "made-it")


def test_one_identity_is_one_version_and_aliases_move(tracker: MlflowTracker, client: Any, tmp_path: Path) -> None:
    original, other = make_bundle(tmp_path / "one", b"one"), make_bundle(tmp_path / "two", b"two")
    again = make_bundle(tmp_path / "again", b"one")
    first = tracker.register("moving", original.path, run_record("m1", name="moving"), "champion")
    second = tracker.register("moving", other.path, run_record("m2", name="moving"), "challenger")
    assert first != second
    assert tracker.register("moving", again.path, run_record("m3", name="moving"), "challenger") == first
    assert tracker.register("moving", other.path, run_record("m2", name="moving"), "champion") == second
    assert len(client.search_model_versions("name = 'moving'")) == 2
    assert str(client.get_model_version_by_alias("moving", "champion").version) == second
    assert str(client.get_model_version_by_alias("moving", "challenger").version) == first


def test_an_alias_is_taken_from_the_version_that_has_it_alone(
    tracker: MlflowTracker, client: Any, tmp_path: Path
) -> None:
    original, other = make_bundle(tmp_path / "one", b"one"), make_bundle(tmp_path / "two", b"two")
    number = tracker.register("rejected", original.path, run_record("r1", name="rejected"), "champion")
    tracker.register("rejected", other.path, run_record("r2", name="rejected"), "challenger")
    tracker.unalias("rejected", original.manifest.identity, "challenger")  # another version has it
    assert client.get_model_version_by_alias("rejected", "challenger").tags["identity"] == other.manifest.identity
    for _ in range(2):
        tracker.unalias("rejected", other.manifest.identity, "challenger")
    assert set(client.get_registered_model("rejected").aliases) == {"champion"}
    assert str(client.get_model_version_by_alias("rejected", "champion").version) == number
    assert len(client.search_model_versions("name = 'rejected'")) == 2
    tracker.unalias("no-such-model", other.manifest.identity, "challenger")


def test_a_bundle_that_is_not_blessed_or_was_altered_is_not_registered(
    tracker: MlflowTracker, client: Any, tmp_path: Path
) -> None:
    unblessed = make_bundle(tmp_path / "plain", blessed=False)
    with pytest.raises(BundleError, match="not blessed"):
        tracker.register("refused", unblessed.path, run_record("x"), "challenger")
    altered = make_bundle(tmp_path / "altered")
    altered.model.write_bytes(b"other")
    with pytest.raises(BundleError, match="altered"):
        tracker.register("refused", altered.path, run_record("x"), "challenger")
    assert not client.search_registered_models("name = 'refused'")


def test_a_killed_child_is_replaced_and_nothing_is_kept_twice(
    tracker: MlflowTracker, client: Any, tmp_path: Path
) -> None:
    bundle_folder = make_bundle(tmp_path / "bundle", b"killed")
    number = tracker.register("killed", bundle_folder.path, run_record("k1", name="killed"), "challenger")
    worker = tracker._worker
    assert worker is not None
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait(timeout=10)
    assert tracker.register("killed", bundle_folder.path, run_record("k1", name="killed"), "champion") == number
    assert len(client.search_model_versions("name = 'killed'")) == 1


def test_two_processes_register_an_identity_once_and_a_child_ends_with_its_parent(
    tracker: MlflowTracker, client: Any, home: Path, tmp_path: Path
) -> None:
    bundle_folder = make_bundle(tmp_path / "bundle", b"raced")
    other = MlflowTracker(home / "state")
    numbers: list[str] = []

    def register(each: MlflowTracker, run: str) -> None:
        numbers.append(each.register("raced", bundle_folder.path, run_record(run, name="raced"), "challenger"))

    threads = [threading.Thread(target=register, args=pair) for pair in ((tracker, "r1"), (other, "r2"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    worker = other._worker
    assert worker is not None
    assert worker._process.stdin is not None
    worker._process.stdin.close()  # what happens when the process that asked is gone
    assert worker._process.wait(timeout=60) == 0
    assert numbers == [numbers[0]] * 2
    assert len(client.search_model_versions("name = 'raced'")) == 1


def test_a_new_state_folder_starts_from_the_kept_database(client: Any, home: Path) -> None:
    (cached,) = (home / "cache" / "mlflowkit").glob("mlflow-*.sqlite")
    fresh = MlflowTracker(home / "fresh")
    fresh.record(run_record("fresh"))
    fresh.close()
    assert "Updating database tables" not in (home / "fresh" / "logs" / "mlflow.log").read_text()
    assert (home / "fresh" / "mlflow.db").exists()
    assert cached.exists()


def test_a_broken_database_is_an_engine_error(home: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "mlflow.db").write_bytes(b"this is no database" * 100)
    broken = MlflowTracker(state)
    with pytest.raises(EngineError, match=r"not a database: move mlflow\.db .* away") as caught:
        broken.record(run_record("broken"))
    broken.close()
    assert "mlflow.log" in caught.value.hint


def test_a_server_that_is_not_there_is_named(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = MlflowTracker(tmp_path / "state", uri="http://user:secret@127.0.0.1:9")
    with pytest.raises(EngineError) as caught:
        away.record(run_record("away"))
    away.close()
    assert "127.0.0.1" in caught.value.hint
    log = (tmp_path / "state" / "logs" / "mlflow.log").read_text()
    assert "127.0.0.1" in log
    assert "secret" not in caught.value.message + caught.value.hint + log


def test_a_child_that_says_nothing_is_given_up(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "TIMEOUT_SECONDS", 0.05)
    slow = MlflowTracker(tmp_path / "state")
    started = time.monotonic()
    with pytest.raises(EngineError, match="did not answer"):
        slow.record(run_record("slow"))
    assert time.monotonic() - started < 60
    assert slow._worker is None


def test_facts_are_pure() -> None:
    facts = facts_of(run_record("pure", finished=None, status="running", lineage=Lineage("", False, "", "r")))
    assert facts.finished is None
    assert facts.status == "RUNNING"
    assert "git_commit" not in facts.tags
    assert facts.metrics["seconds/train"] == 1.5


LOADED = """
import json, sys
import mlflow
import pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_registry_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
rows = json.loads(sys.argv[3])
answers = [model.predict(pd.DataFrame(rows)), model.predict(rows)]
sys.stdout.write(json.dumps([answer.to_dict("list") for answer in answers]))
"""


def test_a_version_is_loaded_by_mlflow_and_predicts_as_the_service(
    tracker: MlflowTracker, client: Any, home: Path, tmp_path: Path
) -> None:
    """In a process of its own, as a user of MLflow would; twice, since MLflow writes into the folder that it loads."""
    made = lending_bundle.make_bundle(tmp_path / "bundle")
    tracker.record(run_record("loads", name="loads"))
    tracker.register("loads", made.path, run_record("loads", name="loads"), "champion")
    rows = [{**row, "ignored": 1} for row in lending_bundle.ROWS]
    truth = lending_bundle.expected(made.path, lending_bundle.ROWS)
    uri = f"sqlite:///{home / 'state' / 'mlflow.db'}"
    for _ in range(2):
        command = [sys.executable, "-c", LOADED, uri, "models:/loads@champion", json.dumps(rows)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        for answer in json.loads(done.stdout):
            assert answer["prediction"] == truth["label"]
            for index, name in enumerate(lending_bundle.LABELS):
                expected = [row[index] for row in truth["probabilities"]]
                assert answer[f"probability_{name}"] == pytest.approx(expected, abs=1e-7)
    bundle.open_bundle(made.path, blessed=True)


def test_what_a_server_gets_has_its_model_file_too(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle")
    document = yaml.safe_load(mlmodel(made.path, "bundle", "run"))
    assert document["flavors"]["python_function"]["data"] == "bundle"
    assert document["flavors"]["onnx"]["data"] == "bundle/model.onnx"
    assert "signature" not in document


def test_a_version_is_described_by_alias_number_and_run(tracker: MlflowTracker, client: Any, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "described")
    tracker.record(run_record("described", bundle=made.manifest.identity))
    number = tracker.register(
        "described", made.path, run_record("described", bundle=made.manifest.identity), "champion"
    )
    run_id = only_run(client, "described").info.run_id
    for reference in ("models:/described@champion", f"models:/described/{number}"):
        tags = tracker.describe_version(reference)
        assert (tags["name"], tags["registered"], tags["run"]) == ("described", number, "described")
        assert (tags["identity"], tags["git_commit"]) == (made.manifest.identity, COMMIT)
        assert tracker.download_bundle(reference, tmp_path) is None  # it is in the state folder
    assert tracker.describe_version(f"runs:/{run_id}")["identity"] == made.manifest.identity


@pytest.mark.parametrize(
    "reference",
    ["models:/none@champion", "models:/none/1", "models:/described@none", f"runs:/{'0' * 32}", "models:/none"],
)
def test_a_version_that_is_not_there_is_refused(tracker: MlflowTracker, client: Any, reference: str) -> None:
    with pytest.raises(UsageError, match=f"MLflow has no {reference}"):
        tracker.describe_version(reference)


def test_looking_for_a_version_creates_no_database(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no MLflow database"):
        MlflowTracker(tmp_path).describe_version("models:/loans@champion")
    assert list(tmp_path.iterdir()) == []
