"""What each product costs in INT8, measured: the answers' change when it alone is quantised."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from mlflowkit.adapters.onnx_passes.calibration import Rows, request_rows, requests
from mlflowkit.adapters.onnx_passes.typed_graph import FLOATS, constants, copied, replace_nodes, session

REQUESTS = 1
"""Requests of calibration rows that answers are compared on: the graph runs once for each product, so they are few."""


def losses(model: Any, quantised: Any, names: Sequence[str], rows: Rows) -> dict[str, float]:
    """Mean absolute difference of the float answers from those of ``model``, for each product quantised alone.

    ``quantised`` is ``model`` with all products ``names`` in INT8. An answer that becomes NaN is an endless loss.
    """
    running = session(_switched(model, quantised, names))
    answered = [entry.name for entry in model.graph.output if entry.type.tensor_type.elem_type in FLOATS]

    def answers(alone: str) -> list[np.ndarray]:
        switches = {_switch(name): np.array(name == alone) for name in names}
        parts = islice(requests(rows, request_rows(model)), REQUESTS)
        return [found.astype(np.float64) for part in parts for found in running.run(answered, {**part, **switches})]

    exact, found = answers(""), {}
    for name in names:
        differences = [np.abs(one - other).mean() for one, other in zip(answers(name), exact, strict=True)]
        found[name] = float(np.nan_to_num(np.mean(differences), nan=np.inf))
    return found


def _switched(model: Any, quantised: Any, names: Sequence[str]) -> Any:
    """A graph with an input for each product that says whether it is computed from quantised factors or from float.

    One graph for all products: loading one for each would take longer than running it.
    """
    factors = {node.name: list(node.input[:2]) for node in model.graph.node}
    graph, wanted = copied(quantised), set(names)
    known = {*constants(graph), *(name for node in graph.graph.node for name in node.output)}  # a bias is dequantised
    graph.graph.initializer.extend(tensor for name, tensor in constants(model).items() if name not in known)
    nodes: list[Any] = []
    for node in graph.graph.node:
        if node.name in wanted:
            for place, factor in enumerate(factors[node.name]):
                chosen = f"{node.name}/factor{place}"
                nodes.append(helper.make_node("Where", [_switch(node.name), node.input[place], factor], [chosen]))
                node.input[place] = chosen
        nodes.append(node)
    replace_nodes(graph.graph, nodes)
    graph.graph.input.extend(helper.make_tensor_value_info(_switch(name), TensorProto.BOOL, []) for name in names)
    return graph


def _switch(name: str) -> str:
    return f"{name}/quantised"
