"""mlkit ci check: what it finds in a recipe's code, and that it leaves the checkout as it was."""

from __future__ import annotations

import json
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.ci.code_checks import run_checks
from tests.support.warm_commands import warm_command

RECIPE = """\
name: cells
task: classification
data:
  source: {kind: python, function: "cells:table"}
  target: kind
  positive: rare
  drop: [id]
  split: {kind: stratified}
model: {kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}
delivery:
  registry: {image: ghcr.io/acme/cells}
  checks: {smoke_rows: 200}
"""
CODE = '''\
"""Cells."""

import numpy as np
import pandas as pd


def table() -> pd.DataFrame:
    """Four thousand rows, one in eighty rare."""
    generator = np.random.default_rng(0)
    kinds = np.where(np.arange(4000) % 80 == 0, "rare", "common")
    size = generator.normal(size=4000) + 3 * (kinds == "rare")
    return pd.DataFrame({"id": np.arange(4000), "size": size, "kind": kinds})
'''
TEST = """\
import cells


def test_rows() -> None:
    assert len(cells.table()) == 4000
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "tests").mkdir(parents=True)
    (folder / "cells.yaml").write_text(RECIPE)
    (folder / "cells.py").write_text(CODE)
    (folder / "tests" / "test_cells.py").write_text(TEST)
    return folder


def _outcomes(folder: Path, out: Path) -> dict[str, str]:
    return {item.name: item.outcome for item in run_checks(folder / "cells.yaml", out).results}


def test_a_sound_project_passes_and_stays_as_it_was(project: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    command = [*warm_command("mlflowkit.cli"), "ci", "check", str(project / "cells.yaml"), "--json"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert {item["name"]: item["outcome"] for item in report["checks"]} == dict.fromkeys(
        ("validate", "format", "lint", "tests", "smoke"), "passed"
    )
    assert "200 of 4,000 rows" in report["checks"][-1]["message"]
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before
    suites = ET.parse(tmp_path / "out" / "checks.xml").getroot()
    assert [suite.get("tests") for suite in suites] == ["5", "1"]


def test_each_check_finds_its_fault(project: Path, tmp_path: Path) -> None:
    code, test = project / "cells.py", project / "tests" / "test_cells.py"
    code.write_text(CODE.replace("import numpy as np\n", "import os\nimport numpy as np\n").replace("(0)", "( 0 )"))
    test.write_text(TEST.replace("4000", "3"))
    outcomes = _outcomes(project, tmp_path / "out")
    assert outcomes == {
        "validate": "passed",
        "format": "failed",
        "lint": "failed",
        "tests": "failed",
        "smoke": "passed",
    }
    suites = ET.parse(tmp_path / "out" / "checks.xml").getroot()
    assert (suites[0].get("failures"), suites[1].get("failures")) == ("3", "1")


def test_code_that_cannot_train_fails_the_smoke_check(project: Path, tmp_path: Path) -> None:
    (project / "cells.py").write_text(CODE.replace('"kind": kinds', '"kind": "common"'))
    report = run_checks(project / "cells.yaml", tmp_path / "out")
    assert report.results[-1].outcome == "failed"
    assert report.exit_code == 1


def test_a_faulty_recipe_fails_and_is_not_trained(project: Path, tmp_path: Path) -> None:
    (project / "cells.yaml").write_text(RECIPE.replace("target: kind", "targt: kind"))
    outcomes = _outcomes(project, tmp_path / "out")
    assert outcomes["validate"] == "failed"
    assert "smoke" not in outcomes


def test_a_folder_of_tests_that_the_recipe_names_must_have_some(project: Path, tmp_path: Path) -> None:
    (project / "tests" / "test_cells.py").unlink()
    assert _outcomes(project, tmp_path / "out")["tests"] == "skipped"
    recipe = RECIPE.replace("checks: {", "checks: {tests: tests, ")
    (project / "cells.yaml").write_text(recipe)
    assert _outcomes(project, tmp_path / "out")["tests"] == "failed"
