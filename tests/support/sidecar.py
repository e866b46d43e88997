"""A sidecar in tests: writes its process id to the state folder, then waits."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

file = Path(sys.argv[1]) / "sidecar.pid"
file.with_suffix(".new").write_text(str(os.getpid()))
file.with_suffix(".new").replace(file)  # whole, for the test that waits for it
signal.pause()
