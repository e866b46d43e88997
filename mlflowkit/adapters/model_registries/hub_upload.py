"""Starts `hub_push_child`, and ends it at the deadline of a push."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflowkit.data_access.hub_repository import HUB
from mlflowkit.errors import ServiceError
from mlflowkit.system.child_process import die_with_parent_command, python_path
from mlflowkit.system.files import make_folder

QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
}
PUSH_AGAIN = "run the same command again: nothing is tagged before all of it is there"


def run_upload(request: Mapping[str, Any], work: Path, seconds: float) -> Mapping[str, Any]:
    """The answer of `hub_push_child`, which is ended after ``seconds``; the token goes by its standard input.

    ``work`` is an empty place for its files. Raises ServiceError for a child that is ended, or ends without an answer.
    """
    answer, endpoint = work / "push_answer.json", request["endpoint"]
    settings = {**QUIET, "HF_HOME": str(make_folder(work / "home")), "HF_ENDPOINT": endpoint}
    if endpoint != HUB:
        settings["HF_HUB_DISABLE_XET"] = "1"  # that storage is the Hub's own
    environment = {**os.environ, **python_path(), **settings}
    environment.pop("HF_TOKEN", None)
    command = die_with_parent_command("mlflowkit.adapters.model_registries.hub_push_child", str(answer))
    with (work / "stderr").open("wb") as errors:
        try:
            done = subprocess.run(
                command, input=json.dumps(request).encode(), stdout=errors, stderr=errors, env=environment, cwd=work,
                timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            message = f"{endpoint}: the push of {request['repository']} was stopped after {seconds:.0f} s"
            raise ServiceError(message, hint=PUSH_AGAIN) from None
    if done.returncode != 0 or not answer.is_file():
        tail = (work / "stderr").read_bytes()[-500:].decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise ServiceError(f"huggingface_hub ended with {done.returncode}: {tail[:300]}", hint=PUSH_AGAIN)
    value: dict[str, Any] = json.loads(answer.read_bytes())
    return value
