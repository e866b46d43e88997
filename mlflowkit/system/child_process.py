"""Child processes that do not outlive their parent. Standard library only."""

from __future__ import annotations

import os
import sys

_BOOTSTRAP = """\
import ctypes, os, runpy, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(0)
module = sys.argv[2]
sys.argv = sys.argv[2:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def die_with_parent_command(module: str, *arguments: str) -> list[str]:
    """Return a command line like ``python -m module arguments`` whose process is SIGKILLed when its parent dies.

    The child requests PR_SET_PDEATHSIG, then runs the module. By "parent" the kernel means the thread that starts the
    process: start it from a thread that outlives it.
    """
    return [sys.executable, "-c", _BOOTSTRAP, str(os.getpid()), module, *arguments]
