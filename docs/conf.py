"""Sphinx configuration. `make docs` builds with -W: a warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from mlflowkit import __version__  # noqa: E402

project = "mlflowkit"
author = "The mlflowkit maintainers"
copyright = "2026, the mlflowkit maintainers"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "generated_reference"]
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist", "attrs_inline"]
myst_heading_anchors = 4
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "_ext", "_extra", "Thumbs.db"]

html_theme = "furo"
html_title = f"mlflowkit {__version__}"
html_static_path = ["_static"]
html_extra_path = ["_extra"]
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
nitpicky = False

# Options such as --csv keep their two hyphens.
smartquotes = False
