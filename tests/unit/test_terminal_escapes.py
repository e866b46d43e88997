"""Whatever a recipe, a file, a name or a server says: the terminal shows it, and does nothing else."""

from __future__ import annotations

import ast
import json
import logging
import re
import sys
import warnings
from pathlib import Path

import pytest

import mlflowkit
from mlflowkit.cli import app as cli
from mlflowkit.cli import fast_path, status_live
from mlflowkit.cli.error_format import render
from mlflowkit.cli.progress import Lines, Live
from mlflowkit.errors import DataError, Fault, RecipeError
from mlflowkit.system.logs import PrintableFormatter
from mlflowkit.system.text import printable, printable_json
from mlflowkit.values import Event

PACKAGE = Path(mlflowkit.__file__).parent
ATTACKS = {
    "title": "\x1b]0;owned\x07",
    "hyperlink": "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "colour": "\x1b[31m",
    "clear": "\x1b[2J\x1b[H",
    "8-bit CSI": "\x9b2J",
    "8-bit OSC": "\x9d0;owned\x9c",
    "carriage return": "secret\rpublic",
    "bell": "\x07",
    "backspace": "bad\x08\x08\x08good",
    "delete": "\x7f",
    "NUL": "a\x00b",
    "bidi override": "user\u202egnp.exe\u202c",
    "bidi isolate": "\u2066a\u2069",
    "mark": "\u200f\u061c",
    "line separator": "a\u2028b\u2029c",
    "byte that is no UTF-8": "\udcff",
    "tag": "\U000e0041",
    "invisible": "\ufeff",
}
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
attacked = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


def clean(text: str) -> bool:
    return not UNSAFE.search(text)


@attacked
def test_a_text_is_made_printable_and_says_what_it_was(attack: str) -> None:
    shown = printable(attack)
    assert clean(shown)
    assert "\\" in attack or shown.encode().decode("unicode_escape") == attack


@pytest.mark.parametrize("text", ["plain", "two\nlines\tand a tab", "ärgerlich, 価格, 😀, ❤️\u200d🔥", "a\\x1b"])
def test_what_is_harmless_stays(text: str) -> None:
    assert printable(text) == text


@attacked
def test_json_says_the_same_and_is_clean(attack: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.emit_json({"column": attack, attack: 1})
    out = capsys.readouterr().out
    assert clean(out)
    assert json.loads(out) == {"column": attack, attack: 1}
    assert json.loads(printable_json(json.dumps({"a": attack}, ensure_ascii=False))) == {"a": attack}


@attacked
def test_lines_tables_and_errors_are_clean(attack: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.echo(attack)
    cli.note(attack)
    cli.print_table([("column", "rows"), (attack, "3"), ("other", "33")])
    with pytest.raises(SystemExit):
        cli.fail(DataError(f"column {attack}", hint=f"drop {attack}"), as_json=False)
    with pytest.raises(SystemExit):
        cli._crash(ValueError(attack), as_json=False)
    out, err = capsys.readouterr()
    assert clean(out), repr(out)
    assert clean(err), repr(err)


@attacked
@pytest.mark.parametrize("color", [True, False])
def test_recipe_faults_have_our_colours_only(attack: str, color: bool) -> None:
    fault = Fault(attack, 1, 1, attack, attack, f"no column {attack}", f"write {attack}")
    text = render(RecipeError([fault], sources={attack: f"\t{attack}"}), color=color)
    ours = re.sub(r"\x1b\[(1|1;31|34|0)m", "", text)
    assert (ours == text) != color
    assert clean(ours), repr(ours)


@attacked
def test_progress_is_clean(attack: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    for kind in ("planned", "started", "warning", "progress", "failed", "done"):
        lines(Event("data", kind, f"{attack}\nforged: line", metrics={attack: 1.0}))  # type: ignore[arg-type]
    err = capsys.readouterr().err
    assert clean(err)
    assert len(err.splitlines()) == 5, "one line an event"


@attacked
def test_live_progress_and_status_are_clean(attack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live = Live()
    live(Event("data", "planned"))
    live(Event("data", "warning", attack))
    live(Event("data", "started", attack))
    live.bars.console.print(live.bars)
    live.bars.console.print(status_live.screen(Path(attack.replace("\0", "")), []))
    err = capsys.readouterr().err
    assert clean(err), repr(err)
    view = status_live._printable(Fault(attack, 1, 1, attack, "", attack))
    assert clean(view.file + view.key + view.message)
    assert view.line == 1


@attacked
def test_logs_and_warnings_are_clean(
    attack: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = logging.LogRecord("a", logging.INFO, "", 0, "column %s", (attack,), None)
    try:
        raise ValueError(attack)
    except ValueError:
        record.exc_info = sys.exc_info()
    assert clean(PrintableFormatter("%(message)s").format(record))
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    cli._escape_vendors_output()
    assert clean(warnings.formatwarning(f"column {attack}", UserWarning, "x.py", 1))  # type: ignore[arg-type]
    assert logging.lastResort is not None
    assert clean(logging.lastResort.format(record))


@attacked
def test_validate_quotes_a_recipe_without_its_escapes(
    attack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = json.dumps(attack)  # YAML reads JSON strings; it refuses the characters themselves
    recipe.write_text(f"name: a\ntask: classification\ndata: {{source: {{kind: csv, path: {text}}}, target: {text}}}\n")
    with pytest.raises(SystemExit):
        cli.main(["validate", str(recipe), f"data.target={attack}".replace("\0", "")])
    out, err = capsys.readouterr()
    assert clean(out + err), repr(out + err)
    assert err


def test_the_fast_path_is_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflowkit.pipeline import noop_cache

    verdict = {"verdict": "PASSED", "blocking": True, "gate": "\x1b[2J", "message": "\x9b2J\u202e"}
    summary = {
        "steps": [], "name": "\x1b]0;x\x07", "run": "r", "status": "done", "seconds": 1.0, "verdicts": [verdict],
        "bundle": "", "endpoint": "", "report": "", "curl": "\r", "rollout": "", "blessing": None,
    }  # fmt: skip
    monkeypatch.setattr(noop_cache, "look_up", lambda *_: summary)
    for options in ([], ["--json"]):
        assert fast_path.nothing_to_do(["run", str(tmp_path / "a.yaml"), *options]) == 0
        assert clean(capsys.readouterr().out)


WRITERS = {
    "cli/__init__.py": "a constant",
    "cli/app.py": "the functions that others call",
    "cli/fast_path.py": "before `cli.app` is imported; escapes its text",
    "cli/progress.py": "`describe` escapes",
    "cli/score_file.py": "a row a line, escaped",
    "cli/simulation_table.py": "rewrites a line, escaped",
    "cli/commands/bench.py": "rewrites a line, escaped",
    "processes/controller_main.py": "a constant",
    "processes/foreground.py": "passes the log of the supervisor on, escaped",
    "processes/retrain_main.py": "a constant",
    "processes/serve_application.py": "passes the log of `mlkit serve` on, escaped",
    "processes/tracker_main.py": "a constant",
    "processes/trial_main.py": "a constant; JSON",
    "adapters/evidently.py": "JSON, for its parent",
    "adapters/mlflow_worker.py": "its log",
    "testing/": "prints nothing for people",
}
"""Modules that write to a standard stream themselves."""
WRITE = re.compile(r"sys\.(stdout|stderr)\.(buffer\.)?write|print|typer\.s?echo|logging\.basicConfig")


def test_everything_is_printed_through_one_seam() -> None:
    writers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and re.match(
                r"(sys\.(stdout|stderr)\.(buffer\.)?write|print|typer\.s?echo|logging\.basicConfig)$",
                ast.unparse(node.func),
            ):
                writers.add(path.relative_to(PACKAGE).as_posix())
    assert writers - set(WRITERS) <= {"system/logs.py"}, "print through echo, note, emit_json or print_table of cli.app"
