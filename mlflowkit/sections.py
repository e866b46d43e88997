"""The base of every part of a recipe and of every Spec: frozen, no unknown keys, finite numbers only."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of what a recipe may say. Field descriptions end up in the JSON Schema that editors show."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        strict=False,
        use_attribute_docstrings=False,
    )
