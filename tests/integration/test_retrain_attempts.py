"""The process of an attempt with the real `mlkit run`: data version, counts of new rows, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlflowkit.cli import app as cli
from mlflowkit.features.reference_cells import column_reference
from mlflowkit.judging.shift.reference import EVIDENCE, Reference
from mlflowkit.monitoring.monitor_settings import MonitorSection, MonitorSettings, RetrainSection, write_settings
from mlflowkit.monitoring.monitor_view import AlertView, ColumnView, MonitorView, WindowView
from mlflowkit.monitoring.retrain import episodes
from mlflowkit.monitoring.retrain.episodes import Attempt, AttemptResult, Episode
from mlflowkit.monitoring.retrain.steady_clock import this_moment
from mlflowkit.service_state.records import ServiceFiles, write_json
from mlflowkit.values import Variant
from tests.support import retrain_drill as drill
from tests.support.warm_commands import warm_command

pytestmark = pytest.mark.heavy
RETRAIN = "mlflowkit.processes.retrain_main"
ROWS = 400
RECIPE = """
name: fraud
task: classification
data:
  source: {kind: csv, path: rows.csv}
  target: y
  split: {kind: random}
  checks: [{kind: nulls, column: amount, max_share: 0.1}]
model: {kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}
serve: {service: fraud, port: 0}
"""


def write_rows(folder: Path, scale: float, *, missing: bool = False, seed: int = 1) -> None:
    random = np.random.default_rng(seed)
    amounts = random.lognormal(3, 1, ROWS) * scale
    lines = [f"{'' if missing else round(amount, 3)},{random.choice(['a', 'b'])},{int(random.random() < 0.4)}"
             for amount in amounts]  # fmt: skip
    (folder / "rows.csv").write_text("\n".join(["amount,shop,y", *lines]) + "\n")


class Place:
    """A service whose champion was trained on rows that are a tenth of what the file may hold later."""

    def __init__(self, folder: Path) -> None:
        (folder / "recipe.yaml").write_text(RECIPE)
        write_rows(folder, 1.0)
        self.folder, self.state = folder, folder / ".mlkit"
        self.files: ServiceFiles = drill.set_up(self.state)
        table = self.files.table()
        assert table is not None
        self.champion: Variant = table.champion
        values = np.random.default_rng(1).lognormal(3, 1, ROWS).astype(np.float32)
        shops = np.array(["a", "b"] * (ROWS // 2), object)
        reference = Reference(
            {
                "amount": replace(column_reference(values), importance=0.6),
                "shop": column_reference(shops),
                "gone": column_reference(values),
            }
        )
        (Path(self.champion.bundle) / "evidence").mkdir()
        write_json(Path(self.champion.bundle) / EVIDENCE, reference.to_json())

    def look(self, id: str, champion_data: str = "") -> AttemptResult:
        episode = Episode(
            id, "fraud", self.champion.digest, "v1", self.champion.bundle, 0.0, "drift of amount", this_moment(),
            str(self.folder / "recipe.yaml"), ("seed=3",), champion_data,
        )  # fmt: skip
        write_settings(
            self.files, MonitorSettings(MonitorSection(window="60s"), RetrainSection(), episode.recipe, (), "fraud")
        )
        episodes.write_episode(self.files, episode.with_attempt(Attempt("look", 1, this_moment())))
        subprocess.run([*warm_command(RETRAIN), str(self.state), "fraud", id, "look-1"], check=True, timeout=240)
        result = episodes.read_result(self.files, id, "look-1")
        assert result is not None
        return result


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("fraud"))


def test_a_look_resolves_the_version_and_counts_the_training_rows(place: Place) -> None:
    first = place.look("e1")
    assert (first.code, first.message) == (0, "")
    assert first.data_version
    assert set(first.counts) == {"amount", "shop"}  # a column that the new data lack is left out
    assert sum(first.counts["amount"]) == sum(first.counts["shop"]) == round(0.7 * ROWS)
    assert 10 < first.quantiles["amount"][1] < 30
    again = place.look("e2", first.data_version)
    assert (again.data_version, again.counts) == (first.data_version, {})
    write_rows(place.folder, 100.0, seed=2)
    other = place.look("e3", first.data_version)
    assert other.data_version != first.data_version
    assert other.counts["amount"][-2] > 0.8 * sum(other.counts["amount"])  # above all that the champion has seen
    assert other.quantiles["amount"][1] > 1000
    logs = {path.name for path in (place.files.folder / "monitor" / "logs").iterdir()}
    assert "e3.look-1.log" in logs
    assert all(path.stat().st_mode & 0o077 == 0 for path in (place.files.folder / "monitor").rglob("*"))


def test_data_that_fail_their_checks_are_told(place: Place) -> None:
    write_rows(place.folder, 1.0, missing=True)
    result = place.look("e4")
    assert result.code == 3
    assert "amount" in result.message
    assert not result.counts
    (place.folder / "rows.csv").unlink()
    assert "rows.csv" in place.look("e5").message
    write_rows(place.folder, 1.0)


def test_a_copied_folder_runs_no_recipe(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place.look("e6")
    copy = tmp_path / "copied"
    shutil.copytree(place.state, copy)
    files = ServiceFiles(copy / "services" / "fraud")
    forged = replace(episodes.read_episode(files, "e6"), id="e7")  # type: ignore[type-var]
    episodes.write_episode(files, forged.with_attempt(Attempt("look", 1, this_moment())))
    subprocess.run([*warm_command(RETRAIN), str(copy), "fraud", "e7", "look-1"], check=True, timeout=240)
    result = episodes.read_result(files, "e7", "look-1")
    assert result is not None
    assert (result.code, result.data_version) == (3, "")
    assert "is not run" in result.message
    code, text = mlkit(capsys, "retrain", "fraud", "--dry-run", "--state", str(copy))
    assert (code, "was copied or moved here" in text) == (2, True)


def test_a_recipe_that_was_not_deployed_is_not_run(place: Place) -> None:
    other = place.folder / "other.yaml"
    shutil.copy(place.folder / "recipe.yaml", other)
    place.look("e8")
    episode = episodes.read_episode(place.files, "e8")
    assert episode is not None
    forged = replace(episode, id="e9", recipe=str(other)).with_attempt(Attempt("look", 1, this_moment()))
    episodes.write_episode(place.files, forged)
    subprocess.run([*warm_command(RETRAIN), str(place.state), "fraud", "e9", "look-1"], check=True, timeout=240)
    result = episodes.read_result(place.files, "e9", "look-1")
    assert result is not None
    assert (result.code, "is not run" in result.message) == (3, True)


def mlkit(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out + captured.err


def test_the_dry_run_shows_each_input_and_starts_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    write_settings(place.files, None)
    command = ("retrain", "fraud", "--dry-run", "--state", str(place.state))
    code, text = mlkit(capsys, *command)
    assert (code, "has no section monitor" in text) == (2, True)
    section = RetrainSection(overrides=["seed=5"])
    settings = MonitorSettings(MonitorSection(window="60s"), section, str(place.folder / "recipe.yaml"), (), "fraud")
    write_settings(place.files, settings)
    code, text = mlkit(capsys, *command)
    assert code == 0
    assert "the monitor has judged no window of this version yet" in text
    windows = (WindowView(0.0, 60.0, 900, 0, 900, "DRIFTING"),)
    alert = AlertView("a1", "drift", "amount", "warning", 5.0, "firing", "amount 0.4 > 0.1")
    column = ColumnView("amount", "distribution", "", "FAILED", 0.4, 0.3, 0.5, 0.1, 1.2, 900, 450.0, importance=0.6)
    view = MonitorView("fraud", "v1", "DRIFTING", 5.0, windows, (column,), alerts=(alert,))
    place.files.write_json("monitor/view.json", view.to_json())
    before = episodes.read_episodes(place.files)
    code, text = mlkit(capsys, *command)
    assert code == 0
    assert "decision     look at data" in text
    assert "drift of amount (60%)" in text
    assert "seed=5" in text
    code, text = mlkit(capsys, *command, "--json")
    value = json.loads(text)
    assert value["facts"]["alarms"][0]["importance"] == 0.6
    assert value["decision"]["cause"].startswith("drift of amount")
    assert episodes.read_episodes(place.files) == before
    assert not place.files.exists("monitor/retrain_request.json")
