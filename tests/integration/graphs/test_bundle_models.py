"""A blessed bundle as the model of another recipe: verified, judged and packaged anew; nothing is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest

import mlflowkit as mk
from mlflowkit.bundle import Bundle, open_bundle
from mlflowkit.data_access.registry_sections import HuggingfaceRegistry
from mlflowkit.errors import BundleError, DataError, MlkitError, RecipeError, UsageError
from mlflowkit.features.row_digests import read as read_seen_rows
from mlflowkit.features.tensors import inputs_from_table
from mlflowkit.wiring import Wiring
from tests.support.hub_fake import FakeHub
from tests.support.hub_models import WRITE_TOKEN

TRAINED = """
name: loans
task: classification
data:
  source: {kind: csv, path: loans.csv, trim: true}
  target: outcome
  positive: bad
  split: {kind: stratified}
model: {kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}
decision: {threshold: 0.3}
gates: [{metric: roc_auc, min: 0.6}]
"""
AGAIN = (
    TRAINED.replace("name: loans", "name: again")
    .replace("decision: {threshold: 0.3}\n", "")
    .replace(
        'model: {kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}',
        "model: {kind: bundle, reference: bundle}",
    )
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, and the bundle of a recipe that was trained on it."""
    folder = tmp_path_factory.mktemp("loans")
    table().to_csv(folder / "loans.csv", index=False)
    (folder / "trained.yaml").write_text(TRAINED)
    result = mk.run(folder / "trained.yaml").raise_for_status()
    assert result.bundle is not None
    shutil.copytree(result.bundle, folder / "bundle")
    return folder


def table(rows: int = 900) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    income, purpose = rng.normal(50, 15, rows), rng.choice(["car", "home", "other"], rows)
    risk = 1 / (1 + np.exp((income - 40) / 6 + (purpose == "home")))
    income[::17] = np.nan
    outcome = np.where(rng.random(rows) < risk, "bad", "good")
    return pd.DataFrame({"income": income, "amount": rng.normal(size=rows), "purpose": purpose, "outcome": outcome})


def answers(bundle: Bundle, frame: pd.DataFrame) -> list[Any]:
    session = onnxruntime.InferenceSession(str(bundle.model), providers=["CPUExecutionProvider"])
    return session.run(["label", "probabilities"], inputs_from_table(bundle.signature, frame))


def again(world: Path, folder: Path, text: str = AGAIN) -> Path:
    for name in ("loans.csv", "bundle"):
        (folder / name).symlink_to(world / name)
    (folder / "again.yaml").write_text(text)
    return folder / "again.yaml"


def refused(call: Any, kind: type[MlkitError], words: str) -> MlkitError:
    with pytest.raises(kind, match=words) as caught:
        call()
    return caught.value


def test_a_bundle_is_judged_and_packaged_with_its_own_preprocessing_and_threshold(world: Path, tmp_path: Path) -> None:
    warnings: list[str] = []
    told = lambda event: warnings.append(event.message) if event.kind == "warning" else None  # noqa: E731
    result = mk.run(again(world, tmp_path), progress=told).raise_for_status()
    assert result.bundle is not None
    original, made = open_bundle(world / "bundle"), open_bundle(result.bundle, blessed=True)
    assert made.manifest.name == "again"
    assert made.signature.threshold == pytest.approx(0.3)
    assert made.signature.classes == original.signature.classes
    labels, scores = answers(original, table())
    same_labels, same_scores = answers(made, table())
    np.testing.assert_allclose(same_scores, scores, atol=1e-6)
    assert list(same_labels) == list(labels)
    assert read_seen_rows(made).tolist() == read_seen_rows(original).tolist()  # type: ignore[union-attr]
    assert not [text for text in warnings if "test rows" in text], "the split is the same: no test row was seen"
    assert mk.run(tmp_path / "again.yaml").run == result.run


def test_test_rows_that_the_bundle_was_trained_on_are_told(world: Path, tmp_path: Path) -> None:
    warnings: list[str] = []
    told = lambda event: warnings.append(event.message) if event.kind == "warning" else None  # noqa: E731
    mk.run(again(world, tmp_path, AGAIN + "seed: 5\n"), progress=told, until="train")
    assert any("of these test rows are among those that the bundle was trained on" in text for text in warnings)


def test_a_bundle_on_the_hub_is_fetched_verified_and_never_unblessed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: FakeHub
) -> None:
    section = HuggingfaceRegistry(kind="huggingface", repository="acme/loans")
    reference = Wiring(tmp_path / "state").model_registry(section, tmp_path, {}).push(world / "bundle")
    text = AGAIN.replace("reference: bundle", f"reference: '{reference}'")
    warnings: list[str] = []
    told = lambda event: warnings.append(event.message) if event.kind == "warning" else None  # noqa: E731
    result = mk.run(again(world, tmp_path, text), progress=told).raise_for_status()
    assert result.bundle is not None
    assert open_bundle(result.bundle, blessed=True).signature.threshold == pytest.approx(0.3)
    assert any("does not say which rows it was trained on" in message for message in warnings)
    requests = len(hub.requests)
    assert mk.run(tmp_path / "again.yaml").run == result.run
    assert len(hub.requests) == requests, "the reference names one version: a run with nothing to do asks nobody"
    repository = hub.models.repositories["acme/loans"]
    commit = repository.commit({p: c for p, c in repository.head.items() if p != "bundle/blessing.json"})
    (tmp_path / "again.yaml").write_text(text.replace(reference, f"hf://acme/loans@{commit}"))
    refused(lambda: mk.run(tmp_path / "again.yaml"), BundleError, "is not blessed")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    made = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (("trim: true", "trim: false"), DataError, "was trained with trim: True of texts, and this table has False"),
        (("target: outcome", "target: outcome\n  drop: [purpose]"), DataError, "takes 'purpose', which the table"),
        (("path: loans.csv", "path: other.csv"), DataError, "answers 'good', 'bad', and the target has 'fair', 'bad'"),
        (("reference: bundle", "reference: missing"), RecipeError, "there is no bundle in"),
        (("reference: bundle", "reference: models:/loans@champion"), RecipeError, "an alias moves"),
        (("reference: bundle", "reference: 'hf://acme/loans@main'"), RecipeError, "a branch moves"),
        (("reference: bundle", "reference: 'oci://ghcr.io/acme/loans:latest'"), RecipeError, "a tag moves"),
        (("model: {", "train: {epochs: 3}\nmodel: {"), RecipeError, "train.epochs would be ignored"),
    ],
)  # fmt: skip
def test_a_bundle_that_does_not_fit_is_refused(
    world: Path, tmp_path: Path, change: tuple[str, str], kind: type[MlkitError], words: str
) -> None:
    recipe = again(world, tmp_path, AGAIN.replace(*change))
    other = table().replace({"outcome": {"good": "fair"}})
    other.to_csv(tmp_path / "other.csv", index=False)
    refused(lambda: mk.run(recipe, until="train"), kind, words)


def test_the_threshold_of_one_class_is_not_that_of_the_other(world: Path, tmp_path: Path) -> None:
    text = AGAIN.replace("positive: bad", "positive: good")
    recipe = again(world, tmp_path, text)
    error = refused(lambda: mk.run(recipe, until="export"), UsageError, "0.3, is of 'bad', and the positive class is")
    assert "data.positive: 'bad'" in error.hint
    recipe.write_text(text + "decision: {threshold: 0.7}\n")
    mk.run(recipe, until="export").raise_for_status()
    (decision,) = tmp_path.rglob("decision.json")
    assert json.loads(decision.read_text())["threshold"] == pytest.approx(0.7)


def test_a_damaged_bundle_is_refused_before_its_graph_is_read(world: Path, tmp_path: Path) -> None:
    recipe = again(world, tmp_path)
    (tmp_path / "bundle").unlink()
    shutil.copytree(world / "bundle", tmp_path / "bundle")
    (tmp_path / "bundle" / "model.onnx").chmod(0o600)
    (tmp_path / "bundle" / "model.onnx").write_bytes(b"not a graph")
    refused(lambda: mk.run(recipe, until="train"), BundleError, "model.onnx was altered")
