"""A recipe only names where a secret is kept: what looks like one is a fault with its position, never quoted."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from mlflowkit.data_access.connections import CredentialReference
from mlflowkit.errors import DataError, RecipeError
from mlflowkit.recipe.check import load

CANARY = "hunter2-canary"
RECIPE = """name: loans
task: classification
connections:
  lake: {{kind: lakefs, url: {url}, access_key: {{env: LAKE_KEY}}, secret: {secret}}}
data:
  source: {{kind: lakefs, connection: {connection}, repository: lending, ref: {ref}, path: "{path}", format: csv}}
  target: Class
  split: {{kind: random}}
model: {{kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}}
"""
GOOD = {"url": "https://lake", "secret": "{env: LAKE_SECRET}", "connection": "lake", "ref": "main", "path": "loans/"}


def faults(folder: Path, *overrides: str, **changed: str) -> RecipeError:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(**{**GOOD, **changed}))
    with pytest.raises(RecipeError) as caught:
        load(path, overrides)
    error = caught.value
    quoted = [*map(repr, error.faults), *error.sources.values(), *traceback.format_exception(error)]
    assert not any(CANARY in text for text in quoted)
    return error


def test_a_recipe_with_references_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(**GOOD))
    loaded = load(path)
    assert loaded.composed["connections"]["lake"]["secret"] == {"env": "LAKE_SECRET", "file": None}
    assert loaded.recipe.data.source.describe() == "lakefs://lending/main/loans/"


@pytest.mark.parametrize(
    ("changed", "line", "key"),
    [
        ({"secret": CANARY}, 4, "connections.lake.secret"),
        ({"url": f"https://me:{CANARY}@lake"}, 4, "connections.lake.url"),
        ({"url": f"https://{CANARY}@lake"}, 4, "connections.lake.url"),
        ({"path": f"s3://me:{CANARY}@bucket/loans"}, 6, "data.source.path"),
    ],
)
def test_a_secret_in_a_recipe_is_a_fault_at_its_place(
    tmp_path: Path, changed: dict[str, str], line: int, key: str
) -> None:
    (fault,) = faults(tmp_path, **changed).faults
    assert (fault.line, fault.key, fault.found) == (line, key, "***")
    assert "a recipe only names where a secret is kept" in fault.message


def test_a_secret_in_an_override_is_not_quoted(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, f"connections.lake.secret={CANARY}").faults
    assert (fault.file, fault.found) == ("<override>", "***")
    (fault,) = faults(tmp_path, f"connections.lake.url=https://me:{CANARY}@lake").faults
    assert (fault.file, fault.found) == ("<override>", "***")


@pytest.mark.parametrize(
    ("changed", "message", "hint"),
    [
        ({"connection": "lak"}, "there is no connection 'lak'; there are lake", "did you mean lake?"),
        ({"ref": "main$"}, "would read what is staged and not committed", ""),
        ({"ref": "3f2a9c4"}, "name a commit by 12 digits at least", ""),
        ({"path": "loans/../x"}, "expected a path below the repository's root", ""),
        ({"secret": "{env: A, file: b}"}, "name one of env and file", ""),
        ({"secret": "{}"}, "name one of env and file", ""),
        ({"url": "ftp://lake"}, "expected a URL such as https://lake.example", ""),
    ],
)
def test_other_mistakes_are_located(tmp_path: Path, changed: dict[str, str], message: str, hint: str) -> None:
    (fault,) = faults(tmp_path, **changed).faults
    assert message in fault.message
    assert hint in fault.hint


def test_a_secret_is_read_where_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text(f"{CANARY}\n")
    file.chmod(0o600)
    assert CredentialReference(file="key").read(tmp_path) == CANARY
    monkeypatch.setenv("LAKE_SECRET", f"{CANARY}\n")
    assert CredentialReference(env="LAKE_SECRET").read(tmp_path) == CANARY


@pytest.mark.parametrize("value", [None, "", "\n", f" {CANARY}", f"{CANARY}\nmore"])
def test_a_secret_that_cannot_be_right_is_refused_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("LAKE_SECRET", raising=False)
    if value is not None:
        monkeypatch.setenv("LAKE_SECRET", value)
    with pytest.raises(DataError) as caught:
        CredentialReference(env="LAKE_SECRET").read(tmp_path)
    assert "LAKE_SECRET" in caught.value.message
    assert caught.value.hint == "export LAKE_SECRET=..."
    assert CANARY not in caught.value.message


def test_a_secret_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(CANARY)
    file.chmod(0o640)
    with pytest.raises(DataError, match="can be read by others") as caught:
        CredentialReference(file="key").read(tmp_path)
    assert caught.value.hint == f"chmod 600 {file}"
