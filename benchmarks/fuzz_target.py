"""A gateway replica in a process of its own, without Ray, to be broken by `benchmarks.fuzz`.

python -m benchmarks.fuzz_target FOLDER_OF_A_SERVICE
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.serving.replica import Replica

if __name__ == "__main__":
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    replica = Replica(Path(sys.argv[1]), OnnxRuntime(), "fuzzed")
    while not ended.wait(0.5):
        replica.check()
    replica.stop()
