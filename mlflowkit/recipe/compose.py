"""Compose a recipe with Hydra: defaults list, config groups, overrides, sweeps. Nothing is ever instantiated.

Groups are looked up in the recipe's folder, in ``conf/`` beside the recipe, then among those shipped with mlflowkit.
Hydra selects the files of a recipe and composes their values; `mlflowkit.recipe.yaml_tree` reads the same files for
locations. Three extensions of Hydra:

- ``train.epochs=3`` also sets a key that the recipe leaves at its default (the schema knows every key);
- ``+gates/strict`` is short for ``+gates=strict``;
- a list under a key that ends in ``+`` (``gates+:``) is appended to the list of the files before it.

The only module that imports Hydra and OmegaConf, and only when there is something to compose.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mlflowkit.errors import Fault, RecipeError, closest_match
from mlflowkit.recipe import yaml_tree
from mlflowkit.recipe.config_files import (
    SHIPPED,
    check_defaults,
    defaults_entries,
    display_path,
    find_config,
    has_defaults,
    known_groups,
    located_error,
    read_config_file,
    search_path,
    unknown_option,
    without_defaults,
)  # fmt: skip
from mlflowkit.recipe.schema_errors import corrected_override
from mlflowkit.recipe.yaml_tree import OVERRIDE_FILE, KeyPath, Location, Node
from mlflowkit.system.text import first_line
from mlflowkit.values import Json

MAX_JOBS = 1000
"""Limit of the recipes in a sweep."""

Action = Literal["set", "add", "delete", "group"]

_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class Override:
    """One override of the command line. ``column`` is where its value starts (its key, if it has none)."""

    index: int
    text: str
    key: str
    value: Any
    action: Action
    column: int
    hydra: str
    """The override in Hydra's syntax (``+group=option`` for ``+group/option``)."""
    sweep: tuple[str, ...] = ()
    """The overrides of a sweep, one per value."""

    @property
    def location(self) -> Location:
        return Location(OVERRIDE_FILE, self.index, self.column)

    def fault(self, message: str, hint: str = "", *, value: str | None = None, at_key: bool = False) -> Fault:
        """A fault of this override."""
        column = 1 + len(self.text) - len(self.text.lstrip("+~")) if at_key else self.column
        shown = yaml_tree.format_value(self.value) if value is None else value
        return Fault(OVERRIDE_FILE, self.index, column, self.key, shown, message, hint)


@dataclass(frozen=True, slots=True)
class Composition:
    """A composed recipe: values with locations, and the faults of the composition."""

    root: Node
    files: tuple[Path, ...]
    """Its files, in the order of merging."""
    faults: tuple[Fault, ...] = ()
    texts: dict[str, str] = field(default_factory=dict)
    """Text of each file by its name in locations, for error messages."""
    complete: bool = True
    """False when its groups could not be composed, so that missing keys are no faults."""


def compose(path: Path, overrides: Sequence[str] = (), *, shown: str | None = None) -> Composition:
    """Compose the recipe at the absolute ``path``, named ``shown`` in locations.

    Raises RecipeError when the file is missing or is not YAML.
    """
    shown = shown or str(path)
    file = read_config_file(path, shown)
    parsed, faults = parse_overrides(overrides, path.parent)
    hint = "give one value, or add --multirun"
    faults += [*file.faults, *(item.fault("a sweep needs --multirun", hint) for item in parsed if item.sweep)]
    parsed = [item for item in parsed if not item.sweep]
    groups = [item for item in parsed if item.action == "group"]
    own_values = without_defaults(yaml_tree.merge(Node({}, file.root.location), file.root))
    if not groups and not has_defaults(file.root):
        composition = Composition(own_values, (path,), (), {shown: file.text})
    elif file.faults:  # Hydra would stop at the first
        composition = Composition(own_values, (path,), (), {shown: file.text}, complete=False)
    else:
        try:
            sources, container = _compose_with_hydra(path, shown, file.root, groups)
            composition = _merge_sources(sources, container, path, shown)
        except RecipeError as error:
            composition = Composition(own_values, (path,), error.faults, {shown: file.text}, complete=False)
    faults += composition.faults
    root = _apply_overrides(composition.root, [item for item in parsed if item.action != "group"], faults)
    return replace(composition, root=root, faults=tuple(faults))


def _apply_overrides(root: Node, overrides: Sequence[Override], faults: list[Fault]) -> Node:
    """Apply overrides to the tree; adds to ``faults`` those that cannot be applied."""
    for item in overrides:
        try:
            root = _apply(root, item)
        except LookupError as error:
            keys = [yaml_tree.dotted(path) for path, _ in yaml_tree.walk(root)]
            hint = "" if item.key in keys else _nearest_hint(item.key, keys)
            hint = hint or "mlkit explain RECIPE lists the keys that are set"
            faults.append(item.fault(str(error), hint, at_key=True))
    return root


def parse_overrides(texts: Sequence[str], folder: Path) -> tuple[list[Override], list[Fault]]:
    """Parse overrides by Hydra's grammar; returns a fault for each invalid one. Lines count from 1."""
    parsed = [_parse_override(index, text, folder) for index, text in enumerate(texts, start=1)]
    return [item for item in parsed if isinstance(item, Override)], [item for item in parsed if isinstance(item, Fault)]


def _parse_override(index: int, text: str, folder: Path) -> Override | Fault:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    expanded = re.sub(r"^(\+?[\w./-]+)/([\w.-]+)$", r"\1=\2", text)
    column = expanded.index("=") + 2 if "=" in expanded else 1
    key = expanded.partition("=")[0].lstrip("+~")
    if "=" not in expanded and not expanded.startswith("~"):
        hint = f"write {key}=VALUE" if key else "write KEY=VALUE"
        return Fault(OVERRIDE_FILE, index, 1, key, text, "an override is KEY=VALUE, +GROUP/OPTION or ~KEY", hint)
    try:
        parsed = OverridesParser.create().parse_overrides([expanded])[0]
        sweep = tuple(_sweep_texts(expanded, parsed)) if parsed.is_sweep_override() else ()
        value = None if sweep else parsed.value()
    except Exception as error:  # noqa: BLE001  (Hydra's parser raises many kinds; each is a fault of this text)
        error_column, message = _grammar_message(error, expanded, column)
        hint = corrected_override(expanded, _is_parsed)
        return Fault(OVERRIDE_FILE, index, error_column, key, expanded.partition("=")[2], message, hint)
    if key.startswith("data.columns.") and key.count(".") > 2:
        name, message = key.removeprefix("data.columns."), "a dot in an override's key begins a key below"
        value_text = expanded.partition("=")[2].strip()
        hint = f"write {shlex.quote(f'+data.columns={{{name}: {value_text}}}')}"
        return Fault(OVERRIDE_FILE, index, 1, key, text, message, hint)
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return Fault(OVERRIDE_FILE, index, 1, key, text, "Hydra itself is not configured here", "drop this override")
    action = _override_action(parsed, value, folder, is_sweep=bool(sweep), is_expanded=expanded != text)
    override = Override(index, text, parsed.key_or_group, value, action, column, expanded, sweep)
    return (_group_fault(override, key, folder) if action == "group" else None) or override


def _is_parsed(text: str) -> bool:
    """Whether Hydra's grammar accepts an override."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        OverridesParser.create().parse_overrides([text])[0].value()
    except Exception:  # noqa: BLE001 - Hydra's parser raises many kinds
        return False
    return True


def _is_group(name: str, folder: Path) -> bool:
    return "." not in name and any((base / name).is_dir() for base in search_path(folder))


def _override_action(parsed: Any, value: Any, folder: Path, *, is_sweep: bool, is_expanded: bool) -> Action:
    """Whether an override sets or deletes a key, or selects a config group."""
    if parsed.is_delete():
        return "group" if parsed.package is not None else "delete"
    if parsed.package is not None or is_expanded:
        return "group"
    options = _as_list(value)
    names_options = is_sweep or (bool(options) and all(isinstance(option, str) for option in options))
    if names_options and _is_group(parsed.key_or_group, folder):
        return "group"
    return "add" if parsed.is_add() else "set"


def _group_fault(override: Override, key: str, folder: Path) -> Fault | None:
    """The fault of an override that names an unknown config group or option."""
    group = override.key
    if not _is_group(group, folder):
        groups = known_groups(folder)
        hint = _nearest_hint(group, groups) or f"config groups: {', '.join(groups)}"
        return Fault(OVERRIDE_FILE, override.index, 1, key, override.text, f"there is no config group {group!r}", hint)
    for option in () if override.sweep else _as_list(override.value):
        if find_config(folder, f"{group}/{option}") is None:
            message, hint = unknown_option(folder, group, str(option))
            return Fault(OVERRIDE_FILE, override.index, override.column, key, str(option), message, hint)
    return None


def _sweep_texts(text: str, parsed: Any) -> Iterator[str]:
    """One override per value of a sweep. Raises ValueError for a sweep that is not a finite list."""
    if not parsed.is_discrete_sweep():
        raise ValueError("only a list, choice() or range() can be swept")
    prefix = text.partition("=")[0]
    for count, value in enumerate(parsed.sweep_string_iterator()):
        if count >= MAX_JOBS:
            raise ValueError(f"a sweep of more than {MAX_JOBS} values")
        yield f"{prefix}={value}"


def _grammar_message(error: Exception, text: str, column: int) -> tuple[int, str]:
    """Column and message for an error of Hydra's parser."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("See https", "^", "Error parsing override", text))]
    message = lines[0] if lines else type(error).__name__
    if message.startswith("LexerNoViableAlt"):
        caret = next((line for line in str(error).splitlines() if line.strip() == "^"), "")
        start = len(caret) - len("LexerNoViableAltException: ") if caret else column
        return max(start, 1), "a character that an override cannot have here"
    message = message.removeprefix("LexerNoViableAltException: ").partition(" expecting")[0]
    return column, message if isinstance(error, ValueError) else f"not an override: {message}"


def _apply(root: Node, override: Override) -> Node:
    """Apply an override to the tree. Raises LookupError."""
    path = [part for part in override.key.split(".") if part]
    if not path:
        raise LookupError("the override names no key")
    if override.action == "delete":
        return _delete(root, path, override)
    current = yaml_tree.find(root, path)
    if override.action == "add" and current is not None and not isinstance(override.value, dict | list):
        raise LookupError(f"{override.key} is already set at {current.location}: drop the + to replace it")
    node = yaml_tree.from_value(override.value, override.location, override.text)
    column = 1 + len(override.text) - len(override.text.lstrip("+"))
    keys = []
    for part in override.key.split("."):
        if part:
            keys.append(Location(OVERRIDE_FILE, override.index, column))
        column += len(part) + 1
    return yaml_tree.assign(root, path, node, keys)


def _delete(root: Node, path: Sequence[str], override: Override) -> Node:
    current = yaml_tree.find(root, path)
    if current is None:
        raise LookupError(f"nothing to delete: the recipe does not set {override.key}")
    if override.value not in (None, "") and yaml_tree.to_plain(current) != override.value:
        own, wanted = yaml_tree.format_value(current), yaml_tree.format_value(override.value)
        raise LookupError(f"not deleted: {override.key} is {own}, not {wanted}")
    return yaml_tree.remove(root, path)


def expand_sweep(path: Path, overrides: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The overrides of each job of a sweep, in Hydra's order: the last swept override varies fastest.

    >>> expand_sweep(Path("recipe.yaml"), ["train.epochs=1,2", "seed=range(0,2)"])[1]
    ('train.epochs=1', 'seed=1')
    """
    parsed, faults = parse_overrides(overrides, path.parent)
    if faults:
        raise RecipeError(faults)
    choices = [item.sweep or (item.text,) for item in parsed]
    jobs = 1
    for item, choice in zip(parsed, choices, strict=True):
        jobs *= len(choice)
        if jobs > MAX_JOBS:
            raise RecipeError([item.fault(f"the sweep gives more than {MAX_JOBS} recipes", "sweep over fewer values")])
    return tuple(itertools.product(*choices))


@dataclass(frozen=True, slots=True)
class _ConfigSource:
    """One file of a composition and the key path (Hydra's package) of its content."""

    file: Path
    package: tuple[str, ...]


def _compose_with_hydra(
    path: Path, shown: str, root: Node, groups: Sequence[Override]
) -> tuple[list[_ConfigSource], Json]:
    """The files of the recipe in merge order, and Hydra's composed values, interpolations unresolved."""
    check_defaults(root)
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    bases = [str(base).replace("\\", "\\\\").replace('"', '\\"') for base in search_path(path.parent)[1:]]
    urls = ",".join(f'"file://{base}"' for base in bases)
    arguments = [*(item.hydra for item in groups), f"hydra.searchpath=[{urls}]"]
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with initialize_config_dir(str(path.parent), version_base="1.3"):
                config = hydra_compose(path.stem, arguments)
                loader = GlobalHydra.instance().config_loader()
                defaults = loader.compute_defaults_list(path.stem, arguments, RunMode.RUN).defaults
            container = _with_text_keys(OmegaConf.to_container(config, resolve=False))
        except Exception as error:
            raise RecipeError(_composition_faults(error, path, shown, root, groups)) from error
    sources = []
    for default in defaults:
        if default.config_path is None or default.config_path.startswith("hydra/"):
            continue
        file = path if default.primary else find_config(path.parent, default.config_path.removesuffix(".yaml"))
        if file is not None:
            sources.append(_ConfigSource(file, tuple(filter(None, (default.package or "").split(".")))))
    return sources, container


def _with_text_keys(value: Any) -> Any:
    """Values with the key that Hydra reads as true as the text it is. Raises ValueError when it is there both ways."""
    if isinstance(value, list):
        return [_with_text_keys(item) for item in value]
    if not isinstance(value, dict):
        return value
    if True in value and yaml_tree.BOOLEAN_KEY in value:
        raise ValueError(f"'{yaml_tree.BOOLEAN_KEY}' is a key with quotes and one without: write it alike everywhere")
    names = {True: yaml_tree.BOOLEAN_KEY}
    return {names.get(name, name) if name is True else name: _with_text_keys(item) for name, item in value.items()}


def _merge_sources(sources: Sequence[_ConfigSource], container: Json, path: Path, shown: str) -> Composition:
    """Merge the sources to one tree with Hydra's values. Raises RecipeError."""
    merged: Node | None = None
    texts: dict[str, str] = {}
    faults: list[Fault] = []
    for source in sources:
        name = shown if source.file == path else display_path(source.file)
        try:
            file = read_config_file(source.file, name)
        except RecipeError as error:
            faults.extend(error.faults)
            continue
        texts[name] = file.text
        faults.extend(file.faults)
        node = yaml_tree.embed(without_defaults(file.root), source.package)
        merged = yaml_tree.merge(merged or Node({}, node.location), node)
    if faults:
        raise RecipeError(faults)
    if merged is None:
        raise located_error(Location(shown, 1, 1), "empty: nothing is composed", "mlkit init writes one that runs")
    root = yaml_tree.with_locations(_apply_appends(container, merged), merged)
    return Composition(root, tuple(dict.fromkeys(source.file for source in sources)), (), texts)


def _apply_appends(container: Json, merged: Node) -> Json:
    """Append the lists under ``key+`` in Hydra's values."""
    if not isinstance(container, dict) or merged.mapping is None:
        return container
    folded = {str(name): value for name, value in container.items()}
    for name in [name for name, value in folded.items() if name.endswith("+") and isinstance(value, list)]:
        del folded[name]
        target = merged.mapping.get(name[:-1])
        if target is not None:
            folded[name[:-1]] = yaml_tree.to_plain(target)
    return {
        name: _apply_appends(value, merged.mapping[name]) if name in merged.mapping else value
        for name, value in folded.items()
    }


def _composition_faults(
    error: Exception, path: Path, shown: str, root: Node, groups: Sequence[Override]
) -> list[Fault]:
    """Faults for Hydra's error, located at the override or defaults entry that caused it."""
    if broken := _broken_files(error, path, shown, root, groups):
        return broken
    if (missing := getattr(error, "missing_cfg_file", None)) is not None:
        return [_missing_fault(str(missing), path, shown, root, groups)]
    message = " ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__
    quoted = re.findall(r"'([^']+)'", message)
    for item in groups:
        if item.key in quoted or item.hydra.lstrip("+") in message:
            hint = ""
            if "No match in the defaults list" in message and not item.text.startswith("~"):
                hint = f"the recipe's defaults have no {item.key}: add it with +{item.hydra}"
                message = f"nothing to replace: no {item.key} in the defaults list"
            return [item.fault(message, hint, at_key="delete" in message.lower())]
    defaults = (root.mapping or {}).get("defaults")
    location = defaults.location if defaults is not None else root.location
    if groups and defaults is None:
        return [groups[0].fault(message)]
    return [location.fault("defaults", "", message, "mlkit explain RECIPE lists what set each value")]


def _broken_files(error: Exception, path: Path, shown: str, root: Node, groups: Sequence[Override]) -> list[Fault]:
    """Faults of the files that the recipe names, and of the one at which Hydra stopped."""
    named = [(item.key, value) for item in groups for value in _as_list(item.value)]
    named += [(group, option) for group, option, _ in defaults_entries(root)]
    names = [f"{group}/{option}" if group else option for group, option in named]
    files = [file for file in (find_config(path.parent, name) for name in names) if file is not None]
    mark = getattr(error, "problem_mark", None)
    if mark is not None and Path(str(mark.name)).is_file():
        files.append(Path(str(mark.name)))
    faults: list[Fault] = []
    for file in dict.fromkeys(files):
        try:
            faults.extend(read_config_file(file, shown if file == path else display_path(file)).faults)
        except RecipeError as located:
            faults.extend(located.faults)
    return faults


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _missing_fault(missing: str, path: Path, shown: str, root: Node, groups: Sequence[Override]) -> Fault:
    """The fault for a missing group or option, located where it is named, with the existing ones."""
    group, _, option = missing.removesuffix(".yaml").rpartition("/")
    message, hint = unknown_option(path.parent, group, option)
    for item in groups:
        if item.key == group and option in _as_list(item.value):
            return item.fault(message, hint, value=option)
    for name, value, node in defaults_entries(root):
        if (name.lstrip("/"), value) == (group, option) or (not name and value.lstrip("/") == missing):
            return node.location.fault("defaults", value, message, hint)
    for file in {*path.parent.rglob("*.yaml"), *SHIPPED.rglob("*.yaml")}:
        with contextlib.suppress(RecipeError):
            for _, value, node in defaults_entries(read_config_file(file, display_path(file)).root):
                if value.rpartition("/")[2] == option:
                    return node.location.fault("defaults", option, message, hint)
    return Fault(shown, 1, 1, "defaults", option, message, hint)


def _nearest_hint(key: str, names: Sequence[str]) -> str:
    close = closest_match(key, filter(None, names))
    return f"did you mean {close}?" if close else ""


def resolvers(text: str) -> tuple[str, ...]:
    """Names of the resolvers that a text calls. Raises ValueError when OmegaConf cannot parse it.

    >>> resolvers("${oc.env:HOME}/${seed}")
    ('oc.env',)
    >>> resolvers("${a.${b}}")
    ()
    """
    from omegaconf.errors import GrammarParseError
    from omegaconf.grammar_parser import parse

    try:
        tree = parse(text)
    except GrammarParseError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    names: list[str] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        if type(node).__name__ == "InterpolationResolverContext":
            names.append(node.resolverName().getText())
        stack.extend(getattr(node, "children", None) or ())
    return tuple(names)


def resolve(values: Json, paths: Sequence[KeyPath]) -> tuple[Json, dict[KeyPath, str]]:
    """Resolve the interpolations at ``paths``. Returns the values, and the message of each failure by path."""
    from omegaconf import OmegaConf

    failed: dict[KeyPath, str] = {}
    try:
        config = OmegaConf.create(values)
    except Exception as error:  # noqa: BLE001  (an interpolation that does not parse is a fault of the recipe)
        return values, dict.fromkeys(paths, first_line(error))
    resolved: dict[KeyPath, Any] = {}
    for path in paths:
        try:
            node: Any = config
            for part in path:
                node = node[part]
            resolved[path] = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        except Exception as error:  # noqa: BLE001  (missing key, cycle, unset variable: each is a fault at this path)
            circular = "interpolations that refer to each other in a circle"
            failed[path] = circular if isinstance(error, RecursionError) else first_line(error)
    for path, value in resolved.items():
        target = values
        for part in path[:-1]:
            target = target[part]
        target[path[-1]] = value
    return values, failed
