"""No secret's value gets into a generated file, and a recipe that holds one where a name belongs is a fault."""

from __future__ import annotations

import os
import re
import subprocess
import zlib
from base64 import b64decode
from pathlib import Path

import pytest

from benchmarks.export_speed import RECIPES, export_command, write_recipe
from mlflowkit.errors import RecipeError
from mlflowkit.recipe.check import load

NAMES = (
    "GITHUB_TOKEN", "CI_JOB_TOKEN", "REGISTRY_TOKEN", "MLKIT_REGISTRY_TOKEN", "MLKIT_GIT_TOKEN", "MLKIT_API_KEY",
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "DB_URL", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "VAULT_TOKEN",
)  # fmt: skip
CANARIES = {name: f"canary{index:02}-{'s3cr3t' * 4}" for index, name in enumerate(NAMES)}
REFERENCES = {
    "forges and clusters": "{DB_URL: {env: DB_URL}, HF_TOKEN: {env: HF_TOKEN}}",
    "orchestrators": "{DB_URL: {kubernetes: {name: lending, key: db-url}}}",
}
LITERAL = "hunter2-Literal/Value+of=a_secret"


@pytest.mark.parametrize("name", RECIPES)
def test_no_value_of_a_secret_is_in_a_generated_file(tmp_path: Path, name: str) -> None:
    text = RECIPES[name]
    if name in REFERENCES:
        text += f"  secrets: {REFERENCES[name]}\n"
    recipe = write_recipe(tmp_path / "project", text)
    (recipe.parent / ".env").write_text("".join(f"{key}={value}\n" for key, value in CANARIES.items()))
    remote = f"https://x:{CANARIES['MLKIT_GIT_TOKEN']}@git.example.org/acme/lending.git"
    subprocess.run(["git", "remote", "add", "origin", remote], cwd=recipe.parent, check=True)
    environment = {**os.environ, **CANARIES}
    command = export_command(recipe, tmp_path / "out")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    files = {path: path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert len(files) >= 2
    lock = next(text for path, text in files.items() if path.name == ".mlkit-export.lock")
    everything = "\n".join([*files.values(), _unpacked(lock), done.stdout, done.stderr])
    assert "lending" in _unpacked(lock)
    assert [key for key, value in CANARIES.items() if value in everything] == []
    if name in REFERENCES:
        assert "DB_URL" in everything


CONNECTIONS = """
connections:
  lake: {kind: lakefs, url: "https://lake.example", access_key: {env: LAKE_KEY}, secret: {env: LAKE_SECRET}}
  bucket: {kind: s3, access_key: {env: LAKE_KEY}, secret: {file: s3-secret}}
  images: {kind: huggingface, token: {env: GITHUB_TOKEN}}
"""


def test_a_pipeline_gives_its_steps_the_secrets_of_connections(tmp_path: Path) -> None:
    """By name, but those that the pipeline's system has of its own; where the recipe says another place, from there."""
    text = RECIPES["forges and clusters"] + "  secrets: {LAKE_SECRET: {env: LAKE_SECRET_OF_CI}}\n" + CONNECTIONS
    recipe = write_recipe(tmp_path / "project", text)
    command = export_command(recipe, tmp_path / "out")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"LAKE_KEY": LITERAL})
    assert done.returncode == 0, done.stderr
    files = {path: path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    workflows = "\n".join(text for path, text in files.items() if path.parent.name == "workflows")
    assert "LAKE_KEY: ${{ secrets.LAKE_KEY }}" in workflows
    assert "LAKE_SECRET: ${{ secrets.LAKE_SECRET_OF_CI }}" in workflows
    assert "secrets.GITHUB_TOKEN" not in workflows
    jenkins = "\n".join(text for path, text in files.items() if "jenkins" in path.name.lower())
    assert "string(credentialsId: 'LAKE_KEY', variable: 'LAKE_KEY')" in jenkins
    assert not [path for path, text in files.items() if LITERAL in text]


def test_a_cluster_is_told_where_the_secret_of_a_connection_is(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "project", RECIPES["orchestrators"] + CONNECTIONS)
    done = subprocess.run(export_command(recipe, tmp_path / "out"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "delivery.secrets.LAKE_KEY.env: target airflow: a pod reads Secrets of Kubernetes" in done.stderr
    assert "write kubernetes: {name: SECRET, key: KEY}" in done.stderr


def _unpacked(lock: str) -> str:
    """The texts that the lock keeps compressed."""
    texts = re.findall(r'"text": \[(.*?)\]', lock, re.S)
    return "\n".join(zlib.decompress(b64decode("".join(re.findall(r'"([^"]*)"', text)))).decode() for text in texts)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("  policy: {inconclusive: neutral}", f"  secrets: {{DB_URL: '{LITERAL}'}}"),
        ("  policy: {inconclusive: neutral}", f"  secrets: {{DB_URL: {{env: '{LITERAL}'}}}}"),
        ("  policy: {inconclusive: neutral}", f"  secrets: {{DB_URL: {{value: '{LITERAL}'}}}}"),
        ("  policy: {inconclusive: neutral}", f"  secrets: {{DB_URL: {{vault: '{LITERAL}'}}}}"),
        ("credentials: {env: REGISTRY_TOKEN}", f"credentials: '{LITERAL}'"),
        ("credentials: {env: REGISTRY_TOKEN}", f"credentials: {{env: '{LITERAL}'}}"),
        ("  policy: {inconclusive: neutral}", f"  password: '{LITERAL}'"),
    ],
)
def test_a_literal_secret_is_a_fault_with_its_place(tmp_path: Path, before: str, after: str) -> None:
    text = RECIPES["forges and clusters"]
    assert before in text
    recipe = write_recipe(tmp_path / "project", text.replace(before, after))
    with pytest.raises(RecipeError) as caught:
        load(recipe)
    (line,) = [number for number, line in enumerate(recipe.read_text().splitlines(), 1) if LITERAL in line]
    assert {fault.line for fault in caught.value.faults} == {line}
    assert all(fault.column > 1 for fault in caught.value.faults)
