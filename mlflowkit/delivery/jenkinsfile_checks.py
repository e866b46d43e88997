"""What no linter says of a Jenkinsfile: values that Groovy puts into a shell script, stages without a limit, images by
tag, shells that print their commands. Pure; `mlkit export` never writes such a file, and a hand-made change of one is
found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)
    |(?P<literal>'''(?:\\.|[^\\])*?'''|'(?:\\.|[^'\\\n])*')
    |(?P<template>\"\"\"(?:\\.|[^\\])*?\"\"\"|"(?:\\.|[^"\\\n])*")
    |(?P<word>[A-Za-z_]\w*)
    |(?P<mark>[^\s])""",
    re.S | re.X,
)
_SHELLS = ("sh", "bat", "powershell", "pwsh")
_BINDINGS = ("variable", "usernameVariable", "passwordVariable", "keyFileVariable", "passphraseVariable",
             "keystoreVariable", "aliasVariable")  # fmt: skip
"""Arguments of a credential's binding that name the variable which holds it."""
_INTERPOLATION = re.compile(r"(?<!\\)\$(?:\{([^}]*)\}?|([A-Za-z_][\w.]*))")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int

    @property
    def value(self) -> str:
        """The text of a string without its quotes."""
        quote = self.text[:3] if self.text.startswith(("'''", '"""')) else self.text[:1]
        return self.text[len(quote) : -len(quote)]


def jenkinsfile_faults(text: str) -> Iterator[str]:
    """The faults of a declarative Jenkinsfile, each a sentence with its line. Raises ValueError when it is none."""
    tokens = list(_tokens(text))
    if [token.text for token in tokens[:2]] != ["pipeline", "{"]:
        raise ValueError("a declarative Jenkinsfile is pipeline { ... }")
    secrets = set(_secret_variables(tokens))
    for index, token in enumerate(tokens):
        if token.kind == "word" and token.text in _SHELLS:
            yield from _shell_faults(tokens, index, secrets)
        if token.text == "image" and index + 1 < len(tokens) and tokens[index + 1].kind in ("literal", "template"):
            reference = tokens[index + 1]
            if "@sha256:" not in reference.value:
                yield f"line {reference.line}: image {reference.value} has no digest: write NAME@sha256:DIGEST"
    yield from _stage_faults(tokens)
    if not any(token.text == "disableConcurrentBuilds" for token in tokens):
        yield "two builds of a branch may promote at once: write options { disableConcurrentBuilds() }"


def _tokens(text: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        if kind != "comment":
            yield _Token(kind, match[0], text.count("\n", 0, match.start()) + 1)


def _secret_variables(tokens: list[_Token]) -> Iterator[str]:
    """Variables that hold credentials: those that withCredentials binds, and ``NAME = credentials(...)``."""
    for index, token in enumerate(tokens[:-2]):
        following = [other.text for other in tokens[index + 1 : index + 3]]
        if token.text in _BINDINGS and following[0] == ":" and tokens[index + 2].kind != "mark":
            yield tokens[index + 2].value
        if token.kind == "word" and following == ["=", "credentials"]:
            yield from (token.text, f"{token.text}_USR", f"{token.text}_PSW")


def _shell_faults(tokens: list[_Token], index: int, secrets: set[str]) -> Iterator[str]:
    """The faults of the scripts of one call: ``sh "..."``, ``sh("...")``, ``sh(script: "...")``."""
    for script in _scripts(tokens, index):
        if script.kind == "literal":
            if tokens[index].text == "sh" and not script.value.startswith("#!") and "\n" in script.value:
                yield f"line {script.line}: the script names no interpreter, so sh -x prints commands: begin with #!"
            continue
        for match in _INTERPOLATION.finditer(script.value):
            expression = (match[1] or match[2] or "").strip()
            names = set(re.findall(r"\w+", expression))
            if names & secrets:
                what = f"the credential {sorted(names & secrets)[0]} becomes part of the command's text"
            else:
                what = f"Groovy puts {expression} into the command's text"
            yield f"line {script.line}: {what}: quote the script with ''' and let the shell read its environment"


def _scripts(tokens: list[_Token], index: int) -> Iterator[_Token]:
    """The strings that are a call's script, parts of a sum included."""
    depth, at = 0, index + 1
    named = False
    while at < len(tokens):
        token = tokens[at]
        if token.text in "([":
            depth += 1
        elif token.text in ")]":
            depth -= 1
            if depth < 0:
                return
        elif token.kind in ("literal", "template"):
            following = tokens[at + 1].text if at + 1 < len(tokens) else ""
            label = tokens[at - 2].text if tokens[at - 1].text == ":" else ""
            if label in ("", "script") or named:
                yield token
            named = following == "+"
            if depth == 0 and following not in ("+", ","):
                return
        elif token.kind == "mark" and token.text not in ",:+." and depth == 0:
            return
        if depth == 0 and token.text in ")]":
            return
        at += 1


def _stage_faults(tokens: list[_Token]) -> Iterator[str]:
    """Stages with steps, and no timeout of their own."""
    starts = [
        index
        for index, token in enumerate(tokens)
        if token.text == "stage" and index + 2 < len(tokens) and tokens[index + 1].text == "("
    ]
    for start in starts:
        end = next((other for other in starts if other > start), len(tokens))
        words = [token.text for token in tokens[start:end]]
        if "steps" in words and "timeout" not in words:
            name = tokens[start + 2].value
            yield f"line {tokens[start].line}: stage {name} has no timeout: a job that hangs holds its agent for ever"
