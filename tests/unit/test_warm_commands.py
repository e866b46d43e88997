"""A command that is handed to a warm process is a process of its own, with the client's folder, streams and end."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import alive
from tests.support.waiting import wait_for
from tests.support.warm_commands import warm_command

ONCE = ("-n", "1", "-r", "1")


def test_folder_environment_and_streams_are_the_clients(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getcwd(), os.environ['ASKED'], sys.stdin.read()); print('told', file=sys.stderr)"
    done = subprocess.run(
        [*warm_command("timeit"), *ONCE, code], cwd=tmp_path, input="given", capture_output=True, text=True,
        env={**os.environ, "ASKED": "yes"},
    )  # fmt: skip
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"{tmp_path} yes given")
    assert done.stderr == "told\n"


@pytest.mark.parametrize(
    ("code", "status"), [("import os; os._exit(4)", 4), ("import os; os.kill(os.getpid(), 9)", -9)]
)
def test_it_ends_as_the_command_ends(code: str, status: int) -> None:
    assert subprocess.run([*warm_command("timeit"), *ONCE, code], check=False).returncode == status


def test_commands_run_side_by_side_and_one_that_is_killed_is_gone() -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    running = [subprocess.Popen([*warm_command("timeit"), *ONCE, code], stdout=subprocess.PIPE) for _ in range(2)]
    first, second = (int(process.stdout.readline()) for process in running if process.stdout is not None)
    running[0].kill()
    wait_for(lambda: not alive(first))
    assert alive(second)
    os.kill(second, signal.SIGTERM)
    assert running[1].wait(60) == -signal.SIGTERM
    for process in running:
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_the_command_line_answers_with_its_exit_code() -> None:
    done = subprocess.run([*warm_command("mlflowkit.cli"), "plan", "none.yaml"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "none.yaml" in done.stderr
