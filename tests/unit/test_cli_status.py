"""mlkit status: JSON with stable keys, lines for a pipe, a live drawing on a terminal."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from rich.console import Console

from mlflowkit.cli import status_live
from mlflowkit.cli.app import main
from mlflowkit.cli.commands.status import lines
from mlflowkit.rollout.admin.snapshot import ServiceMonitor
from mlflowkit.rollout.admin.view_models import FindingView
from mlflowkit.rollout.policy import PolicyCommand
from mlflowkit.values import Outcome, ServiceStatus
from tests.support.rollout_world import RolloutWorld

WATCH = [sys.executable, "-c", "from mlflowkit.cli import main; main()", "status", "--watch", "--state"]
PATIENCE = 60.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> RolloutWorld:
    return RolloutWorld(tmp_path_factory.mktemp("state")).controlled().begin().run(120)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and stdout of ``mlkit status``."""
    with pytest.raises(SystemExit) as ended:
        main(["status", *map(str, arguments)])
    return int(ended.value.code or 0), capsys.readouterr().out


def seen(world: RolloutWorld) -> list[tuple[ServiceStatus, object]]:
    view = ServiceMonitor(world.state).view(world.service)
    assert view is not None
    status = ServiceStatus(world.service, view.endpoint, view.epoch, True, world.table.variants, 1, "serving")
    return [(status, view)]


def test_json_has_the_keys_that_others_rely_on_and_the_rollout(
    world: RolloutWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = run(capsys, "--state", world.state, "--json")
    [service] = json.loads(out)["services"]
    assert code == 0
    assert {"service", "endpoint", "grpc_endpoint", "epoch", "rollout", "variants", "ready", "state"} <= service.keys()
    assert service["rollout"] == "canary, step 2 of 4 at 5 %"
    assert service["grpc_endpoint"] == "127.0.0.1:9090"
    champion, challenger = service["variants"]
    assert {"name", "version", "role", "weight", "state"} <= champion.keys()
    assert (champion["weight"], challenger["weight"]) == (0.95, 0.05)
    assert service["progress"]["phase"] == "running"
    assert [one["name"] for one in service["progress"]["findings"]] == ["error_rate", "latency_p99_ms", "agreement"]


def test_lines_for_a_pipe_say_what_the_rollout_waits_for_and_how_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = RolloutWorld(tmp_path).begin().run(120)
    code, out = run(capsys, "--state", tmp_path)
    assert code == 0
    assert "\x1b" not in out
    assert "rollout  canary, step 2 of 4 at 5 %, version 20261123-bb22" in out
    assert "waiting for" in out
    assert "more requests of challenger" in out
    assert any(line.split()[:2] == ["error_rate", "INCONCLUSIVE"] for line in out.splitlines())
    world.look((), PolicyCommand("rollback", "looked wrong"))
    world.look(())
    out = run(capsys, "--state", tmp_path)[1]
    assert "canary, rolled back, version 20261123-bb22: looked wrong" in out
    assert "waiting for" not in out


def test_incident_is_told_by_the_rollout_command_as_it_was_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = RolloutWorld(tmp_path).begin().run(10)
    world.look((), PolicyCommand("rollback", "looked wrong"))
    world.look(())
    for arguments in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main(["rollout", "status", "--state", str(tmp_path), *arguments])
        assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "version 20261123-bb22: looked wrong" in out
    [service] = json.loads(out[out.index("{") :])["services"]
    assert service["incidents"][0]["candidate"]["version"] == "20261123-bb22"


def test_no_service_is_no_error_and_watching_in_json_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "--state", tmp_path)[1].startswith("no services in")
    assert json.loads(run(capsys, "--state", tmp_path, "--json")[1]) == {"services": [], "deliveries": []}
    code, out = run(capsys, "--state", tmp_path, "--json", "--watch")
    assert code == 2
    assert json.loads(out)["error"]["kind"] == "usage"


def test_damaged_evidence_is_told_and_the_service_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = RolloutWorld(tmp_path).begin().run(10)
    (world.files.folder / "evidence" / "r1.json").write_text("{")
    code, out = run(capsys, "--state", tmp_path)
    assert code == 0
    assert "champion  champion  version 20261101-aa11" in out
    assert any("problem" in line and "r1.json" in line for line in out.splitlines())


def drawn(world: RolloutWorld, width: int) -> str:
    """The drawing as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(status_live.screen(world.state, seen(world)))  # type: ignore[arg-type]
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("width", [60, 100, 160])
def test_drawing_fits_the_terminal_and_has_bars_towards_the_boundaries(world: RolloutWorld, width: int) -> None:
    text = drawn(world, width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "▸ 5%" in text
    assert "▕" in text
    assert "✓ mirror 100%" in text


def finding(harm: float | None, proof: float | None) -> FindingView:
    return FindingView(
        "error_rate", "error_rate", "objective", Outcome.INCONCLUSIVE, "", harm, proof, 0.0, None, None, 0.01, "max",
        True, "", "", "", 1, 1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("harm", "proof", "expected"),
    [(0.5, 0.0, (7, 0)), (9.0, 0.25, (14, 4)), (None, -1.0, (0, 0)), (0.0, 33.0, (0, 14))],
)
def test_bar_is_full_where_a_metric_decides(harm: float | None, proof: float | None, expected: tuple[int, int]) -> None:
    left, right = status_live.balance(finding(harm, proof)).plain.split("│")
    assert (left.count("█"), right.count("█")) == expected
    assert (len(left), len(right)) == (status_live.HALF + 1, status_live.HALF + 1)


def test_words_of_data_are_no_markup(tmp_path: Path) -> None:
    hostile = "[bold red]x[/] [link=http://evil.example]y[/link]"
    world = RolloutWorld(tmp_path).begin().run(10)
    world.look((), PolicyCommand("rollback", hostile))
    world.look(())
    assert hostile in drawn(world, 160)
    assert any(hostile in line for line in lines(tmp_path, seen(world)))  # type: ignore[arg-type]


def test_watching_on_a_terminal_draws_changes_in_place_and_ends_cleanly_on_ctrl_c(tmp_path: Path) -> None:
    world = RolloutWorld(tmp_path).begin().run(10)
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, [*WATCH, str(tmp_path)], {**os.environ, "TERM": "xterm-256color"})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 140, 0, 0))
    shown = read_until(terminal, "mirror 100%")
    assert "waiting for" in shown
    world.look((), PolicyCommand("pause", "lunch"))
    read_until(terminal, "mlkit rollout resume lending")
    os.write(terminal, b"\x03")
    rest = read_until(terminal, None)
    assert "Traceback" not in rest
    assert "\x1b[?25h" in rest  # the cursor is there again
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(terminal)


def read_until(terminal: int, text: str | None) -> str:
    """What the terminal shows until ``text`` is there; until its end for None."""
    found, end = b"", time.monotonic() + PATIENCE
    while text is None or text.encode() not in found:
        assert time.monotonic() < end, found.decode(errors="replace")[-2000:]
        if select.select([terminal], [], [], 1.0)[0]:
            try:
                chunk = os.read(terminal, 1 << 16)
            except OSError:  # the other end is closed: how Linux says end of file
                chunk = b""
            if not chunk:
                assert text is None, found.decode(errors="replace")[-2000:]
                break
            found += chunk
    return found.decode(errors="replace")


def test_watching_in_a_pipe_prints_what_changed(tmp_path: Path) -> None:
    world = RolloutWorld(tmp_path).begin().run(10)
    with subprocess.Popen([*WATCH, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        while "waiting for" not in child.stdout.readline():
            continue
        world.look((), PolicyCommand("pause", "lunch"))
        while "mlkit rollout resume lending" not in child.stdout.readline():
            continue
        child.send_signal(signal.SIGINT)
        assert child.wait(PATIENCE) == 0
        assert child.stderr.read() == ""


def test_status_loads_neither_numpy_nor_a_server(world: RolloutWorld) -> None:
    code = (
        "import sys; sys.argv = ['mlkit', 'status', '--state', sys.argv[1]]\n"
        "from mlflowkit.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('numpy', 'ray', 'pyarrow', 'uvicorn', 'starlette', 'jinja2', 'prometheus_client')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(world.state)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
