"""The parent's side of a trial: requests as JSON lines with a deadline for every reply; a script after a failure."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from pprint import pformat
from typing import TYPE_CHECKING, Any

from mlflowkit.bench.timings import Timings
from mlflowkit.errors import StoreError, TrialError
from mlflowkit.graphs.onnx_file import graph_files
from mlflowkit.ports import BuiltGraph, LoadedGraph, TrialJob
from mlflowkit.system import arrays
from mlflowkit.system.child_process import die_with_parent_command
from mlflowkit.system.digests import digest_file, digest_json
from mlflowkit.system.files import disk_error, private_opener, replace_file

if TYPE_CHECKING:
    import numpy as np

ENTRY = "mlflowkit.processes.trial_main"
STOP_SECONDS = 2.0
"""Grace period for a process to exit by itself after its stdin is closed."""
TAIL_BYTES = 4000
"""Length of the end of a process's stderr that is searched for an error."""
LARGE_BYTES = 1 << 20
"""glibc returns freed blocks of this size to the system. By default it adapts and retains them, and the memory peak
includes them: 29, 33 or 45 MB for a graph that takes 18 MB (within 2 %) with this setting."""

SCRIPT = '''\
"""Runs the candidate {name!r} again, alone: {reason}

With the environment that mlflowkit was installed in:  {python} {file}
The rows are beside this file, the graph in a folder beside it.
"""

from pathlib import Path

from mlflowkit.processes.trial_main import rerun

PLAN = {plan}

if __name__ == "__main__":
    rerun(PLAN, Path(__file__).parent)
'''


class ProcessTrial:
    """One candidate's process, which starts building at once. All methods but `close` raise TrialError.

    After a failure, every method raises the same error again.
    """

    def __init__(self, job: TrialJob, plan: Mapping[str, Any]) -> None:
        self._job, self._plan = job, plan
        self._fault: TrialError | None = None
        self._received = b""
        self._log = job.scratch / f"{plan['digest'][:16]}.log"
        self._process = self._spawn()
        self._deadline = time.monotonic() + job.seconds

    def build(self) -> BuiltGraph:
        """Wait until the candidate's graph is built or known to be impossible. Raises TrialError."""
        reply = self._read_reply("building", self._deadline)
        files = tuple(Path(path) for path in reply.pop("files", ()))
        return BuiltGraph(digest=self._plan["digest"], files=files, **reply)

    def load(self) -> LoadedGraph:
        """Load the graph and predict once. Raises TrialError."""
        return LoadedGraph(**self._request("loading", {"do": "load"}))

    def answers(self) -> dict[str, np.ndarray]:
        """Predictions for all rows, by output name. Raises TrialError."""
        return arrays.read(Path(self._request("answering", {"do": "answers"})["path"]))

    def block(self, start: int, count: int) -> Sequence[int]:
        """Nanoseconds of requests, timed in the process, with a device's own times. Raises TrialError."""
        reply = self._request("being measured", {"do": "block", "start": start, "count": count})
        return Timings(reply["ns"], reply["parts"]) if reply.get("parts") else list(reply["ns"])

    def offered(self, rate: float, count: int, seed: int) -> np.ndarray:
        """Times of an open loop, see `ports.Trial.offered`. Raises TrialError."""
        import numpy as np

        message = {"do": "offered", "rate": rate, "count": count, "seed": seed}
        return np.array(self._request("being measured", message, extra_seconds=count / rate)["ns"], dtype=np.int64)

    def close(self) -> None:
        """End the process and its children."""
        process = self._process
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._fault is None:
                process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _spawn(self) -> subprocess.Popen[bytes]:
        threads = str(self._job.candidate.engine.threads)
        environment = {
            **os.environ,
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads),
            "PYDANTIC_DISABLE_PLUGINS": "__all__",
            "PYTHONUNBUFFERED": "1",
            "MALLOC_MMAP_THRESHOLD_": str(LARGE_BYTES),
        }
        command = die_with_parent_command(ENTRY, json.dumps(self._plan))
        try:
            with open(self._log, "wb", opener=private_opener) as log:
                return subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment,
                    process_group=0,
                )  # fmt: skip
        except OSError as error:
            raise disk_error(error, self._log) from error

    def _request(self, doing: str, message: Mapping[str, Any], *, extra_seconds: float = 0.0) -> dict[str, Any]:
        if self._fault is not None:
            raise self._fault
        stdin = self._process.stdin
        if stdin is None:
            raise self._failed("its process is closed")
        with contextlib.suppress(BrokenPipeError):  # it has ended; reading the reply reports how
            stdin.write(json.dumps(message).encode() + b"\n")
            stdin.flush()
        return self._read_reply(doing, time.monotonic() + self._job.seconds + extra_seconds)

    def _read_reply(self, doing: str, deadline: float) -> dict[str, Any]:
        if self._fault is not None:
            raise self._fault
        line = self._read_line(doing, deadline)
        try:
            reply: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise self._failed(f"its process wrote an invalid reply while {doing}") from error
        if "error" in reply:
            raise self._failed(reply["error"], reply.get("hint", ""))
        return reply

    def _read_line(self, doing: str, deadline: float) -> bytes:
        stdout = self._process.stdout
        if stdout is None:
            raise self._failed("its process is closed")
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([stdout], [], [], left)[0]:
                raise self._failed(f"gave no answer within {self._job.seconds:g} s while {doing}")
            part = os.read(stdout.fileno(), 1 << 16)
            if not part:
                raise self._failed(self._exit_reason(doing))
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _exit_reason(self, doing: str) -> str:
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
            more = ", as when memory runs out" if name == "SIGKILL" else ""
            return f"ended by {name} while {doing}{more}"
        last_line = self._last_log_line()
        return f"its process ended with {code} while {doing}{': ' + last_line if last_line else ''}"

    def _last_log_line(self) -> str:
        try:
            lines = self._log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")[:300]

    def _failed(self, reason: str, hint: str = "") -> TrialError:
        """Record the failure, kill the process, and write the reproduction script; returns the error to raise."""
        if self._fault is None:
            self._fault = TrialError(reason, hint=hint)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._fault.script = _write_script(self._job, self._plan, reason)
        return self._fault


def _write_script(job: TrialJob, plan: Mapping[str, Any], reason: str) -> Path | None:
    """Write ``reproduce-NAME.py`` with its graph and rows; returns None if they cannot be written.

    The rows lie beside it, the graph with its external data in a folder named by their digest, so that graphs with
    equal file names do not collide.
    """
    folder = job.scripts
    slug = re.sub(r"[^a-z0-9_]+", "-", job.candidate.name.lower()).strip("-")[:60]
    path = folder / f"reproduce-{slug}-{plan['digest'][:8]}.py"
    try:
        files = graph_files(job.model)
        base, copy = job.model.parent.resolve(), Path(f"graph-{digest_json([digest_file(file) for file in files])[:8]}")
        copies = {file: copy / file.relative_to(base) for file in files[1:]}
        copies |= {job.model: copy / job.model.name, job.rows: Path(job.rows.name)}
        for source, name in copies.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if not (folder / name).exists():
                shutil.copyfile(source, folder / name)
        arguments = {key: value for key, value in plan.items() if key not in ("kept", "made")}
        arguments |= {"model": copies[job.model].as_posix(), "rows": job.rows.name}
        one_line = " ".join(reason.split()).replace("\\", "/").replace('"', "'")
        text = SCRIPT.format(
            name=job.candidate.name, reason=one_line, python=Path(sys.executable).name, file=path.name,
            plan=pformat(arguments, sort_dicts=False, width=110),
        )  # fmt: skip
        replace_file(path, text.encode(), durable=False)
    except (OSError, StoreError):
        return None
    return path
