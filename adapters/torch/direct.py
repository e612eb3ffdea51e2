"""Calls that nobody looks on at: what an op would do, without the dispatcher and options as text.

What the forward pass leaves for the backward pass is one piece of memory here, which is allocated faster than several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from zeta_ops.adapters.operations import kept_packing
from zeta_ops.adapters.torch.devices import DEVICES, Kept
from zeta_ops.adapters.torch.memory import pieces_of
from zeta_ops.arguments import dtype_name
from zeta_ops.options import Shapes

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
        or forward_ad._current_level >= 0
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
            type(x) not in _PLAIN
            or x.device != device
            or x.layout is not torch.strided
            or x.is_neg()
            or torch._C._functorch.is_functorch_wrapped_tensor(x)  # of a transform that is over
        ):
            return False
    return True


def compute(
    operation: str, shapes: Shapes, backend: Any, arguments: Sequence[Tensor | None], kept: Kept
) -> list[Tensor]:
    """Run an operation of a backend on canonical tensors; see `devices.Device.compute`."""
    return DEVICES[arguments[0].device.type].compute(backend, operation, shapes, arguments, kept)  # type: ignore[union-attr]


def with_dtype_of(v: Tensor, shapes: SomeShapes) -> SomeShapes:
    """Let shapes be those of a call with `v`, which autocast may have cast."""
    return _with_value_dtype(shapes, dtype_name(v))


@lru_cache(maxsize=1024)
def _with_value_dtype(shapes: SomeShapes, dtype: str) -> SomeShapes:
    return replace(shapes, value_dtype=dtype)


def unpack(operation: str, shapes: Shapes, backend: Any, kept: Sequence[Tensor]) -> list[Tensor]:
    """View what the forward pass left as the tensors that the ops take: the last one holds several."""
    *apart, packed = kept
    return [*apart, *pieces_of(packed, kept_packing(backend, operation, shapes, len(apart)))]
