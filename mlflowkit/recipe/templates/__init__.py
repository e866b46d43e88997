"""Recipe templates, each a folder of files."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def texts(name: str) -> dict[str, str]:
    """File names and texts of a template, the recipe first.

    >>> list(texts("start"))
    ['recipe.yaml', 'datasets.py']
    """
    files = [file for file in (FOLDER / name).iterdir() if file.suffix in (".yaml", ".py")]
    files.sort(key=lambda file: (file.suffix != ".yaml", file.name))
    return {file.name: file.read_text(encoding="utf-8") for file in files}
