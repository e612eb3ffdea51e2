"""What makes the ops differentiable: one Function for a search, one for given indices.

The Functions are written with `setup_context`, which torch.func and torch.compile need. Their backward passes are ops
too; they refuse to be differentiated once more. Where neither they nor anybody else looks on, one Function for both
calls the backend without ops (see `direct`), in a third of the time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from zeta_ops.adapters.torch import direct, ops
from zeta_ops.adapters.torch.devices import Kept
from zeta_ops.adapters.torch.options import encode
from zeta_ops.options import Problem, Shapes

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


DirectCall = tuple[str, Shapes, str | None, Any]
_SHOWN, _HIDDEN = Kept(apart=1), Kept(apart=0)  # as for the normalizer
_SHOWN_ALONE, _DROPPED = Kept(apart=1, dropped=True), Kept(apart=0, dropped=True)


class _Direct(Function):
    """Attention without the dispatcher.

    `call` is the operation's name, "search" or "given", its shapes, the name of the backend and the backend itself. The
    normalizer is a result and a tensor of its own if `with_normalizer`; what else is kept is in one piece.
    """

    @staticmethod
    def forward(ctx: Any, call: DirectCall, with_normalizer: bool, *tensors: Tensor | None) -> Any:
        name, shapes, _, backend = call
        kept = _SHOWN if with_normalizer else _HIDDEN
        out, *left = direct.compute(f"{name}_forward", shapes, backend, tensors, kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *left)
        ctx.static = call, kept
        if not with_normalizer:
            return out
        ctx.mark_non_differentiable(left[0])
        return out, left[0]

    @staticmethod
    def backward(ctx: Any, grad_out: Optional, *_: Any) -> tuple[Any, ...]:
        if grad_out is None:
            return (None,) * 7
        call, kept = ctx.static
        tensors = grad_out, *ctx.saved_tensors
        gradients: Any
        mapped = torch._C._functorch.is_legacy_batchedtensor(grad_out)  # by torch.autograd.grad(is_grads_batched=True)
        if direct.is_plain(*tensors) and not mapped and not torch.is_grad_enabled():
            name, shapes, _, backend = call
            gradients = direct.compute(f"{name}_backward", shapes, backend, tensors, kept)
        else:
            gradients = _watched_backward(call, tensors)
        q, k, v, *others = ctx.needs_input_grad[2:]
        grad_q, grad_k, grad_v, grad_gamma = gradients
        result = None, None, grad_q if q else None, grad_k if k else None, grad_v if v else None
        if call[0] == "given":
            return *result, None, grad_gamma if others[1] else None
        return *result, grad_gamma if others[0] else None, None


# Without what `Function.apply` does for transforms: none is active and no tensor is a wrapper of one.
_apply: Any = super(Function, _Direct).apply


def _watched_backward(call: DirectCall, tensors: tuple[Any, ...]) -> Any:
    """Call the backward op where somebody came in after the forward pass: vmap over gradients, or a second gradient."""
    name, shapes, backend_name, backend = call
    kept = direct.unpack(f"{name}_forward", shapes, backend, tensors[6:])
    if not isinstance(shapes, Problem):
        return _differentiate("given", 0, (*tensors[:6], *kept, backend_name))
    static = encode(shapes.options), shapes.options.q_offset, backend_name
    return _differentiate("search", len(kept) - 1, (*tensors[:6], *kept, *static))


def _wants_gradients(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> bool:
    return torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad or gamma.requires_grad)


def _is_only_a_value(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> bool:
    """Whether nobody can ask for a derivative, so that the op can be called as it is, in half the time."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return torch.autograd.forward_ad._current_level < 0 and not _wants_gradients(q, k, v, gamma)


def attend_with_search(
    problem: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: Tensor,
    cu_seqlens: Optional,
    backend: str | None,
    *,
    plain: Any,
    with_normalizer: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attend over a selection of canonical tensors; return output and normalizer, which need not be asked for.

    `plain` is the backend where the tensors are plain by `direct`, else None.
    """
    tensors = q, k, v, gamma, cu_seqlens
    if plain is not None:
        if not _wants_gradients(q, k, v, gamma):
            kept = _SHOWN_ALONE if with_normalizer else _DROPPED
            out, *left = direct.compute("search_forward", problem, plain, tensors, kept)
            return out, left[0] if with_normalizer else None
        found = _apply(("search", problem, backend, plain), with_normalizer, *tensors)
        return found if with_normalizer else (found, None)
    static = encode(problem.options), problem.options.q_offset, backend
    if _is_only_a_value(q, k, v, gamma):
        return ops.search_forward(*tensors, *static)[:2]
    function = _Search if torch.compiler.is_compiling() else _TransformedSearch
    out, normalizer, *_ = function.apply(*tensors, *static)
    return out, normalizer


def attend_to_given(
    shapes: Shapes,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    gamma: Tensor,
    backend: str | None,
    *,
    plain: Any,
) -> Tensor:
    """Attend to given indices of canonical tensors; for `plain` see `attend_with_search`."""
    tensors = q, k, v, indices, gamma
    if plain is not None:
        if not _wants_gradients(q, k, v, gamma):
            return direct.compute("given_forward", shapes, plain, tensors, _DROPPED)[0]
        out: Tensor = _apply(("given", shapes, backend, plain), False, *tensors)
        return out
    if _is_only_a_value(q, k, v, gamma):
        out, _ = ops.given_forward(*tensors, backend)
        return out
    function = _Given if torch.compiler.is_compiling() else _TransformedGiven
    out, _ = function.apply(*tensors, backend)
    return out
