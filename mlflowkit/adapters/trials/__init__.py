"""The Trials port: each candidate is built, run and timed in its own process.

`ProcessTrials` starts the processes and caches their results by digest; `process` is the parent's side, `child` the
process's side (entry point ``mlflowkit.processes.trial_main``).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import shutil
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from mlflowkit import usercode
from mlflowkit.adapters.trials.process import ProcessTrial
from mlflowkit.graphs.onnx_file import graph_files
from mlflowkit.ports import TrialJob
from mlflowkit.sections import used_plugins
from mlflowkit.system import arrays, machine
from mlflowkit.system.digests import digest_file, digest_json
from mlflowkit.system.files import disk_errors, file_stamp, leads_elsewhere, make_folder
from mlflowkit.system.own_modules import adapter_modules, own_modules

LIBRARIES = ("mlflowkit", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "torch")
"""Distributions that a candidate's results depend on."""
PORTS = ("passes", "engines", "trials")
"""Ports whose adapters' code, imports included, a candidate's results depend on."""
MAX_UNUSED_SECONDS = 14 * 24 * 3600.0
"""Age from which unused cache folders are removed."""


@dataclass
class ProcessTrials:
    """Starts trials. ``state`` is a state folder; results are cached in its ``trials``."""

    state: Path
    _swept: bool = field(default=False, init=False)

    def folder(self, job: TrialJob) -> Path:
        """The cache folder of a candidate, named by `candidate_digest`."""
        return self.state.resolve() / "trials" / candidate_digest(job)

    def start(self, job: TrialJob) -> ProcessTrial:
        """Start building a candidate in its own process. Raises StoreError when its files cannot be written."""
        if not self._swept:
            self._sweep()
            self._swept = True
        cache = self.folder(job)
        graph_cache = cache.parent / graph_digest_key(job)
        with disk_errors(cache):
            for folder in (cache, graph_cache):
                make_folder(folder)
                folder.touch()
            make_folder(job.scratch)
        plan = {  # absolute paths: a script can run the plan from anywhere
            "candidate": job.candidate.model_dump(mode="json"),
            "model": str(job.model.resolve()),
            "rows": str(job.rows.resolve()),
            "batch": job.batch,
            "requests": job.requests,
            "callers": job.callers,
            "digest": cache.name,
            "kept": str(cache),
            "made": str(graph_cache),
        }
        return ProcessTrial(job, plan)

    def _sweep(self) -> None:
        """Remove cache folders that were unused for long, as far as possible."""
        if leads_elsewhere(self.state / "trials", self.state):
            return
        oldest = time.time() - MAX_UNUSED_SECONDS
        for folder in (self.state / "trials").glob("*"):
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


def candidate_digest(job: TrialJob) -> str:
    """Digest of everything that a candidate's graph, predictions and speed depend on, except its name."""
    parts = {
        "candidate": job.candidate.model_dump(mode="json", exclude={"name"}),
        "graph": graph_digest_key(job),
        "requests": [job.batch, job.requests],
        "machine": machine.describe_machine(),
    }
    return digest_json(parts)


def graph_digest_key(job: TrialJob) -> str:
    """Digest of everything that the rewritten graph depends on, independent of the engine."""
    calibration_rows = max((step.calibration_rows for step in job.candidate.passes), default=0)
    parts = {
        "passes": [step.model_dump(mode="json") for step in job.candidate.passes],
        "graph": [_digest_of_file(path, file_stamp(path)) for path in graph_files(job.model)],
        "rows": _digest_of_rows(job.rows, file_stamp(job.rows), calibration_rows),
        "batch": job.batch,
        "plugins": [usercode.plugin_digest(plugin) for plugin in used_plugins(job.candidate)],
        **_code_digests(),
    }
    return digest_json(parts)


@lru_cache(maxsize=256)
def _digest_of_file(path: Path, stamp: tuple[int, int] | None) -> str:
    """Digest of a file; ``stamp`` invalidates the cache when it changes."""
    return digest_file(path)


@lru_cache(maxsize=64)
def _digest_of_rows(path: Path, stamp: tuple[int, int] | None, calibration_rows: int) -> str:
    """Digest of the rows to predict, and of the first ``calibration_rows`` calibration rows."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.read(path).items()):
        used = array[:calibration_rows] if name.startswith("calibration/") else array
        content = json.dumps(used.tolist()).encode() if used.dtype == object else used.tobytes()
        digest.update(f"{name} {used.dtype} {used.shape} ".encode() + content)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _code_digests() -> dict[str, object]:
    """Versions of LIBRARIES, and a digest of the modules that build and run candidates."""
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    factories = {name: modules for name, modules in adapter_modules().items() if name.partition("_")[0] in PORTS}
    roots = [module for modules in factories.values() for module in modules]
    code = digest_json({name: digest_file(path) for name, path in own_modules(roots).items()})
    return {"libraries": versions, "code": code}
