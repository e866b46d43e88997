"""The faults of a recipe as a compiler prints them: place, message, the line, a caret, what to type next."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from mlflowkit.errors import Fault, RecipeError

_TOKEN = re.compile(r"""("[^"]*"|'[^']*'|[^\s,\]\}#:=]+|.)""")


def render(error: RecipeError, *, color: bool | None = None) -> str:
    """All the faults of a recipe, for people.

    >>> fault = Fault("r.yaml", 2, 7, "train.lr", "fast", "expected a number > 0, found 'fast'", "write 0.001")
    >>> print(render(RecipeError([fault], sources={"r.yaml": "train:\\n  lr: fast\\n"}), color=False))
    r.yaml:2:7: error: train.lr: expected a number > 0, found 'fast'
        2 |   lr: fast
          |       ^^^^
          = write 0.001
    1 error
    """
    paint = _Paint(sys.stderr.isatty() and not os.environ.get("NO_COLOR") if color is None else color)
    lines: list[str] = []
    for fault in error.faults:
        lines.extend(_one(fault, error.sources, paint))
    count = len(error.faults)
    lines.append(paint.bold(f"{count} error{'s' if count != 1 else ''}"))
    return "\n".join(lines)


class _Paint:
    def __init__(self, color: bool) -> None:
        self.color = color

    def _wrap(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.color else text

    def bold(self, text: str) -> str:
        return self._wrap("1", text)

    def red(self, text: str) -> str:
        return self._wrap("1;31", text)

    def blue(self, text: str) -> str:
        return self._wrap("34", text)


def _one(fault: Fault, sources: Mapping[str, str], paint: _Paint) -> list[str]:
    where = f"{fault.file}:{fault.line}:{fault.column}:"
    key = f"{fault.key}: " if fault.key and not fault.message.startswith(fault.key) else ""
    lines = [f"{paint.bold(where)} {paint.red('error:')} {key}{fault.message}"]
    source = _line(fault, sources)
    if source:
        start = fault.column - 1
        token = _TOKEN.match(source, start)
        width = len(token.group()) if token else 1
        margin = re.sub(r"[^\t]", " ", source[:start])
        lines.append(f"{paint.blue(f'{fault.line:5d} |')} {source}")
        lines.append(f"{paint.blue('      |')} {margin}{paint.red('^' * width)}")
    if fault.hint:
        lines.append(f"      {paint.blue('=')} {fault.hint}")
    return lines


def _line(fault: Fault, sources: Mapping[str, str]) -> str:
    """The line of the source that a fault is in, or "" where it cannot be shown."""
    text = sources.get(fault.file)
    if text is None:
        try:
            text = Path(fault.file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError, ValueError):  # a place that is no file, or a file that is no text
            return ""
    lines = text.splitlines()
    line = lines[fault.line - 1] if fault.line <= len(lines) else ""
    return line if line.isprintable() or "\t" in line else ""
