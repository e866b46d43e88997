"""The suite of delivery targets."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import yaml

from mlflowkit.delivery.delivery_plan import DeliveryPlan, RecipeFacts, delivery_plan
from mlflowkit.delivery.delivery_settings import DeliverySection
from mlflowkit.delivery.delivery_target import DeliveryTarget
from mlflowkit.delivery.pins import python_image

_TIME = re.compile(r"\b20\d\d-[01]\d-[0-3]\d[T ][0-2]\d:[0-5]\d")
_REFERENCE = re.compile(r"""(?:\bimage:|\bFROM\b(?: --\S+)*|\breference:)[ \t]+["']?([^\s"']+)""")
_USES = re.compile(r"""\buses:\s+["']?([^\s"']+)""")
_SEPARATOR = r"""["',\s\[\]\\-]+"""
"""What stands between the words of a command: spaces in a shell, the marks of a list elsewhere."""
_ELSEWHERE = """
import importlib, json, sys
from mlflowkit.testing.delivery_suite import delivery_plans
module, name, *which = sys.argv[1:]
target = getattr(importlib.import_module(module), name)()
plans = delivery_plans()
print(json.dumps({plan: dict(target.render(plans[plan])) for plan in which}))
"""


def delivery_plans() -> dict[str, DeliveryPlan]:
    """Plans to render, by name: the smallest, and one for each kind of system: forges, clusters, AWS."""
    rollout = {"strategy": "canary", "steps": [5, 25, 50]}
    facts = RecipeFacts("my_model", "recipes/my_model.yaml", "lending", 8080, 2, 10.0, "canary", rollout=rollout)
    plain = RecipeFacts("plain", "plain.yaml", "plain", 8080)
    triggers = [
        {"on": "pull_request"},
        {"on": "merge"},
        {"on": "schedule", "cron": "17 4 * * 1", "timezone": "Europe/Berlin"},
        {"on": "data"},
        {"on": "drift"},
    ]
    environments: dict[str, dict[str, Any]] = {
        "staging": {"promote": "automatic", "repo": "https://github.com/acme/env.git", "path": "overlays/staging"},
        "production": {"after": "staging", "baking": "24h", "replicas": 3},
    }
    registry = {"image": "ghcr.io/acme/lending", "credentials": {"env": "REGISTRY_TOKEN"}}
    registry_of_aws = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
    guardrails = [
        {"metric": "error_rate", "max": 0.01, "role": "guardrail"},
        {"metric": "latency_p99_ms", "max": 80, "role": "guardrail"},
    ]
    canary = {"strategy": "canary", "steps": [10], "bake_seconds": 600, "metrics": guardrails}
    sections: dict[str, tuple[dict[str, Any], RecipeFacts]] = {
        "smallest": ({"registry": {"image": "ghcr.io/acme/plain"}}, plain),
        "pipeline": (
            {
                "registry": registry,
                "triggers": triggers,
                "environments": environments,
                "secrets": {"DB_URL": {"env": "DB_URL"}},
                "policy": {"inconclusive": "neutral"},
            },
            facts,
        ),
        "gitlab": (
            {
                "registry": {"image": "registry.gitlab.com/acme/lending", "credentials": {"oidc": "gitlab"}},
                "triggers": [{"on": "pull_request"}, {"on": "merge"}, {"on": "data"}, {"on": "drift"}],
                "environments": environments,
                "secrets": {"DB_URL": {"vault": "acme/lending#url"}, "TOKEN": {"env": "DATA_TOKEN"}},
                "policy": {"inconclusive": "neutral"},
            },
            facts,
        ),
        "pods": (
            {
                "registry": {**registry, "credentials": {"kubernetes": {"name": "registry", "key": "token"}}},
                "runner": {"cpus": 4, "memory_mb": 8192, "gpus": 1},
                "triggers": [{"on": "data"}, {"on": "drift"}],
                "environments": {
                    "staging": environments["staging"],
                    "production": {"after": "staging", "promote": "automatic", "replicas": 3},
                },
                "secrets": {"DB_URL": {"kubernetes": {"name": "lending", "key": "db-url"}}},
                "policy": {"inconclusive": "neutral"},
                "kubeflow": {"state": "lending-state", "git": {"name": "mlkit-git", "key": "token"}},
            },
            facts,
        ),
        "aws": (
            {
                "registry": {"image": f"{registry_of_aws}/lending", "credentials": {"oidc": "aws"}},
                "environments": {"staging": {"promote": "automatic"}, "production": {"after": "staging"}},
                "policy": {"inconclusive": "neutral"},
                "sagemaker": {
                    "region": "eu-central-1",
                    "role": "arn:aws:iam::123456789012:role/mlkit",
                    "bucket": "acme-models",
                    "count": 10,
                    "image": f"{registry_of_aws}/lending-steps@sha256:{'5' * 64}",
                },
            },
            replace(facts, rollout=canary),
        ),
        "airflow": (
            {
                "registry": {**registry, "credentials": {"kubernetes": {"name": "registry", "key": "token"}}},
                "triggers": triggers[2:],
                "environments": environments,
                "secrets": {"DB_URL": {"kubernetes": {"name": "lending", "key": "db-url"}}},
                "policy": {"inconclusive": "neutral"},
                "airflow": {
                    "image": f"ghcr.io/acme/steps@sha256:{'5' * 64}",
                    "repository": "https://github.com/acme/lending.git",
                    "code": {"name": "mlkit-code", "key": "token"},
                    "git": {"name": "mlkit-git", "key": "token"},
                    "state": "lending-state",
                },
                "targets": ["airflow"],
            },
            facts,
        ),
        "worker": (
            {
                "registry": registry,
                "triggers": [{"on": "pull_request"}, {"on": "data"}],
                "environments": environments,
                "secrets": {"DB_URL": {"env": "DATABASE"}},
                "airflow": {"executor": "bash"},
                "targets": ["github", "airflow"],
            },
            facts,
        ),
        "cluster": (
            {
                "registry": {**registry, "credentials": {"kubernetes": {"name": "registry", "key": "token"}}},
                "environments": {
                    "production": {"repo": "git@github.com:acme/env.git", "path": "lending/overlays/production"}
                },
                "secrets": {"DB_URL": {"kubernetes": {"name": "lending", "key": "db-url"}}},
                "kubernetes": {"workload": "rayservice", "service_monitor": True},
            },
            facts,
        ),
    }
    return {
        name: delivery_plan(DeliverySection.model_validate(section), recipe, default_base=python_image())
        for name, (section, recipe) in sections.items()
    }


class DeliveryTargetContract:
    """What every delivery target must do. Override `target`; `plans` where the shipped ones do not suit it."""

    def target(self) -> DeliveryTarget:
        raise NotImplementedError

    def plans(self) -> Mapping[str, DeliveryPlan]:
        """The plans that the target can express, by name."""
        target = self.target()
        return {name: plan for name, plan in delivery_plans().items() if not list(target.unsupported(plan))}

    def rendered(self) -> dict[str, Mapping[str, str]]:
        target = self.target()
        return {name: target.render(plan) for name, plan in self.plans().items()}

    def test_it_expresses_a_plan(self) -> None:
        assert self.rendered(), "every plan has something that it calls unsupported"
        assert all(files for files in self.rendered().values())

    def test_what_it_cannot_express_has_a_place_and_a_hint(self) -> None:
        for plan in delivery_plans().values():
            for item in self.target().unsupported(plan):
                assert item.key
                assert item.message
                assert item.hint, f"{item.message}: what to write instead?"

    def test_equal_plans_render_equal_files(self) -> None:
        assert self.rendered() == self.rendered()

    def test_the_order_of_hashes_does_not_matter(self) -> None:
        target = type(self.target())
        shipped = delivery_plans()
        rendered = {name: dict(files) for name, files in self.rendered().items() if name in shipped}
        for seed in ("1", "2"):
            command = [sys.executable, "-c", _ELSEWHERE, target.__module__, target.__qualname__, *rendered]
            environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": "Asia/Kolkata", "LC_ALL": "C"}
            environment["PYTHONPATH"] = os.pathsep.join(sys.path)
            process = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            assert json.loads(process.stdout) == rendered

    def test_paths_are_below_the_repository(self) -> None:
        for files in self.rendered().values():
            for path in files:
                pure = PurePosixPath(path)
                assert not pure.is_absolute()
                assert not {"..", ".git"} & set(pure.parts)
                assert str(pure) == path

    def test_lines_end_in_lf(self) -> None:
        for files in self.rendered().values():
            for path, text in files.items():
                assert "\r" not in text, path
                assert text.endswith("\n"), path

    def test_every_file_parses(self) -> None:
        for files in self.rendered().values():
            for path, text in files.items():
                parse(path, text)

    def test_no_file_has_a_time(self) -> None:
        for files in self.rendered().values():
            for path, text in files.items():
                assert not _TIME.search(text), path

    def test_no_file_has_a_secret(self, monkeypatch: Any) -> None:
        for plan in self.plans().values():
            names = [*plan.secrets, *(item.env for item in [plan.credentials, *plan.secrets.values()] if item.env)]
            for name in names:
                monkeypatch.setenv(name, f"canary-{name}")
        for files in self.rendered().values():
            assert not [path for path, text in files.items() if "canary-" in text]

    def test_every_command_of_the_plan_appears(self) -> None:
        target = self.target()
        for name, files in self.rendered().items():
            everything = "\n".join(files.values())
            for step in self.plans()[name].steps:
                if step.id.partition("-")[0] in target.steps:
                    pattern = _SEPARATOR.join(map(_word, step.command))
                    assert re.search(pattern, everything), f"{name}: no file runs {' '.join(step.command)}"

    def test_references_are_pinned(self) -> None:
        for files in self.rendered().values():
            for path, text in files.items():
                for reference in _REFERENCE.findall(text):
                    tag = ":" in reference.rpartition("/")[2].partition("@")[0]
                    assert not tag or "@sha256:" in reference or "$" in reference, f"{path}: {reference} has no digest"
                for action in _USES.findall(text):
                    assert re.search(r"@[0-9a-f]{40}$", action) or action.startswith("./"), f"{path}: {action}"
                assert ":latest" not in text, path


def _word(word: str) -> str:
    """A pattern for a word of a command; a variable may be written in the system's own way."""
    variable, slash, rest = word.partition("/")
    return rf"\S*{re.escape(slash + rest)}" if variable.startswith("$") else re.escape(word)


def parse(path: str, text: str) -> None:
    """Read a file in the format of its name. Raises what the format's reader does."""
    suffix = PurePosixPath(path).suffix
    if suffix in (".yml", ".yaml"):
        assert all(document is not None for document in yaml.safe_load_all(text)), path
    elif suffix == ".json":
        json.loads(text)
    elif suffix == ".py":
        ast.parse(text)
    elif suffix == ".toml":
        tomllib.loads(text)
    else:
        assert text.strip(), path
