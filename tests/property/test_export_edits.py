"""Whatever a user does to a generated file, regenerating loses nothing of it."""

from __future__ import annotations

import itertools
import random
import tempfile
from pathlib import Path

import pytest

from tests.support.export_project import export_texts, tree

LINES = [f"  - step {number}: {'x' * (number % 7)}" for number in range(40)]


def _texts(generator: random.Random) -> tuple[str, str]:
    """A generated text, and the next."""
    old = list(LINES)
    new = [line for line in old if generator.random() > 0.05]
    for _ in range(generator.randint(0, 4)):
        new.insert(generator.randint(0, len(new)), f"  - new {generator.randint(0, 10**9)}")
    return "\n".join(old) + "\n", "\n".join(new) + "\n"


def _edited(generator: random.Random, content: bytes, serial: itertools.count[int]) -> tuple[bytes, list[bytes]]:
    """A file after random edits, and the lines that were written into it, in their order."""
    lines = content.split(b"\n")
    for _ in range(generator.randint(1, 4)):
        at = generator.randint(0, len(lines) - 1)
        mark = b"mine %d \xff" % next(serial) if generator.random() < 0.1 else b"mine %d" % next(serial)
        kind = generator.choice(("insert", "replace", "delete", "append", "first", "header", "chop", "cr"))
        if kind in ("insert", "append", "first"):
            lines.insert({"insert": at, "append": len(lines) - 1, "first": 0}[kind], mark)
        elif kind == "replace" and not lines[at].startswith(b"mine"):
            lines[at] = mark
        elif kind == "delete" and not lines[at].startswith(b"mine"):
            del lines[at]
        elif kind == "header":
            lines[0] += b" " + mark if not lines[0].startswith(b"mine") else b""
        elif kind == "chop" and lines[-1] == b"":
            lines = lines[:-1]
        elif kind == "cr":
            lines[at] += b"" if b"mine" in lines[at] else b" " + mark + b"\r"
        lines = lines or [b""]
    edited = b"\n".join(lines)
    return edited, [line for line in edited.split(b"\n") if b"mine" in line]


def _try(seed: int) -> str:
    """Edit and regenerate once; returns the action. Every line of the user's is there after it, or nothing changed."""
    generator, serial = random.Random(seed), itertools.count()
    old, new = _texts(generator)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        export_texts(root, {"ci.yml": old})
        file = root / "ci.yml"
        edited, written = _edited(generator, file.read_bytes(), serial)
        if generator.random() < 0.1 and b"\r" not in edited:
            edited = edited.replace(b"\n", b"\r\n")
            written = [line for line in edited.split(b"\n") if b"mine" in line]
        file.write_bytes(edited)
        before = tree(root)
        (change,) = export_texts(root, {"ci.yml": new}).changes
        after = file.read_bytes()
        if change.action == "conflict":
            assert tree(root) == before, f"seed {seed}"
            return change.action
        assert b"<<<<<<<" not in after, f"seed {seed}"
        kept = [line for line in after.split(b"\n") if b"mine" in line]
        assert kept == written, f"seed {seed}"
        (again,) = export_texts(root, {"ci.yml": new}).changes
        assert again.action == "unchanged", f"seed {seed}"
        assert file.read_bytes() == after, f"seed {seed}"
        return change.action


def _try_all(seeds: range) -> dict[str, int]:
    counts: dict[str, int] = {}
    for seed in seeds:
        action = _try(seed)
        counts[action] = counts.get(action, 0) + 1
    return counts


def test_no_edit_is_lost() -> None:
    counts = _try_all(range(150))
    assert min(counts.get("merged", 0), counts.get("conflict", 0)) > 10, counts


@pytest.mark.slow
@pytest.mark.simulation
@pytest.mark.timeout(1200)
def test_none_of_ten_thousand_edits_is_lost() -> None:
    counts = _try_all(range(1000, 11_000))
    assert min(counts.get("merged", 0), counts.get("conflict", 0)) > 1000, counts
