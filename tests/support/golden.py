"""Golden files: texts that a change must not alter unseen."""

from __future__ import annotations

from collections.abc import Callable

from tests.support import ROOT

Golden = Callable[[str, str], None]
"""The fixture `golden`: compares a text with the golden file of a name."""
FOLDER = ROOT / "tests" / "golden"


def assert_golden(name: str, text: str, *, update: bool) -> None:
    """Compare ``text`` with the golden file ``name`` of tests/golden, or write it.

    After an intended change: ``pytest tests/golden --update-golden``, and read the difference before it is committed.
    """
    path = FOLDER / name
    if update:
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"{path} is missing: pytest tests/golden --update-golden writes it"
    assert text == path.read_text(encoding="utf-8"), "intended? pytest tests/golden --update-golden"
