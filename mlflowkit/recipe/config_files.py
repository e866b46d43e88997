"""Recipe and config-group files: where they are looked up, and reading them with located faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflowkit.errors import Fault, RecipeError, closest_match
from mlflowkit.recipe import yaml_tree
from mlflowkit.recipe.yaml_tree import Location, Node
from mlflowkit.system.text import shell_word

SHIPPED = Path(__file__).parent / "conf"
"""The config groups shipped with mlflowkit."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A recipe or group file that is a mapping, with the faults of its text."""

    text: str
    root: Node
    faults: tuple[Fault, ...]


def read_config_file(path: Path, shown: str) -> ConfigFile:
    """Read a recipe or group file, named ``shown`` in messages. Raises RecipeError unless it is a YAML mapping."""
    text = _read_text(path, shown)
    document = yaml_tree.read(text, shown)
    if document.root is None and document.faults:
        raise RecipeError(document.faults)
    if document.root is None or document.root.value is None:
        hint = "mlkit init writes one that runs"
        raise located_error(Location(shown, 1, 1), "empty: a recipe is a mapping with name, task, data and model", hint)
    root = document.root
    if root.mapping is None:
        hint = "a key is followed by a colon and a space" if isinstance(root.value, str) else "remove the leading -"
        message = f"expected a mapping of keys to values, found {yaml_tree.describe_type(root.value)}"
        raise located_error(root.location, message, hint, yaml_tree.format_value(root))
    hydra = root.mapping.get("hydra")
    if hydra is not None:
        raise located_error(hydra.start, "Hydra itself is not configured in a recipe", "remove hydra:", "hydra")
    return ConfigFile(text, root, document.faults)


def located_error(location: Location, message: str, hint: str, value: str = "") -> RecipeError:
    """A RecipeError with one fault."""
    return RecipeError([location.fault("", value, message, hint)])


def _read_text(path: Path, shown: str) -> str:
    start = Location(shown, 1, 1)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        siblings = sorted(file.name for file in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        close = closest_match(path.name, siblings)
        hint = f"did you mean {Path(shown).with_name(close)}?" if close else "mlkit init writes one that runs"
        raise located_error(start, "there is no such file", hint) from error
    except IsADirectoryError as error:
        inside = sorted(file.name for file in path.glob("*.yaml"))
        hint = f"name a file in it, such as {Path(shown) / inside[0]}" if inside else f"mlkit init {shell_word(shown)}"
        raise located_error(start, "a directory, not a recipe", hint) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise located_error(start, f"cannot be read: {reason}", f"ls -l {shell_word(shown)}") from error
    if len(data) > yaml_tree.MAX_BYTES:
        message = f"{len(data)} bytes; a recipe has at most {yaml_tree.MAX_BYTES}"
        raise located_error(start, message, "is this the recipe, or its data?")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", errors="replace")
        location = Location(shown, before.count("\n") + 1, len(before) - before.rfind("\n"))
        value = repr(data[error.start : error.start + 4])
        raise located_error(location, "not UTF-8 text", "save it as UTF-8", value) from error


def search_path(folder: Path) -> tuple[Path, ...]:
    """Folders in which config groups are looked up, the nearest first."""
    conf = folder / "conf"
    return (folder, *([conf] if conf.is_dir() else []), SHIPPED)


def find_config(folder: Path, name: str) -> Path | None:
    """The file of ``group/option``, or None."""
    files = (base / f"{name.lstrip('/')}.yaml" for base in search_path(folder))
    return next((file for file in files if file.is_file()), None)


def group_options(folder: Path, group: str) -> tuple[str, ...]:
    """The options of a config group."""
    return tuple(sorted({file.stem for base in search_path(folder) for file in (base / group).glob("*.yaml")}))


def known_groups(folder: Path) -> tuple[str, ...]:
    """The config groups that a recipe in ``folder`` can name."""
    bases = search_path(folder)[1:]
    groups = {file.parent.relative_to(base).as_posix() for base in bases for file in base.rglob("*.yaml")}
    return tuple(sorted(groups - {"."}))


def unknown_option(folder: Path, group: str, option: str) -> tuple[str, str]:
    """Message and hint for an option that a config group does not have."""
    options = group_options(folder, group) if group else ()
    if options:
        close = closest_match(option, options)
        near = f"did you mean {close}? " if close else ""
        return f"{group} has no option {option!r}", f"{near}there are: {', '.join(options)}"
    hint = f"config groups: {', '.join(known_groups(folder)) or 'none'}"
    return (f"there is no config group {group!r}" if group else f"there is no config file {option}.yaml"), hint


def display_path(file: Path) -> str:
    """A file as messages name it: relative to the working directory when it is below it."""
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def without_defaults(root: Node) -> Node:
    """A file's tree without its defaults list."""
    entries = {name: child for name, child in (root.mapping or {}).items() if name != "defaults"}
    return Node(entries, root.location, size=root.size)


def has_defaults(root: Node) -> bool:
    """Whether a defaults list adds other files to this one."""
    defaults = (root.mapping or {}).get("defaults")
    return defaults is not None and yaml_tree.to_plain(defaults) not in ([], ["_self_"])


def check_defaults(root: Node) -> None:
    """Raise RecipeError for a defaults list that is not one of Hydra's."""
    node = (root.mapping or {}).get("defaults")
    if node is None:
        return
    if not isinstance(node.value, list):
        message = f"defaults is a list of config groups, found {yaml_tree.describe_type(yaml_tree.to_plain(node))}"
        value, hint = yaml_tree.format_value(node), "defaults: [_self_]"
        raise RecipeError([node.location.fault("defaults", value, message, hint)])
    faults = []
    for index, item in enumerate(node.value):
        if not (isinstance(item.value, str) or (item.mapping is not None and len(item.mapping) == 1)):
            message, value = "an entry is a file, _self_, or GROUP: OPTION", yaml_tree.format_value(item)
            faults.append(item.location.fault(f"defaults.{index}", value, message, "- train: fast"))
    if faults:
        raise RecipeError(faults)


def defaults_entries(root: Node) -> Iterator[tuple[str, str, Node]]:
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
