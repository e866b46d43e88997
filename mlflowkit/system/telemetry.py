"""Telemetry of the libraries that mlflowkit uses, switched off for this process and its children.

`mlflowkit/__init__.py` calls `switch_off`, so that the settings are there before any of these libraries is imported: in
the command line, in ``import mlflowkit``, in child processes, and in Ray's workers, which inherit them or import
mlflowkit first. Standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

SETTINGS: Mapping[str, str] = {
    "DO_NOT_TRACK": "1",  # the convention; MLflow, Evidently and others follow it
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.29 and later: on by default, with a device id in the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "WHYLOGS_NO_ANALYTICS": "1",
}
"""Environment variables that switch telemetry off."""


def switch_off() -> None:
    """Set `SETTINGS` in this process's environment; a variable that is set already keeps its value."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
