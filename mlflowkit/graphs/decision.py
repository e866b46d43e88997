"""Put a decision threshold into a graph: its label is the positive class from a probability on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mlflowkit.bundle import Signature
from mlflowkit.errors import EngineError
from mlflowkit.graphs.onnx_file import load_checked, write

PREFIX = "decision/"
"""Before the names that are added to the graph."""


def set_threshold(path: Path, signature: Signature, threshold: float) -> None:
    """Rewrite ``label`` of a binary classifier's graph: the last class where its probability is ``threshold`` or more.

    A row whose probability is NaN gets the first class, as no threshold is reached.
    Nodes that computed the former label are removed. Raises EngineError for a graph without two probabilities.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    if len(signature.classes) != 2:
        problem = f"a threshold is for two classes; the model has {len(signature.classes)}"
        raise EngineError(problem, hint="remove the section decision from the recipe")
    model = load_checked(path, weights=True)
    graph = model.graph
    producers = [node for node in graph.node if "label" in node.output]
    if len(producers) != 1:
        raise EngineError(f"{path} has no output label", hint="mlkit run RECIPE --force export")
    producers[0].output[list(producers[0].output).index("label")] = PREFIX + "former_label"
    text = isinstance(signature.classes[0], str)
    classes = np.array(signature.classes, dtype=object if text else np.int64)
    constants = {
        "column": np.array(1, dtype=np.int64),
        "threshold": np.array(threshold, dtype=np.float32),
        "classes": classes,
    }
    graph.initializer.extend(numpy_helper.from_array(value, PREFIX + name) for name, value in constants.items())
    graph.node.extend(
        [
            helper.make_node("Gather", ["probabilities", PREFIX + "column"], [PREFIX + "score"], axis=1),
            helper.make_node("GreaterOrEqual", [PREFIX + "score", PREFIX + "threshold"], [PREFIX + "chosen"]),
            helper.make_node("Cast", [PREFIX + "chosen"], [PREFIX + "code"], to=TensorProto.INT64),
            helper.make_node("Gather", [PREFIX + "classes", PREFIX + "code"], ["label"], axis=0),
        ]
    )
    _remove_dead_nodes(graph)
    onnx.checker.check_model(model)
    write(model, path)


def _remove_dead_nodes(graph: Any) -> None:
    """Remove nodes whose outputs nothing uses, and initializers that were theirs alone."""
    nodes, initializers = graph.node, graph.initializer
    while True:
        used = {name for node in nodes for name in _names_read(node)} | {item.name for item in graph.output}
        dead = [node for node in nodes if not used & set(node.output)]
        if not dead:
            break
        for node in dead:
            nodes.remove(node)
    for item in [item for item in initializers if item.name not in used]:
        initializers.remove(item)


def _names_read(node: Any) -> set[str]:
    """Names that a node reads, those of its subgraphs included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names |= {name for inner in graph.node for name in _names_read(inner)}
            names |= {item.name for item in graph.output}
    return names
