"""A gateway replica in a process of its own, without Ray, to be killed: ``python -m tests.support.replica_process
FOLDER NAME PROFILER`` serves what the files in FOLDER say until SIGTERM."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.serving.observer import observer_client
from mlflowkit.serving.replica import Replica
from mlflowkit.system.files import use_private_umask
from mlflowkit.system.logs import configure_logging


def main(folder: str, name: str, profiler: str) -> None:
    use_private_umask()
    configure_logging(30)
    observer_client.RESTART_PAUSES = (0.05,)  # an observer that is killed hundreds of times comes back at once
    replica = Replica(Path(folder), OnnxRuntime(), name, profiler=profiler)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    replica.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
