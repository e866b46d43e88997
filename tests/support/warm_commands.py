"""Commands in processes of their own that find the libraries imported: forks of a server that holds them.

Python starts in a hundredth of a second, and a command that trains then imports torch, scikit-learn, pandas and ONNX
for ten seconds of processor time before it works for one. ``warm_command("mlflowkit.cli")`` are the words of a program
that runs a module as ``python -P -m`` does: with the arguments, folder, environment and streams that it is started
with, and its exit code. It hands these to the server, which forks; what is killed here is killed there.

Only what a library reads while it is imported differs: that was read when the server started. A test of how a process
starts, of what it imports, or of signals starts Python itself.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMMANDS = ("mlflowkit.cli.commands.plan", "mlflowkit.recipe.check", "mlflowkit.pipeline.plan")
"""What every command may need: imported at the start."""
STAGES = (
    "mlflowkit.wiring", "mlflowkit.pipeline.run", "mlflowkit.report.run.run_page",
    "mlflowkit.adapters.arrow", "mlflowkit.adapters.pandera", "mlflowkit.adapters.whylogs",
    "mlflowkit.adapters.sklearn_trainer", "mlflowkit.adapters.ray_train", "mlflowkit.adapters.onnx_exporter",
    "mlflowkit.adapters.onnxruntime", "mlflowkit.adapters.trials", "mlflowkit.features.reference_cells", "skops.io",
)  # fmt: skip
"""What commands that read data, train and judge need: imported before the first of them."""
WITHOUT_STAGES = frozenset({"explain", "export", "init", "plan", "runs", "schema", "show", "status", "validate"})
"""Commands for which `STAGES` are not imported."""
CLIENT = Path(__file__).with_name("warm_client.py")


@functools.cache
def _server() -> str:
    """The socket of this process's server, which ends with it."""
    folder = tempfile.TemporaryDirectory(prefix="mlkit-warm-")
    path = f"{folder.name}/socket"
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, path], cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"

    owner = os.getpid()

    def end() -> None:
        if os.getpid() != owner:  # a fork of the tests
            return
        process.kill()
        process.wait()
        folder.cleanup()

    atexit.register(end)
    return path


def warm_command(module: str) -> list[str]:
    """The words of a program that runs a module; arguments follow."""
    return [sys.executable, "-I", "-S", str(CLIENT), _server(), module]


class _Server:
    """Forks a process for each connection, and answers with its exit code, negative for a signal."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._commands: dict[int, tuple[socket.socket, int]] = {}
        """By the descriptor of a process: its connection, and its id."""

    def requests(self) -> Iterator[Any]:
        """Serve until stdin is closed; yields only in the forks, once: what is asked of the process."""
        while True:
            connections = {connection: process for process, (connection, _) in self._commands.items()}
            ready, _, _ = select.select([0, self._listener, *self._commands, *connections], [], [])
            if 0 in ready:
                return
            for item in ready:
                if item in self._commands:
                    self._answer(item)
                elif item in connections and connections[item] in self._commands:  # the client is gone
                    os.kill(self._commands[connections[item]][1], signal.SIGKILL)
                    self._answer(connections[item])
            if self._listener in ready:
                connection, _ = self._listener.accept()
                request = self._fork(connection)
                if request is not None:
                    yield request
                    return

    def _answer(self, process: int) -> None:
        connection, pid = self._commands.pop(process)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(OSError), connection:
            connection.sendall(code.to_bytes(4, "big", signed=True))
        os.close(process)

    def _fork(self, connection: socket.socket) -> Any:
        size, streams = _receive_streams(connection)
        with connection.makefile("rb") as stream:
            request = json.loads(stream.read(size))
        words = request[0]
        if words[0].startswith("mlflowkit.") and not WITHOUT_STAGES.intersection(words[1:2]):
            _import(STAGES)
        pid = os.fork()
        if pid:
            for descriptor in streams:
                os.close(descriptor)
            self._commands[os.pidfd_open(pid)] = (connection, pid)
            return None
        for item in (self._listener, connection, *(other for other, _ in self._commands.values())):
            item.close()
        for descriptor in self._commands:
            os.close(descriptor)
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
            os.close(descriptor)
        return request


def _receive_streams(connection: socket.socket) -> tuple[int, list[int]]:
    """The size of a request, and the client's standard streams."""
    descriptors = array.array("i")
    head, [(_, _, rights)], _, _ = connection.recvmsg(8, socket.CMSG_SPACE(3 * descriptors.itemsize))
    descriptors.frombytes(rights)
    return int.from_bytes(head, "big"), list(descriptors)


@functools.cache
def _import(modules: tuple[str, ...]) -> None:
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()


def main(path: str) -> None:
    server = _Server(path)
    _import(COMMANDS)
    os.write(1, b"up\n")
    for (module, *arguments), folder, environment in server.requests():
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1])
