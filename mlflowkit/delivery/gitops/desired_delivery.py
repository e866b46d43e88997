"""``delivery.yaml``: which version of a service an environment wants, as git keeps it and a gateway follows it. Pure.

::

    service: lending
    champion:
      bundle: ghcr.io/acme/lending-bundle@sha256:...
      identity: ...
      blessing: ...
    candidate: null
    rejected:
      - {identity: ..., incident: ..., at: ...}

The file is parsed strictly: an unknown key or a conflict marker is refused with its line. `edit_delivery` changes only
the lines that differ, so that the comments of people stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from mlflowkit.delivery.yaml_text import yaml_text
from mlflowkit.errors import UsageError
from mlflowkit.system.text import printable_line, truncate
from mlflowkit.values import Json

MAX_BYTES = 262_144
"""Size of a file that is read."""
MAX_REJECTED = 500
"""Rejected identities of a file; a commit that would exceed it drops the oldest."""
MAX_DEPTH = 20
REFERENCE = re.compile(r"[a-z0-9][a-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9][a-z0-9._-]*)+@sha256:[0-9a-f]{64}")
"""A bundle in a registry, by digest."""
_IDENTITY = re.compile(r"[0-9a-f]{64}")
_SERVICE = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")
_TEXT = re.compile(r"[ -~]{1,500}")
_MARKER = re.compile(r"^(<{7}|\|{7}|={7}|>{7})( |$)")
_NULL = "tag:yaml.org,2002:null"


@dataclass(frozen=True, slots=True)
class DesiredChampion:
    """The version that answers all requests that no candidate gets."""

    bundle: str
    identity: str
    blessing: str = ""

    def to_json(self) -> dict[str, Json]:
        value: dict[str, Json] = {"bundle": self.bundle, "identity": self.identity}
        return {**value, "blessing": self.blessing} if self.blessing else value


@dataclass(frozen=True, slots=True)
class DesiredCandidate:
    """The version that a rollout tries; ``rollout`` are its settings as in the recipe's ``serve.rollout``."""

    bundle: str
    identity: str
    blessing: str = ""
    rollout: Mapping[str, Json] = field(default_factory=dict)

    @property
    def as_champion(self) -> DesiredChampion:
        return DesiredChampion(self.bundle, self.identity, self.blessing)

    def to_json(self) -> dict[str, Json]:
        value = self.as_champion.to_json()
        return {**value, "rollout": dict(self.rollout)} if self.rollout else value


@dataclass(frozen=True, slots=True)
class RejectedIdentity:
    """A version that was rolled back: it is not tried again. ``at`` is a time in ISO 8601."""

    identity: str
    incident: str
    at: str

    def to_json(self) -> dict[str, Json]:
        return {"identity": self.identity, "incident": self.incident, "at": self.at}


@dataclass(frozen=True, slots=True)
class DesiredDelivery:
    """What git wants of one service in one environment."""

    service: str
    champion: DesiredChampion | None = None
    candidate: DesiredCandidate | None = None
    rejected: tuple[RejectedIdentity, ...] = ()

    def rejection(self, identity: str) -> RejectedIdentity | None:
        """The entry of a rejected identity."""
        return next((item for item in self.rejected if item.identity == identity), None)

    def to_json(self) -> dict[str, Json]:
        return {
            "service": self.service,
            "champion": None if self.champion is None else self.champion.to_json(),
            "candidate": None if self.candidate is None else self.candidate.to_json(),
            "rejected": [item.to_json() for item in self.rejected],
        }

    def to_yaml(self) -> str:
        """The file of a service that has none yet."""
        header = f"What runs as {self.service} here. Promotions and settlements edit it; git revert undoes them."
        return yaml_text({**self.to_json(), **_explicit_nulls(self)}, plain=["null"], header=header)


def _explicit_nulls(desired: DesiredDelivery) -> dict[str, Json]:
    return {name: "null" for name in ("champion", "candidate") if getattr(desired, name) is None}


def parse_delivery(content: bytes | str, where: str = "delivery.yaml", *, complete: bool = False) -> DesiredDelivery:
    """Parse a file. Raises UsageError, with the line, for anything that is not exactly of its form.

    ``complete`` asks for every key: a file that is being written, and is cut short, is none.

    >>> parse_delivery("service: a\\nchampion: null\\ncandidate: null\\nrejected: []\\n").service
    'a'
    """
    reader = _Reader(where)
    root = reader.compose(content)
    names = ("service", "champion", "candidate", "rejected")
    keys = reader.mapping(root, "", names, names if complete else ("service",))
    champion, candidate, rejected = (keys.get(name) for name in ("champion", "candidate", "rejected"))
    desired = DesiredDelivery(
        reader.text(keys["service"], "service", _SERVICE, "a name in lower case"),
        None if champion is None or champion.tag == _NULL else reader.champion(champion),
        None if candidate is None or candidate.tag == _NULL else reader.candidate(candidate),
        () if rejected is None or rejected.tag == _NULL else reader.rejected(rejected),
    )
    if candidate is not None and desired.candidate is not None and desired.rejection(desired.candidate.identity):
        shown = desired.candidate.identity[:12]
        reader.refuse(candidate, f"candidate: {shown} is rejected in the same file", "set candidate to null")
    return desired


class _Reader:
    """Reads nodes of one file; ``refuse`` names the file and the line."""

    def __init__(self, where: str) -> None:
        self._where = where

    def refuse(self, node: yaml.Node | int | None, message: str, hint: str = "") -> NoReturn:
        line = node if isinstance(node, int) else _line(None if node is None else node.start_mark)
        shown = printable_line(f"{self._where}:{line}: {message}")
        raise UsageError(shown, hint=hint or "git log -p shows who changed it; git revert undoes a commit")

    def compose(self, content: bytes | str) -> yaml.MappingNode:
        size = len(content)
        if size > MAX_BYTES:
            self.refuse(1, f"the file has {size:,} bytes; at most {MAX_BYTES:,} are read")
        try:
            text = content if isinstance(content, str) else content.decode()
        except UnicodeDecodeError as error:
            self.refuse(error.object[: error.start].count(b"\n") + 1, "the file is not UTF-8")
        for number, line in enumerate(text.splitlines(), 1):
            if _MARKER.match(line):
                self.refuse(number, f"an unresolved merge conflict: {line[:20]}", "resolve the conflict and commit")
        try:
            for event in yaml.parse(text, Loader=yaml.SafeLoader):
                if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                    self.refuse(_line(event.start_mark), "anchors and aliases are not read: write the value out")
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            reason = getattr(error, "problem", None) or str(error)
            self.refuse(_line(mark), f"the file is not valid YAML: {reason}")
        except RecursionError:
            self.refuse(1, "the file is nested too deeply")
        if not isinstance(root, yaml.MappingNode):
            self.refuse(1, "the file is no mapping; it has service, champion, candidate and rejected")
        return root

    def mapping(
        self, node: yaml.Node, name: str, allowed: tuple[str, ...], required: tuple[str, ...]
    ) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self.refuse(node, f"{name} is no mapping; it has {', '.join(allowed)}")
        values: dict[str, yaml.Node] = {}
        for key, value in node.value:
            text = str(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            shown = f"{name}.{truncate(text)}" if name else truncate(text)
            if text not in allowed:
                self.refuse(key, f"{shown} is no key of this file; allowed: {', '.join(allowed)}")
            if text in values:
                self.refuse(key, f"{shown} stands there twice")
            values[text] = value
        missing = [key for key in required if key not in values]
        if missing:
            self.refuse(node, f"{name or 'the file'} lacks {' and '.join(missing)}")
        return values

    def text(self, node: yaml.Node, name: str, pattern: re.Pattern[str], form: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or not pattern.fullmatch(node.value):
            shown = f" {truncate(node.value)!r}" if isinstance(node, yaml.ScalarNode) else ""
            self.refuse(node, f"{name}{shown} is not {form}")
        return str(node.value)

    def champion(self, node: yaml.Node, name: str = "champion", more: tuple[str, ...] = ()) -> DesiredChampion:
        keys = self.mapping(node, name, ("bundle", "identity", "blessing", *more), ("bundle", "identity"))
        return DesiredChampion(
            self.text(keys["bundle"], f"{name}.bundle", REFERENCE, "REGISTRY/NAME@sha256:DIGEST"),
            self.text(keys["identity"], f"{name}.identity", _IDENTITY, "a SHA-256 of 64 hexadecimal digits"),
            self.text(keys["blessing"], f"{name}.blessing", _IDENTITY, "a SHA-256") if "blessing" in keys else "",
        )

    def candidate(self, node: yaml.Node) -> DesiredCandidate:
        version = self.champion(node, "candidate", ("rollout",))
        rollout = next((value for key, value in node.value if key.value == "rollout"), None)
        settings: Any = {} if rollout is None or rollout.tag == _NULL else self._json(rollout, "candidate.rollout", 0)
        if not isinstance(settings, dict):
            self.refuse(rollout, "candidate.rollout is no mapping; it is serve.rollout of the recipe")
        return DesiredCandidate(version.bundle, version.identity, version.blessing, settings)

    def rejected(self, node: yaml.Node) -> tuple[RejectedIdentity, ...]:
        if not isinstance(node, yaml.SequenceNode) or len(node.value) > MAX_REJECTED:
            self.refuse(node, f"rejected is no list of at most {MAX_REJECTED} entries")
        entries = []
        for item in node.value:
            keys = self.mapping(item, "rejected", ("identity", "incident", "at"), ("identity",))
            entries.append(
                RejectedIdentity(
                    self.text(keys["identity"], "rejected.identity", _IDENTITY, "a SHA-256 of 64 hexadecimal digits"),
                    *(
                        self.text(keys[key], f"rejected.{key}", _TEXT, "a text of one line") if key in keys else ""
                        for key in ("incident", "at")
                    ),
                )
            )
        return tuple(entries)

    def _json(self, node: yaml.Node, name: str, depth: int) -> Json:
        if depth > MAX_DEPTH:
            self.refuse(node, f"{name} is nested deeper than {MAX_DEPTH} levels")
        if isinstance(node, yaml.MappingNode):
            keys = tuple(str(key.value) for key, _ in node.value)
            values = self.mapping(node, name, keys, ())
            return {key: self._json(value, f"{name}.{key}", depth + 1) for key, value in values.items()}
        if isinstance(node, yaml.SequenceNode):
            return [self._json(item, name, depth + 1) for item in node.value]
        kind = node.tag.rpartition(":")[2]
        if kind == "timestamp":
            return str(node.value)
        if kind not in ("str", "int", "float", "bool", "null"):
            self.refuse(node, f"{name} has the tag {node.tag}, which is not read")
        try:
            value: Json = yaml.constructor.SafeConstructor().construct_document(node)
        except (ValueError, yaml.YAMLError):
            self.refuse(node, f"{name} {truncate(node.value)!r} cannot be read")
        return value


def _line(mark: Any) -> int:
    """The line of a mark of PyYAML, from 1."""
    return 1 if mark is None else int(mark.line) + 1


def edit_delivery(text: str, desired: DesiredDelivery, where: str = "delivery.yaml") -> str:
    """The text with the values of ``desired``; every line whose value is unchanged stays byte for byte.

    Raises UsageError for a text that cannot be parsed.

    >>> old = "# ours\\nservice: a  # keep\\nchampion: null\\ncandidate: null\\nrejected: []\\n"
    >>> edit_delivery(old, parse_delivery(old)) == old
    True
    """
    present = parse_delivery(text, where)
    if present == desired:
        return text
    root = _Reader(where).compose(text)
    nodes = {key.value: (key, value) for key, value in root.value}
    before, after = present.to_json(), desired.to_json()
    changes: list[tuple[int, int, str]] = []
    for name in ("service", "champion", "candidate", "rejected"):
        if before[name] == after[name]:
            continue
        if name not in nodes:
            changes.append((len(text), len(text), _appended(text, name, after[name])))
        else:
            changes += _value_changes(text, *nodes[name], before[name], after[name])
    for start, end, replacement in sorted(changes, reverse=True):
        text = text[:start] + replacement + text[end:]
    parsed = parse_delivery(text, where)
    if parsed != desired:  # a layout that the edit does not know: better to stop than to commit something else
        raise UsageError(
            f"{where} has a layout that cannot be edited in place",
            hint="write champion, candidate and rejected as blocks, one key a line",
        )
    return text


def _appended(text: str, name: str, value: Json) -> str:
    separator = "" if not text or text.endswith("\n") else "\n"
    return f"{separator}{name}:{_block(value, _newline(text))}{_newline(text)}"


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _block(value: Json, newline: str, indent: int = 2) -> str:
    """A value after ``key:``: on the same line, or as a block below it."""
    if value is None:
        return " null"
    lines = yaml_text(value).rstrip("\n").split("\n")
    if not value or not isinstance(value, dict | list):
        return f" {lines[0]}"
    return "".join(f"{newline}{' ' * indent}{line}" for line in lines)


def _value_changes(text: str, key: yaml.Node, node: yaml.Node, before: Json, after: Json) -> list[tuple[int, int, str]]:
    """Replacements (start, end, text) that turn one value of the file into another."""
    newline, indent = _newline(text), key.start_mark.column
    block = isinstance(node, yaml.CollectionNode) and not node.flow_style
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        assert isinstance(node, yaml.MappingNode)
        changes: list[tuple[int, int, str]] = []
        for inner_key, inner in node.value:
            old, new = before.get(inner_key.value), after.get(inner_key.value)
            if old != new:
                if not block and isinstance(new, dict | list):
                    break
                changes += _value_changes(text, inner_key, inner, old, new)
        else:
            return changes
    if isinstance(before, list) and isinstance(after, list) and block and before and after[: len(before)] == before:
        assert isinstance(node, yaml.SequenceNode)
        column, end = node.start_mark.column, _end(node)
        end = _line_end(text, end)
        items = "".join(
            f"{newline}{' ' * column}{line}" for line in yaml_text(after[len(before) :]).rstrip("\n").split("\n")
        )
        return [(end, end, items)]
    start = key.end_mark.index
    start += text[start:].index(":") + 1
    return [(start, _end(node), _block(after, newline, indent + 2))]


def _line_end(text: str, position: int) -> int:
    """The end of the line around a position, before its line feed: past a comment there."""
    end = text.find("\n", position)
    end = len(text) if end < 0 else end
    return end - 1 if end > position and text[end - 1] == "\r" else end


def _end(node: yaml.Node) -> int:
    """Where the last value of a node ends; PyYAML ends a block only where the next token begins."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    end: int = node.end_mark.index
    return end
