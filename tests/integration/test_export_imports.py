"""`mlkit export` of every target reads a recipe and writes text: no library of a vendor is loaded for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.export_speed import RECIPES, write_recipe
from mlflowkit.delivery.targets import BUILT_IN
from tests.unit.test_imports import VENDORS

EXPORT = """
import json, sys
from mlflowkit.cli import main
vendors = json.loads(sys.argv.pop(1))
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps([name for name in vendors if name in sys.modules]))
"""
SYSTEMS = ("kfp", "kubernetes", "airflow", "boto3", "sagemaker", "docker", "github", "gitlab", "jenkins", "git")
"""Clients of the systems that files are written for."""


@pytest.mark.parametrize("name", RECIPES)
def test_an_export_loads_no_vendor(tmp_path: Path, name: str) -> None:
    recipe = write_recipe(tmp_path / "project", RECIPES[name])
    command = [sys.executable, "-c", EXPORT, json.dumps([*VENDORS, *SYSTEMS]), "export", str(recipe), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result, loaded = done.stdout.strip().rsplit("\n", 1)
    assert {file["action"] for file in json.loads(result)["files"]} == {"new"}
    assert json.loads(loaded) == []


def test_the_recipes_have_every_built_in_target() -> None:
    named = [target for text in RECIPES.values() for target in yaml.safe_load(text)["delivery"]["targets"]]
    assert sorted(named) == sorted(BUILT_IN)
