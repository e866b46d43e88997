"""What a file of rules names, and what is wrong with it, each with its place in the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlflowkit.judging.file_checks.check_sections import MAX_FILE_BYTES
from mlflowkit.system.text import shell_word


@dataclass(frozen=True, slots=True)
class FileProblem:
    """A fault in a file of rules. ``line`` and ``column`` count from 1; 0 is an unknown place."""

    message: str
    hint: str = ""
    line: int = 0
    column: int = 0

    def located(self, name: str) -> str:
        """The message with its place.

        >>> FileProblem("no such field", line=3, column=7).located("schema.pbtxt")
        'schema.pbtxt:3:7: no such field'
        """
        place = f"{name}:{self.line}:{self.column}" if self.line else name
        return f"{place}: {self.message}"


@dataclass(frozen=True, slots=True)
class RulesFile:
    """A file as far as it can be judged without data: its problems, and the line and column of each column it names."""

    problems: tuple[FileProblem, ...] = ()
    columns: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def read_rules_file(path: Path) -> str | FileProblem:
    """The text of a file of rules, or why it cannot be read."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            return FileProblem("this is no file", f"ls -l {shell_word(path.parent)}")
        if size > MAX_FILE_BYTES:
            return FileProblem(f"the file has {size >> 20} MiB; {MAX_FILE_BYTES >> 20} MiB are allowed")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return FileProblem("there is no such file", f"ls {shell_word(path.parent)} shows the files")
    except (OSError, UnicodeDecodeError) as error:
        return FileProblem(f"cannot be read: {error}", "a file of rules is text in UTF-8")
