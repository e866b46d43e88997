"""The process of one trial: ``python -m mlflowkit.processes.trial_main PLAN``, started by `adapters.trials`.

It replies to requests on stdin with lines of JSON on stdout; output of libraries goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflowkit.system.files import use_private_umask


def main(arguments: list[str]) -> int:
    """Run one trial until stdin is closed; returns the exit code."""
    use_private_umask()
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m mlflowkit.processes.trial_main PLAN\n")
        return 2
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from mlflowkit.system import failpoint
    from mlflowkit.wiring import Wiring

    Wiring(Path.cwd()).trial_child(json.loads(arguments[0]), replies, failpoint.hit)
    return 0


def rerun(plan: Mapping[str, Any], folder: Path) -> None:
    """Repeat a failed trial whose files are in ``folder`` and print the result.

    No cache of an earlier search is used. A crash ends this process as it ended the trial's.
    """
    from mlflowkit.system import failpoint
    from mlflowkit.wiring import Wiring

    with tempfile.TemporaryDirectory(prefix="mlkit-trial-") as scratch:
        files = {name: str(folder / plan[name]) for name in ("model", "rows")}
        plan = {**plan, **files, "kept": scratch, "made": scratch}
        sys.stdout.write(Wiring(folder).trial_once(plan, failpoint.hit) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
