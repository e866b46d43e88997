"""Environment of every test: quiet vendors, no telemetry, one thread per library, no state outside the test's folder.

Bytecode is written, whatever the environment says: without it each process of hundreds compiles what it imports.

Marks come from the folder of a test (unit, property, golden, contract, integration, faults, e2e, benchmarks). Three are
set by hand, for a module by ``pytestmark`` or for a test:

- `heavy`: a unit, property or golden test that imports torch, Ray or MLflow, or starts processes that do.
- `simulation`: thousands of simulated runs against a statistical promise, more than about two seconds.
- `slow`: more than twenty seconds; left out of `make test`. Ended after SLOW_SECONDS unless it says otherwise.

`make test-fast` leaves out all three, and with ``--fast`` does not even import modules marked as a whole, so it runs
where torch and Ray are not installed; a run with ``--fast`` fails when anything has imported them.

Hypothesis runs the same examples each time (`derandomize`): a change is never refused by luck.
HYPOTHESIS_PROFILE=random searches anew, as the nightly workflow does; =fast takes at most 25 examples a test.

``--update-golden`` writes the files of tests/golden instead of comparing with them.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest

pytest.register_assert_rewrite("tests.support")

from mlflowkit.system import telemetry  # noqa: E402
from tests.support.golden import Golden, assert_golden  # noqa: E402

os.environ.update(telemetry.SETTINGS, OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="")
sys.dont_write_bytecode = False

TESTS = Path(__file__).parent
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
FAST_EXAMPLES = 25
SLOW_SECONDS = 900
NOT_FAST = re.compile(r"^pytestmark = .*\bmark\.(heavy|simulation|slow)\b", re.M)
HEAVY_LIBRARIES = ("torch", "ray", "mlflow")
HEAVY_IMPORTS = pytest.StashKey[dict[str, str]]()
"""With --fast: each heavy library that was imported, and the first test after which it was there."""

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.register_profile("fast", derandomize=True, deadline=None)
hypothesis.settings.register_profile("random", deadline=None)
hypothesis.settings.load_profile(PROFILE)


@pytest.fixture(autouse=True)
def _no_ambient_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLKIT_STATE", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compare a text with a golden file: ``golden("name.txt", text)``."""
    return partial(assert_golden, update=request.config.getoption("--update-golden"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast", action="store_true", help="no module marked heavy, simulation or slow; no torch, Ray, MLflow"
    )
    parser.addoption("--update-golden", action="store_true", help="write the files of tests/golden")


def pytest_configure(config: pytest.Config) -> None:
    """Have commands that tests start heed Ctrl-C: a shell that runs the tests in the background ignores it for all."""
    config.stash[HEAVY_IMPORTS] = {}
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Leave thousands of tests and their modules out of every garbage collection to come, here and in forks."""
    gc.collect()
    gc.freeze()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --fast, leave out modules that are marked as a whole, without importing them."""
    if not config.getoption("--fast") or collection_path.suffix != ".py":
        return None
    return True if NOT_FAST.search(collection_path.read_text(encoding="utf-8")) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by its folder; with HYPOTHESIS_PROFILE=fast, bound the examples of each property."""
    for item in items:
        if item.path.is_relative_to(TESTS):
            item.add_marker(item.path.relative_to(TESTS).parts[0])
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))
        test = getattr(item, "obj", None)
        if PROFILE == "fast" and hypothesis.is_hypothesis_test(test):
            own = test._hypothesis_internal_use_settings
            examples = min(own.max_examples, FAST_EXAMPLES)
            test._hypothesis_internal_use_settings = hypothesis.settings(own, max_examples=examples)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    note_heavy_imports(item)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Any:
    report = yield
    note_heavy_imports(collector)
    return report


def note_heavy_imports(node: pytest.Collector | pytest.Item) -> None:
    """With --fast, note after which test or module a heavy library is there first."""
    if node.config.getoption("--fast"):
        for library in HEAVY_LIBRARIES:
            if library in sys.modules:
                node.config.stash[HEAVY_IMPORTS].setdefault(library, node.nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker of pytest-xdist has noted."""
    node.config.stash[HEAVY_IMPORTS].update(getattr(node, "workeroutput", {}).get("heavy_imports", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run with --fast that has imported a heavy library."""
    imports = session.config.stash[HEAVY_IMPORTS]
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["heavy_imports"] = imports
    elif imports:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for library, test in config.stash[HEAVY_IMPORTS].items():
        terminalreporter.write_line(f"FAILED --fast: {library} was imported, first seen after {test}", red=True)
