"""Transformer fusions: attention, layer normalisation and GELU as ONNX Runtime's own operators."""

from __future__ import annotations

from typing import Any

from mlflowkit.adapters.onnx_passes.calibration import Rows
from mlflowkit.adapters.onnx_passes.typed_graph import InapplicableError, first_line, lifted, normalised, quiet, written
from mlflowkit.errors import EngineError
from mlflowkit.graphs.candidates import Fuse

LAYER_NORMALISATION = 17
"""The first opset with LayerNormalization, which the fusion writes."""


def rewrite(settings: Fuse, model: Any, calibration: Rows) -> Any:
    """``model`` with the parts of a transformer fused (onnxruntime.transformers.optimizer, model type bert).

    Raises InapplicableError when nothing in the graph is such a part, EngineError when the tool fails.
    """
    del calibration
    model = normalised(lifted(model, LAYER_NORMALISATION, "fusion"))
    with quiet(), written(model) as path:
        from onnxruntime.transformers.fusion_options import FusionOptions
        from onnxruntime.transformers.optimizer import optimize_model

        try:
            optimised = optimize_model(
                str(path),
                model_type="bert",
                num_heads=settings.heads or 0,
                hidden_size=0,
                optimization_options=FusionOptions("bert"),
                opt_level=1,
            )
            fused = optimised.get_fused_operator_statistics()
        except Exception as error:
            raise EngineError(
                f"the graph cannot be fused: {first_line(error)}", hint="leave this candidate out"
            ) from error
    if not any(fused.values()):
        raise InapplicableError("nothing in the graph is a transformer's attention, layer normalisation or GELU")
    return optimised.model
