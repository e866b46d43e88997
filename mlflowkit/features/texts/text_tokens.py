"""The tokens of a text that is hashed: words, or characters; read alike in files, requests and ``mlkit predict``.

What Unicode has to say is said here, before the graph, whose operators know bytes only: a text becomes its *canonical*
form, which the graph takes apart by one rule. Words are the runs of two and more letters, digits and underscores, as
scikit-learn's vectorizers find them, joined by one space; of characters, runs of blanks become one space. The canonical
form of a canonical text is itself.

Imports only the standard library.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Protocol

_WORD = re.compile(r"\b\w\w+\b")
_BLANKS = re.compile(r"\s\s+")
_SURROGATES = re.compile("[\ud800-\udfff]")


class Tokens(Protocol):
    """How a column is taken apart; see `mlflowkit.bundle.TokenRule`."""

    @property
    def analyzer(self) -> str: ...
    @property
    def lowercase(self) -> bool: ...
    @property
    def max_tokens(self) -> int: ...


def canonical_text(text: str, rule: Tokens) -> tuple[str, bool]:
    """The canonical form of a text, and whether tokens beyond the rule's ``max_tokens`` were left out.

    >>> from mlflowkit.bundle import TokenRule
    >>> canonical_text("Don't SHOUT,  José!", TokenRule(analyzer="word"))
    ('don shout josé', False)
    >>> canonical_text("Tick \\t Tock", TokenRule(analyzer="char", max_tokens=6))
    ('tick t', True)
    """
    lowered = text.lower() if rule.lowercase else text
    if rule.analyzer == "word":
        words = [match.group() for match in islice(_WORD.finditer(lowered), rule.max_tokens + 1)]
        return " ".join(words[: rule.max_tokens]), len(words) > rule.max_tokens
    plain = _BLANKS.sub(" ", _SURROGATES.sub("\ufffd", lowered))
    return plain[: rule.max_tokens], len(plain) > rule.max_tokens
