"""Composition: groups shipped and beside the recipe, overrides, sweeps, and the place of every value through them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflowkit.errors import Fault, RecipeError
from mlflowkit.recipe import compose, config_files, yaml_tree
from mlflowkit.recipe.check import load, load_sweep

RECIPE = """\
name: loans
task: classification
seed: 3
data:
  source: {kind: csv, path: loans.csv}
  target: bad
  split: {kind: random}
model: {kind: torch}
train: {epochs: 10, batch_size: 64}
gates:
  - {metric: roc_auc, min: 0.7}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loans.csv").write_text("a,a b,bad\n1,2,0\n")
    path = Path("recipe.yaml")
    path.write_text(RECIPE)
    return path


def write(path: str, text: str) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return Path(path)


def faults_of(path: Path, *overrides: str) -> list[Fault]:
    with pytest.raises(RecipeError) as caught:
        load(path, overrides)
    return list(caught.value.faults)


def place_of(path: Path, key: str, *overrides: str) -> str:
    composition = compose.compose(path.absolute(), overrides, shown=str(path))
    node = yaml_tree.find(composition.root, key.split("."))
    assert node is not None
    return str(node.location)


# ------------------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.epochs=3", "train.epochs", 3),
        ("++train.epochs=3", "train.epochs", 3),
        ("train.optimizer.lr=1e-2", "train.optimizer.lr", 0.01),
        ("+train.clip_norm=2", "train.clip_norm", 2),
        ("train={epochs: 5}", "train.epochs", 5),
        ("gates.0.min=0.5", "gates.0.min", 0.5),
        ("gates=[]", "gates", []),
        ("~gates", "gates", []),
        ("~train.epochs", "train.epochs", 20),
        ("~train.epochs=10", "train.epochs", 20),
        ("data.columns={a b: numeric}", "data.columns", {"a b": "numeric"}),
        ("seed=${train.epochs}", "seed", 10),
        ("name=lo-ans", "name", "lo-ans"),
    ],
)
def test_an_override_sets_a_value(recipe: Path, override: str, key: str, value: object) -> None:
    current: object = load(recipe, [override]).composed
    for part in key.split("."):
        current = current[int(part)] if isinstance(current, list) else current[part]  # type: ignore[index]
    assert current == value


def test_an_override_of_a_section_merges(recipe: Path) -> None:
    assert load(recipe, ["train={epochs: 5}"]).recipe.train.batch_size == 64


def test_later_overrides_win(recipe: Path) -> None:
    assert load(recipe, ["seed=1", "seed=2"]).recipe.seed == 2


@pytest.mark.parametrize(
    ("override", "column", "key", "word"),
    [
        ("train.epochs=fast", 14, "train.epochs", "integer"),
        ("train.epoch=3", 7, "train.epoch", "epochs"),
        ("trian.epochs=3", 1, "trian", "train"),
        ("+trian.epochs=3", 2, "trian", "train"),
        ("seed", 1, "seed", "seed=VALUE"),
        ("seed=", 6, "seed", "expected an integer"),
        ("seed=}", 6, "seed", "}"),
        ("se ed=1", 3, "se ed", "character"),
        ("seed=1,2", 6, "seed", "--multirun"),
        ("gates.4.min=0.1", 1, "gates.4.min", "no item 4"),
        ("~serve", 2, "serve", "does not set"),
        ("~train.epochs=11", 2, "train.epochs", "is 10, not 11"),
        ("+seed=4", 2, "seed", "recipe.yaml:3:7"),
        ("+train=fsat", 8, "train", "did you mean fast"),
        ("+train/fsat", 8, "train", "did you mean fast"),
        ("+trian/fast", 1, "trian", "did you mean train"),
        ("train=fast", 7, "train", "+train=fast"),
        ("hydra.run.dir=/x", 1, "hydra.run.dir", "Hydra"),
        ("data.source.path=${oc.env:NOT_SET_ANYWHERE}", 18, "data.source.path", "export NOT_SET_ANYWHERE"),
        ("seed=${oc.env:HOME}", 6, "seed", "environment"),
        ("+model.args={_target_: os.system}", 13, "model.args._target_", "not allowed"),
        ("seed=nan", 6, "seed", "finite"),
        ("gates=[{metric: rmse, min: 1}]", 7, "gates.0.metric", "classification has no"),
    ],
)
def test_a_wrong_override_is_located_in_its_text(recipe: Path, override: str, column: int, key: str, word: str) -> None:
    faults = faults_of(recipe, "train.workers=0", override)
    assert [(fault.file, fault.line, fault.column, fault.key) for fault in faults] == [("<override>", 2, column, key)]
    assert word in f"{faults[0].message} | {faults[0].hint}"


def test_wrong_overrides_are_all_reported_with_the_faults_of_the_file(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("seed: 3", "sed: 3"))
    faults = faults_of(recipe, "a", "train.epochs=x", "+train=fsat", "optimize=int8")
    assert [(fault.file, fault.line) for fault in faults] == [
        ("recipe.yaml", 3),
        ("<override>", 1),
        ("<override>", 2),
        ("<override>", 3),
        ("<override>", 4),
    ]


# ---------------------------------------------------------------------------------------------------------- groups


def test_a_shipped_group_is_added_by_its_short_name(recipe: Path) -> None:
    long, short = load(recipe, ["+train=fast"]), load(recipe, ["+train/fast"])
    assert long.recipe == short.recipe
    assert long.recipe.train.epochs == 3
    assert place_of(recipe, "train.epochs", "+train/fast").endswith("recipe/conf/train/fast.yaml:2:9")


def test_a_group_beside_the_recipe_is_found_in_its_folder_and_in_conf(recipe: Path) -> None:
    write("train/mine.yaml", "epochs: 4\n")
    write("conf/train/ours.yaml", "batch_size: 8\n")
    loaded = load(recipe, ["+train=[mine,ours]"])
    assert (loaded.recipe.train.epochs, loaded.recipe.train.batch_size) == (4, 8)
    assert place_of(recipe, "train.batch_size", "+train/ours") == "conf/train/ours.yaml:1:13"


def test_a_group_beside_the_recipe_hides_the_shipped_one(recipe: Path) -> None:
    write("conf/train/fast.yaml", "epochs: 1\n")
    assert load(recipe, ["+train/fast"]).recipe.train.epochs == 1


def test_the_defaults_list_composes_in_its_order(recipe: Path) -> None:
    write("conf/train/mine.yaml", "epochs: 4\nworkers: 0\nbatch_size: 32\n")
    recipe.write_text("defaults: [{train: mine}, _self_]\n" + RECIPE)
    assert load(recipe).recipe.train.epochs == 10
    recipe.write_text("defaults: [_self_, {train: mine}]\n" + RECIPE)
    assert load(recipe).recipe.train.epochs == 4
    assert place_of(recipe, "train.epochs") == "conf/train/mine.yaml:1:9"
    assert place_of(recipe, "seed") == "recipe.yaml:4:7"


def test_a_choice_of_the_defaults_list_is_replaced_by_an_override(recipe: Path) -> None:
    recipe.write_text("defaults: [_self_, {train: thorough}]\n" + RECIPE.replace("train:", "#"))
    assert load(recipe).recipe.train.epochs == 100
    assert load(recipe, ["train=fast"]).recipe.train.epochs == 3
    assert load(recipe, ["~train"]).recipe.train.epochs == 20


def test_a_recipe_extends_another(recipe: Path) -> None:
    write("child.yaml", "defaults: [recipe, _self_]\nname: child\ngates+:\n  - {metric: f1, min: 0.1}\n")
    loaded = load(Path("child.yaml"))
    assert loaded.recipe.name == "child"
    assert [gate.metric for gate in loaded.recipe.gates] == ["roc_auc", "f1"]


def test_gates_of_groups_are_appended_in_order_and_located(recipe: Path) -> None:
    write("conf/gates/one.yaml", "# @package _global_\ngates+:\n  - {metric: f1, min: 0.1}\n")
    write("conf/gates/two.yaml", "# @package _global_\ngates+:\n  - {metric: recall, min: 0.1}\n")
    overrides = ["+gates=[one,two]", "gates.1.min=0.2"]
    loaded = load(recipe, overrides)
    assert [(gate.metric, gate.min) for gate in loaded.recipe.gates] == [("roc_auc", 0.7), ("f1", 0.2), ("recall", 0.1)]
    assert place_of(recipe, "gates.2.metric", *overrides) == "conf/gates/two.yaml:3:14"
    assert place_of(recipe, "gates.1.min", *overrides) == "<override>:2:13"


def test_a_group_replaces_gates_when_it_says_so(recipe: Path) -> None:
    write("conf/gates/only.yaml", "# @package _global_\ngates:\n  - {metric: f1, min: 0.1}\n")
    assert [gate.metric for gate in load(recipe, ["+gates/only"]).recipe.gates] == ["f1"]


@pytest.mark.parametrize("group", config_files.known_groups(Path("/nonexistent")))
def test_every_shipped_option_composes_with_a_recipe_that_it_is_for(recipe: Path, group: str) -> None:
    for option in config_files.group_options(Path("/nonexistent"), group):
        if "regression" in option:
            text = RECIPE.replace("classification", "regression").replace("roc_auc, min: 0.7", "r2, min: 0.1")
            recipe.write_text(text)
        service = ["+serve.service=forest"] if group == "rollout" else []
        assert load(recipe, [f"+{group}/{option}", *service])


def test_a_fault_in_a_group_is_located_in_the_group(recipe: Path) -> None:
    write("conf/train/bad.yaml", "epochs: 4\noptimizer: {lr: fast}\nworkrs: 1\n")
    faults = faults_of(recipe, "+train/bad")
    assert [str(fault).partition(": ")[0] for fault in faults] == [
        "conf/train/bad.yaml:2:17",
        "conf/train/bad.yaml:3:1",
    ]


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("epochs: 4\nepochs: 5\n", 2, "duplicate"),
        ("epochs: [4\n", 1, "close the list"),
        ("a:\n\tb: 1\n", 2, "tab"),
        ("- 1\n", 1, "mapping"),
        ("epochs: !!python/name:os.system x\n", 1, "tag"),
    ],
)
def test_a_group_that_is_not_well_formed_is_located(recipe: Path, text: str, line: int, word: str) -> None:
    write("conf/train/bad.yaml", text)
    faults = faults_of(recipe, "+train/bad")
    assert [(fault.file, fault.line) for fault in faults] == [("conf/train/bad.yaml", line)], faults
    assert word in f"{faults[0].message} {faults[0].hint}"


@pytest.mark.parametrize(
    ("defaults", "line", "column", "word"),
    [
        ("defaults:\n  - _self_\n  - train: fsat\n", 3, 12, "did you mean fast"),
        ("defaults:\n  - _self_\n  - trian: fast\n", 3, 12, "gates, optimize, rollout, train"),
        ("defaults:\n  - nothing\n", 2, 5, "no config file nothing.yaml"),
        ("defaults: train\n", 1, 11, "list"),
        ("defaults:\n  - {a: b, c: d}\n", 2, 5, "GROUP: OPTION"),
        ("hydra: {run: {dir: x}}\n", 1, 1, "Hydra"),
    ],
)
def test_a_wrong_defaults_list_is_located(recipe: Path, defaults: str, line: int, column: int, word: str) -> None:
    recipe.write_text(defaults + RECIPE)
    faults = faults_of(recipe)
    assert [(fault.file, fault.line, fault.column) for fault in faults] == [("recipe.yaml", line, column)], faults
    assert word in f"{faults[0].message} | {faults[0].hint}"


def test_folders_beside_the_recipe_do_not_turn_values_into_groups(recipe: Path) -> None:
    Path("serve").mkdir()
    Path("train").mkdir()
    loaded = load(recipe, ["serve=null", "train={epochs: 2}", "train.batch_size=8"])
    assert (loaded.recipe.serve, loaded.recipe.train.epochs) == (None, 2)


def test_a_place_with_spaces_and_quotes_composes(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("a 'strange' \"folder\", isn't it = yes")
    write(str(folder / "conf/train/mine.yaml"), "epochs: 4\n")
    write(str(folder / "loans.csv"), "a,bad\n1,0\n")
    path = write(str(folder / "my recipe@1.yaml"), RECIPE)
    assert load(path, ["+train/mine"]).recipe.train.epochs == 4


# ---------------------------------------------------------------------------------------------------------- sweeps


def test_a_sweep_gives_every_combination_in_hydras_order(recipe: Path) -> None:
    swept = load_sweep(recipe, ["train.epochs=1,2", "name=x", "seed=range(0,2)"])
    assert [(loaded.recipe.train.epochs, loaded.recipe.seed) for loaded in swept] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert swept[1].overrides == ("train.epochs=1", "name=x", "seed=1")


def test_a_sweep_over_groups(recipe: Path) -> None:
    swept = load_sweep(recipe, ["+train=fast,thorough", "data.target=choice(bad,'a')"])
    assert [loaded.recipe.train.epochs for loaded in swept] == [3, 3, 100, 100]


def test_without_a_sweep_there_is_one_recipe(recipe: Path) -> None:
    assert len(load_sweep(recipe, ["seed=1"])) == 1
    assert len(load_sweep(recipe)) == 1


@pytest.mark.parametrize(
    ("overrides", "line", "word"),
    [
        (["seed=1", "train.epochs=1,fast"], 2, "integer"),
        (["seed=interval(0,1)"], 1, "can be swept"),
        (["seed=range(0,100)", "train.epochs=range(1,100)"], 2, "1000"),
        (["seed=range(0,1000000000)"], 1, "1000"),
    ],
)
def test_a_wrong_sweep_is_located(recipe: Path, overrides: list[str], line: int, word: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_sweep(recipe, overrides)
    assert [(fault.file, fault.line) for fault in caught.value.faults] == [("<override>", line)]
    assert word in caught.value.faults[0].message
