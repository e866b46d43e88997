"""The script that a failed candidate leaves: it runs exactly that candidate again, in the foreground."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from pprint import pformat
from typing import Any

from mlflowkit.ports import TrialJob
from mlflowkit.system.files import replace_file

SCRIPT = '''\
"""Runs the candidate {name!r} again, alone: {reason}

With the environment that mlflowkit was installed in:  {python} {file}
The rows lie beside this file, the graph in the folder beside it.
"""

from pathlib import Path

from mlflowkit.processes.trial_main import rerun

PLAN = {plan}

if __name__ == "__main__":
    rerun(PLAN, Path(__file__).parent)
'''


def write_script(job: TrialJob, plan: Mapping[str, Any], reason: str) -> Path | None:
    """Write ``reproduce-NAME.py`` with the graph and the rows it needs; None where the disk has no room for them.

    The rows lie beside it, the graph in a folder that its content names: two of the same file name are two, and
    external data keeps its place beside its graph.
    """
    from mlflowkit.adapters.trials import graph_files
    from mlflowkit.errors import StoreError

    folder = job.scripts
    path = folder / f"reproduce-{slug(job.candidate.name)}-{plan['digest'][:8]}.py"
    try:
        model, base = Path(f"graph-{_content(job.model)[:8]}") / job.model.name, job.model.parent.resolve()
        below = {file: model.parent / file.relative_to(base) for file in graph_files(job.model) if file != job.model}
        for source, name in ({job.model: model, **below, job.rows: Path(job.rows.name)}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if not (folder / name).exists():
                shutil.copyfile(source, folder / name)
        told = {key: value for key, value in plan.items() if key not in ("kept", "made")}
        told |= {"model": model.as_posix(), "rows": job.rows.name}
        one_line = " ".join(reason.split()).replace("\\", "/").replace('"', "'")
        text = SCRIPT.format(
            name=job.candidate.name, reason=one_line, python=Path(sys.executable).name, file=path.name,
            plan=pformat(told, sort_dicts=False, width=110),
        )  # fmt: skip
        replace_file(path, text.encode(), durable=False)
    except (OSError, StoreError):
        return None
    return path


def _content(model: Path) -> str:
    """Digest of a graph's files, also of one that no library can read."""
    from mlflowkit.adapters.trials import graph_files
    from mlflowkit.system.digests import digest_file, digest_json

    return digest_json([digest_file(file) for file in graph_files(model)])


def slug(name: str) -> str:
    """A name as part of a file's.

    >>> slug("int8(per_channel=true) ort-cpu")
    'int8-per_channel-true-ort-cpu'
    """
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:60]
