"""A repository of git and DVC, written as DVC 3 and DVC 2 write it; `tests/contract/test_dvc_itself.py` compares."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

IDENTITY = ("-c", "user.name=etl", "-c", "user.email=etl@example.com", "-c", "commit.gpgsign=false")


@dataclass(frozen=True)
class DvcFixture:
    """A repository in ``root`` with a remote, ``storage``, in a folder beside it."""

    root: Path

    @classmethod
    def create(cls, root: Path) -> DvcFixture:
        (root / ".dvc").mkdir(parents=True)
        made = cls(root)
        made.git("init", "-q", "-b", "main")
        (root / ".dvc/config").write_text(
            f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = ../../{made.remote.name}\n"
        )
        made.remote.mkdir()
        made.commit("dvc init")
        return made

    @property
    def remote(self) -> Path:
        return self.root.parent / f"{self.root.name}-storage"

    @property
    def cache(self) -> Path:
        return self.root / ".dvc/cache"

    def git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.root), *IDENTITY, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commit(self, message: str) -> str:
        self.git("add", "-A", "-f", "--", ".", ":!.dvc/cache", ":!.dvc/config.local", *self._ignored())
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def add_file(self, path: str, content: bytes, *, push: bool = True) -> str:
        """``dvc add PATH`` and ``dvc push``."""
        self._write(path, content)
        md5 = self._store(content, push=push)
        entry = f"outs:\n- md5: {md5}\n  size: {len(content)}\n  hash: md5\n  path: {Path(path).name}\n"
        (self.root / f"{path}.dvc").write_text(entry)
        return md5

    def add_text_of_dvc2(self, path: str, content: bytes) -> str:
        """``dvc add`` and ``dvc push`` of DVC 2: by the digest of the text with LF, in its own layout."""
        self._write(path, content)
        md5 = hashlib.md5(content.replace(b"\r\n", b"\n")).hexdigest()
        for folder in (self.cache, self.remote):
            _put(folder / md5[:2] / md5[2:], content)
        entry = f"outs:\n- md5: {md5}\n  size: {len(content)}\n  path: {Path(path).name}\n"
        (self.root / f"{path}.dvc").write_text(entry)
        return md5

    def add_folder(self, path: str, files: Mapping[str, bytes], *, push: bool = True) -> str:
        """``dvc add FOLDER`` and ``dvc push``."""
        for name, content in files.items():
            self._write(f"{path}/{name}", content)
        digests = {name: self._store(content, push=push) for name, content in files.items()}
        rows = [{"md5": digests[name], "relpath": name} for name in sorted(files)]
        md5 = self._store(json.dumps(rows, sort_keys=True).encode(), push=push, suffix=".dir")
        size = sum(map(len, files.values()))
        (self.root / f"{path}.dvc").write_text(
            f"outs:\n- md5: {md5}.dir\n  size: {size}\n  nfiles: {len(files)}\n  hash: md5\n  path: {Path(path).name}\n"
        )
        return md5

    def stored(self, md5: str, suffix: str = "") -> list[Path]:
        """The files of a digest that are there, in the cache and on the remote."""
        folders = (self.cache, self.remote)
        files = [folder / "files/md5" / md5[:2] / f"{md5[2:]}{suffix}" for folder in folders]
        return [file for file in files if file.exists()]

    def _ignored(self) -> list[str]:
        tracked = [path.relative_to(self.root).as_posix()[:-4] for path in self.root.rglob("*.dvc") if path.is_file()]
        return [f":!{path}" for path in tracked]

    def _write(self, path: str, content: bytes) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(content)

    def _store(self, content: bytes, *, push: bool, suffix: str = "") -> str:
        md5 = hashlib.md5(content).hexdigest()
        for folder in (self.cache, self.remote) if push else (self.cache,):
            _put(folder / "files/md5" / md5[:2] / f"{md5[2:]}{suffix}", content)
        return md5


def _put(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        os.chmod(file, 0o644)
    file.write_bytes(content)
