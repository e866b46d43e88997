"""Faults of a delivery section, each at its line, and secrets that are never quoted."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflowkit.errors import Fault, RecipeError
from mlflowkit.recipe.check import load

RECIPE = """\
name: lending
task: classification
data: {source: {kind: csv, path: rows.csv}, target: bad, split: {kind: random}}
model: {kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}
serve: {service: lending}
delivery:
  registry: {image: ghcr.io/acme/lending}
"""


def _faults(folder: Path, delivery: str, recipe: str = RECIPE) -> list[Fault]:
    (folder / "rows.csv").write_text("a,bad\n1,0\n")
    file = folder / "recipe.yaml"
    file.write_text(recipe + "".join(f"  {line}\n" for line in delivery.splitlines()))
    try:
        load(file)
    except RecipeError as error:
        return list(error.faults)
    return []


@pytest.mark.parametrize(
    ("delivery", "key", "message", "hint"),
    [
        ("targets: [githb]", "delivery.targets.0", "there is no target 'githb'", "did you mean github?"),
        ("targets: githb", "delivery.targets", "there is no target 'githb'", "did you mean github?"),
        ("targets: [github, github]", "delivery.targets.1", "listed twice", "remove one"),
        (
            "environments: {staging: {}, prod: {after: stagin}}",
            "delivery.environments.prod.after",
            "there is no environment 'stagin'",
            "did you mean staging?",
        ),
        ("environments: {a: {after: a}}", "delivery.environments.a.after", "after itself", "remove after"),
        ("environments: {a: {after: b}, b: {}}", "delivery.environments.a.after", "stands above it", "move a below b"),
        ("environments: {a: {baking: 1h}}", "delivery.environments.a.baking", "comes after none", "add after"),
        ("triggers: [{on: schedule, cron: 61 4 * * 1}]", "delivery.triggers.0.cron", "minute is from 0 to 59", "17 4"),
        ("triggers: [{on: schedule, cron: 5 4 * FOO 1}]", "delivery.triggers.0.cron", "month is a number", "17 4"),
        (
            "triggers: [{on: schedule, cron: 5 4 * * 1, timezone: Europe/Berln}]",
            "delivery.triggers.0.timezone",
            "no time zone",
            "did you mean Europe/Berlin?",
        ),
        ("triggers: [{on: drift}]", "delivery.triggers.0.on", "no monitor section", "add monitor"),
        ("triggers: [{on: merge}, {on: merge}]", "delivery.triggers.1", "the same trigger", "remove one"),
        ("runner: {timeout: 5s}", "delivery.runner.timeout", "a minute at least", "write 2h"),
        *(
            (f"secrets: {{{name}: {{env: A}}}}", f"delivery.secrets.{name}", "pipelines set themselves", "SECRET_")
            for name in ("PATH", "MLKIT_OUT", "GITHUB_TOKEN", "CI_JOB_TOKEN", "LD_PRELOAD")
        ),
    ],
)
def test_a_fault_is_told_at_its_key(tmp_path: Path, delivery: str, key: str, message: str, hint: str) -> None:
    (fault,) = _faults(tmp_path, delivery)
    assert (fault.key, fault.line) == (key, RECIPE.count("\n") + 1)
    assert message in fault.message
    assert hint in fault.hint


def test_environments_in_a_circle_are_refused(tmp_path: Path) -> None:
    faults = _faults(tmp_path, "environments:\n  a: {after: c}\n  b: {after: a}\n  c: {after: b}")
    assert {fault.key for fault in faults} == {f"delivery.environments.{name}.after" for name in "abc"}
    assert all("circle" in fault.message for fault in faults)


def test_a_sound_section_has_no_fault(tmp_path: Path) -> None:
    delivery = """\
targets: [github]
triggers: [{on: pull_request}, {on: schedule, cron: "*/15 0-6,12 * JAN MON-FRI", timezone: Europe/Berlin}]
environments: {staging: {}, prod: {after: staging, baking: 24h, repo: "https://github.com/acme/env.git"}}
secrets: {DB_URL: {env: DB_URL}, MLKIT_API_KEY: {env: KEY}, GIT_TOKEN: {env: CI_JOB_TOKEN}}"""
    assert _faults(tmp_path, delivery) == []


@pytest.mark.parametrize(
    "secret",
    [
        "ghp_" + "a1" * 18,
        "glpat-" + "x" * 20,
        "AKIA" + "ABCDEFGH12345678",
        "postgresql://me:hunter22@db/lending",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    ],
)
@pytest.mark.parametrize(
    "template",
    [
        "secrets: {DB_URL: {env: 'SECRET'}}",
        "environments: {prod: {repo: 'SECRET'}}",
        "options: {acme: {key: 'SECRET'}}",
    ],
)
def test_a_secret_in_a_recipe_is_a_fault_that_does_not_quote_it(tmp_path: Path, secret: str, template: str) -> None:
    from mlflowkit.cli.error_format import render

    text = template.replace("SECRET", secret)
    (tmp_path / "rows.csv").write_text("a,bad\n1,0\n")
    file = tmp_path / "recipe.yaml"
    file.write_text(f"{RECIPE}  {text}\n")
    with pytest.raises(RecipeError) as caught:
        load(file)
    (fault,) = caught.value.faults
    assert "looks like" in fault.message
    assert (fault.line, fault.found) == (RECIPE.count("\n") + 1, "***")
    assert secret not in render(caught.value) + str(caught.value) + repr(caught.value.to_json())


def test_keys_that_do_not_go_together_are_told_in_the_sections_own_words(tmp_path: Path) -> None:
    faults = _faults(tmp_path, "secrets: {A: {env: A, oidc: github}}\ntriggers: [{on: schedule}]")
    assert {fault.key: fault.message for fault in faults} == {
        "delivery.secrets.A": "name one of env, kubernetes, vault, oidc, not env and oidc",
        "delivery.triggers.0": "on: schedule needs cron, such as '17 4 * * 1'",
    }
