"""Compose a recipe with Hydra: defaults list, config groups, overrides, sweeps. Nothing is ever instantiated.

Groups are looked up in the recipe's folder, in ``conf/`` beside the recipe, then among those shipped with mlflowkit.
Hydra decides which files make a recipe and what values they give; `mlflowkit.recipe.yaml_tree` reads the same files for
places. Three things are added to Hydra's ways, so that a command line says what one means:

- ``train.epochs=3`` also sets a key that the recipe leaves at its default (the schema knows every key);
- ``+gates/strict`` is short for ``+gates=strict``;
- a list under a key that ends in ``+`` (``gates+:``) is appended to the list that the files before it gave.

This is the only file that imports Hydra or OmegaConf, and it does so only when there is something to compose.
"""

from __future__ import annotations

import itertools
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mlflowkit.errors import Fault, RecipeError, nearest
from mlflowkit.recipe import yaml_tree
from mlflowkit.recipe.yaml_tree import OVERRIDE, KeyPath, Node, Place
from mlflowkit.values import Json

SHIPPED = Path(__file__).parent / "conf"
"""The config groups that come with mlflowkit."""
MAX_JOBS = 1000
"""Most recipes that one sweep may give."""

_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class Override:
    """One override of the command line. ``column`` is where its value starts (its key, when it has none)."""

    index: int
    text: str
    key: str
    value: Any
    action: Literal["set", "add", "delete", "group"]
    column: int
    hydra: str
    """What Hydra is told: the override itself, or the long form of ``+group/option``."""
    sweep: tuple[str, ...] = ()
    """Of a sweep: one override for each value."""

    @property
    def place(self) -> Place:
        return Place(OVERRIDE, self.index, self.column)

    def fault(self, message: str, hint: str = "", *, found: str | None = None, at_key: bool = False) -> Fault:
        """A fault of this override."""
        column = 1 + len(self.text) - len(self.text.lstrip("+~")) if at_key else self.column
        shown = yaml_tree.show(self.value) if found is None else found
        return Fault(OVERRIDE, self.index, column, self.key, shown, message, hint)


@dataclass(frozen=True, slots=True)
class Composition:
    """A composed recipe: its values with their places, and whatever is wrong with how it is composed."""

    root: Node
    files: tuple[Path, ...]
    """The files that it was read from, in the order of merging."""
    faults: tuple[Fault, ...] = ()
    texts: dict[str, str] = field(default_factory=dict)
    """Text of each file, by the name that places have; what error messages quote."""
    complete: bool = True
    """False when its groups could not be composed: what it lacks may have been theirs to give."""


def compose(path: Path, overrides: Sequence[str] = (), *, shown: str | None = None) -> Composition:
    """Compose the recipe at ``path`` (absolute); ``shown`` is how places name it.

    Raises RecipeError when there is nothing to go on with: the file is missing or is not YAML.
    """
    shown = shown or str(path)
    file = _read_file(path, shown)
    parsed, faults = parse_overrides(overrides, path.parent)
    faults += file.faults
    faults += [
        item.fault("a sweep needs --multirun", "give one value, or add --multirun") for item in parsed if item.sweep
    ]
    parsed = [item for item in parsed if not item.sweep]
    groups = [item for item in parsed if item.action == "group"]
    alone = _without_defaults(yaml_tree.merge(_empty(file.root), file.root))
    if not groups and not _composes(file.root):
        composition = Composition(alone, (path,), (), {shown: file.text})
    elif file.faults:  # Hydra would stop at them, and say less
        composition = Composition(alone, (path,), (), {shown: file.text}, complete=False)
    else:
        try:
            sources, container = _hydra(path, shown, file.root, groups)
            composition = _merge_sources(sources, container, path, shown)
        except RecipeError as error:
            composition = Composition(alone, (path,), error.faults, {shown: file.text}, complete=False)
    faults += composition.faults
    root = _apply_all(composition.root, [item for item in parsed if item.action != "group"], faults)
    return replace(composition, root=root, faults=tuple(faults))


def _apply_all(root: Node, overrides: Sequence[Override], faults: list[Fault]) -> Node:
    """The tree after all overrides; those that cannot be applied are added to the faults."""
    for item in overrides:
        try:
            root = _apply(root, item)
        except LookupError as error:
            known = [yaml_tree.dotted(at) for at, _ in yaml_tree.walk(root)]
            hint = "" if item.key in known else _nearest_hint(item.key, known)
            faults.append(item.fault(str(error), hint or "mlkit explain lists the keys that are set", at_key=True))
    return root


# --------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True, slots=True)
class _File:
    """A recipe or group file that could be read to its end, with the faults of its text."""

    text: str
    root: Node
    faults: tuple[Fault, ...]


def _read_file(path: Path, shown: str) -> _File:
    """Read a recipe or group file. Raises RecipeError where there is no mapping to go on with."""
    text = _decode(_read_bytes(path, shown), shown)
    document = yaml_tree.read(text, shown)
    if document.root is None and document.faults:
        raise RecipeError(document.faults)
    if document.root is None or document.root.value is None:
        hint = "mlkit init writes one that runs"
        raise _refusal(Place(shown, 1, 1), "empty: a recipe is a mapping with name, task, data and model", hint)
    root = document.root
    if root.mapping is None:
        hint = "a key is followed by a colon and a space" if isinstance(root.value, str) else "remove the leading -"
        message = f"expected a mapping of keys to values, found {yaml_tree.kind_of(root.value)}"
        raise _refusal(root.place, message, hint, yaml_tree.show(root))
    hydra = root.mapping.get("hydra")
    if hydra is not None:
        raise _refusal(hydra.start, "Hydra itself is not configured in a recipe", "remove hydra:", "hydra")
    return _File(text, root, document.faults)


def _refusal(place: Place, message: str, hint: str, found: str = "") -> RecipeError:
    return RecipeError([Fault(place.file, place.line, place.column, "", found, message, hint)])


def _read_bytes(path: Path, shown: str) -> bytes:
    top = Place(shown, 1, 1)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        beside = sorted(item.name for item in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        close = nearest(path.name, beside)
        hint = f"did you mean {Path(shown).with_name(close)}?" if close else "mlkit init writes one that runs"
        raise _refusal(top, "there is no such file", hint) from error
    except IsADirectoryError as error:
        inside = sorted(item.name for item in path.glob("*.yaml"))
        hint = f"name a file in it, such as {Path(shown) / inside[0]}" if inside else f"mlkit init {shown}"
        raise _refusal(top, "a directory, not a recipe", hint) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _refusal(top, f"cannot be read: {reason}", f"ls -l {shown}") from error
    if len(data) > yaml_tree.MAX_BYTES:
        message = f"{len(data)} bytes; a recipe has at most {yaml_tree.MAX_BYTES}"
        raise _refusal(top, message, "is this the recipe, or its data?")
    return data


def _decode(data: bytes, shown: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", errors="replace")
        place = Place(shown, before.count("\n") + 1, len(before) - before.rfind("\n"))
        found = repr(data[error.start : error.start + 4])
        raise _refusal(place, "not UTF-8 text", "save it as UTF-8", found) from error


def _empty(node: Node) -> Node:
    return Node({}, node.place)


def _without_defaults(root: Node) -> Node:
    entries = {name: child for name, child in (root.mapping or {}).items() if name != "defaults"}
    return Node(entries, root.place, size=root.size)


def _composes(root: Node) -> bool:
    """Whether there is more to this recipe than its own file."""
    defaults = (root.mapping or {}).get("defaults")
    return defaults is not None and yaml_tree.plain(defaults) not in ([], ["_self_"])


# ----------------------------------------------------------------------------------------------------- overrides


def parse_overrides(texts: Sequence[str], folder: Path) -> tuple[list[Override], list[Fault]]:
    """The overrides by Hydra's grammar, and a fault for each that it refuses. Places count from 1."""
    overrides: list[Override] = []
    faults: list[Fault] = []
    for index, text in enumerate(texts, start=1):
        result = _parse_override(index, text, folder)
        if isinstance(result, Override):
            overrides.append(result)
        else:
            faults.append(result)
    return overrides, faults


def _parse_override(index: int, text: str, folder: Path) -> Override | Fault:
    long = _long_form(text)
    column = long.index("=") + 2 if "=" in long else 1
    if long != text:
        column = text.rindex("/") + 2
    if "=" not in long and not long.startswith("~"):
        key = text.lstrip("+")
        hint = f"write {key}=VALUE" if key else "write KEY=VALUE"
        return Fault(OVERRIDE, index, 1, key, text, "an override is KEY=VALUE, +GROUP/OPTION or ~KEY", hint)
    key = long.partition("=")[0].lstrip("+~")
    try:
        parsed = _parser().parse_overrides([long])[0]
        sweep = tuple(_sweep_texts(long, parsed)) if parsed.is_sweep_override() else ()
        value = None if sweep else parsed.value()
    except Exception as error:  # noqa: BLE001  (Hydra's parser raises many kinds; each is a fault of this text)
        at, message = _grammar_message(error, long, column)
        return Fault(
            OVERRIDE,
            index,
            at,
            key,
            long.partition("=")[2],
            message,
            f"quote a text with special characters: '{key}=\"...\"'",
        )
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return Fault(OVERRIDE, index, 1, key, text, "Hydra itself is not configured here", "drop this override")
    name = parsed.key_or_group
    chosen = isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(v, str) for v in value))
    is_group = any((place / name).is_dir() for place in search_path(folder)) and "." not in name
    action: Literal["set", "add", "delete", "group"]
    if parsed.is_delete():
        action = "group" if parsed.package is not None else "delete"
    elif (is_group and (chosen or sweep)) or parsed.package is not None or long != text:
        action = "group"
    else:
        action = "add" if parsed.is_add() else "set"
    if action == "group" and not is_group:
        known = known_groups(folder)
        hint = _nearest_hint(name, known) or f"config groups: {', '.join(known)}"
        return Fault(OVERRIDE, index, 1, key, text, f"there is no config group {name!r}", hint)
    if action == "group" and not sweep:
        for option in _listed(value):
            if _resolve_config(folder, f"{name}/{option}") is None:
                message, hint = _unknown_option(folder, name, str(option))
                return Fault(OVERRIDE, index, column, key, str(option), message, hint)
    return Override(index, text, name, value, action, column, long, sweep)


def _long_form(text: str) -> str:
    """``+gates/strict`` as Hydra writes it: ``+gates=strict``."""
    match = re.fullmatch(r"(\+?[\w./-]+)/([\w.-]+)", text)
    return f"{match[1]}={match[2]}" if match else text


def _parser() -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def _sweep_texts(text: str, parsed: Any) -> Iterator[str]:
    """One override for each value of a sweep. Raises ValueError when its values cannot be counted."""
    if not parsed.is_discrete_sweep():
        raise ValueError("only a list, choice() or range() can be swept")
    prefix = text.partition("=")[0]
    for count, value in enumerate(parsed.sweep_string_iterator()):
        if count >= MAX_JOBS:
            raise ValueError(f"a sweep of more than {MAX_JOBS} values")
        yield f"{prefix}={value}"


def _grammar_message(error: Exception, text: str, column: int) -> tuple[int, str]:
    """Column and words for what Hydra's parser says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("See https", "^", "Error parsing override", text))]
    words = lines[0] if lines else type(error).__name__
    if words.startswith("LexerNoViableAlt"):
        caret = next((line for line in str(error).splitlines() if line.strip() == "^"), "")
        start = len(caret) - len("LexerNoViableAltException: ") if caret else column
        return max(start, 1), "a character that an override cannot have here"
    words = words.removeprefix("LexerNoViableAltException: ").partition(" expecting")[0]
    return column, words if isinstance(error, ValueError) else f"not an override: {words}"


def _apply(root: Node, override: Override) -> Node:
    """The tree after an override. Raises LookupError."""
    path = [part for part in override.key.split(".") if part]
    if not path:
        raise LookupError("the override names no key")
    if override.action == "delete":
        return _delete(root, path, override)
    there = yaml_tree.find(root, path)
    if override.action == "add" and there is not None and not isinstance(override.value, dict | list):
        raise LookupError(f"{override.key} is already set at {there.place}: drop the + to replace it")
    node = yaml_tree.from_value(override.value, override.place, override.text)
    column = 1 + len(override.text) - len(override.text.lstrip("+"))
    keys = []
    for part in override.key.split("."):
        if part:
            keys.append(Place(OVERRIDE, override.index, column))
        column += len(part) + 1
    return yaml_tree.assign(root, path, node, keys)


def _delete(root: Node, path: Sequence[str], override: Override) -> Node:
    there = yaml_tree.find(root, path)
    if there is None:
        raise LookupError(f"nothing to delete: the recipe does not set {override.key}")
    if override.value not in (None, "") and yaml_tree.plain(there) != override.value:
        raise LookupError(
            f"not deleted: {override.key} is {yaml_tree.show(there)}, not {yaml_tree.show(override.value)}"
        )
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


# --------------------------------------------------------------------------------------------------------- Hydra


def search_path(folder: Path) -> tuple[Path, ...]:
    """Where config groups are looked up, the nearest first."""
    beside = folder / "conf"
    return (folder, *([beside] if beside.is_dir() else []), SHIPPED)


def options(folder: Path, group: str) -> tuple[str, ...]:
    """The options of a config group."""
    found = {file.stem for place in search_path(folder) for file in (place / group).glob("*.yaml")}
    return tuple(sorted(found))


@dataclass(frozen=True, slots=True)
class _Source:
    """One file of a composition and the key path that its content goes to."""

    file: Path
    package: tuple[str, ...]


def _hydra(path: Path, shown: str, root: Node, groups: Sequence[Override]) -> tuple[list[_Source], Json]:
    """The files that make the recipe, in order, and the values that Hydra composes from them, not yet resolved."""
    _check_defaults(root)
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    places = search_path(path.parent)[1:]
    listed = ",".join('"file://' + str(place).replace("\\", "\\\\").replace('"', '\\"') + '"' for place in places)
    told = [*(item.hydra for item in groups), f"hydra.searchpath=[{listed}]"]
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with initialize_config_dir(str(path.parent), version_base="1.3"):
                config = hydra_compose(path.stem, told)
                loader = GlobalHydra.instance().config_loader()
                defaults = loader.compute_defaults_list(path.stem, told, RunMode.RUN).defaults
            container = OmegaConf.to_container(config, resolve=False)
        except Exception as error:
            raise RecipeError(_composition_faults(error, path, shown, root, groups)) from error
    sources = []
    for default in defaults:
        if default.config_path is None or default.config_path.startswith("hydra/"):
            continue
        name = default.config_path.removesuffix(".yaml")
        file = path if default.primary else _resolve_config(path.parent, name)
        package = default.package or ""
        if file is not None:
            sources.append(_Source(file, tuple(part for part in package.split(".") if part)))
    return sources, container


def _resolve_config(folder: Path, name: str) -> Path | None:
    for place in search_path(folder):
        file = place / f"{name.lstrip('/')}.yaml"
        if file.is_file():
            return file
    return None


def _merge_sources(sources: Sequence[_Source], container: Json, path: Path, shown: str) -> Composition:
    """One tree from all the sources, with Hydra's values and their places. Raises RecipeError."""
    merged: Node | None = None
    texts: dict[str, str] = {}
    faults: list[Fault] = []
    for source in sources:
        name = shown if source.file == path else display(source.file)
        try:
            file = _read_file(source.file, name)
        except RecipeError as error:
            faults.extend(error.faults)
            continue
        texts[name] = file.text
        faults.extend(file.faults)
        node = yaml_tree.embed(_without_defaults(file.root), source.package)
        merged = yaml_tree.merge(merged or _empty(node), node)
    if faults:
        raise RecipeError(faults)
    if merged is None:
        raise _refusal(Place(shown, 1, 1), "empty: nothing is composed", "mlkit init writes one that runs")
    root = yaml_tree.attach(_fold(container, merged), merged)
    return Composition(root, tuple(dict.fromkeys(source.file for source in sources)), (), texts)


def _fold(container: Json, merged: Node) -> Json:
    """Hydra's values, with the lists that were appended to (``gates+``), which Hydra does not know."""
    if not isinstance(container, dict) or merged.mapping is None:
        return container
    folded = {str(name): value for name, value in container.items()}
    for name in [name for name, value in folded.items() if name.endswith("+") and isinstance(value, list)]:
        del folded[name]
        target = merged.mapping.get(name[:-1])
        if target is not None:
            folded[name[:-1]] = yaml_tree.plain(target)
    return {
        name: _fold(value, merged.mapping[name]) if name in merged.mapping else value for name, value in folded.items()
    }


def display(file: Path) -> str:
    """A file as places name it: relative to the working directory where it is below it."""
    try:
        return str(file.relative_to(Path.cwd()))
    except ValueError:
        return str(file)


def _check_defaults(root: Node) -> None:
    """Refuse a defaults list that Hydra would stumble over. Raises RecipeError."""
    node = (root.mapping or {}).get("defaults")
    if node is None:
        return
    if not isinstance(node.value, list):
        place = node.place
        message = f"defaults is a list of config groups, found {yaml_tree.kind_of(yaml_tree.plain(node))}"
        raise RecipeError(
            [
                Fault(
                    place.file,
                    place.line,
                    place.column,
                    "defaults",
                    yaml_tree.show(node),
                    message,
                    "defaults: [_self_]",
                )
            ]
        )
    faults = []
    for index, item in enumerate(node.value):
        good = isinstance(item.value, str) or (item.mapping is not None and len(item.mapping) == 1)
        if not good:
            place, message = item.place, "an entry is a file, _self_, or GROUP: OPTION"
            key = f"defaults.{index}"
            faults.append(
                Fault(place.file, place.line, place.column, key, yaml_tree.show(item), message, "- train: fast")
            )
    if faults:
        raise RecipeError(faults)


def _entries(root: Node) -> Iterator[tuple[str, str, Node]]:
    """(group, option, node) of each entry of a defaults list; the group of a file is ""."""
    defaults = (root.mapping or {}).get("defaults")
    for item in defaults.value if defaults is not None and isinstance(defaults.value, list) else ():
        if isinstance(item.value, str):
            yield "", item.value, item
        elif item.mapping:
            for name, node in item.mapping.items():
                group = name.split()[-1].partition("@")[0] if name.split() else name
                for option in node.value if isinstance(node.value, list) else [node]:
                    yield group, str(option.value), option


def _composition_faults(
    error: Exception, path: Path, shown: str, root: Node, groups: Sequence[Override]
) -> list[Fault]:
    """What Hydra could not compose, at the place that asked for it."""
    broken = _broken_files(error, path, shown, root, groups)
    if broken:
        return broken
    missing = getattr(error, "missing_cfg_file", None)
    if missing is not None:
        return [_missing_fault(str(missing), path, shown, root, groups)]
    words = " ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__
    quoted = re.findall(r"'([^']+)'", words)
    for item in groups:
        if item.key in quoted or item.hydra.lstrip("+") in words:
            hint = ""
            if "No match in the defaults list" in words and not item.text.startswith("~"):
                hint = f"the recipe's defaults have no {item.key}: add it with +{item.hydra}"
                words = f"nothing to replace: no {item.key} in the defaults list"
            return [item.fault(words, hint, at_key="delete" in words.lower())]
    defaults = (root.mapping or {}).get("defaults")
    place = defaults.place if defaults is not None else root.place
    if groups and defaults is None:
        return [groups[0].fault(words)]
    return [
        Fault(place.file, place.line, place.column, "defaults", "", words, "mlkit explain lists what set each value")
    ]


def _broken_files(error: Exception, path: Path, shown: str, root: Node, groups: Sequence[Override]) -> list[Fault]:
    """The faults of the files that were to be composed, as far as they are named or Hydra says where it stopped."""
    asked = [(item.key, value) for item in groups for value in _listed(item.value)]
    asked += [(group, option) for group, option, _ in _entries(root)]
    names = [f"{group}/{option}" if group else option for group, option in asked]
    files = [file for file in (_resolve_config(path.parent, name) for name in names) if file is not None]
    mark = getattr(error, "problem_mark", None)
    if mark is not None and Path(str(mark.name)).is_file():
        files.append(Path(str(mark.name)))
    faults: list[Fault] = []
    for file in dict.fromkeys(files):
        try:
            faults.extend(_read_file(file, shown if file == path else display(file)).faults)
        except RecipeError as located:
            faults.extend(located.faults)
    return faults


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _missing_fault(missing: str, path: Path, shown: str, root: Node, groups: Sequence[Override]) -> Fault:
    """A group or an option that there is not: where it is asked for, and what there is."""
    group, _, option = missing.removesuffix(".yaml").rpartition("/")
    message, hint = _unknown_option(path.parent, group, option)
    for item in groups:
        if item.key == group and option in _listed(item.value):
            return item.fault(message, hint, found=option)
    for name, value, node in _entries(root):
        if (name.lstrip("/"), value) == (group, option) or (not name and value.lstrip("/") == missing):
            return Fault(node.place.file, node.place.line, node.place.column, "defaults", value, message, hint)
    for file in {*path.parent.rglob("*.yaml"), *SHIPPED.rglob("*.yaml")}:
        found = _asked_for_in(file, option)
        if found is not None:
            return Fault(found.place.file, found.place.line, found.place.column, "defaults", option, message, hint)
    return Fault(shown, 1, 1, "defaults", option, message, hint)


def _unknown_option(folder: Path, group: str, option: str) -> tuple[str, str]:
    """Message and hint for a config group's option that there is not."""
    known = options(folder, group) if group else ()
    if known:
        close = nearest(option, known)
        near = f"did you mean {close}? " if close else ""
        return f"{group} has no option {option!r}", f"{near}there are: {', '.join(known)}"
    hint = f"config groups: {', '.join(known_groups(folder)) or 'none'}"
    return (f"there is no config group {group!r}" if group else f"there is no config file {option}.yaml"), hint


def _asked_for_in(file: Path, option: str) -> Node | None:
    try:
        root = _read_file(file, display(file)).root
    except RecipeError:
        return None
    return next((node for _, value, node in _entries(root) if value.rpartition("/")[2] == option), None)


def known_groups(folder: Path) -> tuple[str, ...]:
    """The config groups that a recipe in ``folder`` can name."""
    places = [place for place in search_path(folder) if place != folder]
    found = {file.parent.relative_to(place).as_posix() for place in places for file in place.rglob("*.yaml")}
    return tuple(sorted(found - {"."}))


def _nearest_hint(key: str, known: Sequence[str]) -> str:
    close = nearest(key, filter(None, known))
    return f"did you mean {close}?" if close else ""


# ------------------------------------------------------------------------------------------------- interpolation


def interpolations(text: str) -> bool:
    """Whether a text has an interpolation in it."""
    return "${" in text


def resolvers(text: str) -> tuple[str, ...]:
    """The resolvers that a text calls, by OmegaConf's grammar. Raises ValueError when it does not parse.

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
    found: list[str] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        if type(node).__name__ == "InterpolationResolverContext":
            found.append(node.resolverName().getText())
        stack.extend(getattr(node, "children", None) or ())
    return tuple(found)


def resolve(values: Json, paths: Sequence[KeyPath]) -> tuple[Json, dict[KeyPath, str]]:
    """``values`` with the interpolations at ``paths`` resolved, and what is wrong with those that cannot be."""
    from omegaconf import OmegaConf

    failed: dict[KeyPath, str] = {}
    try:
        config = OmegaConf.create(values)
    except Exception as error:  # noqa: BLE001  (an interpolation that does not parse is a fault of the recipe)
        return values, {path: _first_line(error) for path in paths}
    resolved: dict[KeyPath, Any] = {}
    for path in paths:
        try:
            node: Any = config
            for part in path:
                node = node[part]
            resolved[path] = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        except Exception as error:  # noqa: BLE001  (missing key, cycle, unset variable: each is a fault at this path)
            failed[path] = _first_line(error)
    for path, value in resolved.items():
        target = values
        for part in path[:-1]:
            target = target[part]
        target[path[-1]] = value
    return values, failed


def _first_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "interpolations that go in a circle"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
