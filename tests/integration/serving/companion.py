"""A companion of the steward in tests: says who it is in the state folder, then waits."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

(Path(sys.argv[1]) / "companion.pid").write_text(str(os.getpid()))
signal.pause()
