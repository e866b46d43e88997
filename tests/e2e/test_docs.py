"""The documentation is true: its pages can be typed in, its recipes have no fault, its links lead somewhere."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mlflowkit.errors import MlkitError
from mlflowkit.recipe.check import load
from tests.support import ROOT, docs_page
from tests.support.docs_page import Block
from tests.support.ports import free_port

DOCS = ROOT / "docs"
PAGES = sorted(
    page
    for folder in ("tutorial", "howto", "howto/deliver", "explanation", "reference")
    for page in (DOCS / folder).glob("*.md")
)
WALKED = [page for page in PAGES if any(block.language == "console" for block in docs_page.blocks(page))]
FRAGMENTS = [
    (page, index, block)
    for page in [*PAGES, ROOT / "README.md"]
    for index, block in enumerate(docs_page.blocks(page))
    if block.language == "yaml" and not block.file
]


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("page", WALKED, ids=lambda page: page.stem)
def test_a_page_can_be_typed_in(page: Path, tmp_path: Path) -> None:
    port = str(free_port())
    try:
        for block in docs_page.blocks(page):
            text = block.text.replace("8080", port)
            if block.file:
                (tmp_path / block.file).write_text(text)
            elif block.language == "console":
                for command in docs_page.commands(Block("console", text)):
                    done = docs_page.run(command, tmp_path)
                    assert done.returncode == command.code, f"$ {command.text}\n{done.stdout}"
                    missing = docs_page.missing_line(command.output, done.stdout)
                    assert not missing, f"$ {command.text}\ndid not print {missing!r} but\n{done.stdout}"
                    with_port(tmp_path, port)
    finally:
        for state in tmp_path.rglob(".mlkit"):
            docs_page.run(docs_page.Command(f"mlkit down --state {state}", 0, ()), tmp_path)


def with_port(folder: Path, port: str) -> None:
    """Have recipes that a command wrote use the free port too."""
    for recipe in folder.glob("*/recipe.yaml"):
        text = recipe.read_text()
        if "8080" in text:
            recipe.write_text(text.replace("8080", port))


@pytest.mark.parametrize(
    ("page", "index", "block"), FRAGMENTS, ids=lambda value: getattr(value, "stem", str(value))[:40]
)
def test_a_recipe_has_no_fault(page: Path, index: int, block: Block, tmp_path: Path) -> None:
    text = block.text.replace("sha256:…", f"sha256:{'5' * 64}")
    written = yaml.safe_load(text)
    for name in ("datasets.py", "lending.yaml"):
        shutil.copy(ROOT / "recipes" / name, tmp_path)
    (tmp_path / "keys.json").write_text('{"keys": []}')
    (tmp_path / "loans.csv").write_text("id,grade,annual_income,interest_rate\n1,A,50000,5.5\n")
    (tmp_path / "loans").mkdir()
    pq.write_table(pa.table({"amount": [1.0], "default": ["no"]}), tmp_path / "loans" / "2026.parquet")
    base = {} if "name" in written else yaml.safe_load((ROOT / "recipes" / "lending.yaml").read_text())
    recipe = tmp_path / "recipe.yaml"
    rest = {key: value for key, value in base.items() if key not in written}
    recipe.write_text(f"{yaml.safe_dump(rest, sort_keys=False) if rest else ''}{text}")  # PyYAML reads on: as true
    try:
        load(recipe)
    except MlkitError as error:
        pytest.fail(f"{page.name}, block {index}: {error}")


@pytest.mark.parametrize(
    "page", [*PAGES, DOCS / "index.md", DOCS / "figures.md", ROOT / "README.md"], ids=lambda page: page.stem
)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" in target or "/generated/" in target:
            continue
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
