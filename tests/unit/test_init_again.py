"""mlkit init where there is a project already: the hint keeps what was asked for."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from mlflowkit.cli.app import main


def test_the_hint_makes_the_same_project_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = tmp_path / "a project"
    first = ["init", "--ci", "gitlab", str(project)]
    for arguments, code in ((first, 0), ([*first, "--json"], 2)):
        with pytest.raises(SystemExit) as done:
            main(arguments)
        assert (done.value.code or 0) == code
    (project / "recipe.yaml").write_text("name: mine\n")
    hint = json.loads(capsys.readouterr().out.rpartition("\n{")[2].join(("{", "")))["error"]["hint"]
    command = shlex.split(hint.partition(" overwrites")[0])
    assert command[:1] == ["mlkit"]
    with pytest.raises(SystemExit) as done:
        main(command[1:])
    assert (done.value.code or 0) == 0
    assert "delivery:" in (project / "recipe.yaml").read_text()
