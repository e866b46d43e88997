"""One candidate in a process of its own: ``python -m mlflowkit.processes.trial_main PLAN``, started by
`adapters.trials`.

It answers questions on stdin with lines of JSON on stdout; what libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def main(arguments: list[str]) -> int:
    """Try one candidate until stdin is closed; returns the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m mlflowkit.processes.trial_main PLAN\n")
        return 2
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from mlflowkit.system import failpoint
    from mlflowkit.wiring import Wiring

    Wiring(Path.cwd()).trial_child(json.loads(arguments[0]), answers, failpoint.reach)
    return 0


def rerun(plan: Mapping[str, Any], folder: Path) -> None:
    """Do again what a candidate failed at, and say on stdout how it went; its files lie in ``folder``.

    Nothing that an earlier search kept is used. A crash ends this process as it ended the trial's.
    """
    from mlflowkit.system import failpoint
    from mlflowkit.wiring import Wiring

    with tempfile.TemporaryDirectory(prefix="mlkit-trial-") as kept:
        files = {name: str(folder / plan[name]) for name in ("model", "rows")}
        whole = {**plan, **files, "kept": kept, "made": kept}
        sys.stdout.write(Wiring(folder).trial_once(whole, failpoint.reach) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
