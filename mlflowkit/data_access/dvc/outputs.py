"""What DVC tracks at a commit: the outputs in ``.dvc`` files, ``dvc.lock`` and the lists of its folders."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlflowkit.errors import DataError
from mlflowkit.system.text import first_line

MAX_FILE = 8 << 20
"""Bytes of a .dvc file or dvc.lock."""
MAX_FOLDER = 64 << 20
"""Bytes of the list of a folder."""
MD5 = re.compile(r"[0-9a-f]{32}")
CHECK = "dvc status names what DVC itself finds wrong"


@dataclass(frozen=True, slots=True)
class DvcOutput:
    """A file or folder that DVC tracks.

    path     from the root of the git repository
    md5      of its bytes; for a folder of its list
    size     bytes; None where it is not known
    text     whether the digest is that of DVC 1 and 2: of text with CRLF read as LF, in a layout of its own
    remote   the remote that keeps it, "" for the default one
    file     the file that says so, from the root of the git repository
    """

    path: str
    md5: str
    size: int | None
    folder: bool
    text: bool
    remote: str
    file: str


def read_dvc_file(file: str, content: bytes) -> Iterator[DvcOutput]:
    """The outputs of a ``.dvc`` file. Raises DataError."""
    value = _parse(file, content)
    base = _join(posixpath.dirname(file), value.get("wdir", "."))
    for entry in _list(file, value.get("outs")):
        yield from _outputs(file, base, entry)


def read_lock(file: str, content: bytes, pipeline: bytes) -> Iterator[DvcOutput]:
    """The outputs of a ``dvc.lock``; ``pipeline`` is the content of the ``dvc.yaml`` beside it. Raises DataError."""
    value = _parse(file, content)
    stages = value.get("stages", {}) if "schema" in value else value
    declared = _parse(f"{file.removesuffix('lock')}yaml", pipeline).get("stages") if pipeline else {}
    if not isinstance(stages, dict):
        raise _broken(file, "its stages are no mapping")
    for name, stage in stages.items():
        if not isinstance(stage, dict):
            raise _broken(file, f"stage {str(name)[:80]} is no mapping")
        settings = declared.get(str(name).partition("@")[0], {}) if isinstance(declared, dict) else {}
        folder = settings.get("wdir", ".") if isinstance(settings, dict) else "."
        if "$" in str(folder):  # its outputs are where the template says, which only DVC expands
            continue
        for entry in _list(file, stage.get("outs")):
            yield from _outputs(file, _join(posixpath.dirname(file), folder), entry)


def read_folder(output: DvcOutput, content: bytes) -> Iterator[DvcOutput]:
    """The files in a folder that DVC tracks, from its list, whose MD5 was checked. Raises DataError."""
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _broken(output.file, f"the list of folder {output.path} is no JSON: {first_line(error)}") from None
    for entry in _list(output.file, entries):
        path, md5 = entry.get("relpath"), entry.get("md5")
        if not isinstance(path, str) or not _is_below(path):
            raise _broken(output.file, f"the list of folder {output.path} has the path {path!r}")
        if not isinstance(md5, str) or not MD5.fullmatch(md5):
            raise _broken(output.file, f"the list of folder {output.path} has no md5 of {path}")
        full = posixpath.join(output.path, path)
        yield DvcOutput(full, md5, None, False, output.text, output.remote, output.file)


def _outputs(file: str, base: str, entry: Mapping[str, Any]) -> Iterator[DvcOutput]:
    path = entry.get("path")
    if not isinstance(path, str) or not path:
        raise _broken(file, "an output has no path")
    if "://" in path or path.startswith("/"):
        return  # outside the repository: no path of a recipe leads there
    full = _join(base, path)
    remote, text = str(entry.get("remote") or ""), entry.get("hash") != "md5"
    if entry.get("files") is not None:  # of a remote with versions of its own
        for item in _list(file, entry["files"]):
            below = str(item.get("relpath", ""))
            if not _is_below(below):
                raise _broken(file, f"the files of {path} have the path {below!r}")
            yield DvcOutput(_join(full, below), *_digest(file, item), text, remote, file)
    elif "md5" in entry:
        yield DvcOutput(full, *_digest(file, entry), text, remote, file)
    elif entry.get("cache", True) and "etag" not in entry and "checksum" not in entry:
        # tracked, and never made: dvc add or dvc repro has not ended
        yield DvcOutput(full, "", None, False, text, remote, file)


def _digest(file: str, entry: Mapping[str, Any]) -> tuple[str, int | None, bool]:
    digest = entry.get("md5")
    md5 = digest.removesuffix(".dir") if isinstance(digest, str) else ""
    if not MD5.fullmatch(md5):
        raise _broken(file, f"the md5 of {str(entry.get('path', entry.get('relpath')))[:80]} is no MD5")
    is_folder, size = str(digest).endswith(".dir"), entry.get("size")
    known = isinstance(size, int) and size >= 0 and not is_folder
    return md5, size if known else None, is_folder


def _parse(file: str, content: bytes) -> dict[str, Any]:
    import yaml

    if len(content) > MAX_FILE:
        raise _broken(file, f"it has more than {MAX_FILE:,} bytes")
    try:
        value = yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _broken(file, f"it is no YAML: {first_line(error)}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _broken(file, "it is no mapping")
    return value


def _list(file: str, value: Any) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _broken(file, "a list of outputs or files is none")
    return value


def _join(base: str, path: Any) -> str:
    return posixpath.normpath(posixpath.join(base, str(path)))


def _is_below(path: str) -> bool:
    return bool(path) and not {"", ".", ".."} & set(path.split("/")) and "\0" not in path


def _broken(file: str, reason: str) -> DataError:
    return DataError(f"{file} is no file of DVC: {reason}", hint=CHECK)
