"""YAML with places: where each value of a recipe is written, through merging and overriding.

PyYAML lets duplicate keys pass, reads ``1e-3`` as a string and forgets where values came from. `read` keeps the
place of every key and value, reports each fault of the text, and reads scalars as Hydra does. `merge` and `assign`
compose such trees by Hydra's rules and remember what was shadowed. Nothing here imports Hydra.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import yaml

from mlflowkit.errors import Fault
from mlflowkit.values import Json

MAX_BYTES = 1 << 20
"""Largest recipe or group file that is read."""
MAX_DEPTH = 64
"""Deepest nesting."""
MAX_NODES = 50_000
"""Most values, after aliases are expanded."""
OVERRIDE = "<override>"
"""The file of a place in an override: its line is the index of the override, from 1."""

KeyPath = tuple[str | int, ...]
_TAG = "tag:yaml.org,2002:"
# As OmegaConf has it: an exponent needs no dot.
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
class Place:
    """Lines and columns count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it is written.

    ``value`` is a scalar, a ``dict[str, Node]`` or a ``list[Node]``; ``key`` is the place of its key in a mapping;
    ``shadows`` are the values that it replaced, the latest first; ``size`` counts the nodes in it.
    """

    value: Any
    place: Place
    key: Place | None = None
    shadows: tuple[Node, ...] = ()
    size: int = 1
    origin: str = ""
    """Of a value set by an override: the text of the override."""

    @property
    def mapping(self) -> dict[str, Node] | None:
        return self.value if isinstance(self.value, dict) else None

    @property
    def start(self) -> Place:
        """The place of the key, or of the value where there is no key."""
        return self.key or self.place


@dataclass(frozen=True, slots=True)
class Document:
    """What `read` found: ``root`` is None when the text is empty or could not be read to its end."""

    root: Node | None
    faults: tuple[Fault, ...]


def read(text: str, file: str) -> Document:
    """Read one YAML document strictly.

    >>> document = read("train:\\n  lr: 1e-3\\n", "recipe.yaml")
    >>> lr = find(document.root, ("train", "lr"))
    >>> lr.value, str(lr.place)
    (0.001, 'recipe.yaml:2:7')
    >>> [str(fault) for fault in read("a: 1\\na: 2\\n", "r.yaml").faults]
    ["r.yaml:2:1: a: duplicate key 'a': first given at line 1"]
    """
    reader = _Reader(text, file)
    root: Node | None = None
    try:
        root = reader.document()
    except _Stop:
        pass
    except yaml.YAMLError as error:
        reader.faults.append(_syntax_fault(error, text, file))
        reader.tabs(only_to=reader.faults[-1].line)
    else:
        reader.tabs()
    faults = sorted(set(reader.faults), key=lambda fault: (fault.line, fault.column))
    return Document(root, tuple(faults))


class _Stop(Exception):
    """Reading cannot go on; the fault is recorded."""


class _Reader:
    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.faults: list[Fault] = []
        self.anchors: dict[str, Node] = {}
        self.exempt: set[int] = set()
        self.nodes = 0
        self.events: Iterator[Any] = iter(())

    def document(self) -> Node | None:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self.events = yaml.parse(self.text, Loader=loader)
        root: Node | None = None
        documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._fault(event, (), "---", "a second document: a recipe is one document", "remove the ---")
                    raise _Stop
            elif not isinstance(event, yaml.StreamStartEvent | yaml.StreamEndEvent | yaml.DocumentEndEvent):
                root = self._node(event, (), None)
        return root

    def _place(self, mark: Any) -> Place:
        return Place(self.file, mark.line + 1, mark.column + 1)

    def _fault(self, event: Any, path: KeyPath, found: str, message: str, hint: str = "") -> None:
        place = self._place(event.start_mark)
        self.faults.append(Fault(place.file, place.line, place.column, dotted(path), found, message, hint))

    def _node(self, event: Any, path: KeyPath, key: Place | None) -> Node:
        self.nodes += 1
        if len(path) > MAX_DEPTH:
            self._fault(event, (), "", f"nested deeper than {MAX_DEPTH} levels", "a recipe is flatter than this")
            raise _Stop
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, path, key)
        if event.tag is not None:
            self._fault(event, path, event.tag, f"the tag {event.tag} is not allowed", "values are plain data: drop it")
        if isinstance(event, yaml.ScalarEvent):
            node = Node(self._scalar(event, path), self._place(event.start_mark), key)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(event, path, key)
        else:
            node = self._mapping(event, path, key)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _alias(self, event: Any, path: KeyPath, key: Place | None) -> Node:
        target = self.anchors.get(event.anchor)
        if target is None:
            hint = f"define it first: &{event.anchor}"
            self._fault(event, path, f"*{event.anchor}", f"there is no anchor &{event.anchor} above", hint)
            return Node(None, self._place(event.start_mark), key)
        self.nodes += target.size
        if self.nodes > MAX_NODES:
            self._fault(event, path, f"*{event.anchor}", f"aliases expand to more than {MAX_NODES} values")
            raise _Stop
        return replace(target, key=key)

    def _scalar(self, event: Any, path: KeyPath) -> Any:
        if event.style in ("|", ">", '"', "'"):
            self.exempt.update(range(event.start_mark.line + 1, event.end_mark.line + 1))
        if not event.implicit[0]:
            return event.value
        tag = scalar_tag(event.value)
        try:
            return construct(tag, event.value)
        except (ValueError, OverflowError, yaml.YAMLError):
            shown = shorten(event.value)
            self._fault(event, path, shown, f"{shown} cannot be read as a value", f'quote it if it is text: "{shown}"')
            return None

    def _sequence(self, event: Any, path: KeyPath, key: Place | None) -> Node:
        items: list[Node] = []
        while not isinstance(child := next(self.events), yaml.SequenceEndEvent):
            items.append(self._node(child, (*path, len(items)), None))
        return Node(items, self._place(event.start_mark), key, size=1 + sum(item.size for item in items))

    def _mapping(self, event: Any, path: KeyPath, key: Place | None) -> Node:
        entries: dict[str, Node] = {}
        merged: list[Node] = []
        while not isinstance(child := next(self.events), yaml.MappingEndEvent):
            place = self._place(child.start_mark)
            name = self._key(child, path)
            node = self._node(next(self.events), (*path, "?" if name is None else name), place)
            if name is None:
                continue
            if name == "<<" and isinstance(child, yaml.ScalarEvent) and child.implicit[0]:
                merged.append(node)
            elif name in entries:
                first = entries[name].start
                message = f"duplicate key {name!r}: first given at line {first.line}"
                hint = f"keep one of lines {first.line} and {place.line}"
                self._fault(child, (*path, name), name, message, hint)
            else:
                entries[name] = node
        for node in merged:
            self._merge_key(node, entries, path)
        return Node(entries, self._place(event.start_mark), key, size=1 + sum(node.size for node in entries.values()))

    def _merge_key(self, node: Node, entries: dict[str, Node], path: KeyPath) -> None:
        for source in node.value if isinstance(node.value, list) else [node]:
            if source.mapping is None:
                place, message = node.start, "<< takes a mapping, or a list of mappings"
                fault = Fault(place.file, place.line, place.column, dotted((*path, "<<")), show(source), message)
                self.faults.append(fault)
                continue
            for name, value in source.mapping.items():
                entries.setdefault(name, value)

    def _key(self, event: Any, path: KeyPath) -> str | None:
        if isinstance(event, yaml.AliasEvent):
            node = self._alias(event, path, None)
            if isinstance(node.value, str):
                return node.value
            self._fault(event, path, f"*{event.anchor}", "a key must be text")
            return None
        if not isinstance(event, yaml.ScalarEvent):
            self._fault(
                event, path, "", "a key must be text, not a list or a mapping", "is a brace or bracket out of place?"
            )
            self._node(event, (*path, "?"), None)
            return None
        value = self._scalar(event, path) if event.value != "<<" else "<<"
        if event.anchor is not None:
            self.anchors[event.anchor] = Node(value, self._place(event.start_mark))
        if isinstance(value, str):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        kind = "nothing" if value is None else f"{kind_of(value)}"
        self._fault(event, path, event.value, f"the key {event.value!r} reads as {kind}", f'quote it: "{event.value}"')
        return None

    def tabs(self, only_to: int | None = None) -> None:
        """Report tabs in indentation, outside quoted and block text."""
        for index, line in enumerate(self.text.splitlines()[:only_to]):
            if "\t" not in line or index in self.exempt:
                continue
            column = len(line) - len(line.lstrip(" "))
            harmless = not line.strip() and index + 1 != only_to
            if line[column] != "\t" or harmless or line.lstrip().startswith("#"):
                continue
            self.faults = [fault for fault in self.faults if fault.line != index + 1]
            message, hint = "a tab in the indentation", "YAML is indented with spaces: replace the tab"
            self.faults.append(Fault(self.file, index + 1, column + 1, "", "\\t", message, hint))


def _syntax_fault(error: yaml.YAMLError, text: str, file: str) -> Fault:
    """A reader's or scanner's complaint, in words that say what to do."""
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
    found = lines[row][column : column + 20] if row < len(lines) else ""
    problem = getattr(error, "problem", None) or str(error)
    message = f"not YAML: {problem}" + (f" {context}" if context else "")
    return Fault(file, row + 1, column + 1, "", found, message, _SYNTAX_HINTS.get(problem, "check the line above too"))


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


# ------------------------------------------------------------------------------------------------------ scalars


@cache
def _resolvers() -> dict[Any, list[tuple[str, re.Pattern[str]]]]:
    """YAML 1.1 as PyYAML has it, with OmegaConf's floats and without timestamps."""
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
    for tag, pattern in [*table.get(text[:1], []), *table.get(None, [])]:
        if pattern.match(text):
            return tag
    return _TAG + "str"


@cache
def _constructor() -> Any:
    return yaml.constructor.SafeConstructor()


def construct(tag: str, text: str) -> Any:
    """A plain scalar's value. Raises ValueError."""
    kind = tag.removeprefix(_TAG)
    if kind in ("str", "merge"):
        return text
    if kind == "null":
        return None
    if kind not in ("int", "float", "bool"):
        raise ValueError(f"a plain scalar of kind {kind}")
    return getattr(_constructor(), f"construct_yaml_{kind}")(yaml.ScalarNode(tag, text))


# --------------------------------------------------------------------------------------------------------- trees


def plain(node: Node) -> Json:
    """The values of a tree, without places."""
    if isinstance(node.value, dict):
        return {name: plain(child) for name, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def find(node: Node | None, path: Sequence[str | int]) -> Node | None:
    """The node at a key path, or None."""
    for part in path:
        if node is None:
            return None
        node = child(node, part)
    return node


def child(node: Node, part: str | int) -> Node | None:
    """One step down."""
    if isinstance(node.value, dict):
        return node.value.get(str(part))
    if isinstance(node.value, list) and str(part).lstrip("-").isdigit():
        index = int(part)
        return node.value[index] if 0 <= index < len(node.value) else None
    return None


def nearest(node: Node, path: Sequence[str | int]) -> Node:
    """The node at a key path, or the deepest one above it."""
    for part in path:
        below = child(node, part)
        if below is None:
            return node
        node = below
    return node


def walk(node: Node, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Node]]:
    """Every node with its key path, parents first."""
    yield path, node
    if isinstance(node.value, dict):
        for name, below in node.value.items():
            yield from walk(below, (*path, name))
    elif isinstance(node.value, list):
        for index, below in enumerate(node.value):
            yield from walk(below, (*path, index))


def merge(base: Node, over: Node) -> Node:
    """``over`` on top of ``base``, as Hydra merges: mappings by key, everything else replaced.

    One addition: a list under a key that ends in ``+`` is appended to the list under the key without it.

    >>> base = read("gates: [1]", "a.yaml").root
    >>> plain(merge(base, read("gates+: [2]", "b.yaml").root))
    {'gates': [1, 2]}
    """
    if base.mapping is None or over.mapping is None:
        if over.value == "???" and isinstance(over.value, str):
            return base
        return replace(over, shadows=(*over.shadows, replace(base, shadows=()), *base.shadows))
    entries = dict(base.mapping)
    for name, node in over.mapping.items():
        if name.endswith("+") and isinstance(node.value, list):
            entries[name[:-1]] = _append(entries.get(name[:-1]), node)
        elif name in entries:
            entries[name] = merge(entries[name], node)
        else:
            entries[name] = merge(replace(node, value={}), node) if node.mapping is not None else node
    top = base if base.mapping else over
    return replace(top, value=entries, size=1 + sum(node.size for node in entries.values()))


def _append(base: Node | None, node: Node) -> Node:
    if base is None or not isinstance(base.value, list):
        return node
    return replace(base, value=[*base.value, *node.value], size=base.size + node.size)


def embed(node: Node, package: Sequence[str]) -> Node:
    """A tree under a key path."""
    for name in reversed(package):
        node = Node({name: node}, node.place, node.key, size=node.size + 1)
    return node


def from_value(value: Any, place: Place, origin: str, key: Place | None = None) -> Node:
    """A tree of plain values that are all written at one place: the value of an override."""
    if isinstance(value, dict):
        below = {str(name): from_value(item, place, origin) for name, item in value.items()}
        return Node(below, place, key, origin=origin)
    if isinstance(value, list | tuple):
        return Node([from_value(item, place, origin) for item in value], place, key, origin=origin)
    return Node(value, place, key, origin=origin)


def assign(root: Node, path: Sequence[str], node: Node, keys: Sequence[Place]) -> Node:
    """The tree with a value set, as an override sets it: mappings merge, everything else is replaced.

    Missing mappings on the way are made; ``keys`` are the places of the parts of ``path``. Raises LookupError where
    the path crosses a list without such an item.
    """
    if not path:
        return merge(root, node)
    name, rest = path[0], path[1:]
    if isinstance(root.value, list):
        below = child(root, name)
        if below is None:
            raise LookupError(f"there is no item {name} in a list of {len(root.value)}")
        index = int(name)
        items = [*root.value[:index], assign(below, rest, node, keys[1:]), *root.value[index + 1 :]]
        return replace(root, value=items)
    if root.mapping is None:
        root = Node({}, node.place, root.key, shadows=(replace(root, shadows=()), *root.shadows), origin=node.origin)
    entries = dict(root.value)
    below = entries.get(name)
    if below is None and not rest:
        entries[name] = replace(node, key=keys[0])
    else:
        below = below or Node({}, node.place, keys[0], origin=node.origin)
        entries[name] = assign(below, rest, node, keys[1:])
    return replace(root, value=entries)


def remove(root: Node, path: Sequence[str]) -> Node:
    """The tree without a key. Raises LookupError when it is not there."""
    name, rest = path[0], path[1:]
    below = child(root, name)
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


def attach(value: Json, node: Node) -> Node:
    """``value`` with the places of ``node``, a tree of the same shape; where it differs, the nearest place above."""
    if isinstance(value, dict):
        below = node.mapping or {}
        entries = {str(name): attach(item, below.get(str(name), _bare(node))) for name, item in value.items()}
        return replace(node, value=entries)
    if isinstance(value, list):
        items = node.value if isinstance(node.value, list) else []
        return replace(
            node,
            value=[
                attach(item, items[index] if index < len(items) else _bare(node)) for index, item in enumerate(value)
            ],
        )
    return replace(node, value=value)


def _bare(node: Node) -> Node:
    return Node(None, node.place, node.key, origin=node.origin)


# --------------------------------------------------------------------------------------------------------- words


def dotted(path: Sequence[str | int]) -> str:
    """A key path as overrides write it.

    >>> dotted(("gates", 0, "min"))
    'gates.0.min'
    """
    return ".".join(str(part) for part in path)


def kind_of(value: Any) -> str:
    """What a value is, in the words of a recipe.

    >>> [kind_of(value) for value in (None, True, 1, 1.5, "a", [], {})]
    ['null', 'a boolean', 'an integer', 'a number', 'text', 'a list', 'a mapping']
    """
    if value is None:
        return "null"
    for kind, words in ((bool, "a boolean"), (int, "an integer"), (float, "a number"), (str, "text")):
        if isinstance(value, kind):
            return words
    return "a list" if isinstance(value, list | tuple) else "a mapping" if isinstance(value, dict) else "a value"


def show(value: Any) -> str:
    """A value as a message quotes it: short, on one line.

    >>> show("fast"), show(None), show([1, 2]), show(True)
    ("'fast'", 'null', '[1, 2]', 'true')
    """
    if isinstance(value, Node):
        value = plain(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}.get(repr(value), repr(value))
    if isinstance(value, int):
        return str(value) if value.bit_length() < 200 else "a very long integer"
    if isinstance(value, list | tuple):
        return shorten("[" + ", ".join(show(item) for item in value[:20]) + "]")
    if isinstance(value, dict):
        return shorten("{" + ", ".join(f"{name}: {show(item)}" for name, item in list(value.items())[:20]) + "}")
    return repr(shorten(str(value)))


def shorten(text: str, width: int = 60) -> str:
    """At most ``width`` characters."""
    return text if len(text) <= width else text[: width - 1] + "…"
