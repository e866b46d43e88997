"""Seeded mistakes in working recipes: each is reported at its own file, line, column and key, and nothing else is.

Where a key or a value is written is taken from PyYAML's composer, which the code under test does not use.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from mlflowkit.errors import Fault, RecipeError
from mlflowkit.recipe import templates
from mlflowkit.recipe.check import load

ROOT = Path(__file__).parents[2]
RECIPES = {file.stem: file for file in sorted((ROOT / "recipes").glob("*.yaml"))}
RECIPES["start"] = templates.FOLDER / "start" / "recipe.yaml"
RECIPES["brought"] = ROOT / "tests" / "golden" / "recipe" / "brought.yaml"

FREE = ("columns", "args", "class_weights")
"""Mappings whose keys are names of the user's."""
CASCADING = ("columns", "kind", "against", "min", "max", "column", "patience", "args", "schedule.name", "after")
"""Keys without which the recipe means something else: a mistake in them has more than one consequence."""
REQUIRED = (
    "task",
    "data",
    "model",
    "source",
    "target",
    "split",
    "function",
    "service",
    "path",
    "values",
    "image",
)
"""Keys that their section cannot do without, wherever it is."""


@dataclass(frozen=True)
class Site:
    """A key and its value: where they are in the text (offsets and marks)."""

    path: tuple[str, ...]
    key: yaml.Node
    value: yaml.Node

    @property
    def name(self) -> str:
        return self.path[-1]

    @property
    def dotted(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True)
class Mistake:
    """A broken text and where its fault must be reported; ``word`` must be in the message or the hint."""

    label: str
    text: str
    line: int
    column: int
    key: str
    word: str = ""
    others: tuple[str, ...] = ()
    """Keys of further faults that follow from this one."""


def find_sites(node: yaml.Node, path: tuple[str, ...] = ()) -> Iterator[Site]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, key.value)
            yield Site(here, key, value)
            yield from find_sites(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from find_sites(item, (*path, str(index)))


def replaced(text: str, node: yaml.Node, new: str) -> str:
    return text[: node.start_mark.index] + new + text[node.end_mark.index :]


def at(label: str, node: yaml.Node, text: str, key: str, word: str = "", others: tuple[str, ...] = ()) -> Mistake:
    return Mistake(label, text, node.start_mark.line + 1, node.start_mark.column + 1, key, word, others)


def is_required(site: Site, text: str) -> bool:
    if site.name == "metric":
        return site.path[0] == "gates" or "estimated" in site.path
    if site.name == "on":
        return "triggers" in site.path
    if site.dotted == "model.module":
        return "kind: sklearn" in text
    if site.name == "name":
        return site.path[:-1] == () or site.path[:2] == ("optimize", "candidates")
    return site.name in REQUIRED


def is_number(site: Site) -> bool:
    return isinstance(site.value, yaml.ScalarNode) and site.value.tag.rpartition(":")[2] in ("int", "float")


def is_free(site: Site) -> bool:
    return any(part in FREE for part in site.path[:-1]) or site.path[-2:-1] in (("environments",), ("secrets",))


def typo(word: str, rng: random.Random) -> str:
    at = rng.randrange(1, len(word)) if len(word) > 1 else 1
    return rng.choice([word[:at] + word[at - 1] + word[at:], word[:at] + "x" + word[at:]])


def misspelt_keys(text: str, sites: list[Site], rng: random.Random) -> Iterator[Mistake]:
    for site in sites:
        if is_free(site) or site.name in CASCADING or site.name == "task" or ".".join(site.path[-2:]) in CASCADING:
            continue
        wrong = typo(site.name, rng)
        key = ".".join((*site.path[:-1], wrong))
        others = (site.dotted,) if is_required(site, text) else ()
        yield at("misspelt key", site.key, replaced(text, site.key, wrong), key, site.name, others)


def misspelt_words(text: str, sites: list[Site], rng: random.Random) -> Iterator[Mistake]:
    for site in sites:
        if site.name not in ("kind", "task", "objective", "class_weights", "against") or site.value.value == "schema":
            continue
        if site.dotted == "model.kind":
            continue  # decides what train may say
        wrong = typo(site.value.value, rng)
        yield at("misspelt word", site.value, replaced(text, site.value, wrong), site.dotted, site.value.value)


def wrong_types(text: str, sites: list[Site], rng: random.Random) -> Iterator[Mistake]:
    for site in sites:
        if is_free(site) or site.name in ("positive", "values", "min", "max"):
            continue
        if is_number(site):
            wrong, word = (
                rng.choice(["fast", "[1]", "{a: 1}", "true", '"3"']),
                "number" if "." in site.value.value else "",
            )
        elif isinstance(site.value, yaml.ScalarNode) and site.name not in ("kind", "column", "target", "task"):
            wrong, word = rng.choice(["[a]", "{a: b}", "12", "true"]), "expected"
        else:
            continue
        yield at("wrong type", site.value, replaced(text, site.value, wrong), site.dotted, word)


def not_finite(text: str, sites: list[Site], rng: random.Random) -> Iterator[Mistake]:
    for site in sites:
        if is_number(site):
            wrong = rng.choice([".nan", ".inf", "-.inf", "1e999"])
            yield at("not finite", site.value, replaced(text, site.value, wrong), site.dotted, "finite")


def out_of_range(text: str, sites: list[Site], rng: random.Random) -> Iterator[Mistake]:
    bounds = {"seed": "-1", "validation": "1.5", "test": "0", "epochs": "0", "batch_size": "-5", "lr": "0"}
    bounds |= {"port": "70000", "patience": "0", "max_metric_drop": "-0.1", "margin": "-1", "max_share": "2"}
    for site in sites:
        if site.name in bounds and not is_free(site):
            wrong = bounds[site.name]
            yield at("out of range", site.value, replaced(text, site.value, wrong), site.dotted, "expected")


def duplicates(text: str, sites: list[Site], rng: random.Random) -> Iterator[Mistake]:
    """A flow mapping's first entry once more at its end; a block mapping's one-line entry on the line below."""
    for site in sites:
        if not isinstance(site.value, yaml.ScalarNode):
            continue
        entry = text[site.key.start_mark.index : site.value.end_mark.index]
        before = text[: site.key.start_mark.index].rpartition("\n")[2]
        first = site.key.start_mark
        if not before.strip() and first.line == site.value.end_mark.line:
            rest = text.index("\n", site.value.end_mark.index)
            wrong = text[: rest + 1] + before + entry + "\n" + text[rest + 1 :]
            yield Mistake("duplicate", wrong, first.line + 2, first.column + 1, site.dotted, f"line {first.line + 1}")
        elif before.strip():
            end = site.value.end_mark
            wrong = text[: end.index] + ", " + entry + text[end.index :]
            yield Mistake("duplicate", wrong, end.line + 1, end.column + 3, site.dotted, f"line {first.line + 1}")


def tabs(text: str, sites: list[Site], rng: random.Random) -> Iterator[Mistake]:
    lines = text.splitlines(keepends=True)
    for index, line in enumerate(lines):
        stripped = line.lstrip(" ")
        if len(stripped) == len(line) or stripped.startswith("#") or not stripped.strip():
            continue
        wrong = [*lines[:index], "\t" + stripped, *lines[index + 1 :]]
        yield Mistake("tab", "".join(wrong), index + 1, 1, "", "tab")


def removed(text: str, sites: list[Site], rng: random.Random) -> Iterator[Mistake]:
    """A required key of a block mapping, on one line, taken away: reported at the mapping that lacks it."""
    parents = {site.path: site for site in sites}
    for site in sites:
        before = text[: site.key.start_mark.index].rpartition("\n")[2]
        one_line = site.key.start_mark.line == site.value.end_mark.line
        if not is_required(site, text) or before.strip() or not one_line or is_free(site) or site.name == "task":
            continue
        start, end = site.key.start_mark.index - len(before), text.index("\n", site.value.end_mark.index) + 1
        wrong = text[:start] + text[end:]
        parent = parents.get(site.path[:-1])
        if parent is not None:
            yield at("missing", parent.key, wrong, site.dotted, site.name)
        elif site.name != "name":
            first = sites[0].key
            yield at("missing", first, wrong, site.dotted, site.name)


def instantiated(text: str, sites: list[Site], rng: random.Random) -> Iterator[Mistake]:
    for site in sites:
        if site.name == "args" and isinstance(site.value, yaml.MappingNode) and site.value.flow_style:
            start = site.value.start_mark
            wrong = text[: start.index + 1] + "_target_: os.system, " + text[start.index + 1 :]
            key = f"{site.dotted}._target_"
            yield Mistake("_target_", wrong, start.line + 1, start.column + 2, key, "not allowed")


def resolved(text: str, sites: list[Site], rng: random.Random) -> Iterator[Mistake]:
    for site in sites:
        if isinstance(site.value, yaml.ScalarNode) and site.name not in ("kind", "column"):
            wrong, word = rng.choice(
                [
                    ('"${nowhere.at.all}"', "nowhere"),
                    ('"${oc.env:HOME}"', "environment"),
                    ('"${now:%Y}"', "now"),
                    ('"${oc.create:1}"', "oc.create"),
                    ('"${"', "interpolation"),
                    ('"???"', "required"),
                ]
            )
            yield at("interpolation", site.value, replaced(text, site.value, wrong), site.dotted, word)


def exposed(text: str, sites: list[Site], rng: random.Random) -> Iterator[Mistake]:
    """A service that other machines reach, without API keys."""
    for site in sites:
        if site.path == ("serve",) and isinstance(site.value, yaml.MappingNode) and site.value.flow_style:
            host = rng.choice(["0.0.0.0", "10.1.2.3", "gpu-7.local"])
            start = site.value.start_mark
            wrong = f"{text[: start.index + 1]}host: {host}, {text[start.index + 1 :]}"
            yield Mistake("exposed", wrong, start.line + 1, start.column + 8, "serve.host", "mlkit key create")


ROLLOUTS = (
    ("{strategy: ^canary}", "strategy", "nothing to judge"),
    ("{strategy: ab, metrics: ^[]}", "metrics", "nothing to judge"),
    ("{^steps: [5]}", "steps", "strategy: canary"),
    ("{strategy: canary, steps: [25, ^5], metrics: [{metric: error_rate, margin: 0.01}]}", "steps.1", "more than 25"),
    ("{strategy: shadow, steps: [0, ^5], metrics: [{metric: agreement, min: 0.9}]}", "steps.1", "mirrored"),
    ("{strategy: canary, metrics: [{metric: ^agreement, min: 0.9}]}", "metrics.0.metric", "begin steps with 0"),
    ("{strategy: canary, metrics: [{metric: ^error_rate}]}", "metrics.0.metric", "margin"),
    ("{strategy: canary, metrics: [{metric: error_rate, margin: ^2}]}", "metrics.0.margin", "0.02"),
    ("{strategy: canary, metrics: [{metric: error_rate, ^ratio: 2, margin: 0.1}]}", "metrics.0.ratio", "latency"),
    ("{strategy: canary, metrics: [^{metric: prometheus, query: up, max: 1}]}", "metrics.0", "url"),
    ("{strategy: blue_green, metrics: [{metric: ^error_rate, margin: 0.1}]}", "metrics.0.metric", "max"),
    ("{strategy: canary, steps: [5, ^x], metrics: [{metric: error_rate, margin: 0.1}]}", "steps.1", "item 2 of steps"),
    ("{strategy: canary, steps: [^'5'], metrics: [{metric: error_rate, margin: 0.1}]}", "steps.0", "quotes: 5"),
    ("{strategy: canary, metrics: [^error_rat]}", "metrics.0", "write {metric: error_rate}"),
    ("{strategy: canary, ^metrics: [{metric: latency_p99_ms, ratio: 2}]}", "metrics", "add {metric: error_rate"),
    ("{strategy: canary, promote: ^never, metrics: [{metric: error_rate, margin: 0.1}]}", "promote", "manual"),
    ("{strategy: canary, max_seconds: ^9, metrics: [{metric: error_rate, margin: 0.1}]}", "max_seconds", "never over"),
)
"""Rollouts that cannot be: ^ is where the fault is."""


def rolled_out(text: str, sites: list[Site], rng: random.Random) -> Iterator[Mistake]:
    """A rollout with nothing to judge by, steps that do not grow, metrics that cannot be measured."""
    for site in sites:
        if site.path != ("serve",) or not isinstance(site.value, yaml.MappingNode) or not site.value.flow_style:
            continue
        start = site.value.start_mark
        for marked, key, word in ROLLOUTS:
            inserted = f"rollout: {marked}"
            wrong = f"{text[: start.index + 1]}{inserted.replace('^', '')}, {text[start.index + 1 :]}"
            column = start.column + 2 + inserted.index("^")
            yield Mistake("rolled out", wrong, start.line + 1, column, f"serve.rollout.{key}", word)


GRAPHS = (
    ("path: ^brough.onnx", "path", "did you mean brought.onnx"),
    ("path: ^datasets.py", "path", "no ONNX file"),
    ("path: ^fixed.onnx", "path", "exactly 4 rows"),
    ("path: ^maps.onnx", "path", "zipmap"),
    ("path: ^outside.onnx", "path", "outside the model's folder"),
    ("path: ^unknown.onnx", "path", "Whirl (node spin)"),
    ("path: brought.onnx, inputs: {^h: [f1], f: [f1, f2], g: [f3]}", "inputs.h", "its inputs are f, g"),
    ("path: brought.onnx, inputs: {f: ^[f1], g: [f3]}", "inputs.f", "takes 2 columns"),
    ("path: brought.onnx, inputs: ^{f: [f1, f2]}", "inputs", "no columns are listed for input g"),
    ("path: brought.onnx, inputs: {f: [f1, ^anomaly], g: [f3]}", "inputs.f.1", "the target"),
    ("path: brought.onnx, outputs: {probabilities: ^q}", "outputs.probabilities", "its outputs are"),
    ("path: brought.onnx, outputs: {probabilities: ^l}", "outputs.probabilities", "cannot be the probabilities"),
    ("path: brought.onnx, outputs: {probabilities: p, ^logits: p}", "outputs.logits", "one output"),
    ("path: brought.onnx, outputs: {^prediction: p}", "outputs.prediction", "a classification has no prediction"),
    ("path: brought.onnx, classes: [0, 1, ^0]", "classes.2", "twice"),
    ("path: brought.onnx, ^module: a:B", "module", "unknown key"),
)
"""Brought graphs that cannot be the model: ^ is where the fault is."""


def brought(text: str, sites: list[Site], rng: random.Random) -> Iterator[Mistake]:
    """Graphs that are not there, not sound, or not connected as the recipe says; settings that nothing heeds."""
    model = next(site for site in sites if site.path == ("model",))
    if "kind: onnx" not in text:
        return
    for marked, key, word in GRAPHS:
        entry = f"{{kind: onnx, {marked}}}"
        wrong = replaced(text, model.value, entry.replace("^", "") + "\n")
        mark = model.value.start_mark
        yield Mistake("brought", wrong, mark.line + 1, mark.column + 1 + entry.index("^"), f"model.{key}", word)
    for line, key in (("train: {epochs: 3}", "train.epochs"), ("preprocess: {scale: none}", "preprocess.scale")):
        column = line.index("{") + 2
        yield Mistake("brought", f"{text}{line}\n", text.count("\n") + 1, column, key, "would be ignored")


KINDS = (
    misspelt_keys,
    misspelt_words,
    wrong_types,
    not_finite,
    out_of_range,
    duplicates,
    tabs,
    removed,
    instantiated,
    resolved,
    exposed,
    rolled_out,
    brought,
)


def cases() -> Iterator[tuple[str, Mistake, Path]]:
    """Some mistakes of every kind in every recipe, drawn by a fixed seed."""
    for name, file in RECIPES.items():
        text = file.read_text(encoding="utf-8")
        all_sites = list(find_sites(yaml.compose(text, Loader=yaml.SafeLoader)))
        for kind in KINDS:
            rng = random.Random(f"{name} {kind.__name__}")
            mistakes = list(kind(text, all_sites, rng))
            few = len(mistakes) if kind is brought else min(8, len(mistakes))
            for mistake in rng.sample(mistakes, few):
                yield f"{name}-{mistake.label}-{mistake.key or mistake.line}".replace(" ", "_"), mistake, file


CASES = list(cases())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the code that the recipes name."""
    folder = tmp_path_factory.mktemp("mistakes")
    for file in [*(ROOT / "recipes").glob("*.py"), *(templates.FOLDER / "start").glob("*.py")]:
        target = folder / file.name
        text = target.read_text(encoding="utf-8") if target.exists() else ""
        target.write_text(text + file.read_text(encoding="utf-8").replace("from __future__", "# from __future__"))
    write_graphs(folder)
    return folder


def write_graphs(folder: Path) -> None:
    """The graph that brought.yaml names, and some that will not do."""
    value, number = helper.make_tensor_value_info, TensorProto.FLOAT

    def save(name: str, operator: str = "Identity", rows: str | int = "n", *, maps: bool = False) -> onnx.ModelProto:
        inputs = [value("f", number, [rows, 2]), value("g", number, [rows, 1])]
        label = value("l", TensorProto.INT64, [rows])
        scores = value("p", number, [rows, 2])
        if maps:
            pair = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(number, []))
            scores = helper.make_value_info("p", helper.make_sequence_type_proto(pair))
        zero = numpy_helper.from_array(np.zeros(2, np.float32), "zero")
        nodes = [
            helper.make_node("Add", ["f", "zero"], ["h"]),
            helper.make_node(operator, ["h"], ["p"], name="spin"),
            helper.make_node("ArgMax", ["f"], ["l"], axis=1, keepdims=0),
        ]
        graph = helper.make_graph(nodes, "g", inputs, [label, scores], [zero])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        (folder / name).write_bytes(model.SerializeToString())
        return model

    save("fixed.onnx", rows=4)
    save("maps.onnx", maps=True)
    save("unknown.onnx", operator="Whirl")
    outside = save("brought.onnx")
    zero = outside.graph.initializer[0]
    zero.ClearField("raw_data")
    zero.data_location = TensorProto.EXTERNAL
    zero.external_data.add(key="location", value="../secret.bin")
    (folder / "outside.onnx").write_bytes(outside.SerializeToString())


def faults_of(path: Path, overrides: tuple[str, ...] = ()) -> tuple[Fault, ...]:
    with pytest.raises(RecipeError) as caught:
        load(path, overrides)
    return caught.value.faults


def test_there_are_more_than_a_hundred_of_every_sort() -> None:
    assert len(CASES) >= 250
    assert {mistake.label for _, mistake, _ in CASES} >= {"misspelt key", "tab", "duplicate", "missing", "not finite"}


@pytest.mark.parametrize("name", RECIPES)
def test_without_a_mistake_the_recipe_is_fine(name: str, folder: Path) -> None:
    path = folder / f"{name}.yaml"
    shutil.copy(RECIPES[name], path)
    assert load(path).recipe.name


@pytest.mark.parametrize(("mistake", "file"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_mistake_is_reported_where_it_is(mistake: Mistake, file: Path, folder: Path) -> None:
    path = folder / "mistake.yaml"
    path.write_text(mistake.text, encoding="utf-8")
    faults = faults_of(path)
    places = [(fault.file, fault.line, fault.column, fault.key) for fault in faults]
    assert (str(path), mistake.line, mistake.column, mistake.key) in places, [str(fault) for fault in faults]
    assert {fault.key for fault in faults} == {mistake.key, *mistake.others}, [str(fault) for fault in faults]
    fault = faults[places.index((str(path), mistake.line, mistake.column, mistake.key))]
    assert mistake.word in f"{fault.message} {fault.hint}"
    assert all(fault.hint for fault in faults)
