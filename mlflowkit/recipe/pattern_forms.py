"""What texts of a form look like, in words and by an example: for the patterns of ``delivery``, by their text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple


class PatternForm(NamedTuple):
    """The form in words, and a text that has it."""

    words: str
    example: str


_NAME = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
_VARIABLE = r"^[A-Z_][A-Z0-9_]*$"
PATTERN_FORMS: Mapping[str, PatternForm] = {
    _NAME: PatternForm("a name of a-z, 0-9 and -", "staging"),
    _VARIABLE: PatternForm("the name of an environment variable (A-Z, 0-9 and _)", "DB_URL"),
    r"^[^@\s]+@sha256:[0-9a-f]{64}$": PatternForm(
        "an image by digest, NAME@sha256:DIGEST", f"docker.io/library/python@sha256:{'0' * 64}"
    ),
    r"^https://[^\s@]+$": PatternForm(
        "a URL that begins with https:// and holds no password", "https://github.com/acme/a"
    ),
    r"^/[A-Za-z0-9._/-]+$": PatternForm("an absolute path", "/mlkit/state"),
    r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$": PatternForm(
        "a path below the repository's root, without .. and spaces", "recipes/requirements.txt"
    ),
    r"^[A-Za-z0-9._/-]+$": PatternForm("the name of a branch", "main"),
    r"^https?://[^\s@?#]+$": PatternForm("a URL that begins with http:// or https://", "http://lending.internal:8080"),
    r"^[A-Za-z0-9._-]+$": PatternForm("letters, digits, ., _ and -", "ubuntu-24.04"),
    r"^[0-9]+(Mi|Gi|Ti)$": PatternForm("a size in Mi, Gi or Ti", "10Gi"),
    r"^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+$": PatternForm(
        "a registry and a repository, without a tag or a digest", "ghcr.io/acme/lending"
    ),
    r"^[a-z]{2}(-[a-z]+)+-[0-9]$": PatternForm("an AWS region", "eu-central-1"),
    r"^(arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9+=,.@_/-]+)?$": PatternForm(
        "the ARN of a role", "arn:aws:iam::123456789012:role/sagemaker"
    ),
    r"^ml\.[a-z0-9.-]+$": PatternForm("an instance type of SageMaker", "ml.m5.large"),
    r"^([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])?$": PatternForm("the name of an S3 bucket", "acme-models"),
    r"^[A-Za-z0-9_/-]+#[A-Za-z0-9_-]+$": PatternForm("a field of a Vault secret, PATH#FIELD", "secret/lending#url"),
    r"^\S+( \S+){4}$": PatternForm("minute, hour, day of month, month and day of week", "17 4 * * 1"),
    r"^[A-Za-z0-9_+/-]+$": PatternForm("a time zone", "Europe/Berlin"),
}


def corrected(pattern: str, value: str) -> str:
    """A text of the form that is close to ``value``; "" where none can be guessed.

    >>> corrected(r"^[A-Z_][A-Z0-9_]*$", "my-secret"), corrected(r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", "Prod")
    ('MY_SECRET', 'prod')
    """
    if pattern == _VARIABLE:
        guess = re.sub(r"[^A-Z0-9_]", "_", value.upper())
    elif pattern == _NAME:
        guess = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")
    else:
        return ""
    return guess if re.fullmatch(pattern, guess) else ""
