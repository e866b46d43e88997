"""The side that asks `child`: starts it, speaks lines of JSON, and turns whatever ends it into a reason."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from benchmarks.gpu_latency.lending import ROOT


class ChildError(Exception):
    """A child raised, crashed, or did not answer in time; the message says which."""


class Child:
    """A running child. ``ask`` and ``answer`` raise ChildError once it has failed; leaving the block ends it."""

    def __init__(self, job: Mapping[str, Any], variables: Mapping[str, str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed in __exit__
        said = json.dumps({**job, "spawned": time.monotonic_ns()})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_latency.child", said],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # with it goes whatever a compiler started
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def ask(self, question: object) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            raise ChildError(self._end()) from None

    def answer(self, seconds: float) -> Any:
        """The next line that it says."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise ChildError(f"no answer in {seconds:.0f} s") from None
        if not line:
            raise ChildError(self._end())
        return json.loads(line)

    def _end(self) -> str:
        """How it ended, in words: the signal, or the last line that it wrote."""
        code = self._process.wait()
        if code < 0:
            more = ": out of memory?" if code == -signal.SIGKILL else ""
            return f"ended by {signal.Signals(-code).name}{more}"
        self._errors.seek(0)
        return told(self._errors.read().decode(errors="replace")) or f"ended with exit code {code} and said nothing"

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._errors.close()


def told(text: str) -> str:
    """What went wrong, from what a Python process wrote last: its exception, or its last line.

    >>> told("Traceback (most recent call last):\\n  ...\\nValueError: no rows\\n\\nSet DEBUG=1 for more.")
    'ValueError: no rows'
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return (raised or lines or [""])[-1][:600]


def once(job: Mapping[str, Any], *, seconds: float, threads: int = 1) -> Any:
    """The one answer of a child that does one thing. Raises ChildError."""
    with Child(job, {"OMP_NUM_THREADS": str(threads)}) as child:
        return child.answer(seconds)


class Served:
    """A candidate that is loaded in a child and has given its first answer."""

    def __init__(self, child: Child, seconds: float) -> None:
        self.child, self.seconds = child, seconds
        said = child.answer(seconds)
        self.cold_start_ms, self.start_ms = float(said["cold_start_ms"]), float(said["start_ms"])

    def block(self, start: int, count: int) -> Sequence[int]:
        """A block source (`mlflowkit.bench.measure.BlockSource`)."""
        self.child.ask([start, count])
        times: list[int] = self.child.answer(self.seconds)
        return times

    def end(self) -> dict[str, Any]:
        """Its peak of memory and, on a GPU, what copies take."""
        self.child.ask("end")
        told: dict[str, Any] = self.child.answer(self.seconds)
        return told
