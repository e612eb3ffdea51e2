"""What makes the ops differentiable: one Function for a search, one for given indices.

The Functions are written with `setup_context`, which torch.func and torch.compile need. Their backward passes are ops
too; they refuse to be differentiated once more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from zeta_ops.adapters.torch import ops

__all__ = ["attend_to_given", "attend_with_search"]

Optional = Tensor | None


class _Once(Function):
    """A backward op as a Function, only there to refuse a second differentiation with a message."""

    generate_vmap_rule = True

    @staticmethod
    def forward(op_name: str, count: int, *arguments: Any) -> Any:
        return _call_backward(op_name, count, arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError("zeta_ops attention cannot be differentiated twice: its backward pass has no derivative")


def _call_backward(op_name: str, count: int, arguments: tuple[Any, ...]) -> Any:
    """Call a backward op; `count` residuals stand before its last three arguments, which are static."""
    if op_name == "given":
        return ops.given_backward(*arguments)
    first = len(arguments) - 3 - count
    return ops.search_backward(*arguments[:first], list(arguments[first:-3]), *arguments[-3:])


def _differentiate(op_name: str, count: int, arguments: tuple[Any, ...]) -> Any:
    # Dynamo traces the op itself: what it compiles is never differentiated twice.
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return _call_backward(op_name, count, arguments)
    return _Once.apply(op_name, count, *arguments)


class _Search(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gamma: Tensor,
        cu_seqlens: Optional,
        options: str,
        q_offset: int,
        backend: str | None,
    ) -> tuple[Tensor, ...]:
        out, normalizer, residuals = ops.search_forward(q, k, v, gamma, cu_seqlens, options, q_offset, backend)
        return out, normalizer, *residuals

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, options, q_offset, backend = inputs
        _, normalizer, *residuals = output
        ctx.mark_non_differentiable(normalizer, *residuals)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, normalizer, *residuals)
        ctx.static = options, q_offset, backend
        ctx.count = len(residuals)

    @staticmethod
    def backward(ctx: Any, grad_out: Optional, *_: Any) -> tuple[Any, ...]:
        if grad_out is None:
            return (None,) * 8
        gradients = _differentiate("search", ctx.count, (grad_out, *ctx.saved_tensors, *ctx.static))
        wanted = (g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad[:4], strict=True))
        return *wanted, None, None, None, None


class _Given(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, indices: Tensor, gamma: Tensor, backend: str | None
    ) -> tuple[Tensor, ...]:
        out, normalizer = ops.given_forward(q, k, v, indices, gamma, backend)
        return out, normalizer

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, backend = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[1])
        ctx.backend = backend

    @staticmethod
    def backward(ctx: Any, grad_out: Optional, *_: Any) -> tuple[Any, ...]:
        if grad_out is None:
            return (None,) * 6
        gradients = _differentiate("given", 0, (grad_out, *ctx.saved_tensors, ctx.backend))
        needed = [ctx.needs_input_grad[place] for place in (0, 1, 2, 4)]
        q, k, v, gamma = (g if wanted else None for g, wanted in zip(gradients, needed, strict=True))
        return q, k, v, None, gamma, None


# Dynamo does not trace a Function with a `jvp`, so that only those for all other callers have one: to refuse.
class _NoForwardMode:
    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise RuntimeError("zeta_ops attention has no forward-mode derivative; use reverse mode")


class _TransformedSearch(_NoForwardMode, _Search):
    pass


class _TransformedGiven(_NoForwardMode, _Given):
    pass


# Outside of transforms a Function does without `setup_context`: with one, every call inspects a signature.
def _plain(function: type[Function]) -> type[Function]:
    class Plain(_NoForwardMode, Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
            output: tuple[Tensor, ...] = function.forward(*arguments)
            function.setup_context(ctx, arguments, output)
            return output

        backward = staticmethod(function.backward)

    return Plain


_PlainSearch, _PlainGiven = _plain(_Search), _plain(_Given)


def _is_only_a_value(*tensors: Tensor) -> bool:
    """Whether nobody can ask for a derivative, so that the op can be called as it is, in half the time."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if torch.autograd.forward_ad._current_level >= 0:
        return False
    return not torch.is_grad_enabled() or not any(x.requires_grad for x in tensors)


def _one_of(traced: type[Function], transformed: type[Function], plain: type[Function]) -> type[Function]:
    """Choose the Function for who calls: the compiler, a transform of torch.func, or neither."""
    if torch.compiler.is_compiling():
        return traced
    return transformed if torch._C._are_functorch_transforms_active() else plain


def attend_with_search(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: Tensor,
    cu_seqlens: Optional,
    options: str,
    q_offset: int,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Attend over a selection of canonical tensors; return output and normalizer."""
    if _is_only_a_value(q, k, v, gamma):
        return ops.search_forward(q, k, v, gamma, cu_seqlens, options, q_offset, backend)[:2]
    function = _one_of(_Search, _TransformedSearch, _PlainSearch)
    out, normalizer, *_ = function.apply(q, k, v, gamma, cu_seqlens, options, q_offset, backend)
    return out, normalizer


def attend_to_given(q: Tensor, k: Tensor, v: Tensor, indices: Tensor, gamma: Tensor, backend: str | None) -> Tensor:
    """Attend to given indices of canonical tensors."""
    if _is_only_a_value(q, k, v, gamma):
        out, _ = ops.given_forward(q, k, v, indices, gamma, backend)
        return out
    function = _one_of(_Given, _TransformedGiven, _PlainGiven)
    out, _ = function.apply(q, k, v, indices, gamma, backend)
    return out
