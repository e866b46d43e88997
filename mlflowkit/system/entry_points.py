"""Plugins: sources, metrics, passes and delivery targets of installed distributions, registered as entry points.

A plugin is one file and one line in the ``pyproject.toml`` of its distribution::

    [project.entry-points."mlflowkit.sources"]
    sqlite = "acme_sqlite:SqliteSource"

Entry points are read only for a name that is not built in: reading them costs tens of milliseconds. Errors name the
distribution.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mlflowkit.errors import MlkitError, UsageError

SOURCES, METRICS, PASSES = "mlflowkit.sources", "mlflowkit.metrics", "mlflowkit.passes"
TARGETS, CONNECTIONS = "mlflowkit.targets", "mlflowkit.connections"
GROUPS = (SOURCES, METRICS, PASSES, TARGETS, CONNECTIONS)
"""The entry point groups."""
OWN: Mapping[str, Mapping[str, str]] = {
    SOURCES: {
        "delta": "mlflowkit.adapters.data_sources.delta_source:DeltaSource",
        "dvc": "mlflowkit.adapters.data_sources.dvc_source:DvcSource",
        "files": "mlflowkit.adapters.data_sources.files_source:FilesSource",
        "huggingface": "mlflowkit.adapters.data_sources.huggingface_source:HuggingfaceSource",
        "lakefs": "mlflowkit.adapters.data_sources.lakefs_source:LakefsSource",
        "sql": "mlflowkit.adapters.data_sources.sql_source:SqlSource",
    },
    CONNECTIONS: {
        "sql": "mlflowkit.adapters.data_sources.sql_connection:SqlConnection",
    },
}
"""mlflowkit's own plugins: adapters that are loaded only for a recipe that names them."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """An entry point: ``reference`` is its object as ``module:attribute``, ``registered`` the file that declares it."""

    group: str
    name: str
    reference: str
    distribution: str
    version: str
    registered: Path | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} of {self.distribution} {self.version}"

    @property
    def kind(self) -> str:
        """The singular of the group: source, metric or pass.

        >>> Plugin("mlflowkit.passes", "prune", "acme:Prune", "acme", "1.0").kind
        'pass'
        """
        return singular(self.group)


def singular(group: str) -> str:
    """What a group's plugins are called.

    >>> singular(SOURCES), singular(PASSES)
    ('source', 'pass')
    """
    return group.rpartition(".")[2].removesuffix("es" if group == PASSES else "s")


def is_own(kind: type) -> bool:
    """Whether a class is mlflowkit's."""
    return kind.__module__.partition(".")[0] == "mlflowkit"


def names(group: str) -> tuple[str, ...]:
    """The names of the plugins of a group, mlflowkit's own first, each sorted."""
    own = OWN.get(group, {})
    return (*sorted(own), *sorted(name for name in _scan(group, tuple(sys.path)) if name not in own))


def find(group: str, name: str) -> Plugin | None:
    """The plugin of this name, or None. Raises UsageError when two distributions register the name."""
    if reference := OWN.get(group, {}).get(name):
        return Plugin(group, name, reference, "mlflowkit", "")
    registered = _scan(group, tuple(sys.path)).get(name, ())
    if len({plugin.reference for plugin in registered}) > 1:
        owners = " and ".join(f"{plugin.distribution} {plugin.version}" for plugin in registered)
        raise UsageError(
            f"{owners} both register a {singular(group)} {name!r}",
            hint=f"pip uninstall {registered[-1].distribution}",
        )
    return registered[0] if registered else None


def load(group: str, name: str) -> Any:
    """The object of an installed plugin.

    Raises UsageError when no distribution registers the name, or when its module cannot be imported.
    """
    plugin = find(group, name)
    if plugin is None:
        raise UsageError(f"there is no {singular(group)} {name!r}", hint=install_hint(group, name))
    module, _, attribute = plugin.reference.partition(":")
    try:
        value: Any = importlib.import_module(module)
        for part in attribute.split(".") if attribute else ():
            value = getattr(value, part)
    except MlkitError:
        raise
    except Exception as error:
        raise UsageError(
            f"the {plugin} cannot be loaded from {plugin.reference}: {type(error).__name__}: {error}",
            hint=f"pip install --force-reinstall {plugin.distribution}",
        ) from error
    return value


def install_hint(group: str, name: str) -> str:
    """How to get a plugin that is not installed."""
    installed = ", ".join(names(group))
    hint = f"pip install the distribution that registers {name!r} under the entry points {group}"
    return f"{hint}; installed: {installed}" if installed else hint


@lru_cache(maxsize=16)
def _scan(group: str, path: tuple[str, ...]) -> Mapping[str, tuple[Plugin, ...]]:
    """The plugins of a group by name, on this ``sys.path``."""
    from importlib import metadata

    plugins: dict[str, tuple[Plugin, ...]] = {}
    for entry in metadata.entry_points(group=group):
        owner = entry.dist
        folder = getattr(owner, "_path", None)
        plugin = Plugin(
            group,
            entry.name,
            entry.value.partition("[")[0].replace(" ", ""),
            owner.name if owner is not None else "an unknown distribution",
            owner.version if owner is not None else "",
            Path(folder) / "entry_points.txt" if isinstance(folder, Path) else None,
        )
        plugins[entry.name] = (*plugins.get(entry.name, ()), plugin)
    return plugins
