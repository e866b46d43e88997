"""What `mlkit plan` and `mlkit run` say, before training, of changes for the clients of a running service."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.adapters.ray_serve import cluster
from mlflowkit.cli.app import main
from mlflowkit.values import Variant
from tests.support.columns_bundle import make_columns_bundle
from tests.support.rollout_world import RolloutWorld

pytestmark = pytest.mark.heavy

RECIPE = """
name: lending
task: classification
seed: 7
data:
  source: {kind: csv, path: loans.csv}
  target: y
  split: {kind: random}
model: {kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}
serve: {service: lending}
"""
TOLD = "column income is gone: requests that have it are refused"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe whose table has one column fewer than the version that is served, with its data stage done."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    rows = "".join(f"{20 + number},{'good' if number % 3 else 'bad'}\n" for number in range(40))
    (tmp_path / "loans.csv").write_text(f"age,y\n{rows}")
    served = make_columns_bundle(tmp_path / "served" / "bundle", ("age", "income"))
    RolloutWorld(
        tmp_path / ".mlkit",
        champion=Variant("champion", served.manifest.version, served.manifest.identity, str(served.path)),
    )
    return tmp_path


@pytest.fixture
def mlkit(folder: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str]]]:
    def run(command: str, *arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as done:
            main([command, str(folder / "recipe.yaml"), *arguments])
        return int(done.value.code or 0), capfd.readouterr().out

    yield run
    # A run warms Ray up before it knows that it is refused; `mlkit down` would wait for the world's replicas,
    # which are this process.
    cluster.stop(folder / ".mlkit")


def test_a_run_that_would_break_clients_ends_before_it_trains(mlkit: Any) -> None:
    code, out = mlkit("plan", "--json")
    assert (code, json.loads(out)["signature_changes"]) == (0, None)  # the table was not read yet
    code, out = mlkit("run", "--json")
    error = json.loads(out)["error"]
    assert code == error["code"] == 2
    assert error["message"].endswith(f"was not swapped in: {TOLD}")
    assert "--allow-breaking" in error["hint"]
    code, out = mlkit("plan", "--json")
    plan = json.loads(out)
    assert {step["stage"]: step["action"] for step in plan["steps"]}["train"] == "run"
    assert [change["message"] for change in plan["signature_changes"] if change["breaking"]] == [TOLD]
    assert f"warning: breaks clients: {TOLD}" in mlkit("plan")[1]


def test_what_allows_it_lets_it_train(mlkit: Any) -> None:
    assert mlkit("run", "--until", "package", "--json")[0] == 0  # nothing is swapped
    code, out = mlkit("plan", "--allow-breaking", "--json")
    assert code == 0
    assert [change["message"] for change in json.loads(out)["signature_changes"] if change["breaking"]] == [TOLD]
