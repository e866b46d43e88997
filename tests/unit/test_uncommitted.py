"""What makes a checkout dirty: inputs that no commit holds, by name; not what a pipeline leaves beside them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from mlflowkit.pipeline.lineage import uncommitted
from mlflowkit.pipeline.lineage.checkout import read_checkout
from mlflowkit.pipeline.lineage.uncommitted import RunInputs, UncommittedInputs, uncommitted_inputs
from mlflowkit.recipe.check import load
from mlflowkit.stages.sources import content_names
from tests.support.git_project import GitProject

CODE = '''
"""Rows."""
from pathlib import Path
import helper

MAPS = Path(__file__).parent / "maps" / "codes.json"


def rows():
    return helper.read(Path("extra").glob("*.tsv"))
'''


@pytest.fixture
def project(tmp_path: Path) -> GitProject:
    project = GitProject(tmp_path / "project")
    project.write("recipes/a.yaml", "name: a\n")
    project.write("recipes/code.py", CODE)
    project.write("recipes/helper.py", "def read(paths): return list(paths)\n")
    project.write("README.md", "a project\n")
    project.write(".gitignore", "*.secret\nbig.csv\n")
    project.commit()
    return project


def inputs_of(project: GitProject, *data: str, code: tuple[str, ...] = ("code.py", "helper.py")) -> RunInputs:
    folder = project.root / "recipes"
    files = [folder / name for name in code if (folder / name).exists()]
    words = {word for text in uncommitted._source_texts(files) for word in uncommitted._words(text)}
    return RunInputs((folder / "a.yaml", *files), tuple(folder / name for name in data), frozenset(words))


def judged(project: GitProject, *data: str, **options: tuple[str, ...]) -> UncommittedInputs:
    return uncommitted_inputs(read_checkout(project.root / "recipes"), inputs_of(project, *data, **options))


def test_a_clean_checkout_is_clean(project: GitProject) -> None:
    assert judged(project) == UncommittedInputs()


@pytest.mark.parametrize(
    "name", ["recipes/run.json", "recipes/report.json", "recipes/junit.xml", "recipes/notes.py", "scratch.py",
             "data.csv", "recipes/.mlkit/journal.db", "recipes/.mlkit-export.lock", "recipes/__pycache__/code.pyc"],
)  # fmt: skip
def test_untracked_files_that_the_run_does_not_read_are_no_change(project: GitProject, name: str) -> None:
    project.write(name, "{}")
    assert judged(project).changes == ()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("recipes/rows.csv", ("rows.csv",)),
        ("shared/rows.csv", ("../shared/rows.csv",)),
        ("recipes/maps/codes.json", ()),
        ("recipes/codes.json", ()),
        ("recipes/extra/b.tsv", ()),
        ("recipes/b.tsv", ()),
    ],
)
def test_an_untracked_input_is_a_change_and_named(project: GitProject, name: str, data: tuple[str, ...]) -> None:
    project.write(name, "1\n")
    judgement = judged(project, *data)
    assert len(judgement.changes) == 1
    assert name.startswith(judgement.changes[0].removesuffix(" (untracked)"))
    assert judgement.forgotten == judgement.changes
    kinds = dict(judgement.messages(read_checkout(project.root / "recipes")))
    assert list(kinds) == ["warning"]
    assert f"git -C {project.root} add" in kinds["warning"]


def test_untracked_code_is_a_change(project: GitProject) -> None:
    project.git("rm", "-q", "--cached", "recipes/helper.py")
    project.git("commit", "-q", "-m", "without the helper")
    assert judged(project).changes == ("recipes/helper.py (untracked)",)


def test_ignored_code_is_a_change_and_ignored_data_is_told(project: GitProject) -> None:
    project.write("recipes/local.secret", "x = 1\n")
    project.write("recipes/big.csv", "1\n")
    judgement = judged(project, "big.csv", code=("code.py", "helper.py", "local.secret"))
    assert judgement.changes == ("recipes/local.secret (ignored by git)",)
    assert judgement.ignored == ("recipes/big.csv",)
    assert "the data version names its content" in dict(judgement.messages(read_checkout(project.root)))["progress"]


def test_a_tracked_file_of_the_folder_that_differs_is_a_change(project: GitProject) -> None:
    project.write("recipes/notes.txt", "one\n")
    project.write("recipes/old.txt", "one\n")
    project.commit()
    project.write("recipes/notes.txt", "two\n")
    (project.root / "recipes" / "old.txt").unlink()
    project.write("recipes/new.txt", "one\n")
    project.git("add", "recipes/new.txt")
    assert judged(project).changes == (
        "recipes/new.txt (added)", "recipes/notes.txt (modified)", "recipes/old.txt (deleted)",
    )  # fmt: skip
    assert judged(project).forgotten == ()


def test_a_tracked_file_that_mlkit_writes_is_no_change(project: GitProject) -> None:
    project.write("recipes/.mlkit-export.lock", "{}\n")
    project.commit()
    project.write("recipes/.mlkit-export.lock", "{1: 2}\n")
    assert judged(project).changes == ()


def test_a_change_of_another_folder_is_none_unless_it_is_an_input(project: GitProject) -> None:
    project.write("shared/rows.csv", "1\n")
    project.write("src/acme/model.py", "x = 1\n")
    project.commit()
    project.write("README.md", "changed\n")
    project.write("shared/rows.csv", "2\n")
    project.write("src/acme/model.py", "x = 2\n")
    assert judged(project).changes == ()
    assert judged(project, "../shared/rows.csv").changes == ("shared/rows.csv (modified)",)


def test_a_module_of_a_library_installed_from_the_checkout_is_a_change(
    project: GitProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("src/acme/__init__.py", "")
    project.write("src/acme/README.md", "acme\n")
    project.commit()
    site = tmp_path / "site" / "acme-1.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Name: acme\nVersion: 1\n")
    (site / "direct_url.json").write_text(
        '{"url": "file://%s", "dir_info": {"editable": true}}' % (project.root / "src")
    )
    monkeypatch.syspath_prepend(str(site.parent))
    project.write("src/acme/__init__.py", "x = 2\n")
    project.write("src/acme/README.md", "changed\n")
    project.write("src/acme/new.py", "x = 2\n")
    assert judged(project).changes == ("src/acme/__init__.py (modified)", "src/acme/new.py (untracked)")


def test_users_settings_of_git_hide_nothing(project: GitProject) -> None:
    project.git("config", "status.showUntrackedFiles", "no")
    project.git("config", "core.quotePath", "true")
    project.write("recipes/zeilen ä.csv", "1\n")
    assert judged(project, "zeilen ä.csv").changes == ("recipes/zeilen ä.csv (untracked)",)


def test_a_link_to_an_untracked_file_of_the_checkout_is_a_change(project: GitProject, tmp_path: Path) -> None:
    (project.root / "recipes" / "rows.csv").symlink_to("../elsewhere.csv")
    project.commit()
    project.write("elsewhere.csv", "1\n")
    assert judged(project, "rows.csv").changes == ("elsewhere.csv (untracked)",)
    (project.root / "elsewhere.csv").unlink()
    (tmp_path / "outside.csv").write_text("1\n")
    assert judged(project, "../../outside.csv").changes == ()


def test_a_changed_submodule_of_the_folder_is_a_change(project: GitProject, tmp_path: Path) -> None:
    library = GitProject(tmp_path / "library")
    library.write("lib.py", "x = 1\n")
    library.commit()
    project.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library.root), "recipes/lib")
    project.git("config", "-f", ".gitmodules", "submodule.recipes/lib.ignore", "all")
    project.commit()
    assert judged(project).changes == ()
    (project.root / "recipes" / "lib" / "lib.py").write_text("x = 2\n")
    assert judged(project).changes == ("recipes/lib (modified)",)


def test_the_file_that_the_output_goes_to_is_no_change(project: GitProject) -> None:
    """A tracked file, and one that the code has a pattern for."""
    project.write("recipes/run.json", "{}\n")
    project.commit()
    program = dedent(
        f"""
        import sys
        from pathlib import Path
        from mlflowkit.pipeline.lineage.checkout import read_checkout
        from mlflowkit.pipeline.lineage.uncommitted import RunInputs, uncommitted_inputs
        folder = Path({str(project.root / "recipes")!r})
        print("something", flush=True)
        inputs = RunInputs((), (), frozenset({{"*.json"}}))
        print(uncommitted_inputs(read_checkout(folder), inputs).changes, file=sys.stderr)
        """
    )
    for name in ("recipes/run.json", "recipes/new.json"):
        with open(project.root / name, "w") as output:
            command = [sys.executable, "-c", program]
            done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=120, cwd="/")
        assert done.stderr.strip() == "()"
        os.unlink(project.root / name)
        project.git("checkout", "-q", "--", ".")


def test_inputs_are_the_recipe_its_code_its_data_and_what_they_name(tmp_path: Path) -> None:
    folder = tmp_path
    (folder / "code.py").write_text(CODE.replace("rows()", "rows(vocabulary)"))
    (folder / "helper.py").write_text("x = 1\n")
    (folder / "rows.csv").write_text("a,b\n1,2\n")
    (folder / "a.yaml").write_text(
        dedent(
            """
            name: a
            task: regression
            data: {source: {kind: python, function: "code:rows", args: {vocabulary: lists/words.txt}}, target: b,
                   split: {kind: random}}
            model: {kind: sklearn, module: "sklearn.linear_model:Ridge"}
            """
        )
    )
    loaded = load(folder / "a.yaml")
    ingredients = [{"code:code.py": "d", "content:rows.csv": "d", "content:a remote commit": "d", "seed": "7"}]
    inputs = uncommitted.run_inputs(loaded, ingredients)
    assert inputs.code == (folder / "a.yaml", folder / "code.py")
    assert inputs.data == (folder / "rows.csv",)
    assert {"words.txt", "lists", "maps", "codes.json", "*.tsv"} <= inputs.words


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{kind: csv, path: tables}", ["tables/month=1/rows.csv"]),
        ("{kind: csv, path: ../outside/*/rows.csv}", ["../outside/month=1/rows.csv"]),
        (
            '{kind: python, function: "code:rows", files: [rows.csv, tables/month=1]}',
            ["rows.csv", "tables/month=1/rows.csv"],
        ),
    ],
)
def test_data_is_looked_up_where_the_recipe_says(source: str, expected: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    for place in (folder, folder / "tables" / "month=1", tmp_path / "outside" / "month=1"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "rows.csv").write_text("a,b\n1,2\n")
    (folder / "code.py").write_text("def rows():\n    return None\n")
    (folder / "a.yaml").write_text(
        f"name: a\ntask: regression\ndata: {{source: {source}, target: b, split: {{kind: random}}}}\n"
        'model: {kind: sklearn, module: "sklearn.linear_model:Ridge"}\n'
    )
    loaded = load(folder / "a.yaml")
    names = content_names(loaded.recipe.data.source.resolve(folder), folder)
    inputs = uncommitted.run_inputs(loaded, [{f"content:{name}": "d" for name in names}])
    assert sorted(os.path.relpath(path, folder) for path in inputs.data) == sorted(expected)
