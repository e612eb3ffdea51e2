"""Calls that nobody looks on at: what an op would do, without the dispatcher and options as text.

What the forward pass leaves for the backward pass is one piece of memory here, as it is allocated faster than several.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from zeta_ops.adapters.operations import residual_packing
from zeta_ops.adapters.torch.devices import DEVICES, PACKED
from zeta_ops.adapters.torch.memory import pieces_of, torch_dtype
from zeta_ops.arguments import dtype_name
from zeta_ops.options import Problem, Shapes
from zeta_ops.registry import pick_backend

__all__ = ["compute", "is_plain", "unpack", "with_dtype_of"]

SomeShapes = TypeVar("SomeShapes", bound=Shapes)

_PLAIN = frozenset({Tensor, torch.nn.Parameter})


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether the dispatcher would do nothing but call the op's kernel.

    No compiler, transform, mode, tracer or profiler is active, and the tensors hold their own values, dense and on one
    device of those that backends serve. The first is not None.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_tracing()
        or torch._C._autograd._profiler_enabled()
    ):
        return False
    assert tensors[0] is not None
    device = tensors[0].device
    if device.type not in DEVICES:
        return False
    for x in tensors:  # a generator would take twice as long, of every call
        if x is not None and (
            type(x) not in _PLAIN or x.device != device or x.layout is not torch.strided or x.is_neg()
        ):
            return False
    return True


def compute(
    operation: str, shapes: Shapes, backend: str | None, *arguments: Tensor | None, residuals: str = PACKED
) -> list[Tensor]:
    """Run an operation on canonical tensors; residuals are one tensor, the last result or argument."""
    assert arguments[0] is not None
    platform = arguments[0].device.type
    chosen = pick_backend(backend, platform, "torch")
    return DEVICES[platform].compute(chosen, operation, shapes, arguments, residuals)


def with_dtype_of(v: Tensor, shapes: SomeShapes) -> SomeShapes:
    """Let shapes be those of a call with `v`, which autocast may have cast."""
    if v.dtype == torch_dtype(shapes.value_dtype):
        return shapes
    return replace(shapes, value_dtype=dtype_name(v))


def unpack(problem: Problem, backend: str | None, residuals: Tensor) -> list[Tensor]:
    """View residuals in one piece as the tensors that the ops take."""
    packing = residual_packing(pick_backend(backend, residuals.device.type, "torch"), problem)
    return pieces_of(residuals, packing)
