"""ONNX operators as torch functions, for inference only.

Positional arguments are a node's inputs, keywords its attributes. Values are tensors, or Python numbers and lists of
them, which keeps shape arithmetic out of torch.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from onnx import TensorProto, helper
from torch.nn import functional


def _on_host(*values: Any) -> bool:
    """Whether all values are Python numbers or lists."""
    return all(isinstance(value, bool | int | list) for value in values)


def _tensor(value: Any) -> Any:
    return value if isinstance(value, torch.Tensor) else torch.tensor(value)


def _ints(value: Any) -> list[int]:
    numbers = value if isinstance(value, int | list) else value.tolist()
    return [numbers] if isinstance(numbers, int) else numbers


def _map_host(function: Callable[..., Any], *values: Any) -> Any:
    """Apply a function element-wise to Python numbers and lists, with broadcasting."""
    size = max((len(value) for value in values if isinstance(value, list)), default=None)
    if size is None:
        return function(*values)
    broadcast = [value * size if isinstance(value, list) and len(value) == 1 else value for value in values]
    return [function(*(value[i] if isinstance(value, list) else value for value in broadcast)) for i in range(size)]


def _elementwise(name: str, on_host: Callable[..., Any] | None = None) -> Callable[..., Any]:
    def call(*values: Any) -> Any:
        if on_host is not None and _on_host(*values):
            return _map_host(on_host, *values)
        return getattr(torch, name)(*map(_tensor, values))

    return call


def _divide(left: Any, right: Any) -> Any:
    if _on_host(left, right):
        return _map_host(lambda a, b: a // b if (a < 0) == (b < 0) else -(-a // b), left, right)
    left, right = _tensor(left), _tensor(right)
    is_integer = not (left.is_floating_point() or right.is_floating_point())
    return torch.div(left, right, rounding_mode="trunc" if is_integer else None)


def _folded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Fold a function of two tensors over any number of them."""

    def call(*values: Any) -> Any:
        return functools.reduce(function, map(_tensor, values))

    return call


def _cast(value: Any, *, to: int, **_: Any) -> Any:
    if to == TensorProto.INT64 and _on_host(value):
        return value
    dtype = getattr(torch, helper.tensor_dtype_to_np_dtype(to).name, None)
    if dtype is None:
        raise TypeError(f"torch has no type for a Cast to {TensorProto.DataType.Name(to)}")
    return _tensor(value).to(dtype)


def _gemm(
    a: Any, b: Any, c: Any = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0
) -> Any:
    a, b = a.t() if transA else a, b.t() if transB else b
    return alpha * (a @ b) if c is None else torch.addmm(c, a, b, alpha=alpha, beta=beta)


def _padded(value: Any, pads: Sequence[int], fill: float) -> tuple[Any, list[int]]:
    """The value with asymmetric padding applied, and the symmetric padding that remains."""
    half = len(pads) // 2
    begin, end = list(pads[:half]), list(pads[half:])
    if begin == end:
        return value, begin
    sides = [side for pair in reversed(list(zip(begin, end, strict=True))) for side in pair]
    return functional.pad(value, sides, value=fill), [0] * half


def _check_auto_pad(attributes: Mapping[str, Any]) -> None:
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise ValueError(f"auto_pad {attributes['auto_pad']} has no form in torch")


def _conv(value: Any, weight: Any, bias: Any = None, **attributes: Any) -> Any:
    _check_auto_pad(attributes)
    axes = weight.dim() - 2
    value, padding = _padded(value, attributes.get("pads", [0] * 2 * axes), 0.0)
    ones = [1] * axes
    return torch.convolution(
        value, weight, bias, attributes.get("strides", ones), padding, attributes.get("dilations", ones),
        False, [0] * axes, attributes.get("group", 1),
    )  # fmt: skip


def _max_pool(value: Any, *, kernel_shape: list[int], ceil_mode: int = 0, **attributes: Any) -> Any:
    _check_auto_pad(attributes)
    axes, ones = len(kernel_shape), [1] * len(kernel_shape)
    value, padding = _padded(value, attributes.get("pads", [0] * 2 * axes), -math.inf)
    pool = getattr(functional, f"max_pool{axes}d")
    strides, dilations = attributes.get("strides", ones), attributes.get("dilations", ones)
    return pool(value, kernel_shape, strides, padding, dilations, bool(ceil_mode))


def _average_pool(
    value: Any, *, kernel_shape: list[int], ceil_mode: int = 0, count_include_pad: int = 0, **attributes: Any
) -> Any:
    _check_auto_pad(attributes)
    axes = len(kernel_shape)
    pads = attributes.get("pads", [0] * 2 * axes)
    if pads[:axes] != pads[axes:]:
        raise ValueError("AveragePool with padding that differs from side to side has no form in torch")
    pool = getattr(functional, f"avg_pool{axes}d")
    strides = attributes.get("strides", [1] * axes)
    return pool(value, kernel_shape, strides, pads[:axes], bool(ceil_mode), bool(count_include_pad))


def _global_pool(name: str) -> Callable[..., Any]:
    return lambda value: getattr(value, name)(dim=tuple(range(2, value.dim())), keepdim=True)


def _reduce(name: str) -> Callable[..., Any]:
    """A reduction with axes as an attribute or, in later opsets, an input."""

    def call(
        value: Any, axes_input: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Any:
        dims = axes if axes_input is None else _ints(axes_input)
        if not dims:
            if noop_with_empty_axes:
                return value
            dims = list(range(value.dim()))
        if name in ("L1", "L2"):
            return torch.linalg.vector_norm(value, 1 if name == "L1" else 2, dim=dims, keepdim=bool(keepdims))
        if name == "prod":
            ordered = sorted((dim % value.dim() for dim in dims), reverse=True)
            return functools.reduce(lambda reduced, dim: reduced.prod(dim=dim, keepdim=bool(keepdims)), ordered, value)
        return getattr(value, name)(dim=dims, keepdim=bool(keepdims))

    return call


def _arg(name: str) -> Callable[..., Any]:
    def call(value: Any, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Any:
        if not select_last_index:
            return getattr(value, name)(dim=axis, keepdim=bool(keepdims))
        return value.shape[axis] - 1 - getattr(value.flip(axis), name)(dim=axis, keepdim=bool(keepdims))

    return call


def _concat(*values: Any, axis: int) -> Any:
    if _on_host(*values):
        return [item for value in values for item in value]
    return torch.cat([_tensor(value) for value in values], dim=axis)


def _reshape(value: Any, shape: Any, *, allowzero: int = 0) -> Any:
    sizes = _ints(shape)
    if _on_host(value) and len(sizes) == 1:
        return _ints(value)
    value = _tensor(value)
    return value.reshape([value.shape[at] if not size and not allowzero else size for at, size in enumerate(sizes)])


def _flatten(value: Any, *, axis: int = 1) -> Any:
    axis = axis % value.dim() if axis < 0 else axis
    return value.reshape(math.prod(value.shape[:axis]), -1)


def _squeeze(value: Any, axes_input: Any = None, *, axes: Any = None) -> Any:
    dims = axes if axes_input is None else _ints(axes_input)
    if _on_host(value):
        return value[0]
    return value.squeeze(tuple(dims)) if dims else value.squeeze()


def _unsqueeze(value: Any, axes_input: Any = None, *, axes: Any = None) -> Any:
    dims = axes if axes_input is None else _ints(axes_input)
    if isinstance(value, int) and dims == [0]:
        return [value]
    value = _tensor(value)
    rank = value.dim() + len(dims)
    for dim in sorted(dim % rank for dim in dims):
        value = value.unsqueeze(dim)
    return value


def _gather(value: Any, indices: Any, *, axis: int = 0) -> Any:
    if _on_host(value, indices):
        return [value[index] for index in indices] if isinstance(indices, list) else value[indices]
    value = _tensor(value)
    if isinstance(indices, int):
        return value.select(axis, indices)
    return value[(slice(None),) * (axis % value.dim()) + (_tensor(indices),)]


def _slice(value: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    begin, end = _ints(starts), _ints(ends)
    stride = [1] * len(begin) if steps is None else _ints(steps)
    if min(stride) < 0:
        raise ValueError("Slice with a negative step has no form in torch")
    if _on_host(value):
        return value[begin[0] : end[0] : stride[0]]
    taken = [slice(None)] * value.dim()
    for at, axis in enumerate(range(len(begin)) if axes is None else _ints(axes)):
        taken[axis] = slice(begin[at], end[at], stride[at])
    return value[tuple(taken)]


def _split(value: Any, parts: Any = None, *, axis: int = 0, num_outputs: int | None = None) -> Any:
    sizes = -(-value.shape[axis] // (num_outputs or 2)) if parts is None else _ints(parts)
    return torch.split(value, sizes, dim=axis)


def _expand(value: Any, shape: Any) -> Any:
    value = _tensor(value)
    return value.expand(torch.broadcast_shapes(tuple(value.shape), tuple(_ints(shape))))


def _filled(shape: Any, *, value: float = 0.0) -> Any:
    sizes = _ints(shape)
    return [value] * sizes[0] if isinstance(value, int) and len(sizes) == 1 else torch.full(sizes, value)


def _where(condition: Any, yes: Any, no: Any) -> Any:
    if _on_host(condition, yes, no):
        return _map_host(lambda chosen, first, second: first if chosen else second, condition, yes, no)
    return torch.where(_tensor(condition), _tensor(yes), _tensor(no))


MULTIPLE_OUTPUTS = frozenset({"Split"})
"""Operators that return a tuple."""

OPERATORS: Mapping[str, Callable[..., Any]] = {
    **{name: _elementwise(name.lower()) for name in (
        "Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "IsNaN", "Log", "MatMul", "Neg", "Pow", "Reciprocal", "Relu",
        "Round", "Sigmoid", "Sign", "Sin", "Sqrt", "Tanh",
    )},
    "And": _elementwise("logical_and"), "Or": _elementwise("logical_or"), "Not": _elementwise("logical_not"),
    "Add": _elementwise("add", operator.add), "Sub": _elementwise("sub", operator.sub),
    "Mul": _elementwise("mul", operator.mul), "Div": _divide,
    "Equal": _elementwise("eq", operator.eq), "Greater": _elementwise("gt", operator.gt),
    "GreaterOrEqual": _elementwise("ge", operator.ge), "Less": _elementwise("lt", operator.lt),
    "LessOrEqual": _elementwise("le", operator.le), "Where": _where,
    "Max": _folded(torch.maximum), "Min": _folded(torch.minimum), "Sum": _folded(torch.add),
    "Cast": _cast, "Identity": lambda value: value, "Dropout": lambda value, *_, **__: value,
    "Clip": lambda value, *bounds: value.clamp(*(None if bound is None else _tensor(bound) for bound in bounds)),
    "Constant": lambda **attributes: next(iter(attributes.values())),
    "Gelu": functional.gelu, "LeakyRelu": lambda value, *, alpha=0.01: functional.leaky_relu(value, alpha),
    "Elu": functional.elu, "Softplus": functional.softplus, "HardSwish": functional.hardswish,
    "Softmax": lambda value, *, axis=-1: value.softmax(axis),
    "LogSoftmax": lambda value, *, axis=-1: value.log_softmax(axis),
    "Gemm": _gemm, "Conv": _conv, "MaxPool": _max_pool, "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool("mean"), "GlobalMaxPool": _global_pool("amax"),
    "BatchNormalization": lambda value, scale, bias, mean, variance, *, epsilon=1e-5, **_: functional.batch_norm(
        value, mean, variance, scale, bias, False, 0.0, epsilon),
    "LayerNormalization": lambda value, scale, bias=None, *, axis=-1, epsilon=1e-5, stash_type=1: functional.layer_norm(
        value, value.shape[axis:], scale, bias, epsilon),
    "ReduceMean": _reduce("mean"), "ReduceSum": _reduce("sum"), "ReduceMax": _reduce("amax"),
    "ReduceMin": _reduce("amin"), "ReduceProd": _reduce("prod"), "ReduceL1": _reduce("L1"), "ReduceL2": _reduce("L2"),
    "ArgMax": _arg("argmax"), "ArgMin": _arg("argmin"),
    "Concat": _concat, "Reshape": _reshape, "Flatten": _flatten, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Transpose": lambda value, *, perm=None: value.permute(perm or list(range(value.dim()))[::-1]),
    "Shape": lambda value, *, start=0, end=None: list(_tensor(value).shape)[start:end],
    "Gather": _gather, "Slice": _slice, "Split": _split, "Expand": _expand,
    "Range": lambda *bounds: torch.arange(*(each if isinstance(each, int) else each.item() for each in bounds)),
    "ConstantOfShape": _filled,
    "Trilu": lambda value, k=0, *, upper=1: value.triu(int(k or 0)) if upper else value.tril(int(k or 0)),
    "Tile": lambda value, repeats: value.repeat(_ints(repeats)),
}  # fmt: skip
"""The torch function of each supported ONNX operator."""
