"""The plugins of docs/howto/extend.md, taken from the page, do what it says: installed, used, edited, uninstalled."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlflowkit.system.entry_points import OWN, SOURCES
from tests.support import ROOT, docs_page

pytestmark = [pytest.mark.heavy, pytest.mark.slow, pytest.mark.timeout(600)]

PAGE = ROOT / "docs" / "howto" / "extend.md"
PLUGINS = ("acme_sqlite.py", "acme_cost.py", "acme_prune.py")


class Acme:
    """The distribution of the page on a PYTHONPATH, and a folder with its recipe."""

    def __init__(self, folder: Path) -> None:
        self.site, self.work = folder / "site", folder / "work"
        files = {block.file: block.text for block in docs_page.blocks(PAGE) if block.file}
        for name, text in files.items():
            target = (self.work if name.endswith(".yaml") else self.site) / name
            target.parent.mkdir(exist_ok=True)
            target.write_text(text)
        project = tomllib.loads(files["pyproject.toml"])["project"]
        self.metadata = self.site / f"{project['name']}-{project['version']}.dist-info"
        self.metadata.mkdir()
        (self.metadata / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
        groups = [
            f"[{group}]\n" + "".join(f"{name} = {reference}\n" for name, reference in entries.items())
            for group, entries in project["entry-points"].items()
        ]
        (self.metadata / "entry_points.txt").write_text("\n".join(groups))
        write_loans(self.work / "loans.db")
        self.summary: dict[str, Any] = {}

    def python(self, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(self.site), str(ROOT)])
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder or self.work,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def mlkit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.python("-c", "import sys; from mlflowkit.cli import main; sys.exit(main())", *arguments)

    def plan(self) -> dict[str, dict[str, Any]]:
        done = self.mlkit("plan", "recipe.yaml", "--until", "package", "--json")
        assert done.returncode == 0, done.stderr
        return {step["stage"]: step for step in json.loads(done.stdout)["steps"]}

    def stale(self) -> list[str]:
        return [stage for stage, step in self.plan().items() if step["action"] == "run"]


def write_loans(path: Path) -> None:
    random = np.random.default_rng(0)
    income, debt = random.normal(size=(2, 600))
    bad = (debt - income + 0.5 * random.normal(size=600) > 0).astype(int)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE loans (id, income, debt, bad)")
        rows = zip(range(600), income.tolist(), debt.tolist(), bad.tolist(), strict=True)
        connection.executemany("INSERT INTO loans VALUES (?, ?, ?, ?)", rows)
        connection.commit()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Acme:
    """The distribution, with the recipe run up to its package."""
    acme = Acme(tmp_path_factory.mktemp("acme"))
    done = acme.mlkit("run", "recipe.yaml", "--until", "package", "--json")
    assert done.returncode in (0, 1, 4), done.stderr
    acme.summary = json.loads(done.stdout)
    return acme


@pytest.fixture
def acme(installed: Acme) -> Any:
    """The distribution, restored after the test."""
    kept = installed.site.with_name("kept")
    shutil.copytree(installed.site, kept)
    yield installed
    shutil.rmtree(installed.site)
    kept.rename(installed.site)


def test_the_suites_of_the_page_pass(acme: Acme) -> None:
    done = acme.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_acme.py", folder=acme.site)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_a_recipe_with_all_three_runs(acme: Acme) -> None:
    assert [verdict["gate"] for verdict in acme.summary["verdicts"]] == [
        "cost_per_loan <= 4",
        "cost_per_loan against champion, margin 0.1",
    ]
    assert [verdict["verdict"] for verdict in acme.summary["verdicts"]] == ["PASSED", "PASSED"]
    objects = acme.work / ".mlkit" / "objects"
    (evaluation,) = (json.loads(file.read_bytes()) for file in objects.glob("*/evaluation.json"))
    assert 0 < evaluation["metrics"]["cost_per_loan"]["value"] < 4
    (candidates,) = (json.loads(file.read_bytes()) for file in objects.glob("*/candidates.json"))
    pruned = next(candidate for candidate in candidates if candidate["name"] == "pruned")
    assert pruned["status"] == "ok", pruned["reason"]
    assert pruned["passes"] == [{"kind": "prune", "share": 0.2}]
    assert "cost_per_loan" in Path(acme.summary["report"]).read_text()


def test_a_plan_again_says_reuse(acme: Acme) -> None:
    assert acme.stale() == []


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("acme_sqlite.py", ["data", "validate", "train", "export", "optimize", "evaluate", "package"]),
        ("acme_cost.py", ["evaluate", "package"]),
        ("acme_prune.py", ["optimize", "evaluate", "package"]),
    ],
)
def test_editing_a_plugin_makes_the_steps_stale_that_depend_on_it(acme: Acme, file: str, stages: list[str]) -> None:
    with (acme.site / file).open("a") as code:
        code.write("# edited\n")
    steps = acme.plan()
    assert [stage for stage, step in steps.items() if step["action"] == "run"] == stages
    assert steps[stages[0]]["reason"] == f"code: {file} changed"


def test_another_version_of_the_distribution_is_a_change(acme: Acme) -> None:
    (acme.metadata / "METADATA").write_text("Name: acme\nVersion: 2.0\n")
    assert acme.plan()["data"]["reason"] == "library acme 1.0 -> 2.0"


def test_changed_rows_are_a_change(acme: Acme) -> None:
    database = acme.work / "loans.db"
    content = database.read_bytes()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE loans SET income = 0 WHERE id = 1")
        connection.commit()
    assert acme.plan()["data"]["reason"] == "data.source: loans.db changed"
    database.write_bytes(content)


def test_faults_of_its_keys_are_located(acme: Acme) -> None:
    recipe = (acme.work / "recipe.yaml").read_text()
    (acme.work / "wrong.yaml").write_text(
        recipe.replace("path: loans.db", "pth: loans.db").replace("share: 0.2", "share: 2")
    )
    done = acme.mlkit("validate", "wrong.yaml", "--json")
    faults = {fault["key"]: fault for fault in json.loads(done.stdout)["errors"]}
    assert set(faults) == {"data.source.path", "data.source.pth", "optimize.candidates.1.passes.0.share"}
    assert faults["data.source.pth"]["hint"] == "did you mean path?"
    share = faults["optimize.candidates.1.passes.0.share"]
    line = recipe.splitlines().index("    - {name: pruned, passes: [{kind: prune, share: 0.2}]}") + 1
    assert (share["line"], share["message"]) == (line, "expected a number > 0 and < 1, found 2")


def test_the_schema_has_its_keys(acme: Acme) -> None:
    schema = json.loads(acme.mlkit("schema").stdout)
    assert schema["$defs"]["SqliteSource"]["properties"]["path"]["description"].startswith("The database")
    assert {"$ref": "#/$defs/SqliteSource"} in schema["$defs"]["DataSection"]["properties"]["source"]["oneOf"]
    assert "Prune" in schema["$defs"]


def test_a_similar_name_is_offered(acme: Acme) -> None:
    done = acme.mlkit("validate", "recipe.yaml", "data.source.kind=sqlit", "--json")
    (fault,) = json.loads(done.stdout)["errors"]
    own = ", ".join(sorted(OWN[SOURCES]))
    assert f"csv, parquet, python, {own}, sqlite" in fault["message"]
    assert fault["hint"] == "did you mean sqlite?"


def test_uninstalled_plugins_are_named(acme: Acme) -> None:
    shutil.rmtree(acme.metadata)
    done = acme.mlkit("run", "recipe.yaml", "--until", "package", "--json")
    assert done.returncode == 2
    faults = {fault["key"]: fault for fault in json.loads(done.stdout)["error"]["errors"]}
    for key, name, group in (
        ("data.source.kind", "sqlite", "sources"),
        ("gates.0.metric", "cost_per_loan", "metrics"),
        ("optimize.candidates.1.passes.0.kind", "prune", "passes"),
    ):
        expected = f"pip install the distribution that registers {name!r} under the entry points mlflowkit.{group}"
        assert expected in faults[key]["hint"]


@pytest.mark.parametrize("file", PLUGINS)
def test_a_plugin_that_cannot_be_imported_is_named_with_its_distribution(acme: Acme, file: str) -> None:
    (acme.site / file).write_text("import no_such_module\n")
    done = acme.mlkit("validate", "recipe.yaml")
    assert done.returncode == 2
    assert "of acme 1.0 cannot be loaded" in done.stderr
    assert "no_such_module" in done.stderr
    assert "pip install --force-reinstall acme" in done.stderr


def test_recipes_without_plugins_read_no_entry_points(acme: Acme) -> None:
    """Neither validation, nor planning, nor a run with nothing to do."""
    (acme.work / "plain.csv").write_text("x,y\n" + "".join(f"{number},{number % 2}\n" for number in range(60)))
    (acme.work / "plain.yaml").write_text(
        "name: plain\ntask: classification\n"
        "data: {source: {kind: csv, path: plain.csv}, target: y, split: {kind: random}}\n"
        'model: {kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}\n'
        "gates: [{metric: accuracy, min: 0}]\n"
    )
    code = (
        "import sys, importlib.metadata\n"
        "def refuse(*_, **__): raise AssertionError('entry points were read')\n"
        "importlib.metadata.entry_points = refuse\n"
        "from mlflowkit.cli import main\n"
        "sys.exit(main())\n"
    )
    for command in (["validate"], ["plan", "--until", "data"], ["run", "--until", "data"], ["run", "--until", "data"]):
        done = acme.python("-c", code, command[0], "plain.yaml", *command[1:])
        assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout
