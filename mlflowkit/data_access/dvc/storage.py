"""Where DVC keeps the bytes of what it tracks: its cache and its remotes, from its configuration."""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflowkit.data_access.redaction import redact
from mlflowkit.errors import DataError

MAX_CONFIG = 1 << 20
_REMOTE = re.compile(r"""['"]?remote\s+["'](.+?)["']['"]?""")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True, slots=True)
class DvcRemote:
    """A remote. ``folder`` is None for a store that is no folder of this machine; ``url`` is for people."""

    name: str
    url: str
    folder: Path | None


@dataclass(frozen=True, slots=True)
class DvcStorage:
    """A cache and remotes, that which is asked first before the others."""

    cache: Path
    remotes: tuple[DvcRemote, ...]
    default: str

    def ordered(self, name: str) -> Iterator[DvcRemote]:
        """The remotes for an output: its own, the default one, then the others, since a digest is all that counts."""
        first = name or self.default
        yield from sorted(self.remotes, key=lambda remote: (remote.name != first, remote.name != self.default))

    def files(self, md5: str, *, text: bool, remote: str, suffix: str = "") -> Iterator[Path]:
        """The files that have the bytes of a digest, the cache's first."""
        below = Path() if text else Path("files/md5")
        name = below / md5[:2] / f"{md5[2:]}{suffix}"
        folders = [self.cache, *(item.folder for item in self.ordered(remote) if item.folder is not None)]
        for folder in folders:
            if (folder / name).is_file():
                yield folder / name


def read_storage(root: Path, committed: bytes) -> DvcStorage:
    """The cache and the remotes of the DVC repository at ``root``. Raises DataError.

    ``committed`` is the ``.dvc/config`` of a commit; the checkout's own goes over it, and ``config.local`` over that.
    """
    folder = root / ".dvc"
    user = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "dvc"
    layers = [(user, _read(user / "config")), (folder, committed)]
    layers += [(folder, _read(folder / name)) for name in ("config", "config.local")]
    cache, default = folder / "cache", ""
    remotes: dict[str, DvcRemote] = {}
    for base, content in layers:
        for section, values in _sections(base, content):
            if section == "core":
                default = values.get("remote", default)
            elif section == "cache" and "dir" in values:
                cache = base / Path(values["dir"]).expanduser()
            elif (named := _REMOTE.fullmatch(section)) and "url" in values:
                remotes[named[1]] = _remote(named[1], values["url"], base)
    return DvcStorage(cache, tuple(remotes.values()), default)


def describe_places(storage: DvcStorage, remote: str) -> str:
    """Where an output was looked for, in words."""
    cache = f"the cache of DVC ({storage.cache})"
    remotes = [f"remote {item.name} ({item.url})" for item in storage.ordered(remote) if item.folder is not None]
    return f"neither in {cache} nor on {' nor on '.join(remotes)}" if remotes else f"not in {cache}"


def _remote(name: str, url: str, base: Path) -> DvcRemote:
    shown = redact(url, ()).partition("?")[0]
    if url.startswith("file://"):
        return DvcRemote(name, shown, Path(url.removeprefix("file://")))
    if _URL.match(url):
        return DvcRemote(name, shown, None)
    return DvcRemote(name, shown, Path(os.path.normpath(base / Path(url).expanduser())))


def _sections(base: Path, content: bytes) -> Sequence[tuple[str, dict[str, str]]]:
    """The sections of a configuration. It may hold passwords: no error quotes it."""
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",), default_section="")
    lines = "\n".join(line.strip() for line in content.decode(errors="replace").splitlines())
    try:
        parser.read_string(lines)
    except configparser.Error as error:
        line = getattr(error, "lineno", "")
        raise DataError(
            f"a configuration of DVC in {base} cannot be read (line {line})", hint="dvc config -l"
        ) from None
    return [(name, {key: _plain(value) for key, value in parser.items(name)}) for name in parser.sections()]


def _plain(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value.partition(" #")[0].rstrip()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_CONFIG)
    except OSError:
        return b""
