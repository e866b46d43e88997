"""The Trials port: each candidate is built, asked and timed in a process of its own.

`ProcessTrials` starts the processes and keeps what they make by digest, `process` is the parent's end of one of them,
`child` what runs in it (its entry is ``mlflowkit.processes.trial_main``), `reproduce` the script that a failed one
leaves.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import mmap
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mlflowkit.adapters.trials.process import ProcessTrial
from mlflowkit.adapters.trials.reproduce import write_script
from mlflowkit.graphs.candidates import Candidate, Int8
from mlflowkit.ports import TrialJob
from mlflowkit.system import arrays, machine
from mlflowkit.system.digests import digest_file, digest_json
from mlflowkit.system.files import disk_errors

LIBRARIES = ("mlflowkit", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "torch")
"""Distributions that what a candidate is made of depends on."""
UNUSED_SECONDS = 14 * 24 * 3600.0
"""What no search has used for so long is removed."""


@dataclass
class ProcessTrials:
    """Starts trials. ``state`` is a state folder; what is worth keeping lies in its ``trials``."""

    state: Path

    def __post_init__(self) -> None:
        self._swept = False

    def folder(self, job: TrialJob) -> Path:
        """Where what is found out about a candidate is kept, by `digest_of` it."""
        return self.state.resolve() / "trials" / digest_of(job)

    def start(self, job: TrialJob) -> ProcessTrial:
        """Begin to build a candidate in a process of its own. Raises StoreError when the disk refuses its files."""
        if not self._swept:
            self._sweep()
            self._swept = True
        kept = self.folder(job)
        made = kept.parent / digest_of_graph(job)
        with disk_errors(kept):
            for folder in (kept, made):
                folder.mkdir(parents=True, exist_ok=True)
                folder.touch()
            job.scratch.mkdir(parents=True, exist_ok=True)
        return ProcessTrial(job, plan_of(job, kept.name, kept, made), write_script)

    def _sweep(self) -> None:
        """Remove what has not been used for long; what cannot be removed is left."""
        oldest = time.time() - UNUSED_SECONDS
        for folder in (self.state / "trials").glob("*"):
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


def plan_of(job: TrialJob, digest: str, kept: Path, made: Path) -> dict[str, Any]:
    """What the process is told, as JSON: paths are absolute, so that a script can run it from anywhere.

    ``kept`` is the candidate's own folder, ``made`` that of its graph, which candidates on other engines share.
    """
    return {
        "candidate": job.candidate.model_dump(mode="json"),
        "model": str(job.model.resolve()),
        "rows": str(job.rows.resolve()),
        "batch": job.batch,
        "requests": job.requests,
        "callers": job.callers,
        "digest": digest,
        "kept": str(kept),
        "made": str(made),
    }


def digest_of(job: TrialJob) -> str:
    """Digest of everything that a candidate's graph, answers and speed depend on, however it is called."""
    candidate = job.candidate.model_dump(mode="json", exclude={"name"})
    return digest_json(
        {
            "candidate": candidate,
            "graph": digest_of_graph(job),
            "requests": [job.batch, job.requests],
            "machine": machine.described(),
        }
    )


def digest_of_graph(job: TrialJob) -> str:
    """Digest of everything that the graph depends on which the passes make; whatever runs it then, it is the same."""
    return digest_json(
        {
            "passes": [one.model_dump(mode="json") for one in job.candidate.passes],
            "graph": [_digest_of_file(path, _stamp(path)) for path in graph_files(job.model)],
            "rows": _digest_of_rows(job.rows, _stamp(job.rows), _calibrating(job.candidate)),
            "batch": job.batch,
            "libraries": _libraries(),
            "code": _code(),
        }
    )


def graph_files(model: Path) -> list[Path]:
    """A graph's file and those that hold its external data. Raises EngineError for data outside its folder."""
    with model.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        suspect = content.find(b"location") >= 0  # the key that every tensor with external data has
    if not suspect:
        return [model]
    from mlflowkit.graphs.onnx_file import external_files

    return [model, *external_files(model)]


@lru_cache(maxsize=256)
def _digest_of_file(path: Path, stamp: tuple[int, int]) -> str:
    """Digest of a file; ``stamp`` so that a changed one is read again."""
    return digest_file(path)


@lru_cache(maxsize=64)
def _digest_of_rows(path: Path, stamp: tuple[int, int], calibrating: int) -> str:
    """Digest of the rows to answer and of the first ``calibrating`` of those that fix ranges: others may want more."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.read(path).items()):
        taken = array[:calibrating] if name.startswith("calibration/") else array
        content = json.dumps(taken.tolist()).encode() if taken.dtype == object else taken.tobytes()
        digest.update(f"{name} {taken.dtype} {taken.shape} ".encode() + content)
    return digest.hexdigest()


def _calibrating(candidate: Candidate) -> int:
    """How many calibration rows its passes look at."""
    return max((one.rows for one in candidate.passes if isinstance(one, Int8)), default=0)


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=1)
def _libraries() -> Mapping[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=1)
def _code() -> str:
    """Digest of the modules that make and run candidates."""
    folder = Path(__file__).parent.parent
    files = [*folder.glob("onnx_passes/*.py"), *folder.glob("tensorrt/*.py"), *folder.glob("trials/*.py")]
    files += [folder / "onnxruntime.py", *folder.glob("torch_runtime/*.py")]
    return digest_json(json.loads(json.dumps({path.name: digest_file(path) for path in sorted(files)})))
