"""The code blocks of a documentation page, and how each is tried.

A fenced block whose first line is ``# file: NAME`` is a file of the reader's folder. In a ``console`` block each line
that starts with ``$ `` is a command, typed into that folder; ``# exits N`` behind it says with which code it ends.
The lines below a command are what it prints, in order: digits, hexadecimal digests and paths may differ, ``...``
stands for any lines or any rest of a line. A ``yaml`` block without a file name is a part of a recipe: it takes the
place of the same sections of recipes/lending.yaml, and the whole must have no fault.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
FILE = re.compile(r"# file: (\S+)\n")
EXITS = re.compile(r"\s+# exits (\d+)$")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, its text, and the file that it is, or ""."""

    language: str
    text: str
    file: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a console block, its exit code and the lines that it prints."""

    text: str
    code: int
    output: tuple[str, ...]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page in order."""
    parsed = []
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        file = FILE.match(text)
        parsed.append(Block(language, text, file[1] if file else ""))
    return parsed


def commands(block: Block) -> Iterator[Command]:
    """The commands of a console block."""
    for part in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
        line, *output = part.rstrip("\n").split("\n")
        exits = EXITS.search(line)
        yield Command(EXITS.sub("", line), int(exits[1]) if exits else 0, tuple(output))


def run(
    command: Command, folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Type a command into a folder; stdout and stderr together, as in a terminal."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-c", command.text],
        cwd=folder,
        env={**os.environ, "PATH": path, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )


def missing_line(expected: tuple[str, ...], printed: str) -> str:
    """The first line of ``expected`` that was not printed in its place, or ""."""
    rest = [_normal(line) for line in printed.splitlines()]
    for line in expected:
        if line.strip() == "...":
            continue
        pattern = re.escape(_normal(line.rstrip())).replace(r"\.\.\.", ".*")
        index = next((index for index, other in enumerate(rest) if re.fullmatch(pattern, other.rstrip())), None)
        if index is None:
            return line
        rest = rest[index + 1 :]
    return ""


def _normal(line: str) -> str:
    line = re.sub(r"\b[0-9a-f]{7,64}\b", "#", line)
    return re.sub(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?", "#", line)
