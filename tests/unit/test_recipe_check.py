"""Loading: what a recipe is when it is fine, and files that are none."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mlflowkit.errors import Fault, RecipeError
from mlflowkit.recipe.check import load
from mlflowkit.recipe.yaml_tree import MAX_BYTES

RECIPE = """\
name: loans
task: classification
data:
  source: {kind: csv, path: loans.csv}
  target: bad
  split: {kind: random}
model: {kind: torch, args: {hidden: [8], width: 1e-3}}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("loans.csv").write_text("a,bad\n1,0\n")
    path = Path("recipe.yaml")
    path.write_text(RECIPE)
    return path


def fault_of(path: Path | str) -> Fault:
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert len(caught.value.faults) == 1, caught.value.faults
    return caught.value.faults[0]


def test_a_loaded_recipe_knows_its_path_and_its_defaults(recipe: Path) -> None:
    loaded = load(recipe, ["seed=4"])
    assert loaded.path == recipe.absolute()
    assert loaded.folder == Path.cwd()
    assert loaded.overrides == ("seed=4",)
    assert loaded.composed["train"]["epochs"] == 20
    assert loaded.composed["model"]["args"] == {"hidden": [8], "width": 0.001}


@pytest.mark.parametrize(
    ("content", "line", "column", "word"),
    [
        (b"", 1, 1, "empty"),
        (b"# nothing\n", 1, 1, "empty"),
        (b"null\n", 1, 1, "empty"),
        (b"- a\n- b\n", 1, 1, "list"),
        (b"just words\n", 1, 1, "colon"),
        (b"name:loans\ntask:x\n", 1, 1, "colon"),
        (b"a: 1\n---\nb: 2\n", 2, 1, "second document"),
        (b"name: loans\ntask: \xff\xfe\n", 2, 7, "UTF-8"),
        (b"name: a\x00b\n", 1, 8, "control"),
        (b"name: [" + b"[" * 100, 1, 71, "nested"),
        (b"x" * (MAX_BYTES + 1), 1, 1, "at most"),
        (b"name: 'loans\ntask: x\n", 1, 7, "close the quote"),
        (b"name: [a, b\ntask: x\n", 1, 7, "close the list"),
        (b"name: loans\n task: x\n", 2, 6, "indent"),
        (b"name: @x\n", 1, 7, "quote"),
        (b"name: a: b\n", 1, 8, "quote"),
        (b"name: a\n\t\n", 2, 1, "tab"),
        (b"data:\n  \ta: b\n", 2, 3, "tab"),
    ],
)
def test_text_that_is_no_recipe(recipe: Path, content: bytes, line: int, column: int, word: str) -> None:
    recipe.write_bytes(content)
    fault = fault_of(recipe)
    assert (fault.line, fault.column) == (line, column), str(fault)
    assert word in f"{fault.message} {fault.hint}"


def test_a_missing_file_suggests_its_neighbour(recipe: Path) -> None:
    fault = fault_of("recpie.yaml")
    assert fault.message == "there is no such file"
    assert "recipe.yaml" in fault.hint


def test_a_missing_folder_suggests_init(recipe: Path) -> None:
    assert "mlkit init" in fault_of("nowhere/at/all.yaml").hint


def test_a_directory_suggests_a_recipe_in_it(recipe: Path) -> None:
    fault = fault_of(".")
    assert "directory" in fault.message
    assert "recipe.yaml" in fault.hint


def test_another_suffix_is_refused(recipe: Path) -> None:
    recipe.rename("recipe.yml")
    assert "mv recipe.yml recipe.yaml" in fault_of("recipe.yml").hint


def test_an_alias_bomb_is_refused_quickly(recipe: Path) -> None:
    levels = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 10))
    recipe.write_text(f"l0: &l0 [1, 2]\n{levels}\n")
    assert "aliases expand" in fault_of(recipe).message


def test_anchors_and_merge_keys_keep_the_place_of_the_value(recipe: Path) -> None:
    text = RECIPE.replace("{kind: random}", "{kind: random, <<: &shares {validation: 0.2, test: 2}}")
    recipe.write_text(text)
    fault = fault_of(recipe)
    assert (fault.key, fault.line) == ("data.split.test", 6)
    assert text.splitlines()[5][fault.column - 1] == "2"


@pytest.mark.parametrize(("key", "word"), [("yes", "boolean"), ("1.5", "number"), ("null", "null"), ("[a]", "text")])
def test_a_key_that_is_no_text_is_refused(recipe: Path, key: str, word: str) -> None:
    recipe.write_text(RECIPE + f"train: {{class_weights: {{? {key} : 2.0}}}}\n")
    fault = fault_of(recipe)
    assert fault.line == 8
    assert word in fault.message


def test_a_class_that_is_a_number_may_be_a_key(recipe: Path) -> None:
    recipe.write_text(RECIPE + "train: {class_weights: {0: 1.0, 1: 20.0}}\n")
    assert load(recipe).recipe.train.class_weights == {"0": 1.0, "1": 20.0}


def test_a_path_may_come_from_the_environment(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOANS", "loans")
    recipe.write_text(RECIPE.replace("loans.csv", '"${oc.env:LOANS}.csv"'))
    assert load(recipe).composed["data"]["source"]["path"] == "loans.csv"


def test_interpolation_keeps_the_type_of_what_it_names(recipe: Path) -> None:
    recipe.write_text(RECIPE + "seed: 12\ntrain: {epochs: '${seed}', batch_size: '${.epochs}'}\n")
    train = load(recipe).recipe.train
    assert (train.epochs, train.batch_size) == (12, 12)


def test_interpolations_in_a_circle_are_each_reported(recipe: Path) -> None:
    recipe.write_text(RECIPE + "seed: ${train.epochs}\ntrain: {epochs: '${seed}'}\n")
    with pytest.raises(RecipeError) as caught:
        load(recipe)
    assert {fault.key for fault in caught.value.faults} == {"seed", "train.epochs"}


def test_faults_of_the_text_come_with_those_of_the_values(recipe: Path) -> None:
    recipe.write_text(RECIPE + "seed: 1\nseed: 2\noptimize: *nobody\ntrain: {epochs: 0, workers: !!int 2}\n")
    with pytest.raises(RecipeError) as caught:
        load(recipe, ["+train/fast", "seeed=1"])
    assert [(fault.line, fault.key) for fault in caught.value.faults] == [
        (9, "seed"),
        (10, "optimize"),
        (11, "train.epochs"),
        (11, "train.workers"),
        (2, "seeed"),
    ]


def test_faults_come_in_the_order_of_their_places(recipe: Path) -> None:
    recipe.write_text("seeed: 1\nname: A B\ntask: rank\n")
    with pytest.raises(RecipeError) as caught:
        load(recipe)
    places = [(fault.line, fault.column) for fault in caught.value.faults]
    assert places == sorted(places)
    assert {fault.key for fault in caught.value.faults} == {"seeed", "name", "task", "data", "model"}


def test_recipes_load_in_threads(recipe: Path) -> None:
    """Hydra's global state is behind a lock: threads that compose with groups get what they asked for."""
    results: dict[int, int] = {}

    def load_recipe(seed: int) -> None:
        results[seed] = load(recipe, ["+train/fast", f"seed={seed}"]).recipe.seed

    threads = [threading.Thread(target=load_recipe, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {seed: seed for seed in range(6)}
