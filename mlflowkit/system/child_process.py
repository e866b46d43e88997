"""Child processes of mlflowkit: how each is started. Standard library only.

Every child runs with ``-P``: neither its working directory nor the folder of a script comes first on ``sys.path``, so a
``ray.py`` or ``onnxruntime.py`` that lies there is never imported. PYTHONPATH still counts, and modules beside a recipe
are loaded by `usercode`, by name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

SAFE_PATH: Mapping[str, str] = {"PYTHONSAFEPATH": "1"}
"""Environment with which processes that a vendor starts (Ray's workers) leave out the working directory too."""

_BOOTSTRAP = """\
import ctypes, os, runpy, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(0)
module = sys.argv[2]
sys.argv = sys.argv[2:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def python_path() -> dict[str, str]:
    """PYTHONPATH with absolute entries, for a child with another working directory; {} when it is not set."""
    value = os.environ.get("PYTHONPATH", "")
    entries = [os.path.abspath(entry) for entry in value.split(os.pathsep) if entry]
    return {"PYTHONPATH": os.pathsep.join(entries)} if value else {}


@contextmanager
def set_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process's environment, for libraries that read them there, and restore them at the end.

    >>> with set_environment({"MLKIT_EXAMPLE": "1"}):
    ...     os.environ["MLKIT_EXAMPLE"]
    '1'
    >>> "MLKIT_EXAMPLE" in os.environ
    False
    """
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def module_command(module: str, *arguments: str) -> list[str]:
    """The command line of a child that runs a module.

    >>> module_command("mlflowkit.cli", "status")[1:]
    ['-P', '-m', 'mlflowkit.cli', 'status']
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def die_with_parent_command(module: str, *arguments: str) -> list[str]:
    """The command line of a child that runs a module and is SIGKILLed when its parent dies.

    The child requests PR_SET_PDEATHSIG, then runs the module. By "parent" the kernel means the thread that starts the
    process: start it from a thread that outlives it.
    """
    return [sys.executable, "-P", "-c", _BOOTSTRAP, str(os.getpid()), module, *arguments]
