"""The threat model names tests that exist."""

from __future__ import annotations

import re

from tests.support import ROOT


def test_the_tests_that_the_threat_model_names_exist() -> None:
    text = (ROOT / "docs" / "explanation" / "threat_model.md").read_text()
    named = re.findall(r"`(tests/[\w/.]+)`", text)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []
