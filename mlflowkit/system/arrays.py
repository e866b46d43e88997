"""Named arrays in one ``.npz`` file, without pickle: the exchange format between trial processes.

Strings (object arrays of ``str``) are stored as UTF-8 bytes and the length of each: object arrays would need pickle,
and fixed-width ones grow with the longest text and lose trailing NULs.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.errors import StoreError
from mlflowkit.system.files import replace_file
from mlflowkit.system.text import shell_word

if TYPE_CHECKING:
    import numpy as np

BYTES, LENGTHS = "#bytes", "#lengths"
"""Name suffixes of the two parts of an array of strings."""


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays, replacing the file atomically. Raises StoreError when the disk refuses it.

    >>> import numpy as np, tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.npz"
    >>> write(path, {"text": np.array([["a", ""], ["ü", "b"]], dtype=object), "x": np.zeros(2)})
    >>> read(path)["text"].tolist()
    [['a', ''], ['ü', 'b']]
    """
    import numpy as np

    plain: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.dtype != object and array.dtype.kind not in "US":
            plain[name] = array
            continue
        texts = [str(text).encode("utf-8", "surrogatepass") for text in array.ravel().tolist()]
        plain[name + LENGTHS] = np.array([len(text) for text in texts], dtype=np.int64).reshape(array.shape)
        plain[name + BYTES] = np.frombuffer(b"".join(texts), dtype=np.uint8)
    stream = io.BytesIO()
    np.savez(stream, **plain)  # type: ignore[arg-type]  # numpy's stub takes the names for its own keywords
    replace_file(path, stream.getvalue(), durable=False)


def read(path: Path, prefix: str = "") -> dict[str, np.ndarray]:
    """Read the arrays whose names begin with ``prefix``, which is removed. Raises StoreError for a damaged file."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name[len(prefix) :]: archive[name] for name in archive.files if name.startswith(prefix)}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(
            f"{path} cannot be read: {error}", hint=f"rm {shell_word(path)}; the next run rebuilds it"
        ) from error
    for name in [name.removesuffix(LENGTHS) for name in arrays if name.endswith(LENGTHS)]:
        content, lengths = arrays.pop(name + BYTES).tobytes(), arrays.pop(name + LENGTHS)
        texts, start = np.empty(lengths.size, dtype=object), 0
        for index, length in enumerate(lengths.ravel().tolist()):
            texts[index] = content[start : start + length].decode("utf-8", "surrogatepass")
            start += length
        arrays[name] = texts.reshape(lengths.shape)
    return arrays
