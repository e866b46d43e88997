"""What a network's graph ends in: an activation at the end bounds the scores, and the loss expects them unbounded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

Activation = Literal["softmax", "sigmoid", "tanh", "relu", ""]

SHAPE_ONLY = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Transpose", "Dropout"})
"""Operators that change no value."""
BY_OPERATOR: Mapping[str, Activation] = {
    "Softmax": "softmax",
    "Sigmoid": "sigmoid",
    "HardSigmoid": "sigmoid",
    "Tanh": "tanh",
    "Relu": "relu",
}


def last_activation(model: Any, output: str) -> Activation:
    """The activation that gives a tensor of an onnx.ModelProto; "" where it is none of those that bound it.

    A quotient by its own sum counts as a softmax.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    while (node := makers.get(output)) is not None:
        if node.op_type == "Div" and _is_sum_of(makers, node.input[1], node.input[0]):
            return "softmax"
        if node.op_type not in SHAPE_ONLY:
            return BY_OPERATOR.get(node.op_type, "")
        output = node.input[0]
    return ""


def bounded_scores(activation: Activation, name: str, classes: int) -> tuple[str, str] | None:
    """Message and hint where the activation at the end of the module ``name`` spoils what it can learn, or None.

    ``classes`` is 0 for a regression, which learns the standardised target.

    >>> bounded_scores("softmax", "Net", 2)[1]
    'return the scores before it (logits): the softmax is in the loss, and in the graph'
    >>> bounded_scores("relu", "Net", 2) is None
    True
    """
    if activation in ("softmax", "sigmoid") and classes:
        top = math.e / (math.e + classes - 1)
        message = (
            f"forward of {name} ends in a {activation}, and the loss (cross entropy) applies a softmax to it: no "
            f"probability can exceed {top:.2f}, however sure the model is"
        )
        return message, "return the scores before it (logits): the softmax is in the loss, and in the graph"
    if activation and not classes:
        reach = {"tanh": "between -1 and 1", "relu": "above 0"}.get(activation, "between 0 and 1")
        message = (
            f"forward of {name} ends in a {activation}: its values lie {reach}, and it learns the standardised target "
            "(mean 0, standard deviation 1), which lies on both sides"
        )
        return message, f"return the values before the {activation}"
    return None


def _is_sum_of(makers: Mapping[str, Any], total: str, part: str) -> bool:
    node = makers.get(total)
    while node is not None and node.op_type in SHAPE_ONLY | {"Expand", "Clip", "Max", "Add"}:
        node = makers.get(node.input[0])
    return node is not None and node.op_type == "ReduceSum" and node.input[0] == part
