"""The bundle: a folder with one ONNX graph, its signature, its evidence and its blessing.

::

    bundle/
      manifest.json      Manifest: identity digest, digests of every file, lineage
      signature.json     Signature: inputs and outputs of the graph, columns, classes
      model.onnx         raw columns in, predictions out
      engine.json        candidates.Engine: the runtime of the graph, unless it is the default
      evidence/          reference.whylogs reference.json evaluation.json verdicts.json candidates.json latency.json
                         machine.json (where latency was measured) · parity.json · sample.json (test rows with their
                         predictions) · seen_rows.npy (digests of the training and validation rows: uint64, sorted;
                         see mlflowkit.features.row_digests) · monitor.json (what live traffic is compared with; see
                         mlflowkit.judging.shift.reference) · calibrator.json (what estimates of
                         performance are made from; see mlflowkit.judging.performance); bundles of version 0.1 have
                         neither
      blessing.json      Blessing: present only when the gates passed
      withheld.json      Withheld: present only in a copy that left out evidence with values of rows

The **identity** of a bundle is the digest of ``model.onnx``, ``signature.json`` and ``engine.json`` (if present).
Evidence has its own digest; the blessing binds identity, evidence, git commit and tree, data version and policy.

Verification guarantees that no file was changed, removed, added or linked from outside since the bundle was written.
Evidence that ``withheld.json`` names is missing in a copy that was published without it: its digests stay bound by the
blessing, and what needs it does without, as for a bundle of an earlier version.
It detects accidents and swapped files, not an attacker who can rewrite the whole bundle with new digests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, SerializerFunctionWrapHandler, ValidationError, model_serializer

from mlflowkit.errors import BundleError, StoreError
from mlflowkit.graphs.candidates import Engine
from mlflowkit.system.digests import digest_file, digest_json
from mlflowkit.system.files import replace_file
from mlflowkit.values import Lineage

FORMAT = 1
IDENTITY_FILES = ("model.onnx", "signature.json")
ENGINE = "engine.json"
"""Part of the identity where present."""
MANIFEST, BLESSING, WITHHELD = "manifest.json", "blessing.json", "withheld.json"
PUBLIC_EVIDENCE = tuple(f"evidence/{name}.json" for name in ("decision", "latency", "machine", "parity", "verdicts"))
"""Evidence without values of the data's rows; all other may be withheld from a copy. That of the candidates is not
among it: why one failed is said by a library, with paths of this machine or what it read."""
ADDED_FIELDS = ("git_tree", "rebound_from", "data_source", "data_commit")
"""Fields of manifest and blessing that bundles of earlier versions do not have."""
RESTORE = "restore the bundle from the store, or make it again: mlkit run RECIPE --force package"
NO_BUNDLE = "name the folder of a bundle"

M = TypeVar("M", bound=BaseModel)


class _FrozenModel(BaseModel, frozen=True, extra="forbid"):
    """Immutable and without unknown keys."""


class TensorSpec(_FrozenModel):
    """One input or output of the graph, in the terms of the Open Inference Protocol.

    ``shape`` has -1 for the batch. For an input, ``columns`` names the columns of its last axis, in order.
    """

    name: str
    datatype: Literal["BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
                      "FP16", "FP32", "FP64", "BYTES"]  # fmt: skip
    shape: tuple[int, ...]
    columns: tuple[str, ...] = ()


class TokenRule(_FrozenModel):
    """How a column of free text is taken apart before the graph; `features.texts.text_tokens` applies it."""

    analyzer: Literal["word", "char"] = "word"
    """Whether its tokens are words or characters."""
    lowercase: bool = True
    """Whether letters become small ones first."""
    max_tokens: int = 1000
    """Tokens of a text that are read."""


class TextRule(_FrozenModel):
    """What a text is, in a file, a request and a sample row alike; `features.cells` applies it.

    A category is its text. Without a rule (bundles of version 0.1, tables without texts) only the empty text is
    missing.
    """

    missing: tuple[str, ...] = ()
    """Texts that say that a value is missing, besides the empty one; a text of blanks alone is one of them if any."""
    verbatim: tuple[str, ...] = ()
    """Columns declared categorical: only the empty text is missing there."""
    trim: bool = False
    """Whether blanks around a text are removed."""
    decimal: str = "."
    """The decimal mark of numbers written as text."""
    thousands: str = ""
    """What separates the digits of such a number into groups."""
    units: tuple[str, ...] = ()
    """Signs and units before or after such a number, which are not part of it."""
    dates: dict[str, Literal["naive", "offset"]] = {}
    """Columns of dates, read as ISO 8601 text or as seconds since 1970; whether their texts have an offset from UTC.
    Left out where there is none, so that older bundles keep their identity."""
    tokens: dict[str, TokenRule] = {}
    """Columns of free text, whose tokens are hashed, and what a token is. Left out where there is none."""

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        value: dict[str, Any] = handler(self)
        return {name: item for name, item in value.items() if item or name not in ("dates", "tokens")}


class Signature(_FrozenModel):
    """Inputs and outputs of a bundle.

    Inputs: ``numeric`` FP32 [-1, k] (a missing value is NaN) and ``categorical`` BYTES [-1, m] (a missing value
    is the empty string); ``dates`` FP64 [-1, t], seconds since 1970 (a missing value is NaN). A tensor is absent when
    there are no such columns.
    Outputs: classification ``label`` (INT64 or BYTES) [-1] and ``probabilities`` FP32 [-1, C];
    regression ``prediction`` FP32 [-1].
    """

    task: Literal["classification", "regression"]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    classes: tuple[str | int, ...] = ()
    """Labels in the order of ``probabilities``; the positive class of a binary task is the last."""
    threshold: float | None = None
    """The probability from which the positive class of a binary task is the label; None: when it is more probable."""
    texts: TextRule = TextRule()
    """What the texts of requests and files mean."""

    @property
    def has_text_rule(self) -> bool:
        """Whether the bundle says what texts mean; those of version 0.1 do not."""
        return "texts" in self.model_fields_set


class _ChecksummedFile(_FrozenModel):
    """A file with its own ``checksum``, the digest of its other fields: manifest and blessing.

    Fields that were added later are left out where they are empty, so that the checksums of older bundles hold.
    """

    checksum: str = ""

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        value: dict[str, Any] = handler(self)
        return {name: item for name, item in value.items() if item or name not in ADDED_FIELDS}

    def compute_checksum(self) -> str:
        return digest_json(self.model_dump(mode="json", exclude={"checksum"}))


class Blessing(_ChecksummedFile):
    """Certifies that the gates passed for exactly this artifact, code, data and policy."""

    identity: str
    evidence: str
    git_commit: str
    git_dirty: bool
    data_version: str
    policy: str
    run: str
    created: float
    git_tree: str = ""
    """Digest of git's tree of the recipe's folder: the same in every commit with the same files there."""
    rebound_from: str = ""
    """The commit at which the gates passed, where ``git_commit`` is another with the same tree."""
    data_source: str = ""
    """Where remote data was read from."""
    data_commit: str = ""
    """The commit of its store."""


class Manifest(_ChecksummedFile):
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
    git_tree: str = ""
    data_source: str = ""
    data_commit: str = ""


class Withheld(_ChecksummedFile):
    """The evidence that a copy of a bundle left out."""

    identity: str
    files: tuple[str, ...]


class Bundle(_FrozenModel):
    """A verified bundle: every digest was recomputed before parsing."""

    path: Path
    manifest: Manifest
    signature: Signature
    blessing: Blessing | None
    engine: Engine = Engine()
    """The runtime of the graph; a service gives it at least ``serve.threads`` threads."""
    withheld: tuple[str, ...] = ()
    """Evidence that this copy was published without."""

    def has(self, name: str) -> bool:
        """Whether a file is here."""
        return name in self.manifest.files and name not in self.withheld

    @property
    def model(self) -> Path:
        return self.path / "model.onnx"

    def read(self, name: str) -> bytes:
        """Read a file and verify it again. Raises BundleError when it was altered or is not in the manifest."""
        if name in self.withheld:
            message = f"{self.path} was published without {name}, which holds values of the data's rows"
            raise BundleError(message, hint="take the bundle from the state folder that made it")
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: no file {name}", hint=f"it has {', '.join(sorted(self.manifest.files))}")
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise BundleError(f"{self.path}: {name} cannot be read: {error.strerror}", hint=RESTORE) from error
        _check_digest(self.path, name, hashlib.sha256(content).hexdigest(), self.manifest.files[name])
        return content


def identity_of(files: Mapping[str, str]) -> str:
    """Identity digest of a bundle from the digests of its files."""
    names = (*IDENTITY_FILES, ENGINE) if ENGINE in files else IDENTITY_FILES
    return digest_json({name: files[name] for name in names})


def evidence_of(files: Mapping[str, str]) -> str:
    """Evidence digest of a bundle from the digests of its files."""
    return digest_json({name: digest for name, digest in files.items() if name.startswith("evidence/")})


def write(path: Path, *, name: str, lineage: Lineage, policy: str, run: str, blessed: bool, created: float) -> Bundle:
    """Write ``manifest.json`` and, when blessed, ``blessing.json`` into a folder with the other files.

    The version is the first twelve digits of the identity. Raises BundleError when a file is missing or is a link,
    and StoreError when writing fails (a full disk).
    """
    files = {file: digest_file(path / file) for file in _list_files(path)}
    missing = [file for file in IDENTITY_FILES if file not in files]
    if missing:
        message = f"a bundle needs {', '.join(missing)}; {path} lacks it"
        raise BundleError(message, hint="mlkit run RECIPE --force optimize")
    identity = identity_of(files)
    common = {"identity": identity, "evidence": evidence_of(files), "policy": policy, **asdict(lineage)}
    recipe_digest, _ = common.pop("recipe_digest"), common.pop("git_changes")
    manifest = Manifest(name=name, version=identity[:12], files=files, recipe_digest=recipe_digest, **common)
    try:
        (path / BLESSING).unlink(missing_ok=True)
        _write_checksummed(path / MANIFEST, manifest)
        if blessed:
            _write_checksummed(path / BLESSING, Blessing(run=run, created=created, **common))
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}", hint="free some space and run again") from error
    return open_bundle(path)


def rebind(path: Path, *, git_commit: str) -> Bundle:
    """Name another commit with the same tree in manifest and blessing, in place; identity and evidence stay.

    The blessing keeps the run and the time at which it was given, and in ``rebound_from`` the commit. Between the two
    files the bundle is not blessed. Raises BundleError for one that does not verify or is not blessed.
    """
    opened = open_bundle(path, blessed=True)
    blessing = opened.blessing
    assert blessing is not None
    judged_at = blessing.rebound_from or blessing.git_commit
    (path / BLESSING).unlink()
    _write_checksummed(path / MANIFEST, opened.manifest.model_copy(update={"git_commit": git_commit}))
    changes = {"git_commit": git_commit, "rebound_from": "" if judged_at == git_commit else judged_at}
    _write_checksummed(path / BLESSING, blessing.model_copy(update=changes))
    return open_bundle(path, blessed=True)


def open_bundle(path: Path, *, blessed: bool = False) -> Bundle:
    """Verify and read a bundle. Raises BundleError.

    It is invalid when a file is missing (but for withheld evidence), unlisted, altered or a link, when manifest or
    blessing do not bind this identity and evidence, or when ``blessed`` is required and the blessing is absent.
    """
    manifest = _read_checksummed(path / MANIFEST, Manifest)
    withheld = _read_withheld(path, manifest)
    _verify_files(path, manifest, withheld)
    signature = _parse(path / "signature.json", (path / "signature.json").read_bytes(), Signature)
    blessing = _read_checksummed(path / BLESSING, Blessing) if (path / BLESSING).exists() else None
    if blessing is not None:
        _verify_blessing(path, manifest, blessing)
    elif blessed:
        message = f"{path}: bundle {manifest.version} is not blessed: its gates did not pass"
        raise BundleError(message, hint="a gateway serves blessed bundles only; `mlkit show last` lists the verdicts")
    engine = read_engine(path)
    return Bundle(
        path=path, manifest=manifest, signature=signature, blessing=blessing, engine=engine, withheld=withheld
    )  # fmt: skip


def withheld_record(bundle: Bundle) -> bytes:
    """``withheld.json`` of a copy of a bundle without all evidence that may hold values of the data's rows."""
    names = (name for name in bundle.manifest.files if name.startswith("evidence/") and name not in PUBLIC_EVIDENCE)
    record = Withheld(identity=bundle.manifest.identity, files=tuple(sorted(names)))
    return _canonical(record.model_copy(update={"checksum": record.compute_checksum()}).model_dump(mode="json"))


def read_manifest(path: Path) -> Manifest:
    """Read a bundle's manifest alone, without its files. Raises BundleError when it is missing or altered."""
    return _read_checksummed(path / MANIFEST, Manifest)


def read_engine(folder: Path) -> Engine:
    """Read ``engine.json``; the default engine when there is none. Raises BundleError when it is invalid."""
    path = folder / ENGINE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Engine()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}", hint=RESTORE) from error
    return _parse(path, content, Engine)


def write_engine(folder: Path, engine: Engine) -> None:
    """Write ``engine.json`` unless the engine is the default (identities of older bundles stay the same)."""
    if engine != Engine():
        replace_file(folder / ENGINE, _canonical(engine.model_dump(mode="json")))


def _list_files(path: Path) -> list[str]:
    """Sorted names of a bundle's files, without manifest and blessing.

    Raises BundleError for anything but regular files and folders: its content could change between two reads.
    """
    names = []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_symlink() or not (file.is_file() or file.is_dir()):
            kind = "a link" if file.is_symlink() else "no regular file"
            raise BundleError(f"{path}: {name} is {kind}; a bundle holds regular files only", hint=RESTORE)
        if file.is_file() and name not in (MANIFEST, BLESSING, WITHHELD):
            names.append(name)
    return names


def _read_withheld(path: Path, manifest: Manifest) -> tuple[str, ...]:
    """The evidence that is rightly missing. Raises BundleError for a record of another bundle, or of other files."""
    if not (path / WITHHELD).exists():
        return ()
    record = _read_checksummed(path / WITHHELD, Withheld)
    public = [name for name in record.files if not name.startswith("evidence/") or name in PUBLIC_EVIDENCE]
    strange = [name for name in record.files if name not in manifest.files]
    if record.identity != manifest.identity or public or strange:
        named = (public or strange or [f"bundle {record.identity[:12]}"])[0]
        raise BundleError(f"{path}: {WITHHELD} names {named}, which cannot be withheld from it", hint=RESTORE)
    return record.files


def _verify_files(path: Path, manifest: Manifest, withheld: Collection[str]) -> None:
    present = _list_files(path)
    if both := sorted(set(withheld) & set(present)):
        raise BundleError(f"{path}: {both[0]} is there, and {WITHHELD} says that it is not", hint=RESTORE)
    for name in sorted((set(manifest.files) | set(present)) - set(withheld)):
        if name not in present:
            raise BundleError(f"{path}: {name} is missing", hint=RESTORE)
        if name not in manifest.files:
            raise BundleError(f"{path}: {name} is not listed in the manifest", hint=RESTORE)
        try:
            digest = digest_file(path / name)
        except OSError as error:
            raise BundleError(f"{path}: {name} cannot be read: {error.strerror}", hint=RESTORE) from error
        _check_digest(path, name, digest, manifest.files[name])
    if any(name not in manifest.files for name in IDENTITY_FILES):
        raise BundleError(f"{path}: the manifest does not list {' and '.join(IDENTITY_FILES)}", hint=RESTORE)
    identity = identity_of(manifest.files)
    computed = (identity, identity[:12], evidence_of(manifest.files))
    if computed != (manifest.identity, manifest.version, manifest.evidence):
        raise BundleError(f"{path}: the manifest's digests do not agree with each other", hint=RESTORE)


def _check_digest(path: Path, name: str, digest: str, listed: str) -> None:
    if digest != listed:
        message = f"{path}: {name} was altered: sha256 {digest[:12]}…, the manifest says {listed[:12]}…"
        raise BundleError(message, hint=RESTORE)


def _verify_blessing(path: Path, manifest: Manifest, blessing: Blessing) -> None:
    bound = ("identity", "evidence", "git_commit", "git_tree", "git_dirty", "data_version", "policy")
    for field in (*bound, "data_source", "data_commit"):
        ours, theirs = getattr(blessing, field), getattr(manifest, field)
        if ours != theirs:
            message = f"the blessing is for another bundle: its {field} is {ours!r}, the manifest's is {theirs!r}"
            raise BundleError(f"{path}: {message}", hint="mlkit run RECIPE --force package")


S = TypeVar("S", bound=_ChecksummedFile)


def _write_checksummed(path: Path, record: _ChecksummedFile) -> None:
    record = record.model_copy(update={"checksum": record.compute_checksum()})
    path.write_bytes(_canonical(record.model_dump(mode="json")))


def _canonical(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def _read_checksummed(path: Path, model: type[S]) -> S:
    """Read a manifest or a blessing. Raises BundleError unless it is byte for byte as written."""
    try:
        if path.is_symlink():
            raise BundleError(f"{path} is a link; a bundle holds regular files only", hint=RESTORE)
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing", hint=NO_BUNDLE) from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}", hint=NO_BUNDLE) from error
    if model is Manifest:
        _check_format(path, content)
    value = _parse(path, content, model)
    if value.checksum != value.compute_checksum() or content != _canonical(value.model_dump(mode="json")):
        raise BundleError(f"{path} was altered: its checksum does not hold", hint=RESTORE)
    return value


def _check_format(path: Path, content: bytes) -> None:
    """Raises BundleError for another format, before its fields are validated."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return  # reported by _parse
    version = value.get("format", FORMAT) if isinstance(value, dict) else FORMAT
    if version != FORMAT:
        message = f"{path.parent}: bundle format {version}; this mlflowkit reads {FORMAT}"
        raise BundleError(message, hint="mlkit run RECIPE --force package")


def _parse(path: Path, content: bytes, model: type[M]) -> M:
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        message = f"{path} is not a valid {model.__name__.lower()}: {where + ': ' if where else ''}{fault['msg']}"
        raise BundleError(message, hint=RESTORE) from error
