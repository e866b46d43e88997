"""Generated workflows under the checkers of the field, and mutants that each of them is there to catch."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mlflowkit.delivery.pins import action
from mlflowkit.delivery.targets import target
from mlflowkit.delivery.workflow_checks import workflow_faults
from mlflowkit.testing import delivery_plans
from tests.support.tools import require_tool

PLANS = ("smallest", "pipeline")


def _write(root: Path, plan: str) -> dict[Path, str]:
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    files = {root / path: text for path, text in target("github").render(delivery_plans()[plan]).items()}
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return files


def _run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [require_tool(command[0]), *command[1:]], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )


def _zizmor(root: Path) -> str:
    done = _run(root, "zizmor", "--offline", "--persona=auditor", "--no-progress", ".github/workflows")
    return done.stdout if done.returncode else ""


def _actionlint(root: Path) -> str:
    done = _run(root, "actionlint", "-no-color")
    return done.stdout + done.stderr if done.returncode else ""


def _schema(root: Path) -> str:
    files = [str(path) for path in root.glob(".github/workflows/*.yml")]
    done = _run(root, "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *files)
    return done.stdout + done.stderr if done.returncode else ""


def _own(root: Path) -> str:
    return "\n".join(
        fault for path in root.glob(".github/workflows/*.yml") for fault in workflow_faults(path.read_text())
    )


@pytest.mark.delivery
@pytest.mark.parametrize("check", [_zizmor, _actionlint, _schema])
@pytest.mark.parametrize("plan", PLANS)
def test_no_checker_has_a_finding(tmp_path: Path, plan: str, check: Callable[[Path], str]) -> None:
    _write(tmp_path, plan)
    assert check(tmp_path) == ""


@pytest.mark.parametrize("plan", PLANS)
def test_our_own_check_has_no_finding(tmp_path: Path, plan: str) -> None:
    _write(tmp_path, plan)
    assert _own(tmp_path) == ""


# ruff: noqa: E501
CHECKOUT = action("actions/checkout")
MUTANTS = {
    "a tag in place of a commit": (f"{CHECKOUT.uses}  # {CHECKOUT.tag}", "actions/checkout@v5", "unpinned-uses"),
    "a trigger with secrets": ("\n  pull_request:\n", "\n  pull_request_target:\n", "dangerous-triggers"),
    "a branch's name in a script": ("run: |\n          mlkit ci check", "run: |\n          echo ${{ github.head_ref }}\n"
                                    "          mlkit ci check", "template-injection"),
    "rights for every job": ("permissions: {}  #", "permissions: write-all  #", "excessive-permissions"),
    "a token in the checkout": ("persist-credentials: false", "persist-credentials: true", "artipacked"),
    "no concurrency": ("\nconcurrency:\n  group: ${{ github.workflow }}-${{ github.ref }}\n  cancel-in-progress: "
                       "${{ github.event_name == 'pull_request' }}  # never a half-done promotion\n", "\n", "concurrency"),
}  # fmt: skip


@pytest.mark.delivery
@pytest.mark.parametrize("name", MUTANTS)
def test_zizmor_catches_the_mutant(tmp_path: Path, name: str) -> None:
    old, new, audit = MUTANTS[name]
    _mutate(tmp_path, old, new)
    assert audit in _zizmor(tmp_path)


@pytest.mark.delivery
@pytest.mark.parametrize(
    ("old", "new", "check", "message"),
    [
        ("runs-on: ubuntu-24.04", "runs-on: ubuntu-2404", _actionlint, "ubuntu-2404"),
        ("needs.judge.outputs.code", "needs.judge.outputs.cod", _actionlint, "cod"),
        ("\n    steps:\n", "\n    stepz:\n", _schema, "stepz"),
    ],
)
def test_a_mistake_is_caught(tmp_path: Path, old: str, new: str, check: Callable[[Path], str], message: str) -> None:
    _mutate(tmp_path, old, new)
    assert message in check(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    timeout-minutes: 30\n", "", "no timeout-minutes"),
        ("-${{ github.sha }}", "-${{ github.head_ref }}", "in the key of a cache"),
        ("if: github.event_name == 'push'", "if: always()", "saves a cache on pull requests"),
        ("permissions: {}  #", "permissions: read-all  #", "permissions: {} at the top"),
        (CHECKOUT.sha, "0" * 40, "none of the pinned actions"),
        ("persist-credentials: false", "persist-credentials: true", "leaves the token"),
        ("      packages: read  # pull images and bundles\n    outputs:\n      code", "      packages: write\n    outputs:\n      code",
         "takes files from a cache"),
    ],
)  # fmt: skip
def test_our_own_check_catches_the_mutant(tmp_path: Path, old: str, new: str, message: str) -> None:
    _mutate(tmp_path, old, new)
    assert message in _own(tmp_path)


def _mutate(root: Path, old: str, new: str) -> None:
    files = _write(root, "pipeline")
    main = next(path for path in files if "comment" not in path.name)
    text = main.read_text()
    assert old in text
    main.write_text(text.replace(old, new))
