"""Rules for ``connections`` and remote sources: connections that exist, and secrets that are only named."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlflowkit.data_access.object_patterns import listed_prefix
from mlflowkit.data_access.results.write_back import overlaps
from mlflowkit.errors import closest_match
from mlflowkit.recipe.rule import Problem, RecipeView, Rule
from mlflowkit.recipe.section_rules import delivery_rules
from mlflowkit.recipe.yaml_tree import KeyPath

_SECRET_KEY = re.compile(r"(?i)secret|password|passphrase|token|credential|(?:^|_)key(?:$|_)|(?:^|_)sas(?:$|_)")
_USER_IN_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^/\s@]+@")


def secret_kind(path: KeyPath, text: str) -> str:
    """What kind of secret a text of a recipe looks like at its key, or "".

    >>> secret_kind(("connections", "lake", "secret"), "hunter2")
    'a secret'
    >>> secret_kind(("data", "source", "url"), "s3://me@bucket/"), secret_kind(("name",), "s3://me@bucket/")
    ('a user or password in a URL', '')
    >>> secret_kind(("connections", "lake", "secret", "env"), "LAKE_SECRET")
    ''
    """
    if path[:1] == ("delivery",):
        return delivery_rules.secret_kind(text)
    if path[:1] not in (("connections",), ("data",)) or "${" in text:
        return ""
    if _USER_IN_URL.search(text):
        return "a user or password in a URL"
    if path[0] == "connections" and len(path) == 3 and _SECRET_KEY.search(str(path[2])):
        return "a secret"
    return delivery_rules.secret_kind(text)


def _connection(view: RecipeView) -> Iterator[Problem]:
    """A source, and a registry, names a connection of the recipe."""
    yield from _named_connection(view, ("data", "source", "connection"), view.text("data", "source", "kind"))
    for index, section in enumerate(view.items("registries")):
        path: KeyPath = ("registries", index, "connection")
        name = section.get("connection") if isinstance(section, dict) else None
        kind = view.text("connections", str(name), "kind")
        if isinstance(name, str):
            yield from _named_connection(view, path, "huggingface", name)
        if kind and kind != "huggingface":
            message = f"connection {name!r} is of kind {kind}, and a registry takes one of kind huggingface"
            yield Problem(path, message, "name another, or leave it out: the token is then HF_TOKEN")


def _registries(view: RecipeView) -> Iterator[Problem]:
    """A place is one registry: deliveries go by its kind and repository, whichever connection it has."""
    first: dict[tuple[str, str], int] = {}
    for index, section in enumerate(view.items("registries")):
        if not isinstance(section, dict):
            continue
        place = str(section.get("kind")), str(section.get("repository", ""))
        if place in first:
            message = f"{' '.join(place).strip()} is registries.{first[place]} already: one push would be left out"
            yield Problem(("registries", index), message, "take one of them out, or name another repository")
        first.setdefault(place, index)


def _named_connection(view: RecipeView, path: KeyPath, kind: str, name: str = "") -> Iterator[Problem]:
    name = name or view.text(*path)
    names = [str(key) for key in view.mapping("connections")]
    if not name or name in names:
        return
    near = closest_match(name, names)
    hint = f"did you mean {near}?" if near else f"add connections: {{{name}: {{kind: {kind}, ...}}}}"
    listed = f"; there are {', '.join(names)}" if names else ", and no connections at all"
    yield Problem(path, f"there is no connection {name!r}{listed}", hint)


def _write_back(view: RecipeView) -> Iterator[Problem]:
    """Results are written back to a store with branches, outside of what the source reads."""
    path: KeyPath = ("data", "write_back")
    if not view.mapping(*path):
        return
    kind = view.text("data", "source", "kind")
    if kind and kind != "lakefs":
        message = f"a source of kind {kind} has no branches to write results back to"
        yield Problem(path, message, "use a source of kind lakefs, or take write_back out")
        return
    folder, source = view.text(*path, "path"), view.text("data", "source", "path") or ""
    if folder and overlaps(listed_prefix(source), folder):
        where = f"what the source reads ({source})" if source else "the whole repository, which the source reads"
        hint = "write a path beside it, such as _mlkit/" if source else "set data.source.path to the table's folder"
        yield Problem((*path, "path"), f"{folder} lies in {where}: results would become data", hint)


RULES: tuple[Rule, ...] = (_connection, _registries, _write_back)
"""All rules for connections, registries and remote sources."""
