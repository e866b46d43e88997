"""View records of monitoring, as metrics, rules and exporters read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflowkit.service_state.records import ServiceFiles

START = 1_764_000_000.0


def finding(column: str = "age", aspect: str = "distribution", **values: Any) -> dict[str, Any]:
    """One finding of a view; values replace its keys."""
    return {
        "column": column,
        "aspect": aspect,
        "segment": "",
        "verdict": "PASSED",
        "value": 0.02,
        "low": 0.01,
        "high": 0.04,
        "margin": 0.1,
        "evidence": 0.1,
        "rows": 2000,
        "effective_rows": 1800.0,
        "new": 0.0,
        "missing": 0.01,
        "importance": 0.2,
        "detectable": 0.15,
        "since": None,
        "message": "",
        "history": [[START, 0.02, 0.1]],
        **values,
    }


def window(number: int = 0, **values: Any) -> dict[str, Any]:
    """The closed window of a minute that is ``number`` minutes after START."""
    start = START + 60.0 * number
    return {
        "start": start,
        "seconds": 60.0,
        "rows": 1990,
        "lost": 10,
        "answered": 2000,
        "state": "HEALTHY",
        "effective_rows": 1900.0,
        "refused": 3,
        **values,
    }


def view(**values: Any) -> dict[str, Any]:
    """The view of a service with one window; values replace its keys."""
    return {
        "service": "lending",
        "version": "20261101-aa11",
        "state": "HEALTHY",
        "since": START,
        "windows": [window()],
        "columns": [finding()],
        "performance": [
            {"metric": "roc_auc", "kind": "estimated", "value": 0.72, "low": 0.7, "high": 0.74, "bound": 0.69,
             "verdict": "PASSED", "trust": "TRUSTED", "labelled_share": None, "message": ""},
            {"metric": "recall", "kind": "realised", "value": 0.66, "low": 0.6, "high": 0.71, "bound": 0.6,
             "verdict": "INCONCLUSIVE", "trust": "UNKNOWN", "labelled_share": 0.8, "message": ""},
        ],
        "alerts": [],
        "retrain": {"state": "idle", "reason": "", "episode": None, "budget_left": 2, "runs": []},
        "decisions": [],
        "blind": [],
        "window_seconds": 60.0,
        "updated": START + 60.0,
        **values,
    }  # fmt: skip


def write_view(state: Path, value: Any, service: str = "lending") -> None:
    """Write a service's view record."""
    ServiceFiles(state / "services" / service).write_json("monitor/view.json", value)
