"""What `mlkit image build` needs, real and on this machine: a registry, buildah with storage of its own, a git
repository with a recipe, and a base image made of this machine's Python, in which pip installs wheels made here."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.delivery.image.image_builder import ImageBuild, build_image
from tests.support.export_project import make_project
from tests.support.registries import CountingProxy, real_registry
from tests.support.tools import require_tool
from tests.support.warm_commands import warm_command

PACKAGES = {"acme_scores": "1.4.0", "Acme.Tables": "2.0.1", "small": "0.1"}
"""Wheels that the base image has; the lock names the first two."""
LOCK = "--no-index\n--find-links /wheels\nacme-scores==1.4.0\nacme-tables==2.0.1\n"
_LIBRARY = re.compile(r"(?:=> )?(/\S+) \(0x")


class ImageWorld:
    """A registry at ``host``, and a repository whose recipe delivers to it."""

    def __init__(self, folder: Path, registry: CountingProxy) -> None:
        self.folder, self.registry, self.host = folder, registry, registry.host
        host = registry.host
        storage = f'[storage]\ndriver = "vfs"\nrunroot = "{folder}/run"\ngraphroot = "{folder}/graph"\n'
        (folder / "storage.conf").write_text(storage)
        (folder / "registries.conf").write_text(f'[[registry]]\nlocation = "{host}"\ninsecure = true\n')
        self.environment = {
            **os.environ, "CONTAINERS_REGISTRIES_CONF": str(folder / "registries.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"), "BUILDAH_ISOLATION": "chroot",
            "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
        }  # fmt: skip
        self.base = self._make_base()
        self.recipe = self._make_recipe()

    @property
    def repository(self) -> str:
        return f"{self.host}/acme/lending"

    @property
    def root(self) -> Path:
        return self.recipe.parent

    def mlkit(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Any:
        """Run `mlkit image ... --json`; returns what it printed, the error where it failed."""
        process = self.run(*arguments, "--json", environment=environment)
        assert process.stdout, process.stderr[-3000:]
        print(process.stderr[-3000:])  # noqa: T201
        return json.loads(process.stdout)

    def run(self, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run `mlkit image ...`."""
        command = [*warm_command("mlflowkit.cli"), "image", *arguments]
        everything = {**self.environment, **(environment or {})}
        return subprocess.run(command, capture_output=True, text=True, timeout=600, env=everything, check=False)

    def git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=self.environment).stdout.strip()

    def stored(self) -> bytes:
        """Every byte that the registry has, archives unpacked."""
        import gzip

        parts = []
        for path in sorted((self.folder / "storage").rglob("data")):
            content = path.read_bytes()
            parts.append(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
        return b"".join(parts)

    def _make_base(self) -> str:
        context = self.folder / "base"
        root = context / "root"
        _copy_python(root)
        wheels = root / "wheels"
        wheels.mkdir()
        for name, version in PACKAGES.items():
            make_wheel(wheels, name, version)
        for name in ("tmp", "etc", "var/lib"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\n")
        text = "FROM scratch\nCOPY root /\nENV PATH=/usr/local/bin:/usr/bin:/bin\n"
        build = ImageBuild(f"{self.host}/acme/base", text, "", context)
        reference = build_image(build, "buildah", push=True, environment=self.environment)
        shutil.rmtree(context)
        return reference

    def _make_recipe(self) -> Path:
        recipe = make_project(self.folder / "project")
        text = recipe.read_text().replace(
            "{image: ghcr.io/acme/lending}", f"{{image: {self.repository}, base: '{self.base}'}}"
        )
        recipe.write_text(text)
        recipe.with_name("requirements.txt").write_text(LOCK)
        self.recipe = recipe
        self.git("add", "-A")
        self.git("commit", "-qm", "a recipe")
        return recipe


@contextlib.contextmanager
def image_world(folder: Path) -> Iterator[ImageWorld]:
    """Skips the test where buildah or docker-registry is absent, or this Python has no pip to copy."""
    require_tool("buildah")
    with real_registry(folder) as host, CountingProxy(host) as registry:
        yield ImageWorld(folder, registry)


def make_wheel(folder: Path, name: str, version: str) -> Path:
    """A wheel of one module."""
    escaped = re.sub(r"[-_.]+", "_", name).lower()
    module, info = f"{escaped}.py", f"{escaped}-{version}.dist-info"
    files = {
        module: f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense-Expression: MIT\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(text)}")
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""])
    wheel = folder / f"{escaped}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return wheel


def _copy_python(root: Path) -> None:
    """This machine's Python with pip, below ``/usr/local``, and the libraries that it needs."""
    paths = sysconfig.get_paths(vars={"base": sys.base_prefix, "platbase": sys.base_prefix})
    library, pip = Path(paths["stdlib"]), Path(paths["purelib"]) / "pip"
    if not pip.is_dir():
        pytest.skip(f"{pip} is absent: no Python with pip to make a base image of")
    target = root / "usr/local/lib" / library.name
    left_out = shutil.ignore_patterns("site-packages", "test", "__pycache__", "idlelib", "tkinter", "config-*")
    shutil.copytree(library, target, ignore=left_out)
    packages = target / "site-packages"
    shutil.copytree(pip, packages / "pip", ignore=left_out)
    for info in pip.parent.glob("pip-*.dist-info"):
        shutil.copytree(info, packages / info.name)
    interpreter = Path(sys.base_prefix) / "bin" / library.name
    install = Path(require_tool("install"))
    programs = {interpreter: root / f"usr/local/bin/{library.name}", install: root / "usr/bin/install"}
    for source, copy in programs.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source.resolve(), copy)
    (root / "usr/local/bin/python").symlink_to(library.name)
    for binary in (*programs, *(library / "lib-dynload").glob("*.so")):
        answer = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False)
        for line in answer.stdout.splitlines():
            if match := _LIBRARY.search(line):
                copy = root / match[1].lstrip("/")
                copy.parent.mkdir(parents=True, exist_ok=True)
                if not copy.exists():
                    shutil.copy(Path(match[1]).resolve(), copy)


def signing_key(folder: Path, name: str) -> tuple[Path, Path]:
    """A new private and public key (EC), as openssl makes them."""
    openssl = require_tool("openssl")
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    new = [openssl, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)]
    subprocess.run(new, check=True, capture_output=True)
    subprocess.run([openssl, "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public
