"""The private ops: attention forward and backward with a search, and over given indices.

Each is defined with a kernel for CPU tensors, a fake kernel (shapes only, for tracing) and a rule for vmap, which folds
the mapped axis into the heads. A backend for another device adds one line to `_DEVICES`. Outputs and what the forward
pass leaves for the backward pass are torch's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zeta_ops.adapters.torch.memory import as_array, torch_dtype
from zeta_ops.adapters.torch.options import problem_of, shapes_of
from zeta_ops.backends import Backend
from zeta_ops.options import Problem, Shapes
from zeta_ops.registry import pick_backend

__all__ = ["given_backward", "given_forward", "search_backward", "search_forward", "select"]

LIBRARY = torch.library.Library("zeta_ops", "DEF")
_DEVICES = {"cpu": "CPU"}

Lists = tuple[Tensor, Tensor, list[Tensor]]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def _backend(name: str | None, tensor: Tensor) -> Backend:
    return pick_backend(name, tensor.device.type)


def _arrays(tensors: Any) -> Any:
    return [as_array(tensor) for tensor in tensors]


def _optional(tensor: Tensor | None) -> Any:
    return None if tensor is None else as_array(tensor)


def _outputs(shapes: Shapes, v: Tensor) -> tuple[Tensor, Tensor]:
    out = v.new_empty(shapes.out_shape)
    return out, v.new_empty(shapes.normalizer_shape, dtype=torch_dtype(shapes.sum_dtype))


def _residuals(problem: Problem, backend: str | None, v: Tensor) -> list[Tensor]:
    specs = _backend(backend, v).residual_specs(problem)
    return [v.new_empty(spec.shape, dtype=torch_dtype(spec.dtype)) for spec in specs]


def _gradients(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Gradients:
    return (
        q.new_empty(q.shape),
        k.new_empty(k.shape),
        v.new_empty(v.shape),
        gamma.new_empty(gamma.shape),
    )


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
    problem = problem_of(q, k, v, cu_seqlens, options, q_offset)
    (out, normalizer), residuals = _outputs(problem, v), _residuals(problem, backend, v)
    written = as_array(out), as_array(normalizer), tuple(_arrays(residuals))
    arrays: Any = *_arrays((q, k, v, gamma)), _optional(cu_seqlens), *written
    _backend(backend, q).attention_forward(problem, *arrays)
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
    return *_outputs(problem, v), _residuals(problem, backend, v)


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
    problem = problem_of(q, k, v, cu_seqlens, options, q_offset)
    gradients = _gradients(q, k, v, gamma)
    kept = as_array(normalizer), tuple(_arrays(residuals))
    given = *_arrays((grad_out, q, k, v, gamma)), _optional(cu_seqlens)
    arrays: Any = *given, *kept, *_arrays(gradients)
    _backend(backend, q).attention_backward(problem, *arrays)
    return gradients


def _search_backward_fake(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, *_: Any) -> Gradients:
    return _gradients(q, k, v, gamma)


def _given_forward(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, gamma: Tensor, backend: str | None
) -> tuple[Tensor, Tensor]:
    shapes = shapes_of(q, k, v)
    out, normalizer = _outputs(shapes, v)
    arrays = _arrays((q, k, v, indices, gamma, out, normalizer))
    _backend(backend, q).cauchy_forward(shapes, *arrays)
    return out, normalizer


def _given_forward_fake(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, gamma: Tensor, backend: str | None
) -> tuple[Tensor, Tensor]:
    return _outputs(shapes_of(q, k, v), v)


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
    gradients = _gradients(q, k, v, gamma)
    arrays = _arrays((grad_out, q, k, v, indices, gamma, normalizer, *gradients))
    _backend(backend, q).cauchy_backward(shapes_of(q, k, v), *arrays)
    return gradients


def _given_backward_fake(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, indices: Tensor, gamma: Tensor, *_: Any
) -> Gradients:
    return _gradients(q, k, v, gamma)


def _select(
    q: Tensor, k: Tensor, cu_seqlens: Tensor | None, options: str, q_offset: int, backend: str | None
) -> Tensor:
    problem = problem_of(q, k, k, cu_seqlens, options, q_offset)
    indices = _select_fake(q, k, cu_seqlens, options, q_offset, backend)
    _backend(backend, q).causal_topk(problem, as_array(q), as_array(k), _optional(cu_seqlens), as_array(indices))
    return indices


def _select_fake(
    q: Tensor, k: Tensor, cu_seqlens: Tensor | None, options: str, q_offset: int, backend: str | None
) -> Tensor:
    problem = problem_of(q, k, k, cu_seqlens, options, q_offset)
    return q.new_empty((*problem.normalizer_shape, problem.options.top_k), dtype=torch.int32)


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
    for key in _DEVICES.values():
        LIBRARY.impl(name, kernel, key)
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
