"""YAML as people write it: block style, keys in the given order, comments, texts of several lines as literal blocks.

Deterministic, and read back to the same value by YAML 1.1 and 1.2 readers (a key such as ``on`` that is to stay plain
is named by its writer).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import yaml

WIDTH = 1_000_000
"""No line is folded."""
_AMBIGUOUS = re.compile(
    r"[yYnN]|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?0[oOxXbB][0-9a-fA-F_]+|[-+]?[0-9][0-9_,.]*([eE]\S*)?"
)
"""Texts that PyYAML leaves plain although another reader of YAML 1.1 or 1.2 has a boolean or a number there (1e3, 0o17,
y): they are quoted."""
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_/.-]*")
"""Texts that are written as they are, unless a reader has a boolean, null or number for them: most, and the dumper
takes longer than all else."""


@dataclass(frozen=True, slots=True)
class Commented:
    """A value with a comment: after a scalar on its line, above anything else."""

    value: Any
    comment: str


def yaml_text(value: Any, *, plain: Collection[str] = (), header: str = "") -> str:
    """A YAML document of mappings, sequences, scalars and `Commented` values, ended by a line feed.

    ``plain`` are texts that are written without quotes although YAML 1.1 reads them as something else; ``header`` is a
    comment above the document.

    >>> value = {"on": {"push": None}, "jobs": [Commented("a", "why"), {"run": "x\\ny\\n"}]}
    >>> print(yaml_text(value, plain=["on"]), end="")
    on:
      push:
    jobs:
      - a  # why
      - run: |
          x
          y
    """
    lines = [f"# {line}".rstrip() for line in header.splitlines()]
    return "\n".join([*lines, *_Emitter(frozenset(plain)).block(value)]) + "\n"


class _Emitter:
    def __init__(self, plain: frozenset[str]) -> None:
        self._plain = plain

    def block(self, value: Any) -> list[str]:
        """The lines of a mapping or sequence at indent zero, or the line of a scalar."""
        if isinstance(value, Mapping) and value:
            return [line for key, item in value.items() for line in self._entry(f"{self._scalar(key)}:", item)]
        if isinstance(value, Sequence) and not isinstance(value, str) and value:
            return [line for item in value for line in self._item(item)]
        return [self._scalar(value)]

    def _entry(self, prefix: str, item: Any) -> list[str]:
        """The lines of ``key: value``."""
        comment = ""
        if isinstance(item, Commented):
            item, comment = item.value, item.comment
        nested = _is_nested(item)
        if not nested and not _is_literal(item) and "\n" not in comment:
            text = self._scalar(item)
            return [f"{prefix}{' ' if text else ''}{text}{f'  # {comment}' if comment else ''}"]
        above = [f"# {line}".rstrip() for line in comment.splitlines()]
        if nested:
            return [*above, prefix, *(f"  {line}" for line in self.block(item))]
        return (
            [*above, *self._literal(prefix, item)] if _is_literal(item) else [*above, f"{prefix} {self._scalar(item)}"]
        )

    def _item(self, item: Any) -> list[str]:
        """The lines of ``- value``."""
        comment = ""
        if isinstance(item, Commented):
            item, comment = item.value, item.comment
        if _is_nested(item):
            first, *rest = self.block(item)
            above = [f"# {line}".rstrip() for line in comment.splitlines()]
            while first.startswith("#"):  # the comment of the first key goes above the item
                above.append(first)
                first, *rest = rest
            return [*above, f"- {first}", *(f"  {line}" if line else "" for line in rest)]
        if _is_literal(item):
            return [*(f"# {line}".rstrip() for line in comment.splitlines()), *self._literal("-", item)]
        text = f"- {self._scalar(item) or 'null'}"
        if "\n" in comment:
            return [*(f"# {line}".rstrip() for line in comment.splitlines()), text]
        return [f"{text}  # {comment}" if comment else text]

    @staticmethod
    def _literal(prefix: str, text: str) -> list[str]:
        body = text[:-1] if text.endswith("\n") else text
        return [
            f"{prefix} {'|' if text.endswith(chr(10)) else '|-'}",
            *(f"  {line}" if line else "" for line in body.split("\n")),
        ]

    def _scalar(self, value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, str):
            return value if value in self._plain else _quoted(value)
        if isinstance(value, Mapping):
            return "{}"
        if isinstance(value, Sequence):
            return "[]"
        return _quoted.__wrapped__(value) if isinstance(value, float) else _quoted(value)  # 0.0 == -0.0


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | Sequence) and not isinstance(value, str) and len(value) > 0


def _is_literal(value: Any) -> bool:
    """Whether a text is written as a literal block: several lines, none of which a block would change."""
    if not isinstance(value, str) or "\n" not in value:
        return False
    body = value[:-1] if value.endswith("\n") else value
    return not (
        body.endswith("\n")
        or body[:1] in (" ", "\n", "")
        or any(not (character.isprintable() or character == "\n") for character in body)
        or any(line != line.rstrip() for line in body.split("\n"))
    )


def _is_resolved(text: str) -> bool:
    """Whether PyYAML or another reader reads a plain text as something other than text."""
    resolvers = yaml.SafeLoader.yaml_implicit_resolvers.get(text[0], ())
    return _AMBIGUOUS.fullmatch(text) is not None or any(pattern.match(text) for _, pattern in resolvers)


@lru_cache(maxsize=4096, typed=True)
def _quoted(value: Any) -> str:
    """A scalar as PyYAML writes it: quoted only where it would be read as something else, on one line."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and not _is_resolved(value):
        return value
    if isinstance(value, str) and (_AMBIGUOUS.fullmatch(value) or not all(c == " " or c.isprintable() for c in value)):
        style = "'" if value.isprintable() else '"'
        quoted: str = yaml.safe_dump(value, width=WIDTH, allow_unicode=True, default_style=style)
        return quoted.removesuffix("\n")
    text: str = yaml.safe_dump(value, width=WIDTH, allow_unicode=True, default_flow_style=True)
    return text.removesuffix("\n").removesuffix("\n...").rstrip("\n")
