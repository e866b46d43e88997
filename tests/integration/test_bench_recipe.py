"""`mlkit bench` of a recipe and of the bundle that a real run of it made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mlflowkit as mk
from mlflowkit.cli.app import main

SHORT = ("--starts", "1", "--samples", "100", "--json")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `mlkit init` writes, after a run of one epoch."""
    folder = tmp_path_factory.mktemp("recipe")
    with pytest.raises(SystemExit):
        main(["init", str(folder)])
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def bundle(recipe: Path) -> Path:
    overrides = ["train.epochs=1", "optimize.candidates=[onnx]", "optimize.samples=200", "gates=[]"]
    run = mk.run(mk.load(recipe, overrides), until="package")
    return Path(run.answer["bundle"])


def measured(capfd: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capfd.readouterr()
    with pytest.raises(SystemExit) as done:
        main(["bench", *map(str, arguments), *SHORT])
    value = json.loads(capfd.readouterr().out)
    assert not done.value.code, value
    return value


def test_a_bundle_is_asked_its_evidence_and_held_against_its_recipe(
    recipe: Path, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    value = measured(capfd, bundle, "--compare", recipe)
    assert [one["kind"] for one in value["subjects"]] == ["bundle", "recipe"]
    assert all("generated" not in note for one in value["subjects"] for note in one["notes"])
    assert [row["status"] for row in value["candidates"]] == ["ok", "ok"]
    assert value["candidates"][0]["graph"] == value["candidates"][1]["graph"], "the bundle serves what the run picked"
    assert len(value["comparisons"]) == 1


def test_candidates_of_a_recipe_are_made_and_kept_in_its_state(
    recipe: Path, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    value = measured(capfd, recipe, "--candidate", "onnx", "--candidate", "onnx-int8-dynamic", "--batch", "1,8")
    rows = {(row["name"], row["batch"]): row for row in value["candidates"]}
    assert set(rows) == {(name, batch) for name in ("onnx", "onnx-int8-dynamic") for batch in (1, 8)}
    assert rows["onnx-int8-dynamic", 1]["status"] == "ok", rows["onnx-int8-dynamic", 1]["reason"]
    assert rows["onnx-int8-dynamic", 1]["graph"] != rows["onnx", 1]["graph"]
    assert any((recipe.parent / ".mlkit" / "trials").iterdir())


def test_a_version_is_held_against_an_earlier_one_by_name(
    recipe: Path, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "before.json"
    measured(capfd, bundle, "--out", out)
    value = json.loads(out.read_bytes())
    value["subjects"][0]["version"], value["candidates"][0]["graph"] = "another", "0" * 64
    out.write_text(json.dumps(value))
    told = measured(capfd, bundle, "--baseline", out, "--fail-above", "10000%")
    name = value["candidates"][0]["name"]
    assert told["baseline"]["outcome"] == "PASSED"
    assert f"{name}: another graph than the baseline's" in told["baseline"]["notes"]
