"""What every test gets: quiet vendors, no telemetry, one thread, and no state outside its own folder."""

from __future__ import annotations

import os
import signal

import pytest

os.environ.update(
    WHYLOGS_NO_ANALYTICS="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="1",
    RAY_USAGE_STATS_ENABLED="0",
    OMP_NUM_THREADS="1",
)


@pytest.fixture(autouse=True)
def _no_ambient_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLKIT_STATE", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def pytest_configure() -> None:
    """Have commands that tests start heed Ctrl-C: a shell that runs the tests in the background ignores it for all."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
