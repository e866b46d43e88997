"""The script that a failed candidate leaves: it runs exactly that candidate again, in the foreground."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from pprint import pformat
from typing import Any

from mlflowkit.files import replace_file
from mlflowkit.ports import TrialJob

SCRIPT = '''\
"""Runs the candidate {name!r} again, alone: {reason}

With the environment that mlflowkit was installed in:  {python} {file}
The graph and the rows lie beside this file.
"""

from pathlib import Path

from mlflowkit.cli.trial import rerun

PLAN = {plan}

if __name__ == "__main__":
    rerun(PLAN, Path(__file__).parent)
'''


def write_script(job: TrialJob, plan: Mapping[str, Any], reason: str) -> Path | None:
    """Write ``reproduce-NAME.py`` with the graph and the rows beside it; None where the disk has no room for them."""
    from mlflowkit.adapters.trials import graph_files
    from mlflowkit.errors import StoreError

    folder = job.scripts
    path = folder / f"reproduce-{slug(job.candidate.name)}-{plan['digest'][:8]}.py"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source in (*graph_files(job.model), job.rows):
            if not (folder / source.name).exists():
                shutil.copyfile(source, folder / source.name)
        told = {key: value for key, value in plan.items() if key not in ("kept", "made")}
        told |= {"model": job.model.name, "rows": job.rows.name}
        one_line = " ".join(reason.split()).replace("\\", "/").replace('"', "'")
        text = SCRIPT.format(
            name=job.candidate.name, reason=one_line, python=Path(sys.executable).name, file=path.name,
            plan=pformat(told, sort_dicts=False, width=110),
        )  # fmt: skip
        replace_file(path, text.encode(), durable=False)
    except (OSError, StoreError):
        return None
    return path


def slug(name: str) -> str:
    """A name as part of a file's.

    >>> slug("int8(per_channel=true) ort-cpu")
    'int8-per_channel-true-ort-cpu'
    """
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:60]
