"""Links to recipes, and an interrupt before there is a command to see it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlflowkit import cli
from mlflowkit.api import load
from mlflowkit.cli import app
from mlflowkit.cli.commands import init


def test_the_code_of_a_linked_recipe_lies_beside_the_file(tmp_path: Path) -> None:
    init.init(tmp_path / "real")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "real" / "recipe.yaml")
    recipe = load(tmp_path / "link.yaml")
    assert recipe.loaded.folder == (tmp_path / "real").resolve()
    assert app.state_folder(None, tmp_path / "link.yaml") == recipe.loaded.folder / ".mlkit"


@pytest.mark.parametrize("command", ["validate", "plan", "run", "explain"])
def test_a_link_to_itself_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    monkeypatch.setattr("sys.argv", ["mlkit", command, str(tmp_path / "loop.yaml"), *["seed"][: command == "explain"]])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert "cannot be read: Too many levels of symbolic links" in capsys.readouterr().err


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupt_while_python_still_imports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    def interrupt(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlflowkit.cli.fast_path.nothing_to_do", interrupt)
    monkeypatch.setattr("sys.argv", ["mlkit", "run", "recipe.yaml", *["--json"][: int(as_json)]])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    assert caught.value.code == 130
    assert "Traceback" not in err
    assert (json.loads(out)["error"]["kind"] == "interrupted") if as_json else "error: interrupted" in err
