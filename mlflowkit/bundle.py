"""What is served: a folder with one ONNX graph, its signature, its evidence and its blessing.

::

    bundle/
      manifest.json      Manifest: identity digest, digests of every file, lineage
      signature.json     Signature: inputs and outputs of the graph, columns, classes
      model.onnx         raw columns in, answers out
      engine.json        candidates.Engine: what runs the graph, where that is not the default
      evidence/          reference.whylogs reference.json evaluation.json verdicts.json candidates.json latency.json
                         machine.json (where latency was measured) · parity.json · sample.json (test rows and the
                         answers to them) · seen_rows.npy (digests of the rows that the model was fitted or chosen on:
                         uint64, sorted; see mlflowkit.features.row_digests)
      blessing.json      Blessing: present only when the gates passed

The **identity** of a bundle is the digest of what answers: ``model.onnx``, ``signature.json`` and, where it is there,
``engine.json``. Evidence is digested apart, and the blessing binds identity, evidence, git commit, data version and
policy.

What verification promises: no byte of any file differs from what was written, nothing is missing, nothing was added,
and nothing lies outside the folder. It is proof against accidents and against a file that was swapped; whoever may
rewrite a whole bundle can also make new digests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mlflowkit.errors import BundleError, StoreError
from mlflowkit.graphs.candidates import Engine
from mlflowkit.system.digests import digest_file, digest_json
from mlflowkit.system.files import replace_file
from mlflowkit.values import Lineage

FORMAT = 1
IDENTITY_FILES = ("model.onnx", "signature.json")
ENGINE = "engine.json"
"""Part of the identity too, in bundles that have one."""
MANIFEST, BLESSING = "manifest.json", "blessing.json"
RESTORE = "restore the bundle from the store, or run the recipe again with --force package"

M = TypeVar("M", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tensor(_Frozen):
    """One input or output of the graph, in the words of the Open Inference Protocol.

    ``shape`` has -1 for the batch. For an input, ``columns`` names what its last axis holds, in order.
    """

    name: str
    datatype: Literal[
        "BOOL",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
        "FP16",
        "FP32",
        "FP64",
        "BYTES",
    ]
    shape: tuple[int, ...]
    columns: tuple[str, ...] = ()


class Signature(_Frozen):
    """Inputs and outputs of a bundle.

    Inputs: ``numeric`` FP32 [-1, k] (a missing value is NaN) and ``categorical`` BYTES [-1, m] (a missing value
    is the empty string); one of them is absent when there are no such columns.
    Outputs: classification ``label`` (INT64 or BYTES) [-1] and ``probabilities`` FP32 [-1, C];
    regression ``prediction`` FP32 [-1].
    """

    task: Literal["classification", "regression"]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    classes: tuple[str | int, ...] = ()
    """Labels in the order of ``probabilities``; the positive class of a binary task is the last."""


class _Sealed(_Frozen):
    """``checksum`` is the digest of the other fields: manifest and blessing are listed nowhere else."""

    checksum: str = ""

    def sealed_as(self) -> str:
        return digest_json(self.model_dump(mode="json", exclude={"checksum"}))


class Blessing(_Sealed):
    """Says that the gates passed for exactly this artifact, code, data and policy."""

    identity: str
    evidence: str
    git_commit: str
    git_dirty: bool
    data_version: str
    policy: str
    run: str
    created: float


class Manifest(_Sealed):
    format: int = FORMAT
    name: str
    version: str
    identity: str
    evidence: str
    files: Mapping[str, str]
    git_commit: str
    git_dirty: bool
    data_version: str
    recipe_digest: str
    policy: str


class Bundle(_Frozen):
    """A verified bundle: every digest was recomputed before anything was parsed."""

    path: Path
    manifest: Manifest
    signature: Signature
    blessing: Blessing | None
    engine: Engine = Engine()
    """What runs the graph; a service gives it ``serve.threads`` at the least."""

    @property
    def model(self) -> Path:
        return self.path / "model.onnx"

    def read(self, name: str) -> bytes:
        """The content of a file, verified again as it is read: what was altered since the bundle was opened is refused.

        Raises BundleError for that, and for a name that the manifest does not list.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: no file {name}", hint=f"it has {', '.join(sorted(self.manifest.files))}")
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise BundleError(f"{self.path}: {name} cannot be read: {error.strerror}", hint=RESTORE) from error
        _same(self.path, name, hashlib.sha256(content).hexdigest(), self.manifest.files[name])
        return content


def identity_of(files: Mapping[str, str]) -> str:
    """Identity digest from the digests of a bundle's files."""
    names = (*IDENTITY_FILES, ENGINE) if ENGINE in files else IDENTITY_FILES
    return digest_json({name: files[name] for name in names})


def evidence_of(files: Mapping[str, str]) -> str:
    """Digest of the evidence from the digests of a bundle's files."""
    return digest_json({name: digest for name, digest in files.items() if name.startswith("evidence/")})


def write(path: Path, *, name: str, lineage: Lineage, policy: str, run: str, blessed: bool, created: float) -> Bundle:
    """Write ``manifest.json`` and, when blessed, ``blessing.json`` over a folder that holds the other files.

    The version is the first twelve digits of the identity. Raises BundleError when a file is missing or is a link,
    and StoreError when the files cannot be written (a full disk).
    """
    files = {file: digest_file(path / file) for file in _present(path)}
    missing = [file for file in IDENTITY_FILES if file not in files]
    if missing:
        raise BundleError(f"a bundle needs {', '.join(missing)}; {path} has not", hint="mlkit run --force optimize")
    identity, evidence = identity_of(files), evidence_of(files)
    common = {
        "identity": identity,
        "evidence": evidence,
        "git_commit": lineage.git_commit,
        "git_dirty": lineage.git_dirty,
        "data_version": lineage.data_version,
        "policy": policy,
    }
    manifest = Manifest(name=name, version=identity[:12], files=files, recipe_digest=lineage.recipe_digest, **common)
    try:
        (path / BLESSING).unlink(missing_ok=True)
        _write(path / MANIFEST, manifest)
        if blessed:
            _write(path / BLESSING, Blessing(run=run, created=created, **common))
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}", hint="free some space and run again") from error
    return open_bundle(path)


def open_bundle(path: Path, *, blessed: bool = False) -> Bundle:
    """Verify a bundle and read it. With ``blessed`` an unblessed bundle is refused.

    Raises BundleError when a file is missing, unlisted, altered or a link, when the manifest or the blessing does not
    bind this identity and evidence, or when a blessing is asked for and absent.
    """
    manifest = _read(path / MANIFEST, Manifest)
    _verify_files(path, manifest)
    signature = _parsed(path / "signature.json", (path / "signature.json").read_bytes(), Signature)
    blessing = _read(path / BLESSING, Blessing) if (path / BLESSING).exists() else None
    if blessing is not None:
        _verify_blessing(path, manifest, blessing)
    elif blessed:
        raise BundleError(
            f"{path}: bundle {manifest.version} is not blessed: its gates did not pass",
            hint="a gateway serves blessed bundles only; see `mlkit show` for the verdicts",
        )
    return Bundle(path=path, manifest=manifest, signature=signature, blessing=blessing, engine=read_engine(path))


def read_engine(folder: Path) -> Engine:
    """What is to run the graph of a folder: its ``engine.json``, or the default where there is none.

    Raises BundleError when the file cannot be read or says what no Engine is.
    """
    path = folder / ENGINE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Engine()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}", hint=RESTORE) from error
    return _parsed(path, content, Engine)


def write_engine(folder: Path, engine: Engine) -> None:
    """Write ``engine.json`` unless the engine is the default: bundles of before there were engines stay the same."""
    if engine != Engine():
        replace_file(folder / ENGINE, _canonical(engine.model_dump(mode="json")))


def _present(path: Path) -> list[str]:
    """Names of the files of a bundle, manifest and blessing left out, sorted.

    Raises BundleError for a link, a device or a socket: each could answer differently when it is read again.
    """
    names = []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_symlink() or not (file.is_file() or file.is_dir()):
            what = "a link" if file.is_symlink() else "no regular file"
            raise BundleError(f"{path}: {name} is {what}; a bundle holds regular files only", hint=RESTORE)
        if file.is_file() and name not in (MANIFEST, BLESSING):
            names.append(name)
    return names


def _verify_files(path: Path, manifest: Manifest) -> None:
    present = _present(path)
    for name in sorted(set(manifest.files) | set(present)):
        if name not in present:
            raise BundleError(f"{path}: {name} is missing", hint=RESTORE)
        if name not in manifest.files:
            raise BundleError(f"{path}: {name} is not listed in the manifest", hint=RESTORE)
        try:
            found = digest_file(path / name)
        except OSError as error:
            raise BundleError(f"{path}: {name} cannot be read: {error.strerror}", hint=RESTORE) from error
        _same(path, name, found, manifest.files[name])
    if any(name not in manifest.files for name in IDENTITY_FILES):
        raise BundleError(f"{path}: the manifest does not list {' and '.join(IDENTITY_FILES)}", hint=RESTORE)
    identity = identity_of(manifest.files)
    if (identity, identity[:12], evidence_of(manifest.files)) != (
        manifest.identity,
        manifest.version,
        manifest.evidence,
    ):
        raise BundleError(f"{path}: the manifest's digests do not agree with each other", hint=RESTORE)


def _same(path: Path, name: str, found: str, listed: str) -> None:
    if found != listed:
        raise BundleError(
            f"{path}: {name} was altered: sha256 {found[:12]}…, the manifest says {listed[:12]}…", hint=RESTORE
        )


def _verify_blessing(path: Path, manifest: Manifest, blessing: Blessing) -> None:
    for field in ("identity", "evidence", "git_commit", "git_dirty", "data_version", "policy"):
        if getattr(blessing, field) != getattr(manifest, field):
            raise BundleError(
                f"{path}: the blessing is for another bundle: its {field} is {getattr(blessing, field)!r}, "
                f"the manifest's is {getattr(manifest, field)!r}",
                hint="run the recipe again with --force package",
            )


S = TypeVar("S", bound=_Sealed)


def _write(path: Path, sealed: _Sealed) -> None:
    path.write_bytes(_canonical(sealed.model_copy(update={"checksum": sealed.sealed_as()}).model_dump(mode="json")))


def _canonical(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def _read(path: Path, model: type[S]) -> S:
    """A manifest or a blessing, to the byte as it was written."""
    try:
        if path.is_symlink():
            raise BundleError(f"{path} is a link; a bundle holds regular files only", hint=RESTORE)
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing", hint="is this the folder of a bundle?") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}", hint="is this the folder of a bundle?") from error
    if model is Manifest:
        _same_format(path, content)
    value = _parsed(path, content, model)
    if value.checksum != value.sealed_as() or content != _canonical(value.model_dump(mode="json")):
        raise BundleError(f"{path} was altered: its checksum does not hold", hint=RESTORE)
    return value


def _same_format(path: Path, content: bytes) -> None:
    """Another format has other fields: say so before they are found fault with."""
    try:
        value = json.loads(content)
    except ValueError:
        return  # _parsed says what is wrong with it
    found = value.get("format", FORMAT) if isinstance(value, dict) else FORMAT
    if found != FORMAT:
        raise BundleError(
            f"{path.parent}: bundle format {found}; this mlflowkit reads {FORMAT}", hint="run the recipe again"
        )


def _parsed(path: Path, content: bytes, model: type[M]) -> M:
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise BundleError(
            f"{path} is not a valid {model.__name__.lower()}: {where + ': ' if where else ''}{fault['msg']}",
            hint=RESTORE,
        ) from error
