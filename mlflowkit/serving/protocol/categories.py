"""The text of a value that is sent for a categorical column: one rule for every request format.

- Text is itself. A missing value (null, NaN) is the empty string.
- A number or boolean is its text, and never refused: whole numbers without a decimal point (``3`` and ``3.0`` are
  ``"3"``), others as short as their type allows (0.1 in FP32 is ``"0.1"``), booleans ``"True"`` and ``"False"``.
- Where that text is not among the column's training values and another spelling of the same value is (``"3.0"``,
  ``"true"``), that one is meant: JSON and tensors carry values, a file carries spellings.
- A text that the training data did not have is answered like any other, and counted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from mlflowkit.system.text import category_text

SCALARS: frozenset[type] = frozenset({str, int, float, bool, type(None)})
"""The JSON types of one cell."""
NONE_KNOWN: frozenset[str] = frozenset()


def to_category(value: Any, known: frozenset[str] = NONE_KNOWN) -> str:
    """The category of one value; ``known`` has the column's training values, empty where they are not known.

    >>> [to_category(value) for value in ("3", 3, 3.0, 2.5, True, None, float("nan"))]
    ['3', '3', '3', '2.5', 'True', '', '']
    >>> to_category(3, frozenset({"3.0", "4.0"})), to_category(True, frozenset({"true", "false"}))
    ('3.0', 'true')
    """
    return known_spelling(value, category_text(value), known)


def known_spelling(value: Any, text: str, known: Collection[str]) -> str:
    """The spelling of a value, whose text is ``text``, that the training data had; the text itself if there is none.

    >>> known_spelling(3, "3", {"3.0"}), known_spelling(3, "3", {"3", "3.0"}), known_spelling("3", "3", {"3.0"})
    ('3.0', '3', '3')
    """
    if not known or text in known or isinstance(value, str):
        return text
    return next((spelling for spelling in _spellings(value, text) if spelling in known), text)


def _spellings(value: Any, text: str) -> tuple[str, ...]:
    if isinstance(value, bool):
        return text.lower(), text.upper()
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}", f"{value:.0f}.0", text
    return (f"{text}.0",)


def to_categories(array: np.ndarray, columns: Sequence[frozenset[str]]) -> np.ndarray:
    """A numeric or boolean array as text, of the same shape; ``columns`` has the training values of each column.

    The columns are the array's last dimension, or there is one.

    >>> to_categories(np.array([[1.0, np.nan], [2.0, 0.1]], dtype=np.float32), [NONE_KNOWN] * 2).tolist()
    [['1', ''], ['2', '0.1']]
    """
    flat = array.reshape(-1, len(columns))
    texts = np.empty(flat.shape, dtype=object)
    for index, known in enumerate(columns):
        values, codes = np.unique(flat[:, index], return_inverse=True)
        texts[:, index] = np.array([to_category(_plain(value), known) for value in values], dtype=object)[codes]
    return texts.reshape(array.shape)


def _plain(value: Any) -> Any:
    """A NumPy scalar as Python's; a float is the shortest that its own type tells apart (FP32's 0.1 is 0.1)."""
    return float(str(value)) if isinstance(value, np.floating) else value.item()
