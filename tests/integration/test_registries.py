"""The registries of a recipe: what is blessed is pushed once, and made up for where a registry was down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mlflowkit as mk
from mlflowkit.bundle import open_bundle
from mlflowkit.cli.app import main
from mlflowkit.data_access.registry_sections import HuggingfaceRegistry, OciRegistry, hub_connection
from mlflowkit.errors import DeliveryRefusedError, RecipeError, ServiceError, UsageError, WorldError
from mlflowkit.pipeline.outbox.registry_target import RegistryTarget
from mlflowkit.ports import FinishedRun, ModelRegistry
from mlflowkit.wiring import Wiring
from tests.support.hub_fake import FakeHub
from tests.support.hub_models import READ_TOKEN, WRITE_TOKEN

NAME = "acme/loans"
RECIPE = """
name: loans
task: classification
connections:
  hub: {{kind: huggingface, endpoint: '{url}', token: {{env: CANARY_TOKEN}}}}
data:
  source: {{kind: python, function: "tables:rows"}}
  target: outcome
  positive: bad
  split: {{kind: stratified}}
model: {{kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}}
gates: [{{metric: roc_auc, min: {least}}}]
registries:
  - {{kind: huggingface, connection: hub, repository: acme/loans, license: mit}}
"""
TABLE = """
import numpy as np, pandas as pd
def rows():
    rng = np.random.default_rng(3)
    income = rng.normal(50, 15, 600)
    outcome = np.where(rng.random(600) < 1 / (1 + np.exp((income - 40) / 6)), "bad", "good")
    return pd.DataFrame({"income": income, "outcome": outcome})
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    made = FakeHub()
    monkeypatch.setenv("CANARY_TOKEN", WRITE_TOKEN)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield made
    made.close()


def write_recipe(folder: Path, hub: FakeHub, least: float = 0.6, more: str = "") -> Path:
    (folder / "tables.py").write_text(TABLE)
    (folder / "recipe.yaml").write_text(RECIPE.format(url=hub.url, least=least) + more)
    return folder / "recipe.yaml"


def test_a_blessed_bundle_is_pushed_by_its_run_or_by_a_later_one_and_once(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, hub)
    monkeypatch.setenv("CANARY_TOKEN", READ_TOKEN)
    first = mk.run(recipe)
    with pytest.raises(WorldError, match="cannot be written with this token") as caught:
        first.raise_for_status()
    assert "results are safe" in caught.value.hint
    assert hub.models.repositories == {}, "who may not write has made nothing"
    with Wiring(tmp_path / ".mlkit").open_journal() as journal:
        (owed,) = [item for item in journal.deliveries() if item.target == f"huggingface {NAME}"]
        assert (owed.status, owed.attempts) == ("failed", 1)
        assert "cannot be written with this token" in owed.error
        journal.owe([owed], again=True)
    monkeypatch.setenv("CANARY_TOKEN", WRITE_TOKEN)
    assert mk.run(recipe).run == first.run
    assert first.bundle is not None
    identity = open_bundle(first.bundle).manifest.identity
    repository = hub.models.repositories[NAME]
    assert list(repository.tags) == [f"v-{identity[:14]}"]
    mk.run(recipe, force=["package"])
    assert len(repository.titles) == 2
    with Wiring(tmp_path / ".mlkit").open_journal() as journal:
        (owed,) = [item for item in journal.deliveries() if item.target == f"huggingface {NAME}"]
        assert (owed.status, owed.receipt) == ("delivered", f"hf://{NAME}@v-{identity[:14]}")
    left = [path for path in tmp_path.rglob("*") if path.is_file() and WRITE_TOKEN.encode() in path.read_bytes()]
    assert left == []


def test_the_plan_lists_where_a_blessed_bundle_goes(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, hub, more="  - {kind: oci, repository: ghcr.io/acme/loans}\n  - {kind: mlflow}\n")
    with pytest.raises(SystemExit):
        main(["plan", str(recipe), "--json"])
    named = ["hf://acme/loans (private, without values of rows)", "oci://ghcr.io/acme/loans", "MLflow"]
    assert json.loads(capsys.readouterr().out)["registries"] == named
    with pytest.raises(SystemExit):
        main(["plan", str(recipe), "--until", "train"])
    assert "is pushed to" not in capsys.readouterr().out
    assert hub.requests == []


def test_what_is_not_blessed_is_not_pushed(hub: FakeHub, tmp_path: Path) -> None:
    result = mk.run(write_recipe(tmp_path, hub, least=0.999))
    assert result.status == "gate-failed"
    assert hub.requests == []


def test_a_registry_names_a_connection_of_its_kind(hub: FakeHub, tmp_path: Path) -> None:
    missing = "  - {kind: huggingface, connection: hib, repository: acme/other}\n"
    with pytest.raises(RecipeError, match="there is no connection 'hib'") as caught:
        mk.load(write_recipe(tmp_path, hub, more=missing))
    assert "did you mean hub?" in str(caught.value)
    other = "  - {kind: huggingface, connection: lake, repository: acme/other}\n"
    text = write_recipe(tmp_path, hub, more=other).read_text()
    (tmp_path / "recipe.yaml").write_text(text.replace("connections:\n", "connections:\n  lake: {kind: s3}\n"))
    with pytest.raises(RecipeError, match="is of kind s3, and a registry takes one of kind huggingface"):
        mk.load(tmp_path / "recipe.yaml")


def test_a_repository_is_named_once_whichever_hub_has_it(hub: FakeHub, tmp_path: Path) -> None:
    other = "  - {kind: huggingface, repository: acme/loans}\n"
    with pytest.raises(RecipeError, match=r"huggingface acme/loans is registries\.0 already"):
        mk.load(write_recipe(tmp_path, hub, more=other))
    mk.load(write_recipe(tmp_path, hub, more=other.replace("loans", "other")))


class RefusingRegistry:
    """A registry that answers everything with an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def push(self, bundle: Path) -> str:
        raise self.error

    def pull(self, reference: str, folder: Path) -> Path:
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind"),
    [(ServiceError("down", hint="wait"), ServiceError), (UsageError("no", hint="ask"), DeliveryRefusedError)],
)
def test_what_may_pass_is_tried_again_and_what_a_person_must_change_is_not(
    tmp_path: Path, error: Exception, kind: type[Exception]
) -> None:
    registry: ModelRegistry = RefusingRegistry(error)
    target = RegistryTarget(OciRegistry(kind="oci", repository="ghcr.io/acme/loans"), registry)
    run: Any = FinishedRun(record=None, folders={"package": tmp_path})  # type: ignore[arg-type]
    with pytest.raises(kind):
        target.deliver(run)
    assert target.name == "oci ghcr.io/acme/loans"


def test_an_endpoint_of_the_environment_that_is_no_url_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "me:hunter2@hub.example")
    section = HuggingfaceRegistry(kind="huggingface", repository=NAME)
    with pytest.raises(UsageError, match="HF_ENDPOINT is no URL") as raised:
        hub_connection(section, {})
    assert "hunter2" not in raised.value.message + raised.value.hint
