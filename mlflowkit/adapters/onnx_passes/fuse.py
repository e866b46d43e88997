"""Transformer fusions: attention, layer normalisation and GELU as ONNX Runtime's own operators."""

from __future__ import annotations

from typing import Any

from mlflowkit.adapters.onnx_passes.calibration import Rows
from mlflowkit.adapters.onnx_passes.typed_graph import (
    PassNotApplicableError,
    normalize,
    silence_tools,
    temporary_file,
    upgrade_opset,
)
from mlflowkit.graphs.candidates import Fuse

LAYER_NORMALIZATION_OPSET = 17
"""First opset with LayerNormalization, which the fusion emits."""


def rewrite(settings: Fuse, model: Any, calibration: Rows) -> Any:
    """Fuse the parts of a transformer (onnxruntime.transformers.optimizer, model type bert).

    Raises PassNotApplicableError when nothing can be fused.
    """
    del calibration
    model = normalize(upgrade_opset(model, LAYER_NORMALIZATION_OPSET, "fusion"))
    with silence_tools(), temporary_file(model) as path:
        from onnxruntime.transformers.fusion_options import FusionOptions
        from onnxruntime.transformers.optimizer import optimize_model

        options = FusionOptions("bert")
        optimised = optimize_model(
            str(path), "bert", settings.heads or 0, hidden_size=0, optimization_options=options, opt_level=1
        )
    if not any(optimised.get_fused_operator_statistics().values()):
        raise PassNotApplicableError("nothing in the graph is a transformer's attention, layer normalisation or GELU")
    return optimised.model
