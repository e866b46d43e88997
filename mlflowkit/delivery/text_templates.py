"""The package's templates: for files that are not YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def text_templates(*, blocks: bool = False) -> Environment:
    """The templates of ``delivery/templates``. With ``blocks`` a line that holds a statement only leaves no line.

    A name that a template uses and is not given raises jinja2.UndefinedError.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(  # no HTML is made
        loader=PackageLoader("mlflowkit.delivery"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=blocks,
        lstrip_blocks=blocks,
        autoescape=False,
    )
