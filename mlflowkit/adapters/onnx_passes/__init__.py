"""Passes over ONNX graphs, one file each, behind the Passes port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflowkit.errors import EngineError, MlkitError
from mlflowkit.graphs import onnx_file
from mlflowkit.graphs.candidates import Pass

if TYPE_CHECKING:
    import numpy as np

FILES = {
    "fuse": "fuse",
    "fp16": "float16",
    "bf16": "bfloat16",
    "int8": "int8",
    "int8-dynamic": "int8_dynamic",
    "weight-only": "weight_only",
    "rows": "rows",
}
"""The file of each kind of pass; its ``rewrite(settings, model, calibration)`` returns the graph after the pass."""


class OnnxPasses:
    """Applies passes one after the other."""

    def apply(self, passes: Sequence[Pass], model: Path, out: Path, calibration: Mapping[str, np.ndarray]) -> str:
        """Write ``model`` after all passes to ``out``; returns "" or the reason why this graph cannot be had so.

        ``calibration`` has training rows by input name; only the pass int8 looks at them. The same passes over the
        same graph and rows give the same bytes. A graph of more than `onnxfile.LARGEST_FILE` bytes has its weights in
        ``<out>.data`` beside it. Nothing is written unless all passes went through.

        Raises DataError for calibration rows that are not the graph's inputs, EngineError when a file cannot be loaded
        or a tool fails.
        """
        from mlflowkit.adapters.onnx_passes.typed_graph import InapplicableError

        graph = onnx_file.checked_load(model)
        about = graph.producer_name, graph.producer_version
        written = {entry.name for entry in graph.graph.value_info}
        for one in passes:
            try:
                graph = self._applied(one, graph, calibration)
            except InapplicableError as reason:
                return str(reason)
        graph.producer_name, graph.producer_version = about
        kept = [entry for entry in graph.graph.value_info if entry.name in written]
        del graph.graph.value_info[:]
        graph.graph.value_info.extend(kept)
        onnx_file.write(graph, out)
        return ""

    def _applied(self, one: Pass, graph: Any, calibration: Mapping[str, np.ndarray]) -> Any:
        """The graph after one pass, with the inputs and answers it had before. Raises EngineError."""
        from mlflowkit.adapters.onnx_passes.typed_graph import (
            InapplicableError,
            drop_unused,
            first_line,
            in_order,
            interface,
            replace_nodes,
        )

        before = interface(graph)
        try:
            changed = import_module(f"{__name__}.{FILES[one.kind]}").rewrite(one, graph, calibration)
        except (MlkitError, InapplicableError):
            raise
        except Exception as error:
            raise EngineError(
                f"the pass {one.kind} failed: {type(error).__name__}: {first_line(error)}",
                hint="leave this candidate out, or export the model with other operators",
            ) from error
        replace_nodes(changed.graph, in_order(changed.graph.node))
        drop_unused(changed)
        if interface(changed) != before:
            raise EngineError(
                f"the pass {one.kind} changed the graph's inputs or answers from {before} to {interface(changed)}",
                hint="leave this candidate out",
            )
        return changed
