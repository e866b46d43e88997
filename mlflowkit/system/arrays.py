"""Arrays by name in one file, without pickle: what passes between processes that try candidates.

An ``.npz`` as NumPy reads it. Strings (object arrays of ``str``) are kept as their UTF-8 bytes and the length of each,
since arrays of objects would need pickle, and fixed-width ones grow with the longest text and lose final NULs.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.errors import StoreError
from mlflowkit.system.files import replace_file

if TYPE_CHECKING:
    import numpy as np

BYTES, LENGTHS = "#bytes", "#lengths"
"""What the two parts of an array of strings add to its name."""


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays, replacing the file whole. Raises StoreError when the disk refuses it.

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
    """Arrays whose names begin with ``prefix``, by what follows it. Raises StoreError for a file that is damaged."""
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name[len(prefix) :]: archive[name] for name in archive.files if name.startswith(prefix)}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path} cannot be read: {error}", hint=f"rm {path}; it is made anew") from error
    texts = [name.removesuffix(LENGTHS) for name in found if name.endswith(LENGTHS)]
    for name in texts:
        found[name] = _texts(found.pop(name + BYTES), found.pop(name + LENGTHS))
    return found


def _texts(content: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    import numpy as np

    whole, texts, start = content.tobytes(), np.empty(lengths.size, dtype=object), 0
    for index, length in enumerate(lengths.ravel().tolist()):
        texts[index] = whole[start : start + length].decode("utf-8", "surrogatepass")
        start += length
    return texts.reshape(lengths.shape)
