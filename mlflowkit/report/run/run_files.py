"""Published JSON of a run's stages: the only module of the report that reads files.

A run may stop anywhere, so every file may be absent; a file that does not parse is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflowkit.errors import StoreError
from mlflowkit.system.text import parse_json
from mlflowkit.values import Json

FILES: Mapping[str, tuple[str, str]] = {
    "table": ("data", "table.json"),
    "checks": ("validate", "checks.json"),
    "reference": ("validate", "reference.json"),
    "trained": ("train", "spec.json"),
    "curves": ("train", "curves.json"),
    "parity": ("export", "parity.json"),
    "decision": ("export", "decision.json"),
    "candidates": ("optimize", "candidates.json"),
    "latency": ("optimize", "latency.json"),
    "evaluation": ("evaluate", "evaluation.json"),
    "manifest": ("package", "bundle/manifest.json"),
    "blessing": ("package", "bundle/blessing.json"),
    "signature": ("package", "bundle/signature.json"),
    "service": ("deploy", "service.json"),
}
"""The stage and file of each piece of evidence."""


@dataclass(frozen=True, slots=True)
class RunEvidence:
    """Parsed files of a run; None for a stage not reached. Formats: mlflowkit.stages."""

    table: Json | None = None
    checks: Json | None = None
    reference: Json | None = None
    trained: Json | None = None
    curves: Json | None = None
    parity: Json | None = None
    candidates: Json | None = None
    latency: Json | None = None
    evaluation: Json | None = None
    decision: Json | None = None
    manifest: Json | None = None
    blessing: Json | None = None
    signature: Json | None = None
    service: Json | None = None
    graph_bytes: int | None = None
    """Size of the bundle's graph."""


def read(folders: Mapping[str, Path]) -> RunEvidence:
    """Read the files in ``folders``, the published folder of each stage reached. Raises StoreError for invalid JSON."""
    documents = {
        name: _read_json(folders[stage] / file)
        for name, (stage, file) in FILES.items()
        if stage in folders and (folders[stage] / file).is_file()
    }
    graph = folders["package"] / "bundle" / "model.onnx" if "package" in folders else None
    size = graph.stat().st_size if graph is not None and graph.is_file() else None
    return RunEvidence(**documents, graph_bytes=size)


def _read_json(path: Path) -> Json:
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read as JSON: {error}",
            hint=f"run the recipe again with --force {path.parent.name}" if path.parent.name in _STAGES else "",
        ) from error


_STAGES = {stage for stage, _ in FILES.values()}
