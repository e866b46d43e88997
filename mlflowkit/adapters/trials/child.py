"""The trial process: builds, loads, runs and times one candidate. All vendors are imported here, none in the parent.

The graph is built in a fork, so that memory left behind by the passes does not count as the candidate's, and so that
the runtime is imported meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from mlflowkit.bench.timings import DeviceClock, MarkedSession, Timings, split_timings
from mlflowkit.errors import MlkitError, TrialError
from mlflowkit.graphs.candidates import Candidate, FixedRows
from mlflowkit.graphs.onnx_file import graph_files
from mlflowkit.system import arrays
from mlflowkit.system.digests import digest_file
from mlflowkit.system.files import replace_file
from mlflowkit.system.text import first_line

if TYPE_CHECKING:
    import numpy as np

    from mlflowkit.bench.measure import BlockSource, Request
    from mlflowkit.ports import Engines, Passes, Session

FailPoint = Callable[[str, str], None]
"""Marks a point at which a test may kill the process, by the names of the point and the candidate."""

MAX_BATCH = 4096
"""Rows per call when all rows are predicted."""
BUILT, MODEL, ANSWERS = "built.json", "model.onnx", "answers.npz"
"""Cached files of a candidate; built.json is written last."""


class TrialWorker:
    """Builds, loads and measures one candidate in this process."""

    def __init__(
        self, plan: Mapping[str, Any], passes: Callable[[], Passes], engines: Engines, fail_point: FailPoint,
        clock: Callable[[], DeviceClock[Any]],
    ) -> None:  # fmt: skip
        """``clock`` creates the device clock for sessions that run on a device."""
        self.candidate = Candidate.model_validate(plan["candidate"])
        self.cache, self._graph_cache = Path(plan["kept"]), Path(plan["made"])
        self._plan, self._passes, self._engines = plan, passes, engines
        self._fail_point, self._clock = fail_point, clock
        self._model: Path | None = None
        self._session: Session | None = None
        self._request: Request | None = None
        self._times: BlockSource | None = None

    def build(self) -> dict[str, Any]:
        """Build the graph; returns the fields of ports.BuiltGraph except its digest."""
        self._fail_point("trial.building", self.candidate.name)
        # The runtime available on every machine is imported while the passes run, not before.
        check_later = self.candidate.engine.runtime == "ort-cpu"
        missing = "" if check_later else self._engines.missing(self.candidate.engine)
        built = {"reason": missing} if missing else self._build_graph()
        if not built["reason"] and check_later:
            built["reason"] = self._engines.missing(self.candidate.engine)
        if built["reason"]:
            return {"reason": built["reason"]}
        self._model = Path(built["files"][0])
        return built

    def answers(self) -> Path:
        """Predict all rows and write the outputs; returns the file."""
        self._fail_point("trial.answering", self.candidate.name)
        path = self.cache / ANSWERS
        if not path.exists():
            arrays.write(path, self._predict(arrays.read(Path(self._plan["rows"]), "inputs/")))
        return path

    def block(self, start: int, count: int) -> Sequence[int]:
        """Nanoseconds of requests by one caller in sequence or several callers in parallel."""
        self._fail_point("trial.measuring", self.candidate.name)
        if self._times is None:
            raise TrialError("cannot be measured before it is loaded")
        return self._times(start, count)

    def offered(self, rate: float, count: int, seed: int) -> np.ndarray:
        """Moments of requests that arrive when they will; see `bench.load.open_loop.offer_marked`."""
        from mlflowkit.bench.load.open_loop import arrivals, offer_marked

        self._fail_point("trial.measuring", self.candidate.name)
        if self._request is None:
            raise TrialError("cannot be measured before it is loaded")
        return offer_marked([self._request] * self._plan["callers"], arrivals(rate, count, seed=seed))

    def _build_graph(self) -> dict[str, Any]:
        exported = Path(self._plan["model"])
        if not self.candidate.passes:
            return {"reason": "", **_files(exported), "build_seconds": 0.0}
        fixed = next((step.rows for step in self.candidate.passes if isinstance(step, FixedRows)), self._plan["batch"])
        if fixed != self._plan["batch"]:
            return {"reason": f"a graph for {fixed} rows; requests have optimize.batch {self._plan['batch']}"}
        with (self._graph_cache / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a candidate on another engine may be building the same graph
            cached = self._cached_graph()
            if cached is not None:
                return cached | {"cached": True}
            start = time.perf_counter()
            reason = self._apply_passes(exported)
            if reason:
                return {"reason": reason}
            built = {"reason": "", **_files(self._graph_cache / MODEL), "build_seconds": time.perf_counter() - start}
            record = {**built, "digests": _digests(built["files"])}
            replace_file(self._graph_cache / BUILT, json.dumps(record).encode(), durable=False)
            return built

    def _cached_graph(self) -> dict[str, Any] | None:
        """The graph of an earlier build; None if there is none or its files changed."""
        try:
            record: dict[str, Any] = json.loads((self._graph_cache / BUILT).read_bytes())
            files = _files(self._graph_cache / MODEL)
        except (OSError, ValueError, MlkitError):
            return None
        return record | files if record.pop("digests", None) == _digests(files["files"]) else None

    def _apply_passes(self, exported: Path) -> str:
        """Apply the passes and cache the graph; returns the reason why there is none, or "".

        Never leaves partial files behind, which would occupy a full disk.
        """
        for leftover in self._graph_cache.glob("work-*"):  # from a killed process: the lock excludes others
            shutil.rmtree(leftover, ignore_errors=True)
        work = self._graph_cache / f"work-{os.getpid()}"
        work.mkdir()
        try:
            reply, status = self._run_in_fork(exported, work)
            if "error" not in reply and not reply["reason"]:
                for path in work.iterdir():
                    path.replace(self._graph_cache / path.name)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        if os.WIFSIGNALED(status):
            os.kill(os.getpid(), os.WTERMSIG(status))  # die by the same signal, for the parent to see
        if "error" in reply:
            raise TrialError(reply["error"], hint=reply.get("hint", ""))
        return str(reply["reason"])

    def _run_in_fork(self, exported: Path, work: Path) -> tuple[dict[str, Any], int]:
        """Apply the passes in a fork; returns its reply and wait status."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            self._apply_and_exit(exported, work, writing)
        os.close(writing)
        with contextlib.suppress(Exception):  # import errors are reported when the graph is loaded
            self._engines.missing(self.candidate.engine)
            arrays.read(Path(self._plan["rows"]), "inputs/")
        with os.fdopen(reading, "rb") as stream:
            content = stream.read()
        _, status = os.waitpid(pid, 0)
        try:
            reply: dict[str, Any] = json.loads(content)
        except ValueError:
            reply = {"error": f"the passes ended with {os.waitstatus_to_exitcode(status)}"}
        return reply, status

    def _apply_and_exit(self, exported: Path, work: Path, writing: int) -> NoReturn:
        """In the fork: apply the passes, send the reply, and exit without the parent's cleanup."""
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        try:
            self._fail_point("trial.passing", self.candidate.name)
            calibration = arrays.read(Path(self._plan["rows"]), "calibration/")
            reason = self._passes().apply(self.candidate.passes, exported, work / MODEL, calibration)
            reply: dict[str, Any] = {"reason": reason}
        except Exception as error:  # noqa: BLE001 - sent to the parent process
            reply = error_fields(error)
        with os.fdopen(writing, "wb") as stream:
            stream.write(json.dumps(reply).encode())
        os._exit(0)

    def load(self) -> dict[str, Any]:
        """Load the graph and predict once; returns the fields of ports.LoadedGraph."""
        from mlflowkit.bench.measure import requests_over

        self._fail_point("trial.loading", self.candidate.name)
        if self._model is None:
            raise TrialError("cannot be loaded before it is built")
        rows = arrays.read(Path(self._plan["rows"]), "inputs/")
        request_rows = {name: array[: self._plan["requests"]] for name, array in rows.items()}
        before = None
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            before = _memory_status("VmRSS")
        start = perf_counter_ns()
        self._session = self._engines.load(self._model, self.candidate.engine, store=self.cache.parent / "engines")
        request = requests_over(self._session.run, request_rows, self._plan["batch"])
        request(0)
        cold_start_ms = (perf_counter_ns() - start) / 1e6
        self._request, self._times = request, self._block_source(request)
        self._times(1, 20)
        peak = _memory_status("VmHWM")
        memory = None if before is None or peak is None else max(0, peak - before)
        return {"cold_start_ms": cold_start_ms, "memory_bytes": memory}

    def _block_source(self, request: Request) -> BlockSource:
        """A timer of requests: of one caller, of several in parallel, or with the device's own times."""
        from mlflowkit.bench.load.closed_loop import Callers
        from mlflowkit.bench.measure import timed_source

        callers, session = self._plan.get("callers", 1), self._session
        if callers > 1:
            return Callers.of([request] * callers)
        if isinstance(session, MarkedSession) and session.on_device:
            return split_timings(request, session, self._clock())
        return timed_source(request)

    def _predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Predict all rows in batches; for a fixed number of rows the last row is repeated as padding."""
        import numpy as np

        if self._session is None:
            raise TrialError("cannot predict before it is loaded")
        rows = len(next(iter(inputs.values())))
        fixed = next((step.rows for step in self.candidate.passes if isinstance(step, FixedRows)), None)
        parts: dict[str, list[np.ndarray]] = {}
        for start in range(0, rows, fixed or MAX_BATCH):
            indices = np.arange(start, min(rows, start + (fixed or MAX_BATCH)))
            padded = indices if fixed is None else np.minimum(np.arange(start, start + fixed), rows - 1)
            for name, output in self._session.run({key: array[padded] for key, array in inputs.items()}).items():
                parts.setdefault(name, []).append(np.asarray(output)[: len(indices)])
        return {name: np.concatenate(outputs) for name, outputs in parts.items()}


def serve_requests(child: TrialWorker, replies: BinaryIO) -> None:
    """Build, reply, then serve requests from stdin until it is closed."""
    if not _reply(replies, child.build):
        return
    for line in sys.stdin.buffer:
        _reply(replies, partial(_handle, child, json.loads(line)))


def _handle(child: TrialWorker, request: Mapping[str, Any]) -> dict[str, Any]:
    if request["do"] == "load":
        return child.load()
    if request["do"] == "answers":
        return {"path": str(child.answers())}
    if request["do"] == "offered":
        return {"ns": child.offered(request["rate"], request["count"], request["seed"]).tolist()}
    times = child.block(request["start"], request["count"])
    parts = {name: list(part) for name, part in times.parts.items()} if isinstance(times, Timings) else {}
    return {"ns": list(times), **({"parts": parts} if parts else {})}


def run_once(child: TrialWorker) -> str:
    """Build, predict all rows and time a block; returns a summary in words."""
    built = child.build()
    if built["reason"]:
        return f"there is no such candidate: {built['reason']}"
    child.load()
    child.answers()
    times = sorted(child.block(0, 50))
    return f"{child.candidate.name} answers; the median request takes {times[len(times) // 2] / 1000:.1f} µs"


def _reply(replies: BinaryIO, work: Callable[[], dict[str, Any]]) -> bool:
    """Write the result of ``work``, or the error it raised, as one line; returns whether it succeeded."""
    try:
        reply = work()
    except Exception as error:  # noqa: BLE001 - every error is sent to the parent
        reply = error_fields(error)
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()
    return "error" not in reply


def error_fields(error: Exception) -> dict[str, Any]:
    """An error as the fields of a reply."""
    if isinstance(error, MlkitError):
        return {"error": error.message, "hint": error.hint}
    return {"error": f"{type(error).__name__}: {first_line(error)}"}


def _files(model: Path) -> dict[str, Any]:
    """A graph's files, its own first, and their total size."""
    files = graph_files(model)
    return {"files": [str(path) for path in files], "size_bytes": sum(path.stat().st_size for path in files)}


def _digests(files: Sequence[str]) -> list[str]:
    return [digest_file(Path(path)) for path in files]


def _memory_status(name: str) -> int | None:
    """VmRSS or VmHWM (the peak) of this process in bytes; None where /proc does not provide it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
