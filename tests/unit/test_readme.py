"""What the README shows is so: its recipe has no fault, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

from mlflowkit.cli.app import COMMANDS
from mlflowkit.optimization.space import candidates_of
from mlflowkit.recipe.check import load

RECIPES = Path(__file__).parents[2] / "recipes"
README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_recipe_has_no_fault(tmp_path: Path) -> None:
    recipe = re.search(r"## A recipe\n```yaml\n(.*?)```", README, re.DOTALL)
    assert recipe is not None
    (tmp_path / "recipe.yaml").write_text(recipe[1])
    (tmp_path / "loans.csv").write_text("id,grade,annual_income,interest_rate\n1,A,50000,5.5\n")
    assert load(tmp_path / "recipe.yaml").recipe.name == "loans"


def test_the_rollout_has_no_fault(tmp_path: Path) -> None:
    serve = re.search(r"```yaml\n(serve:\n.*?)```", README, re.DOTALL)
    assert serve is not None
    lending = (RECIPES / "lending.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(lending[: lending.index("serve:")] + serve[1])
    (tmp_path / "datasets.py").write_text((RECIPES / "datasets.py").read_text())
    section = load(tmp_path / "recipe.yaml").recipe.serve
    assert section is not None
    assert [step.weight for step in section.rollout.sequence] == [0, 5, 25, 50]


def test_the_search_has_no_fault(tmp_path: Path) -> None:
    optimize = re.search(r"```yaml\n(optimize:\n.*?)```", README, re.DOTALL)
    assert optimize is not None
    lending = (RECIPES / "lending.yaml").read_text()
    before, after = lending[: lending.index("optimize:")], lending[lending.index("gates:") :]
    (tmp_path / "recipe.yaml").write_text(before + optimize[1] + after)
    (tmp_path / "datasets.py").write_text((RECIPES / "datasets.py").read_text())
    section = load(tmp_path / "recipe.yaml").recipe.optimize
    assert section.search.space is not None
    assert len(candidates_of(section.search.space)) == 6


def test_every_command_is_named() -> None:
    named = set(re.findall(r"`mlkit ([a-z]+)", README))
    assert named >= set(COMMANDS)
