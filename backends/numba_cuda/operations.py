"""The operations of the backend, on whatever executes kernels."""

from __future__ import annotations

from collections.abc import Sequence

from zeta_ops.backends import DeviceArray
from zeta_ops.backends.numba_cuda import attention, selection
from zeta_ops.backends.numba_cuda.calls import Call, Runner, call_of, memory_of, quantiser
from zeta_ops.backends.numba_cuda.encode import encode_kernels
from zeta_ops.backends.numba_cuda.sizes import residual_specs
from zeta_ops.options import Problem, Shapes

__all__ = ["launch", "morton_decode", "morton_encode"]

_ARRAYS = {
    "select": ("q", "k", "cu_seqlens", "indices"),
    "search_forward": ("q", "k", "v", "gamma", "cu_seqlens", "out", "normalizer"),
    "search_backward": ("grad_out", "q", "k", "v", "gamma", "cu_seqlens", "normalizer"),
    "given_forward": ("q", "k", "v", "indices", "gamma", "out", "normalizer"),
    "given_backward": ("grad_out", "q", "k", "v", "indices", "gamma", "normalizer"),
}
_GRADIENTS = ("grad_q", "grad_k", "grad_v", "grad_gamma")


def launch(
    operation: str, shapes: Shapes, arrays: Sequence[DeviceArray | None], *, workspace: int, run: Runner
) -> None:
    """Launch an operation on its arrays, in the order of `zeta_ops.backends.DeviceBackend.prepare`."""
    names = _ARRAYS[operation]
    if operation.startswith("search"):
        assert isinstance(shapes, Problem)
        names = *names, *residual_specs(shapes)
    if operation.endswith("backward"):
        names = *names, *_GRADIENTS
    named = dict(zip(names, arrays, strict=True))
    indices = named.get("indices")
    width = indices.shape[-1] if indices is not None and operation.startswith("given") else 0
    call = call_of(operation, shapes, named, workspace, run, width)
    if operation == "given_forward":
        attention.given_forward(call, shapes)
    elif operation == "given_backward":
        attention.given_backward(call, shapes, width)
    else:
        assert isinstance(shapes, Problem)
        _SEARCHES[operation](call, shapes)


_SEARCHES = {
    "select": selection.list_selection,
    "search_forward": attention.forward,
    "search_backward": attention.backward,
}


def morton_encode(
    x: DeviceArray,
    codes: DeviceArray,
    *,
    bits: int,
    bounds: tuple[float, float] | None,
    num_curves: int,
    curve: int,
    run: Runner,
) -> None:
    """Encode points `(n, dk)`."""
    call = Call(None, {"points": memory_of(x), "codes": memory_of(codes)}, run)
    numbers = {"bits": bits, "linear": int(bounds is not None), "curves": num_curves, "curve": curve}
    kernel = encode_kernels(x.shape[-1])["morton_encode_kernel"]
    call.each(kernel, codes.shape[0], count=codes.shape[0], **numbers, **quantiser(bounds))


def morton_decode(codes: DeviceArray, cells: DeviceArray, *, dims: int, bits: int, run: Runner) -> None:
    """Decode to cells `(n, dims)`."""
    call = Call(None, {"codes": memory_of(codes), "cells": memory_of(cells)}, run)
    call.each(encode_kernels(dims)["morton_decode_kernel"], codes.shape[0], count=codes.shape[0], bits=bits)
