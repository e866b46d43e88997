"""ONNX files: verified loading, and deterministic writing.

Weights may lie in other files (external data). A downloaded graph may point a weight at any file of the machine, so all
locations are checked before any external data is read.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflowkit.errors import EngineError
from mlflowkit.system.files import disk_errors, replace_file
from mlflowkit.system.text import first_line

NETWORK_PREFIX = "network/"
"""Name prefix of the model's own nodes in an exported graph; passes change only these where any exist."""
FEATURES_TENSOR = f"{NETWORK_PREFIX}features"
"""The tensor between preprocessing and model in an exported graph, float32 [rows, width]."""
MAX_FILE_BYTES = 2_000_000_000
"""Largest total of weights stored in the graph file; protobuf cannot serialise more than 2**31 - 1 bytes."""
EXTERNAL_FROM = 1024
"""Smallest tensor of a large graph, in bytes, that is stored as external data."""
ALIGNMENT = 4096
"""Alignment in bytes of tensors in an external file, for memory mapping."""
_CHUNK = 1 << 20
_RUNTIME_OPERATORS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})
"""Operators that ONNX Runtime accepts in ONNX's own domain at any opset."""


def load_checked(path: Path, *, weights: bool = True) -> Any:
    """Load the onnx.ModelProto of a file, with its external data unless ``weights`` is false.

    Raises EngineError when the file is truncated or not ONNX, uses an operator that ONNX does not define, or has
    external data that is outside the file's own folder (absolute path, ``..``, symlink), missing or too short. All
    external data is checked before any is read.
    """
    with _damage_named(path):
        return _load_checked(path, weights)


def _load_checked(path: Path, weights: bool) -> Any:
    import onnx

    model = _parse(path)
    if unknown := unsupported_nodes(model, _onnx_operator_check(model)):
        hint = "export the model again with operators of https://onnx.ai/onnx/operators, or in their own domain"
        raise EngineError(f"{path} has operators that ONNX does not have: {'; '.join(unknown[:5])}", hint=hint)
    _check_external_data(path, model)
    if weights:
        try:
            onnx.load_external_data_for_model(model, str(path.parent))
        except Exception as error:
            raise _unloadable(path, f"its external data cannot be read: {first_line(error)}") from error
        for tensor in _iter_tensors(model):
            tensor.ClearField("data_location")  # set to its default by the loader, which would change the bytes
    return model


def external_files(path: Path) -> tuple[Path, ...]:
    """Files with a graph's external data, sorted and unique. Raises EngineError as `load_checked` does."""
    with _damage_named(path):
        return _check_external_data(path, _parse(path))


def graph_files(path: Path) -> tuple[Path, ...]:
    """A graph's file and its external data files; parses only a graph that may have any.

    Raises OSError, ValueError for an empty file, EngineError as `load_checked` does.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        may_have_external = content.find(b"location") >= 0  # a key of every tensor with external data
    return (path, *(external_files(path) if may_have_external else ()))


def graph_digest(path: Path) -> str:
    """SHA-256 of a graph file and its external data. Raises EngineError as `load_checked` does."""
    digest = hashlib.sha256()
    for file in (path, *external_files(path)):
        name = b"" if file == path else file.name.encode()
        digest.update(len(name).to_bytes(8, "big") + name + file.stat().st_size.to_bytes(8, "big"))
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def write(model: Any, path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> None:
    """Write an onnx.ModelProto with all its weights loaded, deterministically. Raises StoreError on disk errors.

    More than ``max_bytes`` of weights go to ``<name>.data`` beside the graph; ``model`` is changed to refer to it.
    """
    tensors = [tensor for tensor in _iter_tensors(model) if len(tensor.raw_data) >= EXTERNAL_FROM]
    if sum(len(tensor.raw_data) for tensor in tensors) > max_bytes:
        _write_external(tensors, path.with_name(f"{path.name}.data"))
    replace_file(path, model.SerializeToString(deterministic=True), durable=False)


def iter_nodes(model: Any) -> Iterator[Any]:
    """Every onnx.NodeProto of a model, nested graphs (If, Loop, Scan) and functions included."""
    yield from iter_nested_nodes(model.graph.node)
    for function in model.functions:
        yield from iter_nested_nodes(function.node)


def request_inputs(model: Any) -> list[Any]:
    """The ValueInfoProto of each input of a graph that is not a constant."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [entry for entry in model.graph.input if entry.name not in constants]


def unsupported_nodes(model: Any, is_supported: Callable[[str, str], bool]) -> list[str]:
    """Nodes with an unsupported operator, in graph order, as ``[domain.]Operator (node name)``.

    ``is_supported`` takes an operator's domain ("" for ONNX's own) and name. Functions of the model are supported.
    """
    own = {(function.domain, function.name) for function in model.functions}
    unsupported = []
    for node in iter_nodes(model):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if (node.domain, node.op_type) not in own and not is_supported(domain, node.op_type):
            title = f"{domain}.{node.op_type}" if domain else node.op_type
            unsupported.append(f"{title} (node {node.name or 'without a name, giving ' + ', '.join(node.output)})")
    return unsupported


def _parse(path: Path) -> Any:
    import onnx

    try:
        content = path.read_bytes()
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or type(error).__name__}"
        raise EngineError(message, hint="give the path of an ONNX file") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:
        raise _unloadable(path, "it is cut off or no ONNX file") from error
    imported = {entry.domain or "ai.onnx" for entry in model.opset_import}
    needed = {node.domain or "ai.onnx" for node in model.graph.node}
    if not model.ir_version or not imported or not model.graph.output or not needed <= imported:
        raise _unloadable(path, "it is cut off or no ONNX file")
    return model


def _onnx_operator_check(model: Any) -> Callable[[str, str], bool]:
    """A predicate: whether ONNX defines an operator. Vendor domains are left to the runtime."""
    from onnx import defs

    versions = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}

    def is_defined(domain: str, operator: str) -> bool:
        if domain not in ("", "ai.onnx.ml") or operator in _RUNTIME_OPERATORS:
            return True
        return bool(defs.has(operator, versions.get(domain, 1), domain))

    return is_defined


def _check_external_data(path: Path, model: Any) -> tuple[Path, ...]:
    """The files of external data, after checking location and size without reading. Raises EngineError."""
    folder = path.parent.resolve()
    files: set[Path] = set()
    for tensor in _iter_tensors(model):
        if tensor.data_location != tensor.EXTERNAL:
            continue
        reference = {entry.key: entry.value for entry in tensor.external_data}
        file = _locate_external(path, folder, tensor.name, reference.get("location", ""))
        try:
            end = int(reference.get("offset", 0)) + int(reference.get("length", 0))
        except ValueError as error:
            raise _unloadable(path, f"offset or length of {tensor.name} is no number") from error
        if int(reference.get("offset", 0)) < 0 or int(reference.get("length", 0)) < 0 or end > file.stat().st_size:
            raise _unloadable(path, f"{file.name} is too short for {tensor.name} (it should have {end} bytes)")
        files.add(file)
    return tuple(sorted(files))


def _locate_external(path: Path, folder: Path, tensor: str, location: str) -> Path:
    """The file at a tensor's location, which must lie in or below the graph's folder. Raises EngineError."""
    file = folder / location.replace("\0", "")  # no file's name has one: refused below
    suspicious = (
        not location
        or "\0" in location
        or Path(location).is_absolute()
        or ".." in Path(location).parts
        or "\\" in location
    )
    if suspicious or not file.resolve().is_relative_to(folder):
        message = f"{path} is refused: its tensor {tensor} points at {location!r}, outside the model's folder"
        hint = "save the model again with its external data beside it (onnx.save with a plain file name as location)"
        raise EngineError(message, hint=hint)
    if not file.is_file():
        raise _unloadable(path, f"{location}, the external data of {tensor}, is not beside it")
    return file


def _write_external(tensors: list[Any], data: Path) -> None:
    """Move the bytes of tensors into one file at aligned offsets, and set the tensors' references to it."""
    temporary = data.with_name(f".{data.name}.new")
    with disk_errors(data):
        data.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                for tensor in tensors:
                    stream.write(b"\0" * (-stream.tell() % ALIGNMENT))
                    reference = {"location": data.name, "offset": stream.tell(), "length": len(tensor.raw_data)}
                    stream.write(tensor.raw_data)
                    for field in ("raw_data", "external_data"):
                        tensor.ClearField(field)
                    for key, value in reference.items():
                        tensor.external_data.add(key=key, value=str(value))
                    tensor.data_location = tensor.EXTERNAL
            temporary.replace(data)
        finally:
            temporary.unlink(missing_ok=True)


def _iter_tensors(model: Any) -> Iterator[Any]:
    """Every TensorProto of a model, in a deterministic order."""
    yield from _iter_constants(model.graph)
    for node in iter_nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            single = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for sparse in (*single, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in _nested_graphs(attribute):
                yield from _iter_constants(graph)


def _iter_constants(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)


def iter_nested_nodes(listed: Iterable[Any]) -> Iterator[Any]:
    """Nodes of a list, each followed by the nodes of its nested graphs."""
    for node in listed:
        yield node
        for attribute in node.attribute:
            for graph in _nested_graphs(attribute):
                yield from iter_nested_nodes(graph.node)


def _nested_graphs(attribute: Any) -> list[Any]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what a damaged file makes its readers raise (text that is no UTF-8, a path with a loop) into EngineError."""
    try:
        yield
    except (ValueError, TypeError, LookupError, RecursionError, OverflowError, OSError) as error:
        raise _unloadable(path, f"it is damaged: {first_line(error)}") from error


def _unloadable(path: Path, reason: str) -> EngineError:
    return EngineError(f"{path} cannot be loaded: {reason}", hint="export or download the model again")
