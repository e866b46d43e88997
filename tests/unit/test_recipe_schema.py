"""The JSON Schema that editors use: complete, described, and of one mind with what loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mlflowkit.recipe import schema_tree, templates
from mlflowkit.recipe.jsonschema import describe, schema, sections

ROOT = Path(__file__).parents[2]
RECIPES = [*sorted((ROOT / "recipes").glob("*.yaml")), templates.FOLDER / "start" / "recipe.yaml"]


@pytest.fixture(scope="module")
def validator() -> Any:
    document = schema()
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats, and ``on`` as text, as editors read them."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, expression) for tag, expression in resolvers if tag != "tag:yaml.org,2002:bool" or first not in "oO"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "tag:yaml.org,2002:float", __import__("re").compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.parent.name + "-" + file.stem)
def test_recipes_that_ship_satisfy_it(validator: Any, file: Path) -> None:
    values = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    assert list(validator.iter_errors(values)) == []


def test_mistakes_do_not(validator: Any) -> None:
    values = yaml.load(RECIPES[0].read_text(encoding="utf-8"), Loader=_Loader)
    for path, wrong in [(("task",), "rank"), (("seeed",), 1), (("data", "split", "kind"), "x"), (("seed",), -1)]:
        broken = yaml.safe_load(yaml.safe_dump(values))
        target = broken
        for part in path[:-1]:
            target = target[part]
        target[path[-1]] = wrong
        assert list(validator.iter_errors(broken)), path


def test_composition_is_part_of_it(validator: Any) -> None:
    values = yaml.load(RECIPES[0].read_text(encoding="utf-8"), Loader=_Loader)
    values |= {"defaults": ["_self_", {"train": "fast"}], "seed": "${train.epochs}"}
    values["gates+"] = [{"metric": "f1", "min": 0.1}]
    assert list(validator.iter_errors(values)) == []


def test_every_key_of_every_section_is_described() -> None:
    missing = [
        f"{name}.{key}"
        for name, section in sections().items()
        for key in section.model_fields
        if key != "kind" and not describe(section, key)
    ]
    assert missing == []


def test_descriptions_arrive_in_the_schema() -> None:
    document = schema()
    assert document["properties"]["task"]["description"] == "What is predicted: a class or a number."
    assert document["$defs"]["Optimizer"]["properties"]["lr"]["description"] == "Learning rate."


def test_every_section_says_what_it_expects() -> None:
    for section in sections().values():
        for name in section.model_fields:
            assert schema_tree.expected(schema_tree.field_shape(section, name))
