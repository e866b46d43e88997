"""Passes over ONNX graphs, one file each, behind the Passes port."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlflowkit.adapters.onnx_passes import bfloat16, float16, fuse, int8, int8_dynamic, rows, weight_only
from mlflowkit.adapters.onnx_passes.typed_graph import (
    PassNotApplicableError,
    drop_unused,
    interface,
    set_nodes,
    topological_order,
)
from mlflowkit.errors import EngineError, MlkitError
from mlflowkit.graphs import onnx_file
from mlflowkit.graphs.candidates import GraphPass, Pass
from mlflowkit.system.text import first_line

REWRITERS: Mapping[str, Callable[..., Any]] = {
    "fuse": fuse.rewrite,
    "fp16": float16.rewrite,
    "bf16": bfloat16.rewrite,
    "int8": int8.rewrite,
    "int8-dynamic": int8_dynamic.rewrite,
    "weight-only": weight_only.rewrite,
    "rows": rows.rewrite,
}
"""The function ``rewrite(settings, model, calibration)`` of each kind of pass, which returns the rewritten graph."""


class OnnxPasses:
    """The Passes port: applies passes in order."""

    def apply(self, passes: Sequence[Pass], model: Path, out: Path, calibration: Mapping[str, np.ndarray]) -> str:
        """Apply the passes and write the graph to ``out``; returns "", or the reason why a pass does not apply.

        ``calibration`` has training rows by input name, used by the int8 pass only. The output is deterministic.
        Weights of more than `onnx_file.MAX_FILE_BYTES` go to ``<out>.data``. Nothing is written unless all passes
        succeed.

        Raises DataError for calibration rows that do not fit the graph's inputs, EngineError when a file cannot be
        loaded or a tool fails.
        """
        graph = onnx_file.load_checked(model)
        producer = graph.producer_name, graph.producer_version
        value_info_names = {entry.name for entry in graph.graph.value_info}
        for step in passes:
            try:
                graph = self._apply_pass(step, graph, calibration)
            except PassNotApplicableError as reason:
                return str(reason)
        graph.producer_name, graph.producer_version = producer
        value_info = [entry for entry in graph.graph.value_info if entry.name in value_info_names]
        del graph.graph.value_info[:]
        graph.graph.value_info.extend(value_info)
        onnx_file.write(graph, out)
        return ""

    def _apply_pass(self, step: Pass, graph: Any, calibration: Mapping[str, np.ndarray]) -> Any:
        """The graph after one pass, with unchanged inputs and outputs. Raises EngineError."""
        before = interface(graph)
        rewrite: Callable[..., Any] = REWRITERS.get(step.kind) or _rewrite_by_plugin
        try:
            changed = rewrite(step, graph, calibration)
        except (MlkitError, PassNotApplicableError):
            raise
        except Exception as error:
            raise EngineError(
                f"the pass {step.kind} failed: {type(error).__name__}: {first_line(error)}",
                hint="leave this candidate out, or export the model with other operators",
            ) from error
        set_nodes(changed.graph, topological_order(changed.graph.node))
        drop_unused(changed)
        if interface(changed) != before:
            raise EngineError(
                f"the pass {step.kind} changed the graph's inputs or outputs from {before} to {interface(changed)}",
                hint="leave this candidate out",
            )
        return changed


def _rewrite_by_plugin(step: GraphPass, graph: Any, calibration: Mapping[str, np.ndarray]) -> Any:
    """Apply a plugin's pass by way of files. Raises PassNotApplicableError with the plugin's reason."""
    with tempfile.TemporaryDirectory(prefix="mlkit-pass-") as folder:
        model, out = Path(folder) / "in.onnx", Path(folder) / "out.onnx"
        onnx_file.write(graph, model)
        reason = step.apply(model, out, calibration)
        if reason:
            raise PassNotApplicableError(reason)
        return onnx_file.load_checked(out)
