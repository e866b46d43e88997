"""What holds of any recipe: reading keeps values and places, composing agrees with Hydra, loading never crashes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflowkit.errors import Fault, RecipeError
from mlflowkit.recipe import compose, yaml_tree
from mlflowkit.recipe.check import load, load_sweep

ROOT = Path(__file__).parents[2]
RECIPES = [file.read_text(encoding="utf-8") for file in sorted((ROOT / "recipes").glob("*.yaml"))]

names = st.text(st.characters(whitelist_categories=("Ll", "Lu", "Nd"), max_codepoint=0x2FF), min_size=1, max_size=6)
plain_text = st.text(st.characters(exclude_categories=("Cs", "Cc", "Co", "Cn")), max_size=12)
scalars = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | plain_text
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)
mappings = st.dictionaries(names, trees, max_size=5)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mlkit-recipes-"))
    for file in (ROOT / "recipes").glob("*.py"):
        shutil.copy(file, path)
    (path / "conf" / "part").mkdir(parents=True)
    yield path
    shutil.rmtree(path)


def mark_of(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def same_places(node: yaml_tree.Node, other: yaml.Node) -> None:
    """Every place is where PyYAML's composer has it."""
    assert (node.location.line, node.location.column) == mark_of(other)
    if isinstance(other, yaml.MappingNode):
        keys = {key.value: (key, value) for key, value in other.value}
        for name, below in node.value.items():
            key, value = keys[name]
            assert below.key is not None
            assert (below.key.line, below.key.column) == mark_of(key)
            same_places(below, value)
    elif isinstance(other, yaml.SequenceNode):
        for below, value in zip(node.value, other.value, strict=True):
            same_places(below, value)


@given(value=mappings, flow=st.sampled_from([True, False, None]), indent=st.integers(2, 6))
@settings(max_examples=120, deadline=None)
def test_reading_keeps_values_and_places(value: dict[str, Any], flow: bool | None, indent: int) -> None:
    quoted = {f"k{name}": item for name, item in value.items()}
    text = yaml.safe_dump(quoted, default_flow_style=flow, indent=indent, allow_unicode=True)
    document = yaml_tree.read(text, "r.yaml")
    loaded = yaml.load(text, Loader=yaml.SafeLoader)
    if not document.faults and "e" not in repr(loaded):
        assert document.root is not None
        assert yaml_tree.to_plain(document.root) == {str(name): item for name, item in loaded.items()}
        same_places(document.root, yaml.compose(text, Loader=yaml.SafeLoader))


simple_names = st.text("abcdef", min_size=1, max_size=3)
simple_scalars = st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-1e6, 1e6) | st.text("xyz 1-", max_size=5)
simple_trees = st.recursive(
    simple_scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(simple_names, inner, max_size=3),
    max_leaves=8,
)
sections = st.dictionaries(simple_names, simple_trees, min_size=1, max_size=4)


@given(first=sections, second=sections, package=st.sampled_from(["", "_global_", "a.b"]), last=st.booleans())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_composing_agrees_with_hydra(
    folder: Path, first: dict[str, Any], second: dict[str, Any], package: str, last: bool
) -> None:
    """The same files through Hydra's own compose give the same values, and each value has a place in its file."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    order = ["_self_", {"part": "p"}] if last else [{"part": "p"}, "_self_"]
    header = f"# @package {package}\n" if package else ""
    (folder / "conf" / "part" / "p.yaml").write_text(header + yaml.safe_dump(second))
    path = folder / "composed.yaml"
    path.write_text(yaml.safe_dump({"defaults": order, **first}))
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            expected = hydra_compose("composed", [f"hydra.searchpath=['file://{folder}/conf']"])
        values = OmegaConf.to_container(expected, resolve=False)
    except Exception:  # noqa: BLE001  (a mapping on top of a list: Hydra refuses, and so must we)
        assert compose.compose(path).faults
        return
    composition = compose.compose(path)
    assert not composition.faults
    assert yaml_tree.to_plain(composition.root) == values
    assert {node.location.file for _, node in yaml_tree.walk(composition.root)} <= set(composition.texts)


@given(values=sections)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_recipe_of_one_file_is_what_hydra_makes_of_it(folder: Path, values: dict[str, Any]) -> None:
    """Without anything to compose Hydra is not asked; what it would say is the same."""
    from omegaconf import OmegaConf

    path = folder / "alone.yaml"
    path.write_text(yaml.safe_dump(values))
    assert yaml_tree.to_plain(compose.compose(path).root) == OmegaConf.to_container(OmegaConf.load(path))


fragments = st.sampled_from(
    [*"{}[]:,-?!&*|>#%@`'\"\\=~<\t\n ", ": ", "- ", "\n  ", "&a ", "*a", "<<: ", "!!str ", "!!python/name:os.system ",
     "1e-3", ".nan", ".inf", "null", "yes", "0x", "1:30", "${", "${a}", "${oc.env:X}", "${now:%Y}", "${data}",
     "${.x}", "${gates.0}", "???", "---", "...", "gates+", "defaults", "_target_", "hydra", "\x00", "\u2028", "é", "💥"]
)  # fmt: skip


@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_loading_a_broken_recipe_raises_nothing_but_recipe_errors(folder: Path, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(RECIPES))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        length = data.draw(st.sampled_from([0, 1, 5, 40]))
        text = text[:start] + "".join(data.draw(st.lists(fragments, max_size=4))) + text[start + length :]
    path = folder / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    for fault in faults_of(load, path):
        assert 1 <= fault.line <= text.count("\n") + 2
        assert fault.column >= 1
        assert fault.message


@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="replace")))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_loading_noise_raises_nothing_but_recipe_errors(folder: Path, content: bytes) -> None:
    path = folder / "noise.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert all(fault.line >= 1 and fault.column >= 1 for fault in caught.value.faults)


override_parts = st.sampled_from(
    ["seed", "train.epochs", "gates", "gates.0.min", "data.source", "defaults", "hydra", "+", "++", "~", "=", ",", "x",
     "1", "null", "true", "[", "]", "{", "}", "(", ")", ":", "'", '"', "\\", "/", "@", "*", "$", "${", " ", "\t", ".",
     "range(1,3)",
     "choice(1,2)", "glob(*)", "interval(0,1)", "sort(", "train/fast", "+train/fast", "+gates=strict", "é"]
)  # fmt: skip


@given(parts=st.lists(st.lists(override_parts, min_size=1, max_size=6).map("".join), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_override_loads_or_is_a_located_fault(folder: Path, parts: list[str]) -> None:
    path = folder / "overridden.yaml"
    path.write_text(RECIPES[0])
    for function in (load, load_sweep):
        for fault in faults_of(function, path, parts):
            if fault.file == yaml_tree.OVERRIDE_FILE:
                assert 1 <= fault.line <= len(parts)
                assert 1 <= fault.column <= len(parts[fault.line - 1]) + 1


def faults_of(function: Callable[..., Any], *arguments: Any) -> tuple[Fault, ...]:
    """What is wrong; nothing when it loads. Anything but a RecipeError with faults fails the test."""
    try:
        function(*arguments)
    except RecipeError as error:
        return error.faults or (Fault("", 0, 0, "", "", "no faults"),)
    return ()
