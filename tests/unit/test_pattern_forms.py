"""What is said of a text that has not the form that a key of ``delivery`` asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.delivery.delivery_settings import DeliverySection
from mlflowkit.errors import RecipeError
from mlflowkit.monitoring.monitor_settings import DURATION
from mlflowkit.recipe.check import load
from mlflowkit.recipe.pattern_forms import PATTERN_FORMS
from tests.support.export_project import make_project


def patterns(schema: Any) -> Iterator[str]:
    """The patterns of a JSON schema, of values and of keys."""
    if isinstance(schema, list):
        for item in schema:
            yield from patterns(item)
    elif isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"]
        yield from schema.get("patternProperties", {})
        for item in schema.values():
            yield from patterns(item)


def test_every_pattern_of_delivery_has_words_and_an_example_that_matches() -> None:
    used = set(patterns(DeliverySection.model_json_schema())) - {DURATION}
    assert set(PATTERN_FORMS) == used
    for pattern, form in PATTERN_FORMS.items():
        assert re.fullmatch(pattern, form.example), form


@pytest.mark.parametrize(
    ("delivery", "message", "hint"),
    [
        (
            "requirements: ../a.txt",
            "a path below the repository's root, without .. and spaces, found",
            "such as recipes/",
        ),
        ("triggers: [{on: schedule, cron: '@weekly'}]", "minute, hour, day of month", "such as 17 4 * * 1"),
        ("secrets: {A: {vault: b}}", "a field of a Vault secret, PATH#FIELD", "such as secret/lending#url"),
        ("secrets: {A: {env: my-secret}}", "the name of an environment variable", "write MY_SECRET"),
        ("secrets: {lower: {env: A}}", "as a key, found 'lower'", "write LOWER"),
        ("environments: {Prod: {}}", "a name of a-z, 0-9 and - as a key, found 'Prod'", "write prod"),
        ("environments: {prod: {gateway: 'ftp://x'}}", "a URL that begins with http:// or https://", "such as http://"),
    ],
)
def test_a_wrong_form_is_told_with_one_that_is_right(tmp_path: Path, delivery: str, message: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(make_project(tmp_path, delivery))
    (fault,) = caught.value.faults
    assert message in fault.message
    assert fault.hint.startswith(hint)


def test_an_image_with_a_tag_is_told_what_a_repository_is(tmp_path: Path) -> None:
    recipe = make_project(tmp_path)
    recipe.write_text(recipe.read_text().replace("acme/lending}", "acme/lending:latest}"))
    with pytest.raises(RecipeError) as caught:
        load(recipe)
    assert "without a tag or a digest" in caught.value.faults[0].message
