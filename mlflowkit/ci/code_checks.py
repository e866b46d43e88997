"""`mlkit ci check`: is a recipe's code formatted, free of lint, tested, and does the recipe train at all?"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mlflowkit.delivery.delivery_settings import ChecksSettings
from mlflowkit.errors import MlkitError, RecipeError, UsageError, WorldError
from mlflowkit.ports import RunProgress
from mlflowkit.recipe.schema import LoadedRecipe
from mlflowkit.system.text import printable, shell_word

Outcome = Literal["passed", "failed", "error", "skipped"]
XML = "checks.xml"
MAX_OUTPUT = 20_000
"""Characters of a check's output that are kept; the end is the interesting part."""
NO_TESTS = 5
"""pytest's exit code when it collects none."""


@dataclass(frozen=True, slots=True)
class CodeCheckResult:
    """One check: ``failed`` is the code's fault, ``error`` that of what ran it."""

    name: str
    outcome: Outcome
    seconds: float
    message: str
    command: str = ""
    output: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CodeCheckReport:
    """All checks of a recipe."""

    recipe: str
    results: tuple[CodeCheckResult, ...]

    @property
    def exit_code(self) -> int:
        """1 where a check failed, 3 where one could not be run, else 0."""
        outcomes = {result.outcome for result in self.results}
        return 1 if "failed" in outcomes else WorldError.exit_code if "error" in outcomes else 0

    def to_json(self) -> dict[str, Any]:
        checks = [result.to_json() for result in self.results]
        return {"recipe": self.recipe, "exit_code": self.exit_code, "checks": checks}


def run_checks(
    recipe: Path, out: Path, *, timeout: float = 1800.0, progress: RunProgress = lambda event: None
) -> CodeCheckReport:
    """Run the checks of a recipe's delivery section, or the default ones, and write ``checks.xml`` into ``out``.

    A faulty recipe is a check that failed; the training is then left out. Raises UsageError for an ``out`` inside the
    checkout that git does not ignore.
    """
    from mlflowkit.ci.delivery_check import check_delivery
    from mlflowkit.ci.recipe_facts import check_output_folder
    from mlflowkit.recipe.check import load
    from mlflowkit.system.git.git_command import ask_git

    place = ask_git(Path(os.path.realpath(recipe)).parent, "rev-parse", "--show-toplevel")
    if place.ok:
        check_output_folder(out, Path(place.text.rstrip("\n")).resolve(), XML)
    out.mkdir(parents=True, exist_ok=True)
    loaded: LoadedRecipe | None = None
    started = time.monotonic()
    try:
        loaded = load(recipe)
        warnings = check_delivery(loaded, recipe)
        message = "; ".join(["the recipe is valid", *warnings])
        valid = CodeCheckResult("validate", "passed", time.monotonic() - started, message)
    except RecipeError as error:
        valid = CodeCheckResult(
            "validate", "failed", time.monotonic() - started, error.message, f"mlkit validate {recipe}"
        )
    section = None if loaded is None else loaded.recipe.delivery
    checks = ChecksSettings() if section is None else section.checks
    folder = Path(os.path.realpath(recipe)).parent
    results = [valid]
    tests: ET.Element | None = None
    results += _code_checks(checks, folder, timeout)
    tests_folder, demanded = _tests_folder(checks, folder)
    if tests_folder is not None:
        result, tests = _pytest(tests_folder, folder, timeout, demanded=demanded)
        results.append(result)
    if loaded is not None and checks.smoke_rows:
        results.append(_smoke(loaded, checks.smoke_rows, progress))
    report = CodeCheckReport(str(recipe), tuple(results))
    (out / XML).write_bytes(to_junit(report, tests))
    return report


def _code_checks(checks: ChecksSettings, folder: Path, timeout: float) -> Iterator[CodeCheckResult]:
    """Format and lint, by ruff."""
    if not any(folder.rglob("*.py")):
        return
    style = "github" if os.environ.get("GITHUB_ACTIONS") == "true" else "concise"
    commands = {
        "format": (checks.format, ["format", "--check", str(folder)], f"ruff format {shell_word(folder)}"),
        "lint": (checks.lint, ["check", f"--output-format={style}", str(folder)], f"ruff check {shell_word(folder)}"),
    }
    for name, (wanted, arguments, shown) in commands.items():
        if not wanted:
            continue
        code, output, seconds = _run([*_tool("ruff", name), *arguments], folder, timeout)
        outcome: Outcome = "passed" if code == 0 else "failed" if code == 1 else "error"
        yield CodeCheckResult(name, outcome, seconds, _last_line(output) or f"ruff ended with {code}", shown, output)


def _tests_folder(checks: ChecksSettings, folder: Path) -> tuple[Path | None, bool]:
    """The folder of tests, and whether the recipe demands it. Raises UsageError for one that is not there."""
    if checks.tests is None:
        beside = folder / "tests"
        return (beside, False) if beside.is_dir() else (None, False)
    from mlflowkit.ci.recipe_facts import repository_root

    if (folder / checks.tests).is_dir():
        return folder / checks.tests, True
    from_root = repository_root(folder) / checks.tests
    if from_root.is_dir():
        return from_root, True
    raise UsageError(
        f"delivery.checks.tests: there is no folder {checks.tests}",
        hint=f"mkdir {folder / checks.tests}, or remove the key",
    )


def _pytest(tests: Path, folder: Path, timeout: float, *, demanded: bool) -> tuple[CodeCheckResult, ET.Element | None]:
    shown = f"pytest {shell_word(tests)}"
    with tempfile.TemporaryDirectory(prefix="mlkit-tests-") as temporary:
        xml = Path(temporary, "tests.xml")
        options = ["-q", "-p", "no:cacheprovider", f"--junitxml={xml}", f"--rootdir={folder}", str(tests)]
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))}
        code, output, seconds = _run([*_tool("pytest", "tests"), *options], folder, timeout, environment)
        suite = _suite(xml)
    if code == NO_TESTS:
        outcome: Outcome = "failed" if demanded else "skipped"
        return CodeCheckResult("tests", outcome, seconds, f"{tests} has no tests", shown, output), suite
    outcome = "passed" if code == 0 else "failed" if code == 1 else "error"
    return CodeCheckResult(
        "tests", outcome, seconds, _last_line(output) or f"pytest ended with {code}", shown, output
    ), suite


def _smoke(loaded: LoadedRecipe, rows: int, progress: RunProgress) -> CodeCheckResult:
    from mlflowkit.ci.smoke_training import smoke_train

    started = time.monotonic()
    shown = f"mlkit run {shell_word(loaded.path)} --until export"
    with tempfile.TemporaryDirectory(prefix="mlkit-smoke-") as folder:
        try:
            message = smoke_train(loaded, rows, Path(folder), progress)
            return CodeCheckResult("smoke", "passed", time.monotonic() - started, message, shown)
        except MlkitError as error:
            output = f"{error.message}\nhint: {error.hint}" if error.hint else error.message
            return CodeCheckResult("smoke", "failed", time.monotonic() - started, error.message, shown, output)


def _tool(module: str, check: str) -> list[str]:
    """The command of a tool of this environment. Raises UsageError when it is not installed."""
    from importlib.util import find_spec

    if find_spec(module) is None:
        key = {"ruff": f"delivery.checks.{check}: false", "pytest": "no tests folder"}[module]
        raise UsageError(
            f"{module} is not installed, and the check {check} needs it",
            hint=f"python -m pip install {module}, and name it in the requirements; or {key} in the recipe",
        )
    return [sys.executable, "-m", module]


def _run(
    command: Sequence[str], folder: Path, timeout: float, environment: dict[str, str] | None = None
) -> tuple[int, str, float]:
    """(exit code, output, seconds) of a command; -1 for one that takes too long."""
    started = time.monotonic()
    try:
        process = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "RUFF_NO_CACHE": "true", **(environment or {})},
        )
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode(errors="replace")
        return -1, f"{output[-MAX_OUTPUT:]}\nit took longer than {timeout:.0f} s", time.monotonic() - started
    return process.returncode, process.stdout.decode(errors="replace")[-MAX_OUTPUT:], time.monotonic() - started


def _last_line(output: str) -> str:
    return next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "")


def _suite(xml: Path) -> ET.Element | None:
    """The suite that pytest wrote, or None where it wrote none that can be read."""
    try:
        root = ET.parse(xml).getroot()
    except (OSError, ET.ParseError):
        return None
    return root if root.tag == "testsuite" else root.find("testsuite")


def to_junit(report: CodeCheckReport, tests: ET.Element | None = None) -> bytes:
    """The checks as JUnit XML, with the suite of the user's tests beside them."""
    root = ET.Element("testsuites")
    counts = {kind: sum(item.outcome == kind for item in report.results) for kind in ("failed", "error", "skipped")}
    suite = ET.SubElement(
        root,
        "testsuite",
        name=f"mlkit ci check {report.recipe}",
        tests=str(len(report.results)),
        failures=str(counts["failed"]),
        errors=str(counts["error"]),
        skipped=str(counts["skipped"]),
        time=f"{sum(item.seconds for item in report.results):.3f}",
    )
    for item in report.results:
        case = ET.SubElement(suite, "testcase", classname="mlkit.check", name=item.name, time=f"{item.seconds:.3f}")
        tag = {"failed": "failure", "error": "error", "skipped": "skipped"}.get(item.outcome)
        if tag is not None:
            mark = ET.SubElement(case, tag, message=printable(item.message))
            mark.text = printable(f"{item.command}\n{item.output}")
    if tests is not None:
        root.append(tests)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"
