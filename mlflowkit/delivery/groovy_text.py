"""Groovy text for Jenkinsfiles: strings in which nothing is interpolated, blocks, and shell scripts. Pure."""

from __future__ import annotations

from collections.abc import Iterable

INTERPRETER = "#!/usr/bin/env bash"
"""First line of a shell script: without one Jenkins runs ``sh -xe``, which prints each command with its values."""


def groovy_string(text: str) -> str:
    r"""A text as a single-quoted Groovy string, in which ``$`` means nothing.

    >>> print(groovy_string("it's $HOME\n"))
    'it\'s $HOME\n'
    """
    for plain, escaped in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(plain, escaped)
    return f"'{text}'"


def groovy_block(head: str, lines: Iterable[str]) -> list[str]:
    """The lines of ``head { ... }``.

    >>> groovy_block("steps", ["sh 'ls'"])
    ['steps {', "  sh 'ls'", '}']
    """
    return [f"{head} {{", *(f"  {line}" if line else "" for line in lines), "}"]


def groovy_shell(script: str, before: str = "sh ", after: str = "") -> list[str]:
    """The lines of a step that runs a bash script, which ends at its first failure.

    ``before`` and ``after`` stand around the string, which is single-quoted: the shell reads secrets from its
    environment, and Groovy puts no value into the text.
    """
    body = script.rstrip("\n").replace("\\", "\\\\").replace("'''", "\\'\\'\\'").split("\n")
    return [f"{before}'''{INTERPRETER}", "set -euo pipefail", *body, f"'''{after}"]
