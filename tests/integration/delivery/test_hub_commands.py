"""Bundles on the Hugging Face Hub by the command line: pushed, looked up, pulled and deployed by hf:// references."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.bundle import open_bundle
from mlflowkit.cli.app import main
from tests.support.hub_fake import FakeHub
from tests.support.hub_models import WRITE_TOKEN
from tests.support.judged_bundle import make_judged_bundle

pytestmark = pytest.mark.heavy


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    made = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield made
    made.close()


def mlkit(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    with pytest.raises(SystemExit):
        main([*words, "--json"])
    shown = capsys.readouterr()
    assert WRITE_TOKEN not in shown.out + shown.err
    return json.loads(shown.out)


def test_a_bundle_goes_to_the_hub_and_back_by_the_command_line(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_judged_bundle(tmp_path / "bundle")
    planned = mlkit(capsys, "image", "push", str(bundle.path), "hf://acme/lending", "--dry-run")["bundle"]
    assert hub.models.repositories == {}
    assert (
        mlkit(capsys, "image", "push", str(bundle.path), "hf://acme/lending", "--license", "mit")["bundle"] == planned
    )
    assert hub.models.repositories["acme/lending"].private
    pulled = mlkit(capsys, "image", "pull", planned, str(tmp_path / "pulled"))["folder"]
    assert open_bundle(Path(pulled), blessed=True).manifest == bundle.manifest
    state = ("--state", str(tmp_path / "state"))
    origin = mlkit(capsys, "lineage", planned, *state)
    assert (origin["identity"], origin["lineage"]["data_commit"]) == (bundle.manifest.identity, "d" * 40)
    assert [item["outcome"] for item in origin["verdicts"]] == ["PASSED"]
    would = mlkit(capsys, "deploy", planned, "--dry-run", *state)
    assert (would["identity"], would["service"]) == (bundle.manifest.identity, "lending")
    error = mlkit(capsys, "deploy", "hf://acme/lending@v-00000000000000", "--dry-run", *state)["error"]
    assert "has no branch, tag or commit" in error["message"]


def test_what_is_of_the_hub_only_is_refused_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = mlkit(capsys, "image", "push", str(tmp_path), "ghcr.io/acme/lending-bundle", "--public")["error"]
    assert error["code"] == 2
    assert "are of the Hugging Face Hub" in error["message"]
    error = mlkit(capsys, "image", "push", str(tmp_path), "hf://lending")["error"]
    assert "repository 'lending'" in error["message"]
