"""Hashed texts in operators of ONNX and ONNX Runtime: the numbers of `features.texts.text_hashing`, bit for bit.

Texts come in their canonical form: words are divided by single spaces, and characters are code points of UTF-8.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, numpy_helper

from mlflowkit.adapters.onnx_exporter.graph_parts import RUNTIME, TEXT_OPSET, GraphPart
from mlflowkit.features.texts.text_hashing import TextHash

END = 2**31 - 1
"""Past the last token of any text."""


def hashed_text(part: GraphPart, texts: str, hashing: TextHash, name: str) -> str:
    """Add the nodes from ``texts``, string [rows, 1], to the returned tensor, float [rows, features]."""
    part.opsets.update({"": TEXT_OPSET, RUNTIME: 1})
    part.add("Reshape", [texts, part.constant(f"{name}/flat/shape", [-1], np.int64)], f"{name}/flat")
    between = " " if hashing.analyzer == "word" else ""
    options = {"mark": 0, "pad_value": "", "separators": [between], "mincharnum": 1}
    part.add("Tokenizer", [f"{name}/flat"], f"{name}/tokens", domain=RUNTIME, **options)
    hashes, valid = _terms(part, hashing, between, name)
    counts = _counts(part, hashes, valid, hashing.features, name)
    return counts if hashing.norm == "none" else _divided_by_length(part, counts, name)


def _terms(part: GraphPart, hashing: TextHash, between: str, name: str) -> tuple[str, str]:
    """The hashes of all terms, int32 [rows, terms], and 1 where there is one and 0 where a text has ended, int64."""
    tokens, ones, terms = f"{name}/tokens", f"{name}/1/valid", f"{name}/tokens"
    part.add("Equal", [tokens, part.constant(f"{name}/none", "", object)], f"{name}/ended")
    zero, one = (part.constant(f"{name}/{value}", value, np.int64) for value in (0, 1))
    part.add("Where", [f"{name}/ended", zero, one], ones)
    hashes, valid = [], []
    low, high = hashing.ngrams
    for size in range(1, high + 1):
        label = f"{name}/{size}"
        if size > 1:
            left = _slice(part, terms, 0, -1, f"{label}/left")
            right = _slice(part, tokens, size - 1, END, f"{label}/right")
            if between:
                space = part.constant(f"{label}/space", between, object)
                part.add("StringConcat", [left, space], left := f"{label}/spaced")
            part.add("StringConcat", [left, right], terms := f"{label}/terms")
        if size >= low:
            part.add("MurmurHash3", [terms], f"{label}/hash", domain=RUNTIME, positive=0, seed=0)
            hashes.append(f"{label}/hash")
            valid.append(ones if size == 1 else _slice(part, ones, size - 1, END, f"{label}/valid"))
    if len(hashes) == 1:
        return hashes[0], valid[0]
    part.add("Concat", hashes, f"{name}/hashes", axis=1)
    part.add("Concat", valid, f"{name}/valid", axis=1)
    return f"{name}/hashes", f"{name}/valid"


def _counts(part: GraphPart, hashes: str, valid: str, features: int, name: str) -> str:
    """The signed number of terms in each bucket, float [rows, features]."""
    part.add("Cast", [hashes], f"{name}/wide", to=TensorProto.INT64)  # the least int32 has no absolute value
    part.add("Abs", [f"{name}/wide"], f"{name}/size")
    part.add("Mod", [f"{name}/size", part.constant(f"{name}/features", features, np.int64)], f"{name}/bucket")
    part.add("GreaterOrEqual", [f"{name}/wide", f"{name}/0"], f"{name}/positive")
    part.add("Where", [f"{name}/positive", f"{name}/1", part.constant(f"{name}/-1", -1, np.int64)], f"{name}/sign")
    part.add("Mul", [f"{name}/sign", valid], f"{name}/steps")
    part.add("Cast", [f"{name}/steps"], f"{name}/updates", to=TensorProto.FLOAT)
    part.add("Shape", [f"{name}/flat"], f"{name}/rows")
    part.add("Concat", [f"{name}/rows", part.constant(f"{name}/width", [features], np.int64)], f"{name}/shape", axis=0)
    nothing = numpy_helper.from_array(np.zeros(1, np.float32))
    part.add("ConstantOfShape", [f"{name}/shape"], f"{name}/empty", value=nothing)
    buckets = [f"{name}/empty", f"{name}/bucket", f"{name}/updates"]
    part.add("ScatterElements", buckets, f"{name}/counts", axis=1, reduction="add")
    return f"{name}/counts"


def _divided_by_length(part: GraphPart, counts: str, name: str) -> str:
    """Counts divided by their Euclidean length in double precision, those of an empty text by 1; float."""
    part.add("Cast", [counts], f"{name}/double", to=TensorProto.DOUBLE)
    part.add("Mul", [f"{name}/double", f"{name}/double"], f"{name}/squares")
    part.add("ReduceSum", [f"{name}/squares", part.constant(f"{name}/axis", [1], np.int64)], f"{name}/sum")
    part.add("Sqrt", [f"{name}/sum"], f"{name}/length")
    nothing, one = (part.constant(f"{name}/{value}/double", value, np.float64) for value in (0, 1))
    part.add("Equal", [f"{name}/length", nothing], f"{name}/no_terms")
    part.add("Where", [f"{name}/no_terms", one, f"{name}/length"], f"{name}/divisor")
    part.add("Div", [f"{name}/double", f"{name}/divisor"], f"{name}/unit")
    part.add("Cast", [f"{name}/unit"], f"{name}/hashed", to=TensorProto.FLOAT)
    return f"{name}/hashed"


def _slice(part: GraphPart, value: str, start: int, end: int, output: str) -> str:
    bounds = [part.constant(f"{output}/{key}", [at], np.int64) for key, at in (("from", start), ("to", end))]
    part.add("Slice", [value, *bounds, part.constant(f"{output}/axis", [1], np.int64)], output)
    return output
