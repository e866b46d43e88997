"""Compiler-style output of recipe faults: location, message, source line, caret, hint."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from mlflowkit.errors import Fault, RecipeError
from mlflowkit.system.text import format_count, printable

BOLD, RED, BLUE = "1", "1;31", "34"
"""Codes of terminal colours."""
_TOKEN = re.compile(r"""("[^"]*"|'[^']*'|[^\s,\]\}#:=]+|.)""")


def render(error: RecipeError, *, color: bool | None = None) -> str:
    """Format all the faults of a recipe.

    >>> fault = Fault("r.yaml", 2, 7, "train.lr", "fast", "expected a number > 0, found 'fast'", "write 0.001")
    >>> print(render(RecipeError([fault], sources={"r.yaml": "train:\\n  lr: fast\\n"}), color=False))
    r.yaml:2:7: error: train.lr: expected a number > 0, found 'fast'
        2 |   lr: fast
          |       ^^^^
          = write 0.001
    1 error
    """
    color = sys.stderr.isatty() and not os.environ.get("NO_COLOR") if color is None else color

    def paint(code: str, text: str) -> str:
        return f"\x1b[{code}m{printable(text)}\x1b[0m" if color else printable(text)

    lines = [line for fault in error.faults for line in _fault_lines(fault, error.sources, paint)]
    return "\n".join([*lines, paint(BOLD, format_count(len(error.faults), "error"))])


def _fault_lines(fault: Fault, sources: Mapping[str, str], paint: Callable[[str, str], str]) -> list[str]:
    where = f"{fault.file}:{fault.line}:{fault.column}:"
    key = f"{fault.key}: " if fault.key and not fault.message.startswith(fault.key) else ""
    lines = [f"{paint(BOLD, where)} {paint(RED, 'error:')} {printable(key + fault.message)}"]
    source = _source_line(fault, sources)
    if source:
        start = fault.column - 1
        token = _TOKEN.match(source, start)
        width = len(token.group()) if token else 1
        margin = re.sub(r"[^\t]", " ", source[:start])
        lines.append(f"{paint(BLUE, f'{fault.line:5d} |')} {printable(source)}")
        lines.append(f"{paint(BLUE, '      |')} {margin}{paint(RED, '^' * width)}")
    if fault.hint:
        lines.append(f"      {paint(BLUE, '=')} {printable(fault.hint)}")
    return lines


def _source_line(fault: Fault, sources: Mapping[str, str]) -> str:
    """Return the source line of a fault, or "" if it cannot be shown."""
    text = sources.get(fault.file)
    if text is None:
        try:
            text = Path(fault.file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError, ValueError):  # not a file, or not text
            return ""
    lines = text.splitlines()
    line = lines[fault.line - 1] if fault.line <= len(lines) else ""
    return line if line.isprintable() or "\t" in line else ""
