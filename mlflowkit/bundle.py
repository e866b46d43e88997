"""What is served: a folder with one ONNX graph, its signature, its evidence and its blessing.

::

    bundle/
      manifest.json      Manifest: identity digest, digests of every file, lineage
      signature.json     Signature: inputs and outputs of the graph, columns, classes
      model.onnx         raw columns in, answers out
      evidence/          reference.whylogs reference.json evaluation.json latency.json parity.json verdicts.json
      blessing.json      Blessing: present only when the gates passed

The **identity** of a bundle is the digest of what answers: ``model.onnx`` and ``signature.json``. Evidence is
digested apart, and the blessing binds identity, evidence, git commit, data version and policy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mlflowkit.errors import BundleError
from mlflowkit.values import Lineage

FORMAT = 1
IDENTITY_FILES = ("model.onnx", "signature.json")

M = TypeVar("M", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tensor(_Frozen):
    """One input or output of the graph, in the words of the Open Inference Protocol.

    ``shape`` has -1 for the batch. For an input, ``columns`` names what its last axis holds, in order.
    """

    name: str
    datatype: Literal["FP32", "FP64", "INT32", "INT64", "BOOL", "BYTES"]
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


class Blessing(_Frozen):
    """Says that the gates passed for exactly this artifact, code, data and policy."""

    identity: str
    evidence: str
    git_commit: str
    git_dirty: bool
    data_version: str
    policy: str
    run: str
    created: float


class Manifest(_Frozen):
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

    @property
    def model(self) -> Path:
        return self.path / "model.onnx"


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_json(value: object) -> str:
    """SHA-256 of a value's canonical JSON.

    >>> digest_json({"b": 1, "a": 2}) == digest_json({"a": 2, "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def identity_of(files: Mapping[str, str]) -> str:
    """Identity digest from the digests of a bundle's files."""
    return digest_json({name: files[name] for name in IDENTITY_FILES})


def evidence_of(files: Mapping[str, str]) -> str:
    """Digest of the evidence from the digests of a bundle's files."""
    return digest_json({name: digest for name, digest in files.items() if name.startswith("evidence/")})


def write(
    path: Path, *, name: str, lineage: Lineage, policy: str, run: str, blessed: bool, created: float
) -> Bundle:
    """Write ``manifest.json`` and, when blessed, ``blessing.json`` over a folder that holds the other files.

    The version is the first twelve digits of the identity. Raises BundleError when a file is missing.
    """
    files = {
        file.relative_to(path).as_posix(): digest_file(file)
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in ("manifest.json", "blessing.json")
    }
    missing = [file for file in IDENTITY_FILES if file not in files]
    if missing:
        raise BundleError(f"a bundle needs {', '.join(missing)}; {path} has not")
    identity, evidence = identity_of(files), evidence_of(files)
    common = {
        "identity": identity,
        "evidence": evidence,
        "git_commit": lineage.git_commit,
        "git_dirty": lineage.git_dirty,
        "data_version": lineage.data_version,
        "policy": policy,
    }
    manifest = Manifest(
        name=name, version=identity[:12], files=files, recipe_digest=lineage.recipe_digest, **common
    )
    (path / "manifest.json").write_text(manifest.model_dump_json(indent=1))
    if blessed:
        blessing = Blessing(run=run, created=created, **common)
        (path / "blessing.json").write_text(blessing.model_dump_json(indent=1))
    return open_bundle(path)


def open_bundle(path: Path, *, blessed: bool = False) -> Bundle:
    """Verify a bundle and read it. With ``blessed`` an unblessed bundle is refused.

    Raises BundleError when a file is missing, unlisted or altered, when the manifest or the blessing does not
    bind this identity and evidence, or when a blessing is asked for and absent.
    """
    manifest = _read(path / "manifest.json", Manifest)
    if manifest.format != FORMAT:
        raise BundleError(
            f"{path}: bundle format {manifest.format}; this mlflowkit reads {FORMAT}",
            hint="mlkit run it again",
        )
    _verify_files(path, manifest)
    signature = _read(path / "signature.json", Signature)
    blessing = _read(path / "blessing.json", Blessing) if (path / "blessing.json").exists() else None
    if blessing is not None:
        _verify_blessing(path, manifest, blessing)
    elif blessed:
        raise BundleError(
            f"{path}: bundle {manifest.version} is not blessed: its gates did not pass",
            hint="a gateway serves blessed bundles only; see `mlkit show` for the verdicts",
        )
    return Bundle(path=path, manifest=manifest, signature=signature, blessing=blessing)


def _verify_files(path: Path, manifest: Manifest) -> None:
    hint = "restore the bundle from the store, or run the recipe again with --force package"
    present = {
        file.relative_to(path).as_posix()
        for file in path.rglob("*")
        if file.is_file() and file.relative_to(path).as_posix() not in ("manifest.json", "blessing.json")
    }
    for name in sorted(set(manifest.files) | present):
        if name not in present:
            raise BundleError(f"{path}: {name} is missing", hint=hint)
        if name not in manifest.files:
            raise BundleError(f"{path}: {name} is not listed in the manifest", hint=hint)
        found = digest_file(path / name)
        if found != manifest.files[name]:
            raise BundleError(
                f"{path}: {name} was altered: sha256 {found[:12]}…, the manifest says {manifest.files[name][:12]}…",
                hint=hint,
            )
    if any(name not in manifest.files for name in IDENTITY_FILES):
        raise BundleError(f"{path}: the manifest does not list {' and '.join(IDENTITY_FILES)}", hint=hint)
    if identity_of(manifest.files) != manifest.identity or evidence_of(manifest.files) != manifest.evidence:
        raise BundleError(f"{path}: the manifest's digests do not agree with each other", hint=hint)


def _verify_blessing(path: Path, manifest: Manifest, blessing: Blessing) -> None:
    for field in ("identity", "evidence", "git_commit", "git_dirty", "data_version", "policy"):
        if getattr(blessing, field) != getattr(manifest, field):
            raise BundleError(
                f"{path}: the blessing is for another bundle: its {field} is {getattr(blessing, field)!r}, "
                f"the manifest's is {getattr(manifest, field)!r}",
                hint="run the recipe again with --force package",
            )


def _read(path: Path, model: type[M]) -> M:
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing", hint="is this the folder of a bundle?") from error
    except ValidationError as error:
        raise BundleError(
            f"{path} is not a valid {model.__name__.lower()}: {error.errors()[0]['msg']}"
        ) from error
