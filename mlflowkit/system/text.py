"""Short texts: lists of names, counts with a noun, shortened values, first lines of errors, categorical cells;
and texts that a terminal may show, whatever is in them."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but newline and tab: escape sequences begin with one
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # bidirectional overrides, and Unicode's own line ends
    "\ufeff\ud800-\udfff\U000e0000-\U000e007f]"  # invisible ones, and bytes that are no UTF-8
)
"""Characters that may change what a terminal does or what a reader sees."""
MAX_LISTED = 5
"""Names that a message lists before it counts the rest."""


def format_list(names: Sequence[object], limit: int = MAX_LISTED) -> str:
    """Quote the first ``limit`` names and count the rest.

    >>> format_list(["a", "b", "c"], limit=2)
    "'a', 'b' and 1 more"
    """
    return limited(list(map(repr, names)), limit)


def limited(texts: Sequence[str], limit: int = MAX_LISTED) -> str:
    """Join the first ``limit`` texts and count the rest.

    >>> limited(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    text = ", ".join(texts[:limit])
    return text if len(texts) <= limit else f"{text} and {len(texts) - limit} more"


def join_words(names: Sequence[str]) -> str:
    """
    >>> join_words(["train"]), join_words(["data", "train", "export"])
    ('train', 'data, train and export')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def format_count(number: int, noun: str) -> str:
    """
    >>> format_count(1, "row"), format_count(2, "row")
    ('1 row', '2 rows')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_numbers(numbers: Iterable[int]) -> str:
    """
    >>> format_numbers({3, 1})
    '1, 3'
    """
    return ", ".join(map(str, sorted(numbers)))


def truncate(text: str, limit: int = 40, keep: int | None = None) -> str:
    """Cut a text longer than ``limit`` to its first ``keep`` characters and an ellipsis.

    >>> truncate("0123456789", 8), truncate("short", 8), truncate("0123456789", 8, keep=3)
    ('0123456…', 'short', '012…')
    """
    return text if len(text) <= limit else f"{text[: limit - 1 if keep is None else keep]}…"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class name if it has none.

    >>> first_line(ValueError("no column\\nat line 3")), first_line(ValueError())
    ('no column', 'ValueError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def category_text(value: object) -> str:
    """The text of a categorical cell; "" for a missing value (None, NaN, NaT, NA).

    >>> [category_text(value) for value in ("rent", 3, 3.0, 2.5, True, None, float("nan"))]
    ['rent', '3', '3', '2.5', 'True', '', '']
    """
    if isinstance(value, str):
        return str(value)
    if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
        return ""
    if not isinstance(value, bool) and hasattr(value, "is_integer"):
        number = float(value)  # type: ignore[arg-type]  # only numbers have is_integer
        if math.isfinite(number) and number.is_integer() and abs(number) < 2**53:
            return str(int(number))
    return str(value)


def shell_word(value: object) -> str:
    """A path or a name as one word of a shell's command line.

    >>> shell_word("recipes/lending.yaml"), shell_word("my recipe.yaml")
    ('recipes/lending.yaml', "'my recipe.yaml'")
    """
    return shlex.quote(str(value))


def printable(text: str) -> str:
    """A text with every character escaped that could drive a terminal or hide what is written.

    Names come from recipes, data files, file names and replies. Newlines and tabs stay.

    >>> print(printable("a\\x1b]0;title\\x07, b\\u202e, c\\r"))
    a\\x1b]0;title\\x07, b\\u202e, c\\r
    """
    return text if text.isprintable() else _UNSAFE.sub(_escape, text)


def printable_line(text: str) -> str:
    """Like `printable`, in one line: newlines and tabs are escaped too.

    >>> print(printable_line("a\\nb"))
    a\\nb
    """
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def printable_json(text: str) -> str:
    """A JSON document with the same characters written as JSON escapes: it says the same.

    >>> printable_json('{"a": "\\x9b"}')
    '{"a": "\\\\u009b"}'
    """
    return text if text.isprintable() else _UNSAFE.sub(lambda match: json.dumps(match[0])[1:-1], text)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def parse_json(content: bytes | str) -> Any:
    """JSON of a file that others may have written: ``json.loads`` whose only exception is ValueError.

    Deep nesting, for which json raises RecursionError, is one too.

    >>> parse_json(b'{"a": 1}')
    {'a': 1}
    >>> parse_json("[" * 100_000)
    Traceback (most recent call last):
    ValueError: it is nested too deeply
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
