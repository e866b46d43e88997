"""Base class of recipe sections and stage Specs, and unions of sections that installed plugins extend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict
from pydantic_core import CoreSchema, core_schema

from mlflowkit.errors import UsageError
from mlflowkit.system import entry_points
from mlflowkit.system.entry_points import Plugin


class Section(BaseModel):
    """Base of recipe sections: frozen, no unknown keys, finite numbers only.

    Attribute docstrings become field descriptions in the JSON Schema.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        strict=False,
        use_attribute_docstrings=False,
    )

    def plugin_names(self) -> tuple[tuple[str, str], ...]:
        """The plugins that this section itself names, as (group, name), without those of its parts."""
        return ()


@dataclass(frozen=True, slots=True)
class PluginUnion:
    """Annotates a union of sections discriminated by ``kind``: plugins of ``group`` are members too.

    A plugin's section is a subclass of ``base``. It is loaded when a value has its kind, never for a built-in kind.
    """

    group: str
    base: type[Section]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        members = get_args(source)
        built_in = frozenset(kind for member in members for kind in get_args(member.model_fields["kind"].annotation))

        def validate(value: Any, validate_built_in: Any) -> Any:
            if isinstance(value, self.base) and not isinstance(value, members):
                return value
            kind = value.get("kind") if isinstance(value, dict) else None
            section = None if not isinstance(kind, str) or kind in built_in else self.section(kind)
            return validate_built_in(value) if section is None else section.model_validate(value, strict=True)

        def serialize(value: Any, serialize_built_in: Any, info: core_schema.SerializationInfo) -> Any:
            if isinstance(value, members):
                return serialize_built_in(value)
            return value.model_dump(mode=info.mode, exclude_defaults=info.exclude_defaults)

        serialization = core_schema.wrap_serializer_function_ser_schema(serialize, info_arg=True)
        return core_schema.no_info_wrap_validator_function(validate, handler(source), serialization=serialization)

    def section(self, kind: str) -> type[Section] | None:
        """The section of an installed plugin, or None. Raises UsageError for a plugin that is not fit."""
        plugin = entry_points.find(self.group, kind)
        if plugin is None:
            return None
        section = entry_points.load(self.group, kind)
        if not (isinstance(section, type) and issubclass(section, self.base)):
            raise UsageError(
                f"the {plugin} is not a subclass of {self.base.__name__}: {plugin.reference}",
                hint=f"pip install --upgrade {plugin.distribution}",
            )
        field = section.model_fields.get("kind")
        if field is None or get_args(field.annotation) != (kind,):
            raise UsageError(
                f"the {plugin} has no field kind: Literal[{kind!r}], and is registered by that name",
                hint=f"pip install --upgrade {plugin.distribution}",
            )
        return section

    def own_sections(self) -> tuple[type[Section], ...]:
        """The sections of mlflowkit's own plugins."""
        loaded = (self.section(kind) for kind in entry_points.OWN.get(self.group, ()))
        return tuple(section for section in loaded if section is not None)

    def sections(self) -> Mapping[str, type[Section]]:
        """The sections of all installed plugins by kind."""
        loaded = {kind: self.section(kind) for kind in entry_points.names(self.group)}
        return {kind: section for kind, section in loaded.items() if section is not None}


def used_plugins(value: Any) -> Iterator[Plugin]:
    """The installed plugins that a section and its parts name."""
    if isinstance(value, Section):
        for group, name in value.plugin_names():
            plugin = entry_points.find(group, name)
            if plugin is not None:
                yield plugin
        for field in type(value).model_fields:
            yield from used_plugins(getattr(value, field))
    elif isinstance(value, list | tuple | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from used_plugins(item)
