"""YAML trees with source locations, kept through merging and overriding.

PyYAML accepts duplicate keys, reads ``1e-3`` as a string and drops locations. `read` keeps the location of every key
and value, reports each fault of the text, and reads scalars as Hydra does. `merge` and `assign` compose trees by
Hydra's rules and keep the shadowed values. Hydra is not imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, repeat
from typing import Any

import yaml

from mlflowkit.errors import Fault
from mlflowkit.system.text import truncate
from mlflowkit.values import Json

MAX_BYTES = 1 << 20
"""Size limit of a recipe or group file."""
MAX_DEPTH = 64
"""Limit of nesting."""
MAX_NODES = 50_000
"""Limit of the number of values, with aliases expanded."""
MAX_SHOWN = 60
"""Characters of a value in a message."""
BOOLEAN_KEY = "on"
"""A key of recipes that YAML 1.1 reads as true; unquoted it is meant as text, as YAML 1.2 reads it."""
OVERRIDE_FILE = "<override>"
"""The file of a location in an override, whose line is the override's index, from 1."""

KeyPath = tuple[str | int, ...]
_TAG = "tag:yaml.org,2002:"
# OmegaConf's pattern: an exponent needs no dot.
_FLOAT = re.compile(
    r"""^(?:[-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+)
    |\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*(?::[0-5]?[0-9])+\.[0-9_]*
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.X,
)


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """A source location; lines and columns count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def fault(self, key: str, value: str, message: str, hint: str = "") -> Fault:
        return Fault(self.file, self.line, self.column, key, value, message, hint)


@dataclass(frozen=True, slots=True)
class Node:
    """A value with its source location.

    ``value`` is a scalar, a ``dict[str, Node]`` or a ``list[Node]``; ``key`` is the location of its key in a mapping;
    ``shadows`` are the values it replaced, latest first; ``size`` is the number of nodes.
    """

    value: Any
    location: Location
    key: Location | None = None
    shadows: tuple[Node, ...] = ()
    size: int = 1
    origin: str = ""
    """Text of the override that set the value, or ""."""

    @property
    def mapping(self) -> dict[str, Node] | None:
        return self.value if isinstance(self.value, dict) else None

    @property
    def start(self) -> Location:
        """Location of the key, or of the value if there is no key."""
        return self.key or self.location


@dataclass(frozen=True, slots=True)
class Document:
    """The result of `read`. ``root`` is None for an empty or unreadable text."""

    root: Node | None
    faults: tuple[Fault, ...]


def read(text: str, file: str) -> Document:
    """Read one YAML document strictly.

    >>> document = read("train:\\n  lr: 1e-3\\n", "recipe.yaml")
    >>> lr = find(document.root, ("train", "lr"))
    >>> lr.value, str(lr.location)
    (0.001, 'recipe.yaml:2:7')
    >>> [str(fault) for fault in read("a: 1\\na: 2\\n", "r.yaml").faults]
    ["r.yaml:2:1: a: duplicate key 'a': first given at line 1"]
    """
    reader = _YamlReader(text, file)
    root: Node | None = None
    try:
        root = reader.read_document()
    except _ReadAbortedError:
        pass
    except yaml.YAMLError as error:
        reader.faults.append(_syntax_fault(error, text, file))
        reader.report_tabs(only_to=reader.faults[-1].line)
    else:
        reader.report_tabs()
    faults = sorted(set(reader.faults), key=lambda fault: (fault.line, fault.column))
    return Document(root, tuple(faults))


class _ReadAbortedError(Exception):
    """Stops reading after a recorded fault."""


class _YamlReader:
    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.faults: list[Fault] = []
        self.anchors: dict[str, Node] = {}
        self.multiline_rows: set[int] = set()
        self.nodes = 0
        self.events: Iterator[Any] = iter(())

    def read_document(self) -> Node | None:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self.events = yaml.parse(self.text, Loader=loader)
        root: Node | None = None
        documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._add_fault(event, (), "---", "a second document: a recipe is one document", "remove the ---")
                    raise _ReadAbortedError
            elif not isinstance(event, yaml.StreamStartEvent | yaml.StreamEndEvent | yaml.DocumentEndEvent):
                root = self._read_node(event, (), None)
        return root

    def _location(self, mark: Any) -> Location:
        return Location(self.file, mark.line + 1, mark.column + 1)

    def _add_fault(self, event: Any, path: KeyPath, value: str, message: str, hint: str = "") -> None:
        self.faults.append(self._location(event.start_mark).fault(dotted(path), value, message, hint))

    def _read_node(self, event: Any, path: KeyPath, key: Location | None) -> Node:
        self.nodes += 1
        if len(path) > MAX_DEPTH:
            self._add_fault(event, (), "", f"nested deeper than {MAX_DEPTH} levels", "a recipe is flatter than this")
            raise _ReadAbortedError
        if isinstance(event, yaml.AliasEvent):
            return self._read_alias(event, path, key)
        if event.tag is not None:
            message = f"the tag {event.tag} is not allowed"
            self._add_fault(event, path, event.tag, message, "values are plain data: drop it")
        if isinstance(event, yaml.ScalarEvent):
            node = Node(self._read_scalar(event, path), self._location(event.start_mark), key)
        elif isinstance(event, yaml.SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(child := next(self.events), yaml.SequenceEndEvent):
                items.append(self._read_node(child, (*path, len(items)), None))
            node = Node(items, self._location(event.start_mark), key, size=1 + sum(item.size for item in items))
        else:
            node = self._read_mapping(event, path, key)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _read_alias(self, event: Any, path: KeyPath, key: Location | None) -> Node:
        target = self.anchors.get(event.anchor)
        if target is None:
            hint = f"define it first: &{event.anchor}"
            self._add_fault(event, path, f"*{event.anchor}", f"there is no anchor &{event.anchor} above", hint)
            return Node(None, self._location(event.start_mark), key)
        self.nodes += target.size
        if self.nodes > MAX_NODES:
            self._add_fault(event, path, f"*{event.anchor}", f"aliases expand to more than {MAX_NODES} values")
            raise _ReadAbortedError
        return replace(target, key=key)

    def _read_scalar(self, event: Any, path: KeyPath) -> Any:
        if event.style in ("|", ">", '"', "'"):
            self.multiline_rows.update(range(event.start_mark.line + 1, event.end_mark.line + 1))
        if not event.implicit[0]:
            return event.value
        try:
            return construct(scalar_tag(event.value), event.value)
        except (ValueError, OverflowError, yaml.YAMLError):
            shown = truncate(event.value, MAX_SHOWN)
            message, hint = f"{shown} cannot be read as a value", f'quote it if it is text: "{shown}"'
            self._add_fault(event, path, shown, message, hint)
            return None

    def _read_mapping(self, event: Any, path: KeyPath, key: Location | None) -> Node:
        entries: dict[str, Node] = {}
        merged: list[Node] = []
        while not isinstance(child := next(self.events), yaml.MappingEndEvent):
            location = self._location(child.start_mark)
            name = self._read_key(child, path)
            node = self._read_node(next(self.events), (*path, "?" if name is None else name), location)
            if name is None:
                continue
            if name == "<<" and isinstance(child, yaml.ScalarEvent) and child.implicit[0]:
                merged.append(node)
            elif name in entries:
                first = entries[name].start
                message = f"duplicate key {name!r}: first given at line {first.line}"
                hint = f"keep one of lines {first.line} and {location.line}"
                self._add_fault(child, (*path, name), name, message, hint)
            else:
                entries[name] = node
        for node in merged:
            self._apply_merge_key(node, entries, path)
        size = 1 + sum(node.size for node in entries.values())
        return Node(entries, self._location(event.start_mark), key, size=size)

    def _apply_merge_key(self, node: Node, entries: dict[str, Node], path: KeyPath) -> None:
        for source in node.value if isinstance(node.value, list) else [node]:
            if source.mapping is None:
                message = "<< takes a mapping, or a list of mappings"
                self.faults.append(node.start.fault(dotted((*path, "<<")), format_value(source), message))
            for name, value in (source.mapping or {}).items():
                entries.setdefault(name, value)

    def _read_key(self, event: Any, path: KeyPath) -> str | None:
        if isinstance(event, yaml.AliasEvent):
            node = self._read_alias(event, path, None)
            if isinstance(node.value, str):
                return node.value
            self._add_fault(event, path, f"*{event.anchor}", "a key must be text")
            return None
        if not isinstance(event, yaml.ScalarEvent):
            message = "a key must be text, not a list or a mapping"
            self._add_fault(event, path, "", message, "is a brace or bracket out of place?")
            self._read_node(event, (*path, "?"), None)
            return None
        value = self._read_scalar(event, path) if event.value != "<<" else "<<"
        if event.anchor is not None:
            self.anchors[event.anchor] = Node(value, self._location(event.start_mark))
        if isinstance(value, str):
            return value
        if event.value == BOOLEAN_KEY:
            return BOOLEAN_KEY
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        message = f"the key {event.value!r} reads as {'nothing' if value is None else describe_type(value)}"
        self._add_fault(event, path, event.value, message, f'quote it: "{event.value}"')
        return None

    def report_tabs(self, only_to: int | None = None) -> None:
        """Report tabs in indentation, outside quoted and block text."""
        for index, line in enumerate(self.text.splitlines()[:only_to]):
            if "\t" not in line or index in self.multiline_rows:
                continue
            column = len(line) - len(line.lstrip(" "))
            harmless = not line.strip() and index + 1 != only_to
            if line[column] != "\t" or harmless or line.lstrip().startswith("#"):
                continue
            self.faults = [fault for fault in self.faults if fault.line != index + 1]
            message, hint = "a tab in the indentation", "YAML is indented with spaces: replace the tab"
            self.faults.append(Fault(self.file, index + 1, column + 1, "", "\\t", message, hint))


def _syntax_fault(error: yaml.YAMLError, text: str, file: str) -> Fault:
    """The fault for an error of PyYAML's reader or scanner."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        position = getattr(error, "position", 0) or 0
        before = text.encode()[:position].decode(errors="ignore")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        return Fault(file, line, column, "", "", "a control character", "remove it, or write it as \\x.. in quotes")
    opened = getattr(error, "context_mark", None)
    context = getattr(error, "context", None) or ""
    if opened is not None and any(word in context for word in ("flow", "quoted")):
        mark = opened
    lines = text.splitlines()
    row, column = mark.line, mark.column
    while row > 0 and (row >= len(lines) or not lines[row].strip(" ")):
        row, column = row - 1, len(lines[row - 1]) if row <= len(lines) else 0
    excerpt = lines[row][column : column + 20] if row < len(lines) else ""
    problem = getattr(error, "problem", None) or str(error)
    message = f"not YAML: {problem}" + (f" {context}" if context else "")
    hint = _SYNTAX_HINTS.get(problem, "correct this line, or the one above it")
    return Fault(file, row + 1, column + 1, "", excerpt, message, hint)


_SYNTAX_HINTS = {
    "mapping values are not allowed in this context": "indent as the line above, or quote a text that contains ': '",
    "could not find expected ':'": "a key is followed by a colon and a space",
    "did not find expected ',' or ']'": "close the list with ]",
    "did not find expected ',' or '}'": "close the mapping with }",
    "did not find expected key": "keys of one mapping start in one column",
    "did not find expected '-' indicator": "items of one list start in one column",
    "found unexpected end of stream": "close the quote",
    "found character that cannot start any token": "quote a text that starts with this character",
    "found unexpected document indicator": "close the quote",
}


@cache
def _resolvers() -> dict[Any, list[tuple[str, re.Pattern[str]]]]:
    """PyYAML's YAML 1.1 resolvers, with OmegaConf's floats and without timestamps."""
    table = {
        first: [pair for pair in pairs if pair[0] != _TAG + "timestamp"]
        for first, pairs in yaml.resolver.Resolver.yaml_implicit_resolvers.items()
    }
    for first in "-+0123456789.":
        table.setdefault(first, []).append((_TAG + "float", _FLOAT))
    return table


def scalar_tag(text: str) -> str:
    """The YAML tag of a plain scalar."""
    table = _resolvers()
    patterns = [*table.get(text[:1], []), *table.get(None, [])]
    return next((tag for tag, pattern in patterns if pattern.match(text)), _TAG + "str")


def construct(tag: str, text: str) -> Any:
    """A plain scalar's value. Raises ValueError."""
    kind = tag.removeprefix(_TAG)
    if kind in ("str", "merge"):
        return text
    if kind == "null":
        return None
    if kind not in ("int", "float", "bool"):
        raise ValueError(f"a plain scalar of kind {kind}")
    return getattr(yaml.constructor.SafeConstructor(), f"construct_yaml_{kind}")(yaml.ScalarNode(tag, text))


def to_plain(node: Node) -> Json:
    """The values of a tree without locations."""
    if isinstance(node.value, dict):
        return {name: to_plain(child) for name, child in node.value.items()}
    if isinstance(node.value, list):
        return [to_plain(child) for child in node.value]
    return node.value


def find(node: Node | None, path: Sequence[str | int]) -> Node | None:
    """The node at a key path, or None."""
    for part in path:
        node = child_of(node, part) if node is not None else None
    return node


def child_of(node: Node, part: str | int) -> Node | None:
    """The node at one part of a key path, or None."""
    if isinstance(node.value, dict):
        return node.value.get(str(part))
    if isinstance(node.value, list) and str(part).lstrip("-").isdigit():
        index = int(part)
        return node.value[index] if 0 <= index < len(node.value) else None
    return None


def nearest_node(node: Node, path: Sequence[str | int]) -> Node:
    """The node at a key path, or the deepest existing one above it."""
    for part in path:
        below = child_of(node, part)
        if below is None:
            return node
        node = below
    return node


def walk(node: Node, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Node]]:
    """Iterate over all nodes with their key paths, parents first."""
    yield path, node
    if isinstance(node.value, dict):
        for name, below in node.value.items():
            yield from walk(below, (*path, name))
    elif isinstance(node.value, list):
        for index, below in enumerate(node.value):
            yield from walk(below, (*path, index))


def merge(base: Node, over: Node) -> Node:
    """Merge ``over`` into ``base`` by Hydra's rules: mappings by key, all else replaced.

    In addition, a list under a key that ends in ``+`` is appended to the list under the key without it.

    >>> base = read("gates: [1]", "a.yaml").root
    >>> to_plain(merge(base, read("gates+: [2]", "b.yaml").root))
    {'gates': [1, 2]}
    """
    if base.mapping is None or over.mapping is None:
        if over.value == "???" and isinstance(over.value, str):
            return base
        return replace(over, shadows=(*over.shadows, replace(base, shadows=()), *base.shadows))
    entries = dict(base.mapping)
    for name, node in over.mapping.items():
        if name.endswith("+") and isinstance(node.value, list):
            current = entries.get(name[:-1])
            if current is not None and isinstance(current.value, list):
                node = replace(current, value=[*current.value, *node.value], size=current.size + node.size)
            entries[name[:-1]] = node
        elif name in entries:
            entries[name] = merge(entries[name], node)
        else:
            entries[name] = merge(replace(node, value={}), node) if node.mapping is not None else node
    top = base if base.mapping else over
    return replace(top, value=entries, size=1 + sum(node.size for node in entries.values()))


def embed(node: Node, package: Sequence[str]) -> Node:
    """Put a tree under a key path."""
    for name in reversed(package):
        node = Node({name: node}, node.location, node.key, size=node.size + 1)
    return node


def from_value(value: Any, location: Location, origin: str, key: Location | None = None) -> Node:
    """Convert the value of an override to a tree, all at one location."""
    if isinstance(value, dict):
        below = {str(name): from_value(item, location, origin) for name, item in value.items()}
        return Node(below, location, key, origin=origin)
    if isinstance(value, list | tuple):
        return Node([from_value(item, location, origin) for item in value], location, key, origin=origin)
    return Node(value, location, key, origin=origin)


def assign(root: Node, path: Sequence[str], node: Node, keys: Sequence[Location]) -> Node:
    """Set a value as an override does: mappings merge, all else is replaced.

    Creates missing mappings; ``keys`` are the locations of the parts of ``path``. Raises LookupError for a missing
    list item.
    """
    if not path:
        return merge(root, node)
    name, rest = path[0], path[1:]
    if isinstance(root.value, list):
        below = child_of(root, name)
        if below is None:
            raise LookupError(f"there is no item {name} in a list of {len(root.value)}")
        index = int(name)
        items = [*root.value[:index], assign(below, rest, node, keys[1:]), *root.value[index + 1 :]]
        return replace(root, value=items)
    if root.mapping is None:
        root = Node({}, node.location, root.key, shadows=(replace(root, shadows=()), *root.shadows), origin=node.origin)
    entries = dict(root.value)
    below = entries.get(name)
    if below is None and not rest:
        entries[name] = replace(node, key=keys[0])
    else:
        below = below or Node({}, node.location, keys[0], origin=node.origin)
        entries[name] = assign(below, rest, node, keys[1:])
    return replace(root, value=entries)


def remove(root: Node, path: Sequence[str]) -> Node:
    """Remove a key. Raises LookupError when it is missing."""
    name, rest = path[0], path[1:]
    below = child_of(root, name)
    if below is None:
        raise LookupError(f"there is no {name}")
    if isinstance(root.value, list):
        index = int(name)
        middle = [remove(below, rest)] if rest else []
        return replace(root, value=[*root.value[:index], *middle, *root.value[index + 1 :]])
    entries = dict(root.value)
    if rest:
        entries[name] = remove(below, rest)
    else:
        del entries[name]
    return replace(root, value=entries)


def with_locations(value: Json, node: Node) -> Node:
    """Give ``value`` the locations of ``node``, a tree of the same shape; else those of the nearest parent."""
    bare = Node(None, node.location, node.key, origin=node.origin)
    if isinstance(value, dict):
        children = node.mapping or {}
        entries = {str(name): with_locations(item, children.get(str(name), bare)) for name, item in value.items()}
        return replace(node, value=entries)
    if isinstance(value, list):
        nodes = chain(node.value if isinstance(node.value, list) else [], repeat(bare))
        return replace(node, value=[with_locations(item, below) for item, below in zip(value, nodes, strict=False)])
    return replace(node, value=value)


def dotted(path: Sequence[str | int]) -> str:
    """Format a key path as in an override.

    >>> dotted(("gates", 0, "min"))
    'gates.0.min'
    """
    return ".".join(str(part) for part in path)


def describe_type(value: Any) -> str:
    """The type of a value in recipe terms, with article.

    >>> [describe_type(value) for value in (None, True, 1, 1.5, "a", [], {})]
    ['null', 'a boolean', 'an integer', 'a number', 'text', 'a list', 'a mapping']
    """
    if value is None:
        return "null"
    for kind, description in ((bool, "a boolean"), (int, "an integer"), (float, "a number"), (str, "text")):
        if isinstance(value, kind):
            return description
    return "a list" if isinstance(value, list | tuple) else "a mapping" if isinstance(value, dict) else "a value"


def format_value(value: Any) -> str:
    """Format a value for a message: short, on one line.

    >>> format_value("fast"), format_value(None), format_value([1, 2]), format_value(True)
    ("'fast'", 'null', '[1, 2]', 'true')
    """
    if isinstance(value, Node):
        value = to_plain(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}.get(repr(value), repr(value))
    if isinstance(value, int):
        return str(value) if value.bit_length() < 200 else "a very long integer"
    if isinstance(value, list | tuple):
        return truncate(f"[{', '.join(map(format_value, value[:20]))}]", MAX_SHOWN)
    if isinstance(value, dict):
        items = (f"{name}: {format_value(item)}" for name, item in list(value.items())[:20])
        return truncate(f"{{{', '.join(items)}}}", MAX_SHOWN)
    return repr(truncate(str(value), MAX_SHOWN))
