"""ONNX files: loaded only when they are whole and keep to their own folder, written the same way each time.

A graph's weights may lie in other files (external data). A file from elsewhere may point such a weight at any file of
the machine, so where they point is looked at before anything of them is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mlflowkit.errors import EngineError
from mlflowkit.system.files import disk_errors, replace_file

NETWORK = "network/"
"""Prefix of the names of what came from the model in an exported graph: passes keep to these nodes where any are."""
FEATURES = f"{NETWORK}features"
"""The tensor between preprocessing and model in an exported graph, float32 [rows, width]."""
LARGEST_FILE = 2_000_000_000
"""Bytes of weights that still go into the graph's own file; protobuf cannot serialise more than 2**31 - 1."""
EXTERNAL_FROM = 1024
"""Bytes from which a tensor of a large graph goes into the file beside it; shapes and scalars stay in the graph."""
ALIGNMENT = 4096
"""Bytes; where a tensor in an external file begins, so that it can be mapped."""
_CHUNK = 1 << 20
_RUNTIME_OPERATORS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})
"""Operators that ONNX Runtime has in ONNX's own domain at any opset."""


def checked_load(path: Path, *, weights: bool = True) -> Any:
    """The onnx.ModelProto in a file, with its external data unless ``weights`` is false.

    Raises EngineError when the file is not ONNX or cut off, when it names an operator that ONNX does not have, and
    when external data lie outside the file's own folder (an absolute path, ``..``, a link that leads out), are missing
    or shorter than the graph says. External data are looked at, all of them, before any is read.
    """
    import onnx

    model = _parsed(path)
    if unknown := unsupported(model, _known_to_onnx(model)):
        raise EngineError(
            f"{path} has operators that ONNX does not have: {'; '.join(unknown[:5])}",
            hint="export the model again with operators of https://onnx.ai/onnx/operators, or in their own domain",
        )
    _external(path, model)
    if weights:
        try:
            onnx.load_external_data_for_model(model, str(path.parent))
        except Exception as error:
            raise _damaged(path, f"its external data cannot be read: {_first_line(error)}") from error
        for tensor in _tensors(model):
            tensor.ClearField("data_location")  # it says "here" as if that were worth saying: other bytes, same model
    return model


def external_files(path: Path) -> tuple[Path, ...]:
    """The files that hold external data of a graph, sorted, each once. Raises EngineError as `checked_load`."""
    return _external(path, _parsed(path))


def graph_digest(path: Path) -> str:
    """SHA-256 over a graph's file and every file of external data: two graphs with other weights differ.

    Raises EngineError as `checked_load`.
    """
    digest = hashlib.sha256()
    for file in (path, *external_files(path)):
        name = b"" if file == path else file.name.encode()
        digest.update(len(name).to_bytes(8, "big") + name + file.stat().st_size.to_bytes(8, "big"))
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def write(model: Any, path: Path, *, largest: int = LARGEST_FILE) -> None:
    """Write an onnx.ModelProto with all its weights loaded: the same bytes for the same model.

    With more than ``largest`` bytes of weights they go to ``<name>.data`` beside it, and ``model`` refers to it then.
    Raises StoreError when the disk refuses.
    """
    tensors = [tensor for tensor in _tensors(model) if len(tensor.raw_data) >= EXTERNAL_FROM]
    if sum(len(tensor.raw_data) for tensor in tensors) > largest:
        _write_external(tensors, path.with_name(f"{path.name}.data"))
    replace_file(path, model.SerializeToString(deterministic=True), durable=False)


def nodes(model: Any) -> Iterator[Any]:
    """Every onnx.NodeProto of a model: of its graph, of graphs inside nodes (If, Loop, Scan) and of functions."""
    yield from nodes_of(model.graph.node)
    for function in model.functions:
        yield from nodes_of(function.node)


def unsupported(model: Any, known: Callable[[str, str], bool]) -> list[str]:
    """Nodes whose operator is not known, in the graph's order: ``Operator (node name)``, with the domain if it has one.

    ``known`` is asked with an operator's domain ("" for ONNX's own) and name. Functions of the model itself are known.
    """
    own = {(function.domain, function.name) for function in model.functions}
    found = []
    for node in nodes(model):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if (node.domain, node.op_type) not in own and not known(domain, node.op_type):
            title = f"{domain}.{node.op_type}" if domain else node.op_type
            found.append(f"{title} (node {node.name or 'without a name, giving ' + ', '.join(node.output)})")
    return found


def _parsed(path: Path) -> Any:
    import onnx

    try:
        content = path.read_bytes()
    except OSError as error:
        raise EngineError(
            f"{path} cannot be read: {error.strerror or type(error).__name__}", hint="give the path of an ONNX file"
        ) from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:
        raise _damaged(path, "it is cut off or no ONNX file") from error
    imported = {entry.domain or "ai.onnx" for entry in model.opset_import}
    needed = {node.domain or "ai.onnx" for node in model.graph.node}
    if not model.ir_version or not imported or not model.graph.output or not needed <= imported:
        raise _damaged(path, "it is cut off or no ONNX file")
    return model


def _known_to_onnx(model: Any) -> Callable[[str, str], bool]:
    """Whether ONNX has an operator; what is in a vendor's domain is the runtime's to know."""
    from onnx import defs

    versions = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}

    def known(domain: str, operator: str) -> bool:
        if domain not in ("", "ai.onnx.ml") or operator in _RUNTIME_OPERATORS:
            return True
        return bool(defs.has(operator, versions.get(domain, 1), domain))

    return known


def _external(path: Path, model: Any) -> tuple[Path, ...]:
    """Files of external data, each looked at; nothing of them is read. Raises EngineError."""
    folder = path.parent.resolve()
    files: set[Path] = set()
    for tensor in _tensors(model):
        if tensor.data_location != tensor.EXTERNAL:
            continue
        about = {entry.key: entry.value for entry in tensor.external_data}
        file = _inside(path, folder, tensor.name, about.get("location", ""))
        try:
            end = int(about.get("offset", 0)) + int(about.get("length", 0))
        except ValueError as error:
            raise _damaged(path, f"offset or length of {tensor.name} is no number") from error
        if int(about.get("offset", 0)) < 0 or int(about.get("length", 0)) < 0 or end > file.stat().st_size:
            raise _damaged(path, f"{file.name} is too short for {tensor.name} (it should have {end} bytes)")
        files.add(file)
    return tuple(sorted(files))


def _inside(path: Path, folder: Path, tensor: str, location: str) -> Path:
    """The file at a tensor's location, which must be a file in the graph's own folder or below. Raises EngineError."""
    file = folder / location
    if not location or Path(location).is_absolute() or ".." in Path(location).parts or "\\" in location:
        outside = True
    else:
        outside = not file.resolve().is_relative_to(folder)
    if outside:
        raise EngineError(
            f"{path} is refused: its tensor {tensor} points at {location!r}, outside the model's folder",
            hint="save the model again with its external data beside it (onnx.save with a plain file name as location)",
        )
    if not file.is_file():
        raise _damaged(path, f"{location}, the external data of {tensor}, is not beside it")
    return file


def _write_external(tensors: list[Any], data: Path) -> None:
    """Move the bytes of tensors into one file, each at an aligned place, and let the tensors point there."""
    temporary = data.with_name(f".{data.name}.new")
    with disk_errors(data):
        data.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                for tensor in tensors:
                    stream.write(b"\0" * (-stream.tell() % ALIGNMENT))
                    _point(tensor, data.name, stream.tell())
                    stream.write(tensor.raw_data)
                    tensor.ClearField("raw_data")
            temporary.replace(data)
        finally:
            temporary.unlink(missing_ok=True)


def _point(tensor: Any, location: str, offset: int) -> None:
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", len(tensor.raw_data))):
        tensor.external_data.add(key=key, value=str(value))
    tensor.data_location = tensor.EXTERNAL


def _tensors(model: Any) -> Iterator[Any]:
    """Every TensorProto of a model, in a fixed order."""
    yield from _constants(model.graph)
    for node in nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
                *attribute.sparse_tensors,
            ):
                yield from (sparse.values, sparse.indices)
            for graph in _graphs(attribute):
                yield from _constants(graph)


def _constants(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)


def nodes_of(listed: Iterable[Any]) -> Iterator[Any]:
    """Nodes in a list, each followed by those of the graphs inside it."""
    for node in listed:
        yield node
        for attribute in node.attribute:
            for graph in _graphs(attribute):
                yield from nodes_of(graph.node)


def _graphs(attribute: Any) -> list[Any]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _damaged(path: Path, reason: str) -> EngineError:
    return EngineError(f"{path} cannot be loaded: {reason}", hint="export or download the model again")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
