"""The Trials port: each candidate is built, asked and timed in a process of its own.

`ProcessTrials` starts the processes and keeps what they make by digest, `process` is the parent's end of one of them,
`child` what runs in it (its entry is ``mlflowkit.cli.trial``), `reproduce` the script that a failed one leaves.
"""

from __future__ import annotations

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

from mlflowkit import machine
from mlflowkit.adapters.trials.process import ProcessTrial
from mlflowkit.adapters.trials.reproduce import write_script
from mlflowkit.bundle import digest_file, digest_json
from mlflowkit.files import disk_errors
from mlflowkit.ports import TrialJob

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

    def start(self, job: TrialJob) -> ProcessTrial:
        """Begin to build a candidate in a process of its own. Raises StoreError when the disk refuses its files."""
        if not self._swept:
            self._sweep()
            self._swept = True
        digest = digest_of(job)
        kept = self.state.resolve() / "trials" / digest
        with disk_errors(kept):
            kept.mkdir(parents=True, exist_ok=True)
            kept.touch()
            job.scratch.mkdir(parents=True, exist_ok=True)
        return ProcessTrial(job, plan_of(job, digest, kept), write_script)

    def _sweep(self) -> None:
        """Remove what has not been used for long; what cannot be removed is left."""
        oldest = time.time() - UNUSED_SECONDS
        for folder in (self.state / "trials").glob("*"):
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


def plan_of(job: TrialJob, digest: str, kept: Path) -> dict[str, Any]:
    """What the process is told, as JSON: paths are absolute, so that a script can run it from anywhere."""
    return {
        "candidate": job.candidate.model_dump(mode="json"),
        "model": str(job.model.resolve()),
        "rows": str(job.rows.resolve()),
        "batch": job.batch,
        "requests": job.requests,
        "callers": job.callers,
        "digest": digest,
        "kept": str(kept),
    }


def digest_of(job: TrialJob) -> str:
    """Digest of everything that a candidate's graph, answers and speed depend on, however it is called."""
    candidate = job.candidate.model_dump(mode="json", exclude={"name"})
    graph = {path.name: _digest_of_file(path, _stamp(path)) for path in graph_files(job.model)}
    return digest_json(
        {
            "candidate": candidate,
            "graph": list(graph.values()),
            "rows": _digest_of_file(job.rows, _stamp(job.rows)),
            "requests": [job.batch, job.requests],
            "libraries": _libraries(),
            "code": _code(),
            "machine": machine.described(),
        }
    )


def graph_files(model: Path) -> list[Path]:
    """A graph's file and those that hold its external data. Raises EngineError for data outside its folder."""
    with model.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        suspect = content.find(b"location") >= 0  # the key that every tensor with external data has
    if not suspect:
        return [model]
    from mlflowkit.onnxfile import external_files

    return [model, *external_files(model)]


@lru_cache(maxsize=256)
def _digest_of_file(path: Path, stamp: tuple[int, int]) -> str:
    """Digest of a file; ``stamp`` so that a changed one is read again."""
    return digest_file(path)


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
