"""The private ops: attention forward and backward with a search, and over given indices.

Each is defined with one kernel for all types of device, a fake kernel (shapes only, for tracing) and a rule for vmap,
which folds the mapped axis into the heads. `devices` says what differs between devices. Results, and what the forward
pass leaves for the backward pass, are torch's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zeta_ops.adapters.operations import result_specs
from zeta_ops.adapters.torch.devices import DEVICES
from zeta_ops.adapters.torch.memory import torch_dtype
from zeta_ops.adapters.torch.options import known_problem, known_shapes, problem_of, shapes_of
from zeta_ops.options import Shapes
from zeta_ops.registry import pick_backend

__all__ = ["given_backward", "given_forward", "search_backward", "search_forward", "select"]

LIBRARY = torch.library.Library("zeta_ops", "DEF")

Lists = tuple[Tensor, Tensor, list[Tensor]]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def _compute(operation: str, shapes: Shapes, backend: str | None, *arguments: Tensor | None) -> list[Tensor]:
    assert arguments[0] is not None
    platform = arguments[0].device.type
    return DEVICES[platform].compute(pick_backend(backend, platform, "torch"), operation, shapes, arguments)


def _results(operation: str, shapes: Shapes, backend: str | None, like: Tensor) -> list[Tensor]:
    """Make what an operation returns, of any content; its shapes may be symbolic."""
    specs = result_specs(pick_backend(backend, like.device.type, "torch"), operation, shapes)
    return [like.new_empty(spec.shape, dtype=torch_dtype(spec.dtype)) for spec in specs]


def _four(gradients: list[Tensor]) -> Gradients:
    q, k, v, gamma = gradients
    return q, k, v, gamma


def _search_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: Tensor,
    cu_seqlens: Tensor | None,
    options: str,
    q_offset: int,
    backend: str | None,
) -> Lists:
    problem = known_problem(q, k, v, cu_seqlens, options, q_offset)
    out, normalizer, *residuals = _compute("search_forward", problem, backend, q, k, v, gamma, cu_seqlens)
    return out, normalizer, residuals


def _search_forward_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: Tensor,
    cu_seqlens: Tensor | None,
    options: str,
    q_offset: int,
    backend: str | None,
) -> Lists:
    problem = problem_of(q, k, v, cu_seqlens, options, q_offset)
    out, normalizer, *residuals = _results("search_forward", problem, backend, v)
    return out, normalizer, residuals


def _search_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: Tensor,
    cu_seqlens: Tensor | None,
    normalizer: Tensor,
    residuals: list[Tensor],
    options: str,
    q_offset: int,
    backend: str | None,
) -> Gradients:
    problem = known_problem(q, k, v, cu_seqlens, options, q_offset)
    arguments = grad_out, q, k, v, gamma, cu_seqlens, normalizer, *residuals
    return _four(_compute("search_backward", problem, backend, *arguments))


def _search_backward_fake(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, *others: Any) -> Gradients:
    return _four(_results("search_backward", shapes_of(q, k, v), others[-1], v))


def _given_forward(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, gamma: Tensor, backend: str | None
) -> tuple[Tensor, Tensor]:
    out, normalizer = _compute("given_forward", known_shapes(q, k, v), backend, q, k, v, indices, gamma)
    return out, normalizer


def _given_forward_fake(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, gamma: Tensor, backend: str | None
) -> tuple[Tensor, Tensor]:
    out, normalizer = _results("given_forward", shapes_of(q, k, v), backend, v)
    return out, normalizer


def _given_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    gamma: Tensor,
    normalizer: Tensor,
    backend: str | None,
) -> Gradients:
    arguments = grad_out, q, k, v, indices, gamma, normalizer
    return _four(_compute("given_backward", known_shapes(q, k, v), backend, *arguments))


def _given_backward_fake(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, indices: Tensor, gamma: Tensor, *others: Any
) -> Gradients:
    return _four(_results("given_backward", shapes_of(q, k, v), others[-1], v))


def _select(
    q: Tensor, k: Tensor, cu_seqlens: Tensor | None, options: str, q_offset: int, backend: str | None
) -> Tensor:
    problem = known_problem(q, k, k, cu_seqlens, options, q_offset)
    return _compute("select", problem, backend, q, k, cu_seqlens)[0]


def _select_fake(
    q: Tensor, k: Tensor, cu_seqlens: Tensor | None, options: str, q_offset: int, backend: str | None
) -> Tensor:
    return _results("select", problem_of(q, k, k, cu_seqlens, options, q_offset), backend, q)[0]


def _fold(tensor: Tensor, axis: int | None, size: int) -> Tensor:
    """Fold a mapped axis into the heads; a tensor that is not mapped is repeated."""
    heads = 0 if tensor.ndim - (axis is not None) == 1 else 1  # gamma has only heads
    spread = tensor.unsqueeze(0).expand(size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)
    return spread.movedim(0, heads).flatten(heads, heads + 1)


def _unfold(tensor: Tensor, size: int) -> Tensor:
    heads = 0 if tensor.ndim == 1 else 1
    return tensor.unflatten(heads, (size, tensor.shape[heads] // size)).movedim(heads, 0)


def _over_axes(name: str, op: Callable[..., Any]) -> None:
    """Register the rule for vmap: fold the mapped axis into the heads, each of which is independent."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        def fold(argument: Any, axis: Any) -> Any:
            if isinstance(argument, (list, tuple)):
                return [fold(x, d) for x, d in zip(argument, axis or [None] * len(argument), strict=True)]
            if not isinstance(argument, Tensor):
                return argument
            if argument.dtype == torch.int32 and argument.ndim - (axis is not None) == 1:
                if axis is not None:
                    raise ValueError("cu_seqlens must be the same for all items of vmap; got a mapped tensor")
                return argument
            return _fold(argument, axis, info.batch_size)

        def unfold(result: Any) -> Any:
            if isinstance(result, Tensor):
                return _unfold(result, info.batch_size)
            return type(result)(map(unfold, result))

        def zeros(result: Any) -> Any:
            return 0 if isinstance(result, Tensor) else type(result)(map(zeros, result))

        found = unfold(op(*map(fold, arguments, in_dims)))
        return found, zeros(found)

    torch.library.register_vmap(f"zeta_ops::{name}", rule, lib=LIBRARY)


_SEARCH = "Tensor? cu_seqlens"
_STATIC = "str options, SymInt q_offset, str? backend"
_FOUR = "(Tensor, Tensor, Tensor, Tensor)"


def _define(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    LIBRARY.define(f"{name}{schema}")
    for device in DEVICES.values():
        LIBRARY.impl(name, kernel, device.dispatch_key)
    torch.library.register_fake(f"zeta_ops::{name}", fake, lib=LIBRARY)
    op = getattr(torch.ops.zeta_ops, name).default
    _over_axes(name, op)
    return op


search_forward = _define(
    "search_forward",
    f"(Tensor q, Tensor k, Tensor v, Tensor gamma, {_SEARCH}, {_STATIC}) -> (Tensor, Tensor, Tensor[])",
    _search_forward,
    _search_forward_fake,
)
search_backward = _define(
    "search_backward",
    f"(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor gamma, {_SEARCH}, Tensor normalizer,"
    f" Tensor[] residuals, {_STATIC}) -> {_FOUR}",
    _search_backward,
    _search_backward_fake,
)
given_forward = _define(
    "given_forward",
    "(Tensor q, Tensor k, Tensor v, Tensor indices, Tensor gamma, str? backend) -> (Tensor, Tensor)",
    _given_forward,
    _given_forward_fake,
)
given_backward = _define(
    "given_backward",
    "(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor indices, Tensor gamma, Tensor normalizer, str? backend)"
    f" -> {_FOUR}",
    _given_backward,
    _given_backward_fake,
)
select = _define("select", f"(Tensor q, Tensor k, {_SEARCH}, {_STATIC}) -> Tensor", _select, _select_fake)
