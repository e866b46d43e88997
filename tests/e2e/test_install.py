"""A wheel builds, and installs in a clean environment with what its extra needs and nothing heavier."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HEAVY = ("torch", "scikit-learn", "mlflow-skinny", "skl2onnx")
"""Distributions that a serving environment must not need."""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tracked files so that nothing is left in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("mlflowkit", "pyproject.toml", "README.md", "LICENSE"):
        path = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(path, source / name, ignore=ignore) if path.is_dir() else shutil.copy(path, source)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, source)
    return next(out.glob("*.whl"))


def install(wheel: Path, extras: str, home: Path) -> Path:
    """A new environment with the wheel and its extras; returns its bin folder."""
    run(sys.executable, "-m", "venv", home)
    requirement = f"mlflowkit{extras} @ {wheel.as_uri()}"
    uv = shutil.which("uv")
    installer = (
        [uv, "pip", "install", "--python", home / "bin/python"]
        if uv
        else [home / "bin/python", "-m", "pip", "install", "--no-compile"]
    )
    run(*installer, "--quiet", "-c", ROOT / "constraints.txt", requirement)
    return home / "bin"


def test_a_serving_environment_has_no_training_library(
    wheel: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    tools = install(wheel, "[serve,cpu]", tmp_path / "env")
    code = f"""
import importlib.metadata as metadata, json
installed = {{distribution.metadata["Name"].lower() for distribution in metadata.distributions()}}
import mlflowkit.serving.http.gateway, mlflowkit.serving.observer.observer_process, mlflowkit.serving.replica
import mlflowkit.adapters.ray_serve.reconciler, mlflowkit.adapters.whylogs, mlflowkit.processes.controller_main
print(json.dumps(sorted(installed & set({HEAVY!r}))))
"""
    assert json.loads(run(tools / "python", "-c", code, cwd=tmp_path)) == []
    size = sum(path.stat().st_size for path in (tmp_path / "env").rglob("*") if path.is_file())
    record_property("megabytes", round(size / 1e6))


def test_the_core_judges_and_says_what_a_run_lacks(wheel: Path, tmp_path: Path) -> None:
    tools = install(wheel, "", tmp_path / "env")
    code = (
        "import mlflowkit as mk; from mlflowkit.judging.gates import GateSpec, judge; "
        "from mlflowkit.judging.stats import Estimate, wilson; "
        "estimate = Estimate('accuracy', 0.9, 500, lambda c: wilson(450, 500, c), 'Wilson', basis='500 rows'); "
        "print(judge(GateSpec('accuracy >= 0.85', 'accuracy', 0.85, 'min'), estimate).outcome)"
    )
    assert run(tools / "python", "-c", code, cwd=tmp_path).strip() == "PASSED"
    run(tools / "mlkit", "init", "start", cwd=tmp_path)
    run(tools / "mlkit", "validate", "start/recipe.yaml", cwd=tmp_path)
    command = [tools / "mlkit", "run", "start/recipe.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 3
    assert "pip install 'mlflowkit[train,serve,cpu]'" in done.stderr
    assert not list((tmp_path / "start").glob(".mlkit/runs/*"))
